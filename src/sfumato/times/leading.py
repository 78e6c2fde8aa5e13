"""Leading spacing of discrete models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.process import Process
from sfumato.core.times import checked, from_indices


@dataclass(frozen=True)
class Leading:
    """Every (T // N)-th index counted up from `offset`: 1, 21, .., 981 for 50 of 1000; never the noisiest.

    The grid of DDIM (arXiv:2010.02502) and of Stable Diffusion as released, where the last step goes to index
    0 rather than to clean data. Prefer `trailing`, which starts where the noise does (arXiv:2305.08891).

    Args:
        offset: added to every index; Stable Diffusion has 1.
        clean: end in clean data rather than at index 0.
    """

    offset: int = 1
    clean: bool = True

    def __call__(self, process: Process, steps: int) -> Tensor:
        """Decreasing times (steps + 1,), float64."""
        if not 1 <= steps <= process.steps:
            raise InvalidInput(f"{steps} steps of a process that has {process.steps}", where="steps")
        indices = (torch.arange(steps, device="cpu") * (process.steps // steps)).flip(0) + self.offset
        if int(indices[0]) >= process.steps:
            raise InvalidInput(
                f"index {int(indices[0])} is past the last", where="leading.offset", do="give fewer steps"
            )
        if self.clean:
            return from_indices(indices, process, steps)
        if int(indices[-1]) == 0:
            raise InvalidInput(
                "a walk that ends at index 0 cannot also visit it", where="leading", do="offset 1"
            )
        indices = torch.cat((indices, torch.zeros(1, device="cpu")))
        return checked(from_indices(indices, process, steps, clean=False), steps)
