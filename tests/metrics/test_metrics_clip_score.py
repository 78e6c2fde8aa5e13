"""CLIP score and retrieval of judges whose every answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.errors import InvalidInput, NotFinite
from sfumato.metrics.clip_score import clip_score, retrieval


class Known:
    """Text "k" is the k-th axis; a picture is the axis of its first pixel's value, leaning to the next."""

    def __init__(self, count: int, lean: float = 0.0) -> None:
        self.axes, self.lean = torch.eye(count), lean

    def texts(self, captions: Sequence[str]) -> Tensor:
        return self.axes[[int(text) for text in captions]]

    def images(self, image: Tensor) -> Tensor:
        place = image[:, 0, 0, 0].long()
        return F.normalize(self.axes[place] + self.lean * self.axes[(place + 1) % len(self.axes)], dim=1)


def pictures(values: Sequence[int]) -> Tensor:
    return torch.tensor([float(value) for value in values]).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def test_the_score_is_the_mean_cosine_times_100_and_never_below_0() -> None:
    said = [str(i) for i in range(20)]
    exact = clip_score(Known(20), pictures(range(20)), said)
    assert (exact.value, exact.low, exact.high, exact.n) == (100.0, 100.0, 100.0, 20)
    leaning = clip_score(Known(20, 1.0), pictures(range(20)), said, batch=7)
    assert leaning.value == pytest.approx(100 / math.sqrt(2))
    away = clip_score(Known(20, -1.0), pictures(range(20)), [str((i + 1) % 20) for i in range(20)])
    assert away.value == 0.0
    half = clip_score(Known(20), pictures(range(20)), [str(i if i % 2 else (i + 1) % 20) for i in range(20)])
    assert half.value == pytest.approx(50.0)
    assert half.low < 50 < half.high


def test_recall_counts_how_many_texts_are_ahead() -> None:
    said = [str(i) for i in range(50)]
    # Half of the picture's weight and more leans to the next text: the own one is second of two that fit.
    second = Known(50, 2.0)
    for seed in range(3):
        assert retrieval(second, pictures(range(50)), said, first=1, among=50, seed=seed).value == 0.0
        assert retrieval(second, pictures(range(50)), said, first=2, among=50, seed=seed).value == 1.0
    # Of 10 texts the other that fits is drawn for about nine of 49 pictures.
    among = retrieval(second, pictures(range(50)), said, first=1, among=10)
    assert 0.65 < among.value < 0.95
    assert among.low < among.value < among.high


def test_a_judge_that_knows_nothing_finds_one_of_so_many_at_most() -> None:
    class Blind(Known):
        def images(self, image: Tensor) -> Tensor:
            return F.normalize(torch.ones(len(image), len(self.axes)), dim=1)

    # All texts are equally near, and a tie does not count as found.
    assert (
        retrieval(Blind(30), pictures(range(30)), [str(i) for i in range(30)], among=20, first=5).value == 0.0
    )


def test_texts_that_say_the_same_are_not_among_the_others() -> None:
    said = [str(i // 2) for i in range(40)]
    found = retrieval(Known(20), pictures([i // 2 for i in range(40)]), said, first=1, among=39)
    assert found.value == 1.0
    with pytest.raises(InvalidInput, match="of which 38 others are there"):
        retrieval(Known(20), pictures([i // 2 for i in range(40)]), said, first=1, among=40)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(InvalidInput, match="3 pictures and 2 texts"):
        clip_score(Known(5), pictures(range(3)), ["0", "1"])
    with pytest.raises(InvalidInput, match="the first 5 of 100"):
        retrieval(Known(5), pictures(range(3)), ["0", "1", "2"], first=5)

    class Broken(Known):
        def images(self, image: Tensor) -> Tensor:
            return super().images(image) * math.nan

    with pytest.raises(NotFinite, match="NaN"):
        clip_score(Broken(5), pictures(range(3)), ["0", "1", "2"])
