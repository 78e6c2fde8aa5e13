"""Together: each conditioner fills its own slots, hears its own inputs and drops its own part."""

from __future__ import annotations

import pytest
import torch

from sfumato.conditioners.class_label import ClassLabel
from sfumato.conditioners.low_res import LowRes
from sfumato.conditioners.nothing import Nothing
from sfumato.conditioners.together import Together
from sfumato.core.errors import InvalidInput
from sfumato.registry import build, describe

PICTURE = torch.linspace(-1, 1, 48).view(3, 4, 4)


def _both() -> Together:
    return Together((ClassLabel({"label": ["cat", "dog"]}, null_row=True), LowRes((8, 8), 2)))


def test_each_says_what_it_says_alone() -> None:
    both = _both()
    assert both.inputs == ("label", "low_res")
    assert both.labels == {"label": ["cat", "dog"]}
    told = both(2, label=["dog", None], low_res=PICTURE)
    assert torch.equal(told.vector, torch.tensor([[0.0, 1, 0], [0, 0, 1]]))  # type: ignore[arg-type]
    alone = LowRes((8, 8), 2)(2, low_res=PICTURE)
    assert torch.equal(told.channels, alone.channels)  # type: ignore[arg-type]


def test_dropout_forgets_the_class_and_keeps_the_picture() -> None:
    both = _both()
    told = both(2, label="cat", low_res=[PICTURE, -PICTURE])
    null = both.null(told)
    dropped = told.where(torch.tensor([True, False]), null)
    assert torch.equal(dropped.vector, torch.tensor([[1.0, 0, 0], [0, 0, 1]]))  # type: ignore[arg-type]
    assert torch.equal(dropped.channels, told.channels)  # type: ignore[arg-type]


def test_wrong_inputs_are_refused_by_whom_they_are_for() -> None:
    both = _both()
    both.check(label="cat", low_res=PICTURE)
    with pytest.raises(InvalidInput, match="unknown label 'dgo'") as caught:
        both.check(label="dgo", low_res=PICTURE)
    assert "dog" in caught.value.do
    with pytest.raises(InvalidInput, match="a picture of 5 x 4"):
        both.check(low_res=torch.zeros(3, 4, 5))
    with pytest.raises(InvalidInput, match="no such input") as caught:
        both.check(low_rse=PICTURE)
    assert "low_res" in caught.value.do
    with pytest.raises(InvalidInput, match="given none"):
        both(1, label="cat")


def test_parts_that_cannot_stand_together_are_refused() -> None:
    labels = ClassLabel({"label": ["cat"]})
    with pytest.raises(InvalidInput, match="two conditioners or more"):
        Together((labels,))
    with pytest.raises(InvalidInput, match="heed the same input"):
        Together((labels, ClassLabel({"label": ["dog"]})))
    assert Together((labels, ClassLabel({"style": ["noto"]})))(1, label="cat").vector.tolist() == [[1, 0]]


def test_settings_come_back_and_weightless_parts_are_no_modules() -> None:
    told = describe(_both())
    built = build("conditioner", told)
    assert describe(built) == told
    assert isinstance(built, Together)
    picture = built(1, label="dog", low_res=PICTURE)
    assert torch.equal(picture.channels, _both()(1, label="dog", low_res=PICTURE).channels)
    with_nothing = Together((ClassLabel({"label": ["cat"]}), Nothing()))
    assert torch.equal(with_nothing(1, label="cat").vector, torch.ones(1, 1))  # type: ignore[arg-type]
