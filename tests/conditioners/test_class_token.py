"""ClassToken: rows of a table as tokens, and the row of none."""

from __future__ import annotations

import pytest
import torch

from sfumato.conditioners.class_token import ClassToken
from sfumato.core.errors import InvalidInput
from sfumato.registry import build, describe

LABELS = {"label": ["cat", "dog"], "style": ["noto", "fluent", "plain"]}


def test_every_list_has_its_token_and_none_the_last_row() -> None:
    model = ClassToken(LABELS, 4)
    table = model.embedding.weight
    assert table.shape == (6, 4)
    told = model(3, label=["dog", None, "cat"], style="fluent")
    assert torch.equal(told.tokens, torch.stack((table[[1, 5, 0]], table[[3, 3, 3]]), 1))
    assert torch.equal(model.null(told).tokens, table[5].expand(3, 2, 4))
    assert told.vector is None
    told.tokens.sum().backward()
    assert table.grad is not None
    assert table.grad[:, 0].tolist() == [1, 1, 0, 3, 0, 1]


def test_without_a_row_of_none_nothing_is_zeros() -> None:
    model = ClassToken({"label": ["cat", "dog"]}, 4, null_row=False)
    told = model(2, label=["dog", None])
    assert torch.equal(told.tokens[0, 0], model.embedding.weight[1])
    assert not told.tokens[1].any()
    assert not model.null(told).tokens.any()


def test_it_comes_back_and_mistakes_are_named() -> None:
    model = ClassToken(LABELS, 4)
    again = build("conditioner", describe(model))
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(again(1, label="cat").tokens, model(1, label="cat").tokens)
    with pytest.raises(InvalidInput, match="did you mean cat"):
        model.check(label="catt")
    with pytest.raises(InvalidInput, match="no such input"):
        model.check(lable="cat")
    with pytest.raises(InvalidInput, match="at least one list"):
        ClassToken()
