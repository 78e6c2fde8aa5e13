"""Pipelines with controls: their pictures by diffusers and here, their folders and files there and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
from PIL import Image
from sd_cases import Case, apart, ours, picture, same, tensors, theirs
from sd_recipes import seeded, shaken, unet

import sfumato
from sfumato.checkpoints import compvis_writing
from sfumato.checkpoints import diffusers as folders
from sfumato.checkpoints.controlled import controlled, separated
from sfumato.checkpoints.controlnet_keys import from_diffusers, settings
from sfumato.checkpoints.prompted import prompted
from sfumato.control.ip_adapter import IPAdapter
from sfumato.core.errors import InvalidInput
from sfumato.guidance.classifier_free import ClassifierFree
from sfumato.guidance.control_scale import ControlScale
from sfumato.registry import build


@seeded
def control(unet: Any, seed: int) -> Any:
    """diffusers' control of a U-Net, whose hints are twice as large as its latents."""
    made = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    return shaken(made, seed)


def piped(case: Case, controls: Any) -> Any:
    kind = "StableDiffusionXLControlNetPipeline" if case.kind == "xl" else "StableDiffusionControlNetPipeline"
    parts = {k: v for k, v in case.pipe.components.items() if k not in ("image_encoder",)}
    if case.kind == "xl":
        parts.pop("feature_extractor")
        parts["add_watermarker"] = False
    else:
        parts["requires_safety_checker"] = False
    pipe = getattr(diffusers, kind)(**parts, controlnet=controls)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("kind", ["sd1", "sd2", "xl"])
def test_pictures_with_a_control(kind: str, cases: Callable[[str], Case], tmp_path: Path) -> None:
    case = cases(kind)
    reference = control(case.pipe.unet, 11)
    reference.save_pretrained(tmp_path / "control")
    guide = sfumato.load(tmp_path / "control")
    joined = controlled(case.model, guide)
    hint = picture(5)
    sampler = "ddim" if kind == "sd1" else "euler"
    pipe = piped(case, reference)
    told = {"image": (hint + 1) / 2, "controlnet_conditioning_scale": 0.8}
    told |= {"height": 32, "width": 32}
    other = theirs(case, sampler, 3, pipe=pipe, **told)
    guidance = [ControlScale(0.8), ClassifierFree(7.5)]
    mine = ours(case, sampler, 3, guidance, model=joined, hint=list(hint))
    plain = ours(case, sampler, 3)
    assert apart(mine, other) <= 1e-4
    assert apart(mine, plain) > 0.01
    # The whole pipeline's folder is read as what was joined, and written as what diffusers loads.
    pipe.save_pretrained(tmp_path / "whole")
    whole = sfumato.load(tmp_path / "whole")
    assert same(tensors(whole), tensors(joined))
    assert whole.describe() == joined.describe()
    folders.write(joined, tmp_path / "again")
    back = type(pipe).from_pretrained(tmp_path / "again", local_files_only=True)
    assert all(torch.equal(t, back.controlnet.state_dict()[n]) for n, t in reference.state_dict().items())
    if kind == "sd1":
        # As the first released ones: the control beside all the rest in one file.
        compvis_writing.write(case.model, tmp_path / "plain.safetensors")
        compvis_writing.write(joined, tmp_path / "one.safetensors")
        single = sfumato.load(tmp_path / "one.safetensors")
        assert same(tensors(single), tensors(joined))
        assert same(tensors(controlled(sfumato.load(tmp_path / "plain.safetensors"), guide)), tensors(joined))


def test_pictures_told_boxes(cases: Callable[[str], Case], tmp_path: Path) -> None:
    """GLIGEN's pipeline, whose folder is read; boxes heeded in the whole of the walk by both."""
    case = cases("sd1")
    parts = {k: v for k, v in case.pipe.components.items() if k != "image_encoder"}
    parts["unet"] = unet(attention_type="gated")
    gates = [
        p for name, p in parts["unet"].named_parameters() if name.endswith(("alpha_attn", "alpha_dense"))
    ]
    assert gates
    for gate in gates:
        torch.nn.init.constant_(gate, 0.7)
    pipe = diffusers.StableDiffusionGLIGENPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "whole")
    model = sfumato.load(tmp_path / "whole")
    assert model.denoiser.network.control.share == 0.3
    model.denoiser.network.control.share = 1.0
    told = {"gligen_phrases": ["a cat", "kite"], "gligen_boxes": [[0.1, 0.2, 0.6, 0.9], [0.5, 0.0, 1.0, 0.5]]}
    told |= {"gligen_scheduled_sampling_beta": 1.0, "height": 32, "width": 32}
    other = theirs(case, "ddim", 3, pipe=pipe, **told)
    boxes = [
        {"label": "a cat", "box": [0.1, 0.2, 0.5, 0.7]},
        {"label": "kite", "box": [0.5, 0.0, 0.5, 0.5]},
    ]
    mine = ours(case, "ddim", 3, model=model, boxes=boxes)
    assert apart(mine, other) <= 1e-4
    assert apart(mine, ours(case, "ddim", 3, model=model)) > 0.01


