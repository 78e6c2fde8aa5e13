"""Parts that a run takes from other runs: their settings and weights, to the bit, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato
from sfumato.core.alone import Coder, Reader
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.encoders.word_piece import WordPiece
from sfumato.model import Model
from sfumato.registry import describe
from sfumato.training.run_file import Run

WORDS: dict[str, Any] = {
    "name": "text_small",
    "width": 16,
    "depth": 1,
    "heads": 2,
    "dim_head": 8,
    "length": 8,
}
VOCABULARY = describe(WordPiece.of(["a red apple", "a cat"]))


def encoder(tmp_path: Path) -> Model:
    torch.manual_seed(3)
    model = Model.from_description({"encoder": {**WORDS, "tokenizer": VOCABULARY}})
    sfumato.save(model, tmp_path / "words")
    return model


def run(**conditioner: Any) -> Run:
    network = {"name": "sd_unet", "in_channels": 3, "out_channels": 3, "channels": 32, "multipliers": [1, 1]}
    network |= {"blocks": 1, "attention": [1], "heads": 2, "tokens": 16, "vector": 16}
    model = {"network": network, "process": "flow", "prediction": "data", "conditioner": conditioner}
    return Run(model=model, data={"name": "emoji", "size": 16})


def test_an_encoder_alone_is_saved_loaded_and_makes_no_pictures(tmp_path: Path) -> None:
    model = encoder(tmp_path)
    again = sfumato.load(tmp_path / "words")
    assert isinstance(again.denoiser, Reader)
    assert again.describe() == model.describe()
    for name, tensor in model.denoiser.network.state_dict().items():
        assert torch.equal(again.denoiser.network.state_dict()[name], tensor)
    with pytest.raises(InvalidInput, match="an encoder alone makes no pictures"):
        sfumato.generate(again)


def test_a_conditioner_takes_a_trained_encoder_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    trained = encoder(tmp_path).denoiser.network
    model = run(
        name="text_small", pooled=True, frozen=True, encoder={"from": str(tmp_path / "words")}
    ).build_model()
    held = model.conditioner.encoder
    assert held.tokenizer == trained.tokenizer
    for name, tensor in trained.state_dict().items():
        assert torch.equal(held.state_dict()[name], tensor)
    assert not any(parameter.requires_grad for parameter in held.parameters())
    assert any(parameter.requires_grad for parameter in model.denoiser.parameters())
    ids, real = trained.lay(["a cat"])
    assert torch.equal(model.conditioner(1, prompt="a cat").tokens, trained(ids, real))


def test_one_part_of_several_takes_its_own_encoder(tmp_path: Path) -> None:
    trained = encoder(tmp_path).denoiser.network
    text = {"name": "text_small", "encoder": {"from": str(tmp_path / "words")}}
    label = {"name": "class_label", "labels": {"style": [str(i) for i in range(16)]}}
    model = run(name="together", parts=[label, text]).build_model()
    held = model.conditioner.parts[1].encoder
    assert torch.equal(held.token_emb.weight, trained.token_emb.weight)
    assert all(parameter.requires_grad for parameter in held.parameters())


def test_a_tower_takes_a_trained_encoder(tmp_path: Path) -> None:
    trained = encoder(tmp_path).denoiser.network
    text = {"from": str(tmp_path / "words")}
    model = Run(
        model={"encoder": {"name": "clip_features", "text": text}},
        data={"name": "emoji", "size": 16},
        objective={"name": "clip"},
    ).build_model()
    held = model.denoiser.network.text
    for name, tensor in trained.state_dict().items():
        assert torch.equal(held.state_dict()[name], tensor)


def test_what_is_no_encoder_and_what_is_said_beside_it_are_refused(tmp_path: Path) -> None:
    folder = str(tmp_path / "coder")
    sfumato.save(Model.from_description({"autoencoder": {"name": "tiny", "width": 8}}), folder)
    assert isinstance(sfumato.load(folder).denoiser, Coder)
    with pytest.raises(InvalidInput, match="holds a model, but no encoder alone"):
        run(name="text_small", encoder={"from": folder}).build_model()
    encoder(tmp_path)
    beside = {"from": str(tmp_path / "words"), "width": 8}
    with pytest.raises(InvalidInput, match=r"model\.conditioner\.encoder: say `from` and a folder"):
        run(name="text_small", encoder=beside).build_model()


def test_a_run_goes_on_from_a_model_without_saying_what_it_is(tmp_path: Path) -> None:
    first = run(name="text_small", pooled=True, encoder={**WORDS, "tokenizer": VOCABULARY}).build_model()
    first.card.update(steps=7, size=[16, 16], hash="of other weights", metrics={"measured": "once"})
    with torch.no_grad():
        for part in first.modules().values():
            for parameter in part.parameters():
                parameter.add_(0.25)
    sfumato.save(first, tmp_path / "first")
    start = str(tmp_path / "first")
    again = Run(start=start, data={"name": "emoji", "size": 16}, card={"steps": 9}).build_model()
    assert again.describe() == first.describe()
    for prefix, part in first.modules().items():
        for name, tensor in part.state_dict().items():
            assert torch.equal(again.modules()[prefix].state_dict()[name], tensor)
    assert any(parameter.requires_grad for parameter in again.denoiser.network.parameters())
    # What was measured of other weights is not said of these.
    assert again.card == {"steps": 9, "size": [16, 16]}
    encoder(tmp_path)
    with pytest.raises(InvalidInput, match="an encoder is not trained by denoising"):
        Run(start=str(tmp_path / "words"), data={"name": "emoji", "size": 16}).build_model()
    with pytest.raises(NotFound):
        Run(start=str(tmp_path / "none"), data={"name": "emoji", "size": 16}).build_model()
