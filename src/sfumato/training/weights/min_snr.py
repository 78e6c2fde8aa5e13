"""Clipped signal-to-noise weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.prediction import Prediction
from sfumato.training.weights.rule import Weight, snr


@dataclass(frozen=True)
class MinSNR(Weight):
    """max(least, min(SNR, gamma)): nearly clean levels no longer drown the others, nor is any left unlearnt.

    Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", arXiv:2303.09556; with a
    least of 1 and no gamma the truncated SNR of Salimans & Ho 2022, arXiv:2202.00512, section 4.

    Args:
        gamma: what SNR is clipped to from above.
        least: and from below. Networks that output the data can learn where there is next to no signal, at
            a weight of 1; of noise or velocity nothing can be learnt there, and 0 is as published.
    """

    gamma: float = 5.0
    least: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.gamma:
            span = f"{self.least:g} to {self.gamma:g}"
            raise InvalidInput(f"{span} is no range of weights", where="min_snr", do="0 <= least <= gamma")

    def __call__(self, level: Level[Tensor], prediction: Prediction) -> Tensor:
        return snr(level).clamp(self.least, self.gamma)
