"""Align Your Steps: optimised noise levels for a few steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sfumato.core.process import Process
from sfumato.core.times import even, from_ratios

_LEVELS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034),
}


@dataclass(frozen=True)
class AlignYourSteps:
    """Ten noise levels optimised for a model family, interpolated log-linearly for other counts, then clean
    data.

    Sabour, Fidler & Kreis 2024, "Align Your Steps", arXiv:2404.14507 (tables published with the paper).

    Args:
        family: whose levels: "sd15", "sdxl" or "svd".
    """

    family: Literal["sd15", "sdxl", "svd"] = "sd15"

    def __call__(self, process: Process, steps: int) -> Tensor:
        """Decreasing times (steps + 1,), float64; levels past the process's range are pulled inside it."""
        known = torch.tensor(_LEVELS[self.family], dtype=torch.float64, device="cpu").log()
        place = even(0, len(known) - 1, steps)
        below = place.floor().long().clamp(max=len(known) - 2)
        levels = known[below] + (place - below) * (known[below + 1] - known[below])
        farthest, _ = process.log_snr_range()
        # The published tables round the family's own highest level up in the last digit.
        return from_ratios(levels.clamp_max(-farthest).exp(), process, steps)
