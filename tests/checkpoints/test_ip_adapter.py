"""Adapters for image prompts: released files in both forms, the image tower's folder, and a joined model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from network_recipes import drawn, normal, randomised
from published_parts import shapes_of, write_hollow
from safetensors.torch import save_file

import sfumato
from sfumato.checkpoints import ip_adapter
from sfumato.checkpoints.controlled import controlled
from sfumato.checkpoints.load import format_of
from sfumato.checkpoints.prompted import prompted
from sfumato.conditioners.image_clip import ImageCLIP
from sfumato.control.controlnet import ControlNet
from sfumato.control.ip_adapter import PUBLISHED, IPAdapter
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.prediction import Velocity
from sfumato.encoders.clip_image import ClipImage
from sfumato.model import Model
from sfumato.networks.sd_unet import SDUNet
from sfumato.processes.flow import Flow
from sfumato.registry import build, describe
from sfumato.spaces.pixel import Pixel


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_file(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        adapter = IPAdapter.published(name)
    shapes = shapes_of(adapter)
    file = tmp_path / "ip-adapter.safetensors"
    write_hollow(file, shapes)
    assert format_of(file) == "ip_adapter"
    report = ip_adapter.report(file)
    assert report.keys().exact, str(report.keys())
    with torch.device("meta"):
        assert describe(build("control", report.description["control"])) == describe(adapter)
    write_hollow(file, {**shapes, "ip_adapter.1.to_k_ip.bias": (3,)})
    assert report.keys().exact
    assert ip_adapter.report(file).keys().unexpected == ("network.ip_adapter.1.to_k_ip.bias",)
    write_hollow(file, {**shapes, "ip_adapter.0.to_q_lora.down.weight": (8, 8)})
    with pytest.raises(InvalidInput, match="FaceID"):
        ip_adapter.report(file)


def base() -> Model:
    """Pictures of 16 pixels under text in small states."""
    settings = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "heads": 4}
    network = randomised(SDUNet(**settings, in_channels=3, out_channels=3, tokens=16))
    conditioner = build(
        "conditioner",
        {
            "name": "text_small",
            "encoder": {
                "name": "text_small",
                "tokenizer": {"name": "word_piece"},
                "width": 16,
                "depth": 1,
                "heads": 2,
            },
        },
    )
    denoiser = NetworkDenoiser(network, Flow(), Velocity(), "thousand").eval()
    return Model(denoiser, conditioner, Pixel(multiple=2), {"size": [16, 16], "steps": 2})


TOWER = {"size": 16, "patch": 8, "width": 32, "depth": 3, "heads": 2, "projection": 10}


def adapter_file(network: Any, path: Path, **settings: Any) -> dict[str, torch.Tensor]:
    adapter = IPAdapter.of(network, **{"seen": 10, **settings})
    weights = drawn(adapter.state_dict(), 5)
    parts: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in weights.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    save_file(weights, path.with_suffix(".safetensors"))
    torch.save(parts, path.with_suffix(".bin"))
    return weights


@torch.no_grad()
def test_both_forms_of_a_file_and_the_native_one(tmp_path: Path) -> None:
    weights = adapter_file(base().denoiser.network, tmp_path / "a")
    for name in ("a.safetensors", "a.bin"):
        model = sfumato.load(tmp_path / name)
        held = model.denoiser.network.state_dict()
        assert held.keys() == weights.keys()
        assert all(torch.equal(held[key], tensor) for key, tensor in weights.items())
    sfumato.save(model, tmp_path / "own")
    again = sfumato.load(tmp_path / "own")
    assert again.describe() == model.describe()
    with pytest.raises(InvalidInput, match="a control alone makes no pictures"):
        sfumato.generate(again)


@torch.no_grad()
def test_the_image_towers_folder(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=16,
        patch_size=8, projection_dim=10, hidden_act="gelu",
    )  # fmt: skip
    reference = CLIPVisionModelWithProjection(config).eval()
    reference.save_pretrained(tmp_path / "image_encoder")
    model = sfumato.load(tmp_path / "image_encoder")
    tower = model.denoiser.network
    assert isinstance(tower, ClipImage)
    x = normal(2, 3, 16, 16)
    theirs = reference(x, output_hidden_states=True)
    torch.testing.assert_close(tower(x).pooled, theirs.image_embeds, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tower.hidden_states(x)[-2], theirs.hidden_states[-2], rtol=1e-5, atol=1e-5)
    said = json.loads((tmp_path / "image_encoder" / "config.json").read_text())
    (tmp_path / "image_encoder" / "config.json").write_text(json.dumps({**said, "num_channels": 4}))
    with pytest.raises(InvalidInput, match=r"image_encoder\.num_channels"):
        sfumato.load(tmp_path / "image_encoder")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "resampler"])
def test_a_joined_model(kind: str, tmp_path: Path) -> None:
    model = base()
    plus = {"projection": "resampler", "seen": 32, "count": 5, "width": 24, "depth": 1, "heads": 1}
    adapter_file(model.denoiser.network, tmp_path / "a", **(plus if kind == "resampler" else {}))
    adapter = sfumato.load(tmp_path / "a.bin")
    tower = randomised(ClipImage(**TOWER))
    joined = prompted(model, adapter, tower)
    picture, other = (normal(3, 20, 24, seed=seed).clamp(-1, 1) for seed in (3, 4))
    told: dict[str, Any] = {"prompt": "a red apple", "seeds": [1, 2], "guidance": 3.0}
    plain = sfumato.generate(model, **told).tensor
    assert torch.equal(sfumato.generate(joined, **told).tensor, plain)
    assert torch.equal(
        sfumato.generate(joined, **told, image_prompt=picture, image_strength=0.0).tensor, plain
    )
    full = sfumato.generate(joined, **told, image_prompt=picture).tensor
    assert (full - plain).abs().max() > 1e-3
    # Row by row: none, one picture weakly, and each as it is alone.
    mixed = sfumato.generate(joined, **told, image_prompt=[None, picture], image_strength=[1.0, 1.0]).tensor
    torch.testing.assert_close(mixed, torch.stack((plain[0], full[1])), rtol=1e-4, atol=1e-4)
    half = sfumato.generate(joined, **told, image_prompt=[other, picture], image_strength=[0.3, 1.0]).tensor
    torch.testing.assert_close(half[1], full[1], rtol=1e-4, atol=1e-4)
    assert (half[0] - full[0]).abs().max() > 1e-3
    # A negative prompt that is the empty one is as none: the picture is unsaid there all the same.
    negative = {"prompt": None}
    denied = sfumato.generate(joined, **told, image_prompt=picture, negative=negative).tensor
    torch.testing.assert_close(denied, full, rtol=1e-5, atol=1e-5)
    # With a control of hints, joined before or after: the same.
    control = randomised(ControlNet.of(model.denoiser.network, factor=1))  # type: ignore[arg-type]
    before, after = prompted(controlled(model, control), adapter, tower), controlled(joined, control)
    images = [
        sfumato.generate(each, **told, image_prompt=picture, hint=normal(3, 16, 16).clamp(-1, 1)).tensor
        for each in (before, after)
    ]
    assert torch.equal(*images)
    assert (images[0] - full).abs().max() > 1e-3
    sfumato.save(after, tmp_path / "all")
    again = sfumato.load(tmp_path / "all")
    assert torch.equal(sfumato.generate(again, **told, image_prompt=picture).tensor, full)


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    model = base()
    adapter = IPAdapter.of(model.denoiser.network, seen=12)
    tower = ClipImage(**TOWER)
    with pytest.raises(InvalidInput, match="an adapter of 12 numbers for a tower of 10"):
        prompted(model, adapter, tower)
    fitting = IPAdapter.of(model.denoiser.network, seen=10)
    joined = prompted(model, fitting, tower)
    with pytest.raises(InvalidInput, match="takes image tokens already"):
        prompted(joined, fitting, tower)
    with pytest.raises(InvalidInput, match="no ClipImage alone"):
        prompted(model, fitting, model)
    with pytest.raises(InvalidInput, match="'much' is no strength"):
        sfumato.generate(joined, prompt="a", image_strength="much")
    with pytest.raises(InvalidInput, match="image_prompt"):
        sfumato.generate(joined, prompt="a", image_prompt=torch.zeros(1, 2, 2))


@torch.no_grad()
def test_what_the_null_says() -> None:
    """A vector of zeros, or the states of the mean colour; as strong as the picture was."""
    tower = randomised(ClipImage(**TOWER))
    picture = normal(3, 16, 16).clamp(-1, 1)
    for states in (False, True):
        conditioner = ImageCLIP(tower, states, strength=0.7)
        told = conditioner(2, image_prompt=[picture, None])
        tokens = told.image_tokens
        assert tokens is not None
        seen = (
            tower.hidden_states(tower.prepare(picture[None]))[-2]
            if states
            else tower(tower.prepare(picture[None])).pooled[:, None]
        )
        torch.testing.assert_close(tokens[:1, :, :-1], seen)
        assert not tokens[1].any()
        null = conditioner.null(told).image_tokens
        blank = tower.hidden_states(torch.zeros(1, 3, 16, 16))[-2] if states else torch.zeros(1, 1, 10)
        torch.testing.assert_close(null[..., :-1], blank.expand(2, -1, -1))
        assert torch.equal(null[..., -1], tokens[..., -1])
        assert tokens[0, 0, -1] == pytest.approx(0.7)
        unsaid = conditioner(2, image_prompt=[picture, None], image_unsaid=True).image_tokens
        assert torch.equal(unsaid, null)
        assert conditioner(2).image_tokens is None
        assert conditioner(2, image_unsaid=True).image_tokens is None
