"""Sigma space: the coordinates x/alpha and sigma/alpha in which Runge-Kutta samplers integrate."""

from __future__ import annotations

from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.reverse import ReverseProcess


def slope(reverse: ReverseProcess, y: Tensor, ratio: float) -> Tensor:
    """dy/d(sigma/alpha), which is the estimated noise (Karras et al. 2022, arXiv:2206.00364, equation 1)."""
    return (y - reverse.denoise(y, Level(1.0, ratio)).x0) / ratio


def straight_slope(reverse: ReverseProcess, y: Tensor, time: float) -> Tensor:
    """dy/ds of straight lines, eps - x0, at y = x/(alpha + sigma) and time s = sigma/(alpha + sigma)."""
    return (y - reverse.denoise(y, Level(1 - time, time)).x0) / time
