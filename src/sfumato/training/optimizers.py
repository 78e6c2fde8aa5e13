"""AdamW or Muon with its learning-rate schedule and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput
from sfumato.training.muon import Muon, is_matrix


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay, fused; the learning rate is a pure function of the step.

    Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", arXiv:1711.05101. Vectors (biases,
    norms) never decay.

    Args:
        rate: the learning rate at its highest.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decay of matrices and kernels.
        warm_up: steps over which the rate rises linearly from 0.
        decay: what it does afterwards: "constant", "cosine" or "linear", down to `final`.
        hold: share of the run after which it begins to fall. A run at a constant rate may go on for ever; a
            short fall at last, 0.8 say, is worth much more training (Hägele et al. 2024, "Scaling Laws and
            Compute-Optimal Training Beyond Fixed Training Durations", arXiv:2405.18392).
        final: the share of the rate left at the end.
        clip: gradients are scaled down to this global norm; None leaves them.
        matrices: what moves matrices and kernels that map features to features: "adam", or "muon", by whose
            momentum, made orthogonal, pictures seen rarely are learnt sooner. It takes the rate of Adam; a
            step costs the same few matrix products whatever the batch, so larger batches suit it.
        momentum: of "muon".
    """

    rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warm_up: int = 0
    decay: Literal["constant", "cosine", "linear"] = "constant"
    hold: float = 0.0
    final: float = 0.0
    clip: float | None = 1.0
    matrices: Literal["adam", "muon"] = "adam"
    momentum: float = 0.95

    def __post_init__(self) -> None:
        if not self.rate > 0 or not math.isfinite(self.rate):
            raise InvalidInput(f"{self.rate} is no learning rate", where="optimizer.rate")
        if self.warm_up < 0 or self.weight_decay < 0 or not 0 <= self.final <= 1:
            raise InvalidInput(
                "warm_up >= 0, weight_decay >= 0 and 0 <= final <= 1 are needed", where="optimizer"
            )
        if not 0 <= self.hold < 1:
            raise InvalidInput(f"{self.hold} is no share", where="optimizer.hold", do="give 0 to less than 1")
        if not 0 <= self.momentum < 1:
            raise InvalidInput(
                f"{self.momentum} is no decay", where="optimizer.momentum", do="give 0 to less than 1"
            )
        if self.clip is not None and not self.clip > 0:
            raise InvalidInput(
                f"{self.clip} is no gradient norm", where="optimizer.clip", do="give null for none"
            )

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
        """The optimizer of parameters by name, with vectors in a group without decay."""
        turned = [p for name, p in parameters.items() if self.matrices == "muon" and is_matrix(name, p)]
        theirs = {id(parameter) for parameter in turned}
        others = [p for p in parameters.values() if id(p) not in theirs]
        groups: list[dict[str, Any]] = [
            {"params": turned, "weight_decay": self.weight_decay, "matrices": True},
            {"params": [p for p in others if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        adam: dict[str, Any] = {"lr": self.rate, "betas": self.betas, "eps": self.eps, "fused": True}
        return Muon(groups, self.momentum, **adam) if turned else torch.optim.AdamW(groups, **adam)

    def rate_at(self, step: int, progress: float) -> float:
        """The learning rate of a step (counted from 0) at which the share `progress` of the run is done."""
        rise = min(1.0, (step + 1) / self.warm_up) if self.warm_up else 1.0
        if self.decay == "constant":
            return self.rate * rise
        left = min((1 - min(progress, 1.0)) / (1 - self.hold), 1.0)
        if self.decay == "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        return self.rate * rise * (self.final + (1 - self.final) * left)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float | None) -> float:
    """Scale gradients down to a global norm; returns the norm before. Non-finite gradients are left alone."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True).item()
    if limit is not None and limit < norm < math.inf:
        torch._foreach_mul_(gradients, limit / (norm + 1e-6))
    return norm


def flatten_state(optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """The optimizer's memory as tensors "exp_avg.network.…", by parameter name instead of by number."""
    return {
        f"{key}.{name}": value
        for parameter, name in names.items()
        for state in [optimizer.state.get(parameter, {})]
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_state(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], state: Mapping[str, Tensor]
) -> None:
    """The inverse of flatten_state."""
    by_name = {name: parameter for parameter, name in names.items()}
    optimizer.state.clear()
    for full, value in state.items():
        key, _, name = full.partition(".")
        parameter = by_name[name]
        # The fused step reads all tensors of a parameter in the order in which it lies in memory.
        like = value if key == "step" else parameter
        place = torch.empty_like(like, dtype=value.dtype).copy_(value)
        optimizer.state[parameter][key] = place
