"""A measured number with its error: what every metric returns."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput, NotFinite
from sfumato.metrics.features import FID_NETWORK

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Estimate:
    """One measured number, its 95 % interval, and what it was measured with.

    Args:
        name: the metric: frechet, kid, precision, ...
        value: the number.
        low: lower end of the 95 % interval; None if no interval was asked for.
        high: upper end.
        n: generated pictures; 0 if the metric uses none.
        n_real: real pictures; 0 if the metric uses none.
        features: name of the feature network or classifier.
        notes: why the number deserves less trust than it looks, one sentence each.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    n: int
    n_real: int
    features: str
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name a reader sees: "frechet[efficientnet-lite0-224]"; "fid" with the FID network only."""
        if self.features == FID_NETWORK and self.name in _FAMOUS:
            return _FAMOUS[self.name]
        return f"{self.name}[{self.features}]"

    def as_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self) | {"label": self.label, "notes": list(self.notes)}

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        sizes = ", ".join(f"{n} {what}" for n, what in ((self.n, "generated"), (self.n_real, "real")) if n)
        return f"{self.label} {self.value:.4g}{interval} ({sizes})" + "".join(
            f"; {note}" for note in self.notes
        )


_FAMOUS = {"frechet": "fid", "frechet_infinite": "fid_infinite", "kid": "kid"}


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The Wilson 95 % interval of a share, which stays inside [0, 1] and is sound at 0 and 1.

    Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".

    Args:
        successes: how many.
        n: of how many, at least 1.
    """
    share, square = successes / n, _Z * _Z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = _Z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def half_width(error: float, freedom: int | None = None) -> float:
    """Half of a 95 % interval for a standard error.

    Args:
        error: the standard error.
        freedom: degrees of freedom it was estimated with (Student's t, by its expansion in 1 / freedom,
            good to 1 % from 5 up); None for the normal distribution.
    """
    if freedom is None:
        return _Z * error
    first = (_Z**3 + _Z) / (4 * freedom)
    second = (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * freedom**2)
    return (_Z + first + second) * error


def checked(generated: Tensor, real: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Two sets of features as float64, or a sentence saying what is wrong with them.

    Args:
        generated: (N, D).
        real: (M, D).
        least: the fewest rows either may have.

    Raises:
        InvalidInput: other shapes, different D, or too few rows.
        NotFinite: NaN or infinity.
    """
    for side, rows in (("generated", generated), ("real", real)):
        if rows.ndim != 2 or rows.shape[1] == 0:
            raise InvalidInput(f"expected features (N, D), got {tuple(rows.shape)}", where=side)
        if len(rows) < least:
            raise InvalidInput(
                f"{len(rows)} pictures are too few: this metric needs {least} or more", where=side
            )
        bad = (~torch.isfinite(rows)).any(1).nonzero()
        if len(bad):
            raise NotFinite(f"the features of picture {int(bad[0])} hold NaN or infinity", where=side)
    if generated.shape[1] != real.shape[1]:
        raise InvalidInput(
            f"features of length {generated.shape[1]} and {real.shape[1]} do not compare",
            do="measure both sides with the same feature network",
        )
    return generated.double(), real.double()
