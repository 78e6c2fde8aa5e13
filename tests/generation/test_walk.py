"""Walks planned from what a caller, a model's card and the defaults say."""

from __future__ import annotations

from typing import Any

import pytest

from sfumato.generation.walk import _scaled


@pytest.mark.parametrize(
    ("usual", "scale", "expected"),
    [
        ([], 3.0, [{"name": "classifier_free", "scale": 3.0}]),
        (["classifier_free"], 1.0, []),
        (
            ["windows", {"name": "classifier_free", "scale": 7.5, "channels": 3}, "threshold"],
            3.0,
            [
                {"name": "windows"},
                {"name": "classifier_free", "scale": 3.0, "channels": 3},
                {"name": "threshold"},
            ],
        ),
        (["windows"], 3.0, [{"name": "windows"}, {"name": "classifier_free", "scale": 3.0}]),
        ([{"name": "rescale", "phi": 0.3}], 3.0, [{"name": "rescale", "phi": 0.3, "scale": 3.0}]),
        (
            [{"name": "interval", "low": 0.2}, "threshold"],
            3.0,
            [
                {"name": "interval", "low": 0.2, "guidance": {"name": "classifier_free", "scale": 3.0}},
                {"name": "threshold"},
            ],
        ),
        (
            [{"name": "image_and_text", "image_scale": 2.0}],
            1.0,
            [{"name": "image_and_text", "image_scale": 2.0, "scale": 1.0}],
        ),
        ([{"name": "interval", "guidance": "auto"}], 1.0, [{"name": "interval", "guidance": "auto"}]),
    ],
)
def test_a_number_is_the_scale_of_the_cards_own_guidance(
    usual: list[Any], scale: float, expected: Any
) -> None:
    """In its place, whatever it is: never a second guidance beside it."""
    assert _scaled(usual, scale) == expected
