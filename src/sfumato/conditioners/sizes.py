"""Sizes: how large a picture was, where it was cut, and how large it is to be, as SDXL is told."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, nearest
from sfumato.networks.layers.embedding import sinusoid

_PAIR = re.compile(r"\s*(\d{1,6})\s*[x×]\s*(\d{1,6})\s*")


@dataclass(eq=False, repr=False)
class Sizes(nn.Module):
    """Sizes in the condition's vector, each number as sinusoids: [original | crop | target].

    Each of the three is a pair, height before width and top before left. What is not said is the size that
    is generated, and a picture that was not cut; SDXL then makes what it learnt from whole large pictures.
    SDXL's refiner is told [original | crop | aesthetic score] instead. The null keeps them all, but for the
    score.

    Podell et al. 2023, "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis",
    arXiv:2307.01952, section 2.2.

    Args:
        size: (height, width) in pixels, where nobody says what size is generated.
        width: of the sinusoids of one number.
        scored: an aesthetic score stands in the place of the target: the refiner.
        score: where none is said.
        null_score: that of the null.
    """

    size: tuple[int, int] = (1024, 1024)
    width: int = 256
    scored: bool = False
    score: float = 6.0
    null_score: float = 2.5

    def __post_init__(self) -> None:
        super().__init__()
        if self.width < 2 or self.width % 2:
            raise InvalidInput(f"sinusoids of {self.width} numbers are no pairs", where="sizes.width")
        self.register_buffer("device_of", torch.empty(0), persistent=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs; `size` is the size that is generated."""
        return ("original_size", "crop", "aesthetic_score" if self.scored else "target_size", "size")

    @property
    def kept(self) -> tuple[str, ...]:
        """A negative prompt unsays no size; its score is the null's."""
        return tuple(name for name in self.inputs if name != "aesthetic_score")

    @property
    def lists(self) -> tuple[str, ...]:
        """The inputs of which one value is a list: pairs."""
        return tuple(name for name in self.inputs if name != "aesthetic_score")

    @property
    def denied(self) -> dict[str, float]:
        """What a negative prompt says beside itself."""
        return {"aesthetic_score": self.null_score} if self.scored else {}

    @property
    def vector(self) -> int:
        """Length of the condition's vector."""
        return (5 if self.scored else 6) * self.width

    @property
    def shares(self) -> dict[str, int | None]:
        """What it fills of the vector, where others stand beside it."""
        return {"vector": self.vector}

    def forward(self, count: int, **inputs: Any) -> Condition:
        """Pairs, one for all rows or a list with one a row → vector (count, ·).

        A text such as "1024x768" is a pair too, width before height as people write it; of a crop, left
        before top.
        """
        self.check(**inputs)
        size = _pairs(count, "size", inputs.get("size"), [self.size] * count)
        numbers = [
            *zip(*_pairs(count, "original_size", inputs.get("original_size"), size), strict=True),
            *zip(*_pairs(count, "crop", inputs.get("crop"), [(0, 0)] * count), strict=True),
        ]
        if self.scored:
            numbers.append(tuple(_scores(count, inputs.get("aesthetic_score"), self.score)))
        else:
            numbers += zip(*_pairs(count, "target_size", inputs.get("target_size"), size), strict=True)
        told = torch.tensor(numbers, dtype=torch.float32).T
        return Condition(vector=self._told(told).to(self.device_of.device))  # type: ignore[arg-type]

    def null(self, condition: Condition) -> Condition:
        """The same sizes; of a score, the null's."""
        assert condition.vector is not None
        if not self.scored:
            return Condition(vector=condition.vector)
        vector = condition.vector.clone()
        score = self._told(torch.full((len(vector), 1), self.null_score))
        vector[:, -self.width :] = score.to(vector)
        return Condition(vector=vector)

    def check(self, **inputs: Any) -> None:
        """Refuse what is neither a pair nor a score before any work."""
        for name, value in inputs.items():
            if value is None:
                continue
            if name not in self.inputs:
                raise InvalidInput(
                    "this model heeds no such input", where=name, do=nearest(name, self.inputs)
                )
            for row in [value] if isinstance(value, str) or _is_pair(value) else _listed(value):
                if row is None:
                    continue
                if name == "aesthetic_score":
                    _score(row)
                else:
                    _pair(name, row)

    def _told(self, numbers: Tensor) -> Tensor:
        """Numbers (B, n) → their sinusoids (B, n · width)."""
        return sinusoid(numbers.flatten(), self.width).view(len(numbers), -1)


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list | tuple) and len(value) == 2 and all(type(number) is int for number in value)
    )


def _pairs(count: int, name: str, given: Any, otherwise: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """One pair a row, `otherwise` where none is said."""
    rows = [given] * count if given is None or isinstance(given, str) or _is_pair(given) else list(given)
    if len(rows) != count:
        raise InvalidInput(f"{len(rows)} values for {count} pictures", where=name)
    return [other if row is None else _pair(name, row) for row, other in zip(rows, otherwise, strict=True)]


def _pair(name: str, given: Any) -> tuple[int, int]:
    if isinstance(given, str) and (match := _PAIR.fullmatch(given)):
        given = (int(match[2]), int(match[1]))
    least = 0 if name == "crop" else 1
    if not _is_pair(given) or min(given) < least:
        what = "top and left" if name == "crop" else "height and width"
        raise InvalidInput(
            f"{given!r} is no {what} in pixels",
            where=name,
            do="give a pair such as (768, 1024), or the text 1024x768",
        )
    return given[0], given[1]


def _scores(count: int, given: Any, otherwise: float) -> list[float]:
    rows = list(given) if isinstance(given, list | tuple) else [given] * count
    if len(rows) != count:
        raise InvalidInput(f"{len(rows)} values for {count} pictures", where="aesthetic_score")
    return [otherwise if row is None else _score(row) for row in rows]


def _score(given: Any) -> float:
    try:
        score = float(given)
    except (TypeError, ValueError):
        score = math.nan
    if isinstance(given, bool) or not math.isfinite(score):
        raise InvalidInput(f"{given!r} is no number", where="aesthetic_score", do="6 is good, 2.5 is poor")
    return score
