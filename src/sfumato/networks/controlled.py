"""Controlled: a network with controls, as one network that reads hints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.control import Control
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Chain, Context, Hooks, Site


@dataclass(eq=False, repr=False)
class Controlled(nn.Module):
    """A network whose features are moved by what controls make of hints.

        residual_k = Σ_i s_ik · control_i(x, time, condition, hint_i)_k
        s_ik = strength_i · decay_i^(K - 1 - k) · (H_0 / H_k)^power_i

    with K residuals, of which the last is the middle's, and H_k the height of the k-th. Hints are the
    condition's, one a control, and so are (strength, decay, power), (1, 1, 0) where nothing is said of them.
    A control without a hint is not even asked; without any the network is as it is. The maps of one that has
    `stages` (T2I-Adapter) are summed likewise, stage by stage, and go on down with the features. Whatever
    works with networks works with this one: guidance, samplers, edits, training.

    Zhang, Rao & Agrawala 2023, "Adding Conditional Control to Text-to-Image Diffusion Models",
    arXiv:2302.05543, sections 3.2 and 3.4.

    Args:
        network: that takes residuals.
        controls: of it, in the order of the hints.
        learns: in training; the "control" alone, or besides the network's "decoder" (sd_locked: false).
        middle: of residuals only the middle's is heeded (only_mid_control).

    Raises:
        InvalidInput: no controls; hints of another number.
    """

    network: nn.Module
    controls: tuple[Control, ...] = ()
    learns: Literal["control", "decoder"] = "control"
    middle: bool = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Controlled:
        # A module must be set up before it is given another, which the dataclass does first of all.
        self = super().__new__(cls)
        nn.Module.__init__(self)
        return self

    def __post_init__(self) -> None:
        if not self.controls:
            raise InvalidInput("give one control or more", where="controlled.controls")
        self.held = nn.ModuleList([part for part in self.controls if isinstance(part, nn.Module)])
        for name, parameter in self.network.named_parameters():
            decodes = name.removeprefix("network.").startswith(("output_blocks.", "out."))
            parameter.requires_grad_(self.learns == "decoder" and decodes)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """x (B, C, H, W) at time (B,) under a condition with hints → (B, C, H, W)."""
        hints, scales = condition.hints, condition.hint_scales
        if len(hints) not in (0, len(self.controls)):
            raise InvalidInput(f"{len(hints)} hints for {len(self.controls)} controls", where="hints")
        bare = replace(condition, hints=(), hint_scales=None)
        # The second attention is the network's alone: no control has one.
        told = replace(bare, residuals=(), image_tokens=None)
        total: Sequence[Tensor] = condition.residuals
        onward: dict[str, Tensor] = {}
        for number, (control, hint) in enumerate(zip(self.controls, hints, strict=False)):
            if hint is None:
                continue
            # A control of x alone is not shown what lies beside it for the network: a hole, a draft.
            alone = getattr(control, "in_channels", None) == x.shape[1]
            made = control(x, time, replace(told, channels=None, draft=None) if alone else told, hint)
            if scales is not None:
                made = scaled(made, scales[:, number])
            if (stages := getattr(control, "stages", None)) is not None:
                for name, each in zip(self._names(stages), made, strict=True):
                    onward[name] = onward[name] + each if name in onward else each
                continue
            if self.middle:
                made = (*(torch.zeros_like(each) for each in made[:-1]), made[-1])
            total = [a + b for a, b in zip(total, made, strict=True)] if total else made
        if onward:
            hooks = Onward(onward)
            bare = replace(bare, hooks=hooks if bare.hooks is None else Chain(bare.hooks, hooks))
        result: Tensor = self.network(x, time, replace(bare, residuals=tuple(total)))
        return result

    def _names(self, stages: Sequence[int]) -> list[str]:
        """Names of stages on the way down, of which one more than there are is the middle."""
        network: Any = getattr(self.network, "network", self.network)
        count = len(network.input_blocks)
        return [f"input_blocks.{stage}" if stage < count else "middle_block" for stage in stages]


@dataclass(frozen=True, eq=False)
class Onward(Hooks):
    """Maps added to what stages of a U-Net make, which the stages after them are shown.

    Args:
        maps: (B, C, H, W) by the name of the stage.
    """

    maps: Mapping[str, Tensor]

    def block(self, site: Site, context: Context, run: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        """What a stage makes, with its map."""
        made, added = run(h), self.maps.get(site.name)
        return made if added is None else made + added.to(made)


def scaled(residuals: Sequence[Tensor], scales: Tensor) -> tuple[Tensor, ...]:
    """Residuals (B, C, H, W) weighed by rows (B, 3) of strength, decay and power, as Controlled says."""
    strength, decay, power = scales.to(residuals[0].device, torch.float32).unbind(1)
    last, tall = len(residuals) - 1, residuals[0].shape[2]
    weights = (
        strength * decay ** (last - k) * (tall / each.shape[2]) ** power for k, each in enumerate(residuals)
    )
    return tuple(
        each * weight.to(each.dtype).view(-1, 1, 1, 1)
        for each, weight in zip(residuals, weights, strict=True)
    )
