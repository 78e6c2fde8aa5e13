"""TextSmall: captions as tokens, and that it learns what they say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfumato.conditioners.text_small import TextSmall
from sfumato.core.errors import InvalidInput
from sfumato.encoders import text_small
from sfumato.encoders.word_piece import WordPiece
from sfumato.registry import build, describe

COLOURS, SHAPES = ["red", "green", "blue"], ["cat", "kite", "apple"]
CAPTIONS = [f"a {c} {s} above a {d} {t}" for c in COLOURS for s in SHAPES for d in COLOURS for t in SHAPES]


def told(pooled: bool = False, **settings: object) -> TextSmall:
    torch.manual_seed(0)
    encoder = text_small.TextSmall(
        WordPiece.of(CAPTIONS), width=32, depth=2, heads=4, dim_head=8, length=12, **settings
    )  # type: ignore[arg-type]
    return TextSmall(encoder, pooled)


def test_captions_are_tokens_and_the_null_is_the_empty_caption() -> None:
    model = told().eval()
    said = model(3, caption=["a red cat", "a cat", None])
    assert said.mask.sum(1).tolist() == [5, 4, 2]
    assert torch.equal(said.tokens, model(3, prompt=["a red cat", "a cat", ""]).tokens)
    null = model.null(said)
    assert null.tokens.shape == (3, 2, 32)
    assert torch.allclose(null.tokens[0], said.tokens[2, :2], atol=1e-5)
    dropped = said.where(torch.tensor([True, False, True]), null)
    assert dropped.mask.sum(1).tolist() == [5, 2, 2]
    full = told(masked=False).eval()(2, prompt="a cat")
    assert full.mask is None
    assert full.tokens.shape == (2, 12, 32)


@pytest.mark.parametrize("masked", [True, False])
def test_pooled_is_the_mean_of_the_caption_s_own_tokens(masked: bool) -> None:
    model = told(pooled=True, masked=masked).eval()
    assert model.shares == {"tokens": None, "vector": 32}
    captions = ["a red cat", "a cat", "a red cat", "a blue kite above a green apple"]
    said = model(4, caption=captions)
    for row, caption in enumerate(captions):
        own = model(1, caption=caption).tokens[0]
        assert torch.allclose(said.vector[row], own.mean(0), atol=1e-5)
    null = model.null(said)
    assert torch.allclose(null.vector, model(1, caption="").tokens.mean(1).expand(4, -1), atol=1e-5)
    assert told().eval()(1, caption="a cat").vector is None


def test_it_learns_with_the_model_what_captions_say() -> None:
    """The colour of the second thing can be read off with one attention, on captions never seen."""
    model = told()
    query, read = nn.Parameter(torch.zeros(1, 1, 32)), nn.Linear(32, 3)
    optimizer = torch.optim.Adam([*model.parameters(), query, *read.parameters()], 5e-3)
    order = torch.randperm(len(CAPTIONS), generator=torch.Generator().manual_seed(0)).tolist()
    seen, unseen = order[:60], order[60:]

    def loss_and_share(rows: list[int]) -> tuple[torch.Tensor, float]:
        said = model(len(rows), caption=[CAPTIONS[row] for row in rows])
        scores = (said.tokens * query).sum(-1).masked_fill(~said.mask, -torch.inf)
        logits = read((scores.softmax(1)[..., None] * said.tokens).sum(1))
        wanted = torch.tensor([COLOURS.index(CAPTIONS[row].split()[5]) for row in rows])
        return nn.functional.cross_entropy(logits, wanted), float((logits.argmax(1) == wanted).float().mean())

    before = loss_and_share(unseen)[1]
    for _ in range(60):
        loss, _ = loss_and_share(seen)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 0.7
    assert loss_and_share(unseen)[1] > 0.95


def test_what_is_no_caption_or_too_long_is_refused() -> None:
    model = told()
    model.check(caption=["a cat", None], prompt=None)
    with pytest.raises(InvalidInput, match="room for 10"):
        model.check(prompt="cat " * 11)
    with pytest.raises(InvalidInput, match="float is no text"):
        model.check(caption=[1.0])
    with pytest.raises(InvalidInput, match="no such input"):
        model.check(label="cat")


def test_settings_and_weights_come_back() -> None:
    model = told().eval()
    again = build("conditioner", describe(model)).eval()
    again.load_state_dict(model.state_dict(), strict=True)
    assert describe(again) == describe(model)
    assert torch.equal(again(1, prompt="a red cat").tokens, model(1, prompt="a red cat").tokens)
