"""Every control with every edit, sampler and guidance: each keeps its promise whatever the others are."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from network_recipes import randomised
from prompted_recipes import network, prompted, small
from torch import Tensor, nn

import sfumato
from sfumato.conditioners.grounding import grounding_tokens
from sfumato.conditioners.hints import Hints
from sfumato.conditioners.together import Together
from sfumato.control.controlnet import ControlNet
from sfumato.control.gligen import Gligen
from sfumato.control.ip_adapter import IPAdapter
from sfumato.control.t2i_adapter import T2IAdapter
from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.editing.inverted import Inverted
from sfumato.editing.prompt_to_prompt import PromptToPrompt
from sfumato.model import Model
from sfumato.networks.controlled import Controlled
from sfumato.networks.hooked import Hooked

CONTROLS = ("controlnet", "t2i_adapter", "ip_adapter", "gligen")
EDITS = ("image_to_image", "inpaint", "prompt_to_prompt", "inverted")
SAMPLERS = ("euler", "dpm_solver_pp", "euler_ancestral")
GUIDANCE: tuple[Any, ...] = (
    1.0,
    [{"name": "classifier_free", "scale": 3.0}, {"name": "rescale", "scale": 2.0}],
)
STEPS = 3
PICTURE = torch.linspace(-1, 1, 3 * 64).view(3, 8, 8).roll(1, 0)
MASK = torch.zeros(1, 8, 8)
MASK[:, :, 4:] = 1
HEARD = torch.linspace(0, 1, 3 * 64).view(3, 8, 8)


class Seen(nn.Module):
    """Tells the same image tokens (1, M, D) for every picture, where `seen` is said."""

    inputs = ("seen",)

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, count: int, **inputs: Any) -> Condition:
        rows = inputs.get("seen")
        if rows is None or all(row is None for row in rows):
            return Condition()
        return Condition(image_tokens=self.tokens.expand(count, -1, -1))

    def null(self, condition: Condition) -> Condition:
        return Condition(image_tokens=condition.image_tokens)

    def check(self, **inputs: Any) -> None:
        pass


def opened(control: Any) -> Any:
    """With weights of its own everywhere, those that begin at zero, too."""
    control = randomised(control, 2)
    for name, parameter in control.named_parameters():
        if name.endswith(("alpha_attn", "alpha_dense")):
            nn.init.constant_(parameter, 0.8)
    return control


def with_control(name: str) -> tuple[Model, dict[str, Any]]:
    """The tiny model with a control, and what the control is told."""
    base, net, words = prompted(), network("sd_unet"), small()
    if name in ("controlnet", "t2i_adapter"):
        kind: Any = ControlNet if name == "controlnet" else T2IAdapter
        made: nn.Module = Controlled(net, (opened(kind.of(net, hint_channels=3, factor=1)),))
        told, conditioner = {"edges": HEARD}, Together((words, Hints(("edges",))))
    else:
        features = torch.linspace(-1, 1, 10)
        tokens = torch.cat((features, torch.ones(1)))[None, None]
        control: Any = IPAdapter.of(net, 10)
        if name == "gligen":
            tokens, control = (
                grounding_tokens([features], [[0.1, 0.2, 0.7, 0.9]], 2, 10),
                Gligen.of(net, 10, 16),
            )
        made = Hooked(net, opened(control))
        told, conditioner = {"seen": 1}, Together((words, Seen(tokens)))
    own = base.denoiser
    denoiser = NetworkDenoiser(made, own.process, own.prediction, own.time_input).eval()
    return replace(base, denoiser=denoiser, conditioner=conditioner.eval()), told


def edit_of(name: str) -> Any:
    return {
        "image_to_image": {"name": "image_to_image", "image": PICTURE, "strength": 0.7},
        "inpaint": {"name": "inpaint", "image": PICTURE, "mask": MASK},
        "prompt_to_prompt": PromptToPrompt(),
        "inverted": Inverted(image=PICTURE, prompt="a red cat", steps=STEPS, edit=PromptToPrompt(cross=0.5)),
    }[name]


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Model, dict[str, Any]]]:
    return {name: with_control(name) for name in CONTROLS}


@pytest.mark.parametrize(("control", "edit"), list(product(CONTROLS, EDITS)))
def test_each_keeps_its_promise(
    models: dict[str, tuple[Model, dict[str, Any]]], control: str, edit: str
) -> None:
    model, told = models[control]
    base = prompted()
    for sampler, guidance in product(SAMPLERS, GUIDANCE):
        asked: dict[str, Any] = {
            "prompt": ["a red cat", "a green dog"],
            "seeds": [7, 7],
            "sampler": sampler,
            "guidance": guidance,
            "steps": STEPS,
            "edit": edit_of(edit),
        }
        plain = sfumato.generate(base, **asked).tensor
        silent = sfumato.generate(model, **asked).tensor
        heard = sfumato.generate(model, **asked, **told).tensor
        # A control that is told nothing is not there; one that is told something is heard in every picture.
        assert torch.equal(silent, plain)
        assert bool(((heard - plain).abs().flatten(1).amax(1) > 1e-4).all())
        if edit == "inpaint":
            kept = ((PICTURE + 1) * 127.5).round() / 127.5 - 1
            outside = heard[:, :, :, :4]
            assert torch.allclose(outside, kept[None, :, :, :4].expand_as(outside), atol=1e-2)
            assert torch.equal(outside[0], outside[1])
        if edit in ("prompt_to_prompt", "inverted"):
            # The same words twice are the same picture twice, and the source is as without its edit; up to
            # rounding, as beside other hooks attention is summed in another order.
            same = sfumato.generate(model, **{**asked, "prompt": ["a red cat"] * 2}, **told).tensor
            assert torch.allclose(same[0], same[1], atol=1e-4)
            assert torch.allclose(same[0], heard[0], atol=1e-4)
            assert not torch.allclose(heard[1], heard[0], atol=1e-2)
        if edit == "image_to_image":
            # Less strength leaves more of the picture, whatever steers.
            near = {**asked, "edit": {**edit_of(edit), "strength": 1 / STEPS}}
            closer = sfumato.generate(model, **near, **told).tensor
            assert (closer - PICTURE).square().mean() < (heard - PICTURE).square().mean()
