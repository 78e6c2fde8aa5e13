"""Exponential moving averages of weights, several at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput


@dataclass(frozen=True)
class Average:
    """How fast an average forgets: by decay an update, or by half-life in samples.

    Args:
        decay: the share kept an update; held to (1 + n) / (10 + n) at update n, so that the start
            is forgotten.
        half_life: samples after which half is forgotten (Karras et al. 2022, arXiv:2206.00364, training
            loop), held to `ramp` of the samples seen. Used when given.
        ramp: see half_life; 0 means no ramp.
    """

    decay: float = 0.9999
    half_life: float | None = None
    ramp: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or (self.half_life is not None and self.half_life <= 0) or self.ramp < 0:
            raise InvalidInput("decay in [0, 1), half_life > 0 and ramp >= 0 are needed", where="ema")

    def keep(self, update: int, batch: int) -> float:
        """The share kept at an update (counted from 0) of `batch` samples."""
        if self.half_life is None:
            return min(self.decay, (1 + update) / (10 + update))
        half = min(self.half_life, self.ramp * update * batch) if self.ramp else self.half_life
        return 0.5 ** (batch / half) if half > 0 else 0.0


class EMA:
    """Running averages of parameters: average ← keep · average + (1 - keep) · parameter, after each step.

    One fused call a average for all tensors; kept on the parameters' devices, in float32.

    Args:
        parameters: names and tensors averaged.
        averages: one rule an average.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], averages: tuple[Average, ...]) -> None:
        self.rules = averages
        self.updates = 0
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._averages = [[p.detach().clone().float() for p in self._parameters] for _ in averages]

    def __len__(self) -> int:
        return len(self.rules)

    @torch.no_grad()
    def update(self, batch: int) -> None:
        """Take the parameters in, after an optimizer step on `batch` samples."""
        sources: list[Tensor] = [p.detach() for p in self._parameters]
        if any(p.dtype != torch.float32 for p in sources):
            sources = [p.float() for p in sources]
        for rule, average in zip(self.rules, self._averages, strict=True):
            torch._foreach_lerp_(average, sources, 1 - rule.keep(self.updates, batch))
        self.updates += 1

    @contextmanager
    def swapped(self, which: int = 0) -> Iterator[None]:
        """Inside, the parameters hold the average `which`; nothing is copied, and all is back afterwards."""
        self._exchange(which)
        try:
            yield
        finally:
            self._exchange(which)

    @torch.no_grad()
    def copy_to(self, which: int = 0) -> None:
        """Overwrite the parameters with an average, for good."""
        for parameter, average in zip(self._parameters, self._averages[which], strict=True):
            parameter.copy_(average)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors "0.network.…" of every average."""
        return {
            f"{i}.{name}": tensor
            for i, average in enumerate(self._averages)
            for name, tensor in zip(self._names, average, strict=True)
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], updates: int) -> None:
        """The inverse of state_dict, with the number of updates done."""
        for key, tensor in self.state_dict().items():
            tensor.copy_(state[key])
        self.updates = updates

    def _exchange(self, which: int) -> None:
        for i, parameter in enumerate(self._parameters):
            average = self._averages[which][i]
            self._averages[which][i], parameter.data = parameter.data, average.to(parameter.dtype)