def test_several_controls(cases: Callable[[str], Case], tmp_path: Path) -> None:
    case = cases("sd1")
    first, second = control(case.pipe.unet, 11), control(case.pipe.unet, 12)
    pipe = piped(case, [first, second])
    pipe.save_pretrained(tmp_path / "both")
    model = sfumato.load(tmp_path / "both")
    a, b = picture(5), picture(6)
    other = theirs(
        case,
        "ddim",
        2,
        pipe=pipe,
        image=[(a + 1) / 2, (b + 1) / 2],
        controlnet_conditioning_scale=[1.0, 0.5],
        height=32,
        width=32,
    )
    guidance = [ControlScale((1.0, 0.5)), ClassifierFree(7.5)]
    mine = ours(case, "ddim", 2, guidance, model=model, hint=list(a), hint_2=list(b))
    assert apart(mine, other) <= 1e-4
    folders.write(model, tmp_path / "again")
    assert same(tensors(sfumato.load(tmp_path / "again")), tensors(model))
    base, parts = separated(model)
    assert list(parts) == ["hint", "hint_2"]
    assert same(tensors(base), tensors(case.model))
    with pytest.raises(InvalidInput, match="no place for 2 controls"):
        compvis_writing.write(model, tmp_path / "one.safetensors")


def test_a_control_of_four_channels_beside_an_inpainting_network(cases: Callable[[str], Case]) -> None:
    """It is not shown the masked picture that the network is: no class of its own is needed for that."""
    case = cases("inpaint")
    reference = control(cases("sd1").pipe.unet, 11)
    kind = diffusers.StableDiffusionControlNetInpaintPipeline
    parts = {k: v for k, v in case.pipe.components.items() if k != "image_encoder"}
    pipe = kind(**parts, controlnet=reference, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    hint = picture(5)
    other = theirs(
        case, "ddim", 3, pipe=pipe, control_image=(hint + 1) / 2, controlnet_conditioning_scale=1.0
    )
    held = from_diffusers(reference.state_dict())
    described = {**settings({n: tuple(t.shape) for n, t in held.items()}), "heads": 8, "head_channels": 0}
    own = build("control", described)
    own.load_state_dict(held)
    model = controlled(case.model, own)
    mine = ours(case, "ddim", 3, model=model, hint=list(hint))
    hole = torch.zeros(2, 1, 32, 32)
    hole[0, :, 5:20, 8:31], hole[1, :, :, 16:] = 1, 1
    assert apart(mine.where(hole > 0, other), other) <= 1e-4
    assert apart(mine, ours(case, "ddim", 3)) > 0.01


def test_pictures_of_an_image_prompt(cases: Callable[[str], Case], tmp_path: Path) -> None:
    """A picture at .6 of its strength, with a negative prompt, by diffusers and here."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    case = cases("sd1")
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=32,
        patch_size=8, projection_dim=10, hidden_act="gelu",
    )  # fmt: skip
    tower = shaken(CLIPVisionModelWithProjection(config), 5)
    tower.save_pretrained(tmp_path / "image_encoder")
    adapter = shaken(IPAdapter.of(case.model.denoiser.network, seen=10), 6)
    parts: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in adapter.state_dict().items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    torch.save(parts, tmp_path / "ip.bin")
    model = prompted(case.model, sfumato.load(tmp_path / "ip.bin"), sfumato.load(tmp_path / "image_encoder"))
    unet = diffusers.UNet2DConditionModel.from_config(case.pipe.unet.config)
    unet.load_state_dict(case.pipe.unet.state_dict())
    unet._load_ip_adapter_weights([parts], low_cpu_mem_usage=False)
    held = {k: v for k, v in case.pipe.components.items() if k not in ("image_encoder", "feature_extractor")}
    extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pipe = diffusers.StableDiffusionPipeline(
        **{**held, "unet": unet.eval()}, image_encoder=tower, feature_extractor=extractor,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    pipe.set_ip_adapter_scale(0.6)
    # One picture for both prompts: of several theirs makes more tokens of each, not one picture a row.
    bytes_of = ((picture(8)[0] + 1) * 127.5).round().byte()
    shown = Image.fromarray(bytes_of.permute(1, 2, 0).numpy())
    other = theirs(case, "ddim", 3, pipe=pipe, ip_adapter_image=shown)
    mine = ours(case, "ddim", 3, model=model, image_prompt=shown, image_strength=0.6)
    assert apart(mine, other) <= 1e-4
    assert apart(mine, ours(case, "ddim", 3)) > 0.01
