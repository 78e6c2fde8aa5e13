"""Controls' files: found by their names and settings, read as diffusers reads them, and written back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from network_recipes import drawn, normal, randomised
from published_parts import shapes_of, write_hollow
from safetensors.torch import load_file, save_file

import sfumato
from sfumato.checkpoints import compvis_writing, controlnet, diffusers
from sfumato.checkpoints.controlled import controlled
from sfumato.checkpoints.load import format_of
from sfumato.control.controlnet import ControlNet, transferred
from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput, KeyMismatch
from sfumato.core.prediction import Velocity
from sfumato.guidance.control_scale import ControlScale
from sfumato.interfaces.looking import inspect
from sfumato.model import Model
from sfumato.networks.sd_unet import SDUNet
from sfumato.processes.flow import Flow
from sfumato.registry import build, describe
from sfumato.spaces.pixel import Pixel

SIZES = {"sd1": (340, 361_279_120), "sd2": (340, 364_228_240), "sdxl": (0, 1_251_014_160)}
TINY: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 12,
    "conditioning_embedding_out_channels": (16, 24, 32),
}
XL: dict[str, Any] = {
    **TINY,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (2, 4, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 8 + 6 * 256,
    "conditioning_channels": 1,
    "global_pool_conditions": True,
}


def hollow(name: str) -> ControlNet:
    with torch.device("meta"):
        return ControlNet.published(name)


@pytest.mark.parametrize("form", ["control_model", "bare", "diffusers"])
@pytest.mark.parametrize("name", sorted(SIZES))
def test_a_published_file(name: str, form: str, tmp_path: Path) -> None:
    """Every tensor fits, the settings are the published ones, and one name more or less is told."""
    from sfumato.checkpoints.controlnet_keys import table

    shapes = shapes_of(hollow(name))
    if form == "diffusers":
        shapes = {row.theirs[0]: shapes[row.ours] for row in table(shapes)}
    elif form == "control_model":
        shapes = {f"control_model.{key}": shape for key, shape in shapes.items()}
    file = tmp_path / "control.safetensors"
    write_hollow(file, shapes)
    assert format_of(file) == "controlnet"
    report = controlnet.report(file)
    keys = report.keys()
    assert keys.exact, str(keys)
    tensors, count = SIZES[name]
    assert len(keys.matched) == (tensors or len(keys.matched))
    assert sum(torch.Size(shape).numel() for shape in report.pieces[0].shapes.values()) == count
    with torch.device("meta"):
        found = build("control", report.description["control"])
    assert describe(found) == describe(hollow(name))
    some = sorted(shapes)[40]
    write_hollow(file, {**{key: shape for key, shape in shapes.items() if key != some}, "odd.weight": (3,)})
    told = controlnet.report(file).keys()
    assert (len(told.missing), len(told.unexpected)) == (1, 1)
    with pytest.raises(KeyMismatch, match="1 missing"):
        sfumato.load(file)


@pytest.fixture(params=[TINY, XL], ids=["sd1", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    """A tiny control that diffusers made and saved, and itself."""
    from diffusers import ControlNetModel

    theirs = ControlNetModel(**request.param).eval()
    theirs.load_state_dict(drawn(theirs.state_dict(), 1))
    theirs.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs", theirs


@torch.no_grad()
def test_a_folder_of_diffusers_there_and_back(folder: tuple[Path, Any], tmp_path: Path) -> None:
    from diffusers import ControlNetModel

    root, reference = folder
    model = sfumato.load(root)
    control = model.denoiser.network
    assert isinstance(control, ControlNet)
    assert control.pooled == reference.config.global_pool_conditions
    x, time = normal(2, 4, 8, 8), torch.tensor([3.0, 950.0])
    tokens, hint = normal(2, 5, 12, seed=1), normal(2, control.hint_channels, 32, 32, seed=2)
    told: dict[str, Any] = {}
    vector = None
    if control.vector:
        from sfumato.networks.layers.embedding import sinusoid

        pooled, sizes = normal(2, 8, seed=3), torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
        told["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
        vector = torch.cat((pooled, sinusoid(sizes.flatten(), 256).view(2, -1)), dim=1)
    ours = control(x, time, Condition(tokens=tokens, vector=vector), hint)
    down, middle = reference(x, time, tokens, hint, return_dict=False, **told)
    for mine, theirs in zip(ours, (*down, middle), strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    # Written as a folder: the same bytes under the same names, which diffusers loads.
    diffusers.write(model, tmp_path / "ours")
    again = ControlNetModel.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in reference.state_dict().items())
    for mine, theirs in zip(again(x, time, tokens, hint, return_dict=False, **told)[0], down, strict=True):
        assert torch.equal(mine, theirs)
    # As one file, in the names of the released ones; heads and averaging are to be said again.
    compvis_writing.write(model, tmp_path / "ours.safetensors")
    assert all(name.startswith("control_model.") for name in load_file(tmp_path / "ours.safetensors"))
    said = {"heads": 4} if not control.vector else {"pooled": True}
    single = sfumato.load(tmp_path / "ours.safetensors", **said).denoiser.network
    if not control.vector:
        both = zip(single(x, time, Condition(tokens=tokens, vector=vector), hint), ours, strict=True)
        assert all(torch.equal(a, b) for a, b in both)
    assert all(torch.equal(t, single.state_dict()[n]) for n, t in control.state_dict().items())
    assert single.pooled == control.pooled
    # The weights of a folder alone: its configuration is beside them, and where it is not, the shapes tell.
    beside = sfumato.load(root / "diffusion_pytorch_model.safetensors").denoiser.network
    assert describe(beside) == describe(control)
    (root / "diffusion_pytorch_model.safetensors").rename(tmp_path / "bare.safetensors")
    bare = sfumato.load(tmp_path / "bare.safetensors").denoiser.network
    assert all(torch.equal(t, bare.state_dict()[n]) for n, t in control.state_dict().items())


@torch.no_grad()
def test_the_native_format_and_what_a_part_alone_does_not_do(
    folder: tuple[Path, Any], tmp_path: Path
) -> None:
    model = sfumato.load(folder[0])
    sfumato.save(model, tmp_path / "m")
    again = sfumato.load(tmp_path / "m")
    assert again.describe() == model.describe()
    assert list(model.describe()) == ["control"]
    held = model.denoiser.network.state_dict()
    assert all(torch.equal(t, held[n]) for n, t in again.denoiser.network.state_dict().items())
    with pytest.raises(InvalidInput, match="a control alone makes no pictures"):
        sfumato.generate(again)
    told = inspect(folder[0])
    assert told["format"] == "controlnet"
    assert "tensors fit" in told["keys"]


def test_what_is_no_control_is_named(folder: tuple[Path, Any], tmp_path: Path) -> None:
    root, reference = folder
    config = json.loads((root / "config.json").read_text())
    for key, value, match in (
        ("controlnet_conditioning_channel_order", "bgr", "channel_order"),
        ("cross_attention_dimm", 3, "cross_attention_dim"),
        ("encoder_hid_dim", 4, r"controlnet\.config\.encoder_hid_dim"),
    ):
        (root / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(InvalidInput, match=match):
            controlnet.report(root)
    shapes = {name: tuple(t.shape) for name, t in reference.state_dict().items()}
    del shapes["conv_in.weight"]
    write_hollow(tmp_path / "odd.safetensors", shapes)
    with pytest.raises(InvalidInput, match="no control"):
        sfumato.load(tmp_path / "odd.safetensors")
    lora = {"control_model.input_hint_block.0.weight": (16, 3, 3, 3), "lora_controlnet": (0,)}
    write_hollow(tmp_path / "lora.safetensors", {**lora, "control_model.zero_convs.0.0.weight": (8, 8, 1, 1)})
    with pytest.raises(InvalidInput, match="control-lora"):
        sfumato.load(tmp_path / "lora.safetensors")


def base(seed: int = 0, **changed: Any) -> Model:
    """Pictures of 16 pixels told nothing."""
    settings = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "heads": 4}
    network = randomised(SDUNet(**{**settings, "in_channels": 3, "out_channels": 3, **changed}), seed)
    denoiser = NetworkDenoiser(network, Flow(), Velocity(), "thousand").eval()
    return Model(denoiser, build("conditioner", "nothing"), Pixel(multiple=2), {"size": [16, 16], "steps": 2})


def alone(network: SDUNet, seed: int, path: Path, **said: Any) -> Model:
    """A control of a network, with weights of its own, written and read."""
    control = randomised(ControlNet.of(network, factor=1, **said), seed)
    with_one = {f"control_model.{name}": tensor for name, tensor in control.state_dict().items()}
    save_file(with_one, path)
    return sfumato.load(path, heads=network.heads)


@torch.no_grad()
def test_a_model_joined_with_controls(tmp_path: Path) -> None:
    model = base()
    network: Any = model.denoiser.network
    first, second = (
        alone(network, seed, tmp_path / f"{seed}.safetensors", hint_channels=c)
        for seed, c in ((1, 3), (2, 1))
    )
    model.card["hash"] = "0" * 64
    joined = controlled(model, first)
    assert joined.denoiser.network.network is network
    picture, grey = normal(3, 16, 16).clamp(-1, 1), normal(1, 16, 16).clamp(-1, 1)
    one = sfumato.generate(joined, hint=picture, seed=3).tensor
    plain = sfumato.generate(model, seed=3).tensor
    assert (one - plain).abs().max() > 1e-3
    assert torch.equal(sfumato.generate(joined, seed=3).tensor, plain)
    assert len(joined.card["hash"]) == 64
    assert joined.card["hash"] not in (model.card["hash"], first.card["hash"])
    assert joined.card["controls"] == ["1"]
    # Step by step or at once; each of its own name and colours.
    both = controlled(model, [first, second], ("edges", "depth"))
    stepwise = controlled(controlled(model, first, "edges"), second, "depth")
    assert stepwise.describe() == both.describe()
    assert both.conditioner.colors == (3, 1)
    told = {"edges": picture, "depth": grey, "seed": 3}
    assert torch.equal(sfumato.generate(both, **told).tensor, sfumato.generate(stepwise, **told).tensor)
    silent = sfumato.generate(both, **told, guidance=[ControlScale((1.0, 0.0))]).tensor
    torch.testing.assert_close(silent, one)
    assert controlled(controlled(model, first), second).conditioner.names == ("hint", "hint_2")
    # Another base of the same shape, with the same file.
    other = base(seed=7)
    assert (sfumato.generate(controlled(other, first), hint=picture, seed=3).tensor - one).abs().max() > 1e-3
    sfumato.save(both, tmp_path / "both")
    again = sfumato.load(tmp_path / "both")
    assert torch.equal(sfumato.generate(again, **told).tensor, sfumato.generate(both, **told).tensor)


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    model = base()
    control = alone(model.denoiser.network, 1, tmp_path / "c.safetensors")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="a control with tokens 0 for a SDUNet with 12"):
        controlled(base(tokens=12), control)
    packed = base(in_channels=12, out_channels=12)
    packed.space = Pixel(multiple=4, patch=2)
    with pytest.raises(InvalidInput, match="a control of 1 pixels a place for a model of 2"):
        controlled(packed, control)
    with pytest.raises(InvalidInput, match="a model without a control"):
        controlled(model, model)
    with pytest.raises(InvalidInput, match="a part alone"):
        controlled(control, control)
    with pytest.raises(InvalidInput, match="2 names for 1 controls"):
        controlled(model, control, ("a", "b"))
    with pytest.raises(InvalidInput, match="Linear is no control"):
        controlled(model, torch.nn.Linear(1, 1))


@torch.no_grad()
def test_transferred_weights() -> None:
    """What fine-tuning changed in the base is changed in the copy; of the base itself nothing is."""
    old, new = (base(seed).denoiser.network for seed in (0, 7))
    control = randomised(ControlNet.of(old, factor=1), 3)  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in control.state_dict().items()}
    moved = transferred(control, old, new).state_dict()  # type: ignore[arg-type]
    shared = set(before) & set(old.state_dict())
    for name, tensor in moved.items():
        change = new.state_dict()[name] - old.state_dict()[name] if name in shared else 0
        torch.testing.assert_close(tensor, before[name] + change)
        assert torch.equal(control.state_dict()[name], before[name])
    # A fresh control of the old becomes the fresh control of the new.
    fresh = transferred(ControlNet.of(old, factor=1), old, new).state_dict()  # type: ignore[arg-type]
    assert all(torch.equal(fresh[name], new.state_dict()[name]) for name in shared)
    with pytest.raises(InvalidInput, match="another shape"):
        transferred(control, old, base(channels=64).denoiser.network)  # type: ignore[arg-type]
