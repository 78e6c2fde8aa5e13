"""PromptStates: long prompts in chunks, weights on their states, and a report that hides nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.core.errors import InvalidInput
from sfumato.core.prompt import parse
from sfumato.encoders.bpe import BPE, END, START
from sfumato.encoders.clip_text import ClipText
from sfumato.encoders.prompt_states import PromptStates, weighted

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENIZER = BPE({name: i for i, name in enumerate([*LETTERS, *(c + "</w>" for c in LETTERS), START, END])})


def reader(**settings: object) -> PromptStates:
    torch.manual_seed(0)
    tower = ClipText(width=16, depth=2, heads=2, vocabulary=60, length=8, projection=4, end=TOKENIZER.end)
    return PromptStates(tower, TOKENIZER, **settings).eval()  # type: ignore[arg-type]


def test_chunks_hold_every_token() -> None:
    read = reader()
    report = read.report("abc de (fghij k:1.5) l")
    assert [token.text for token in report] == list("abcdefghijkl")
    assert [token.chunk for token in report] == [0] * 6 + [1] * 6
    assert [token.weight for token in report] == [1.0] * 5 + [1.5] * 6 + [1.0]
    assert [token.id for token in report] == TOKENIZER.ids("abc de fghij k l")


@settings(max_examples=100, deadline=None)
@given(prompt=st.text(alphabet="abc ()[]:1.BREAK\n", max_size=80))
def test_nothing_is_cut(prompt: str) -> None:
    read = reader()
    chunks = read.chunks(prompt)
    tokens = [token for chunk in chunks for token in chunk]
    assert [t.id for t in tokens] == [i for s in parse(prompt) for p in s for i in TOKENIZER.ids(p.text)]
    assert read.report(prompt) == tokens
    assert all(len(chunk) <= read.room for chunk in chunks)
    assert all(token.chunk == number for number, chunk in enumerate(chunks) for token in chunk)
    assert chunks


def test_break_begins_a_chunk() -> None:
    read = reader()
    texts = [
        ["".join(t.text for t in chunk) for chunk in read.chunks(p)]
        for p in ("a BREAK b", "a BREAK", "BREAK a")
    ]
    assert texts == [["a", "b"], ["a"], ["", "a"]]
    assert [[len(chunk) for chunk in read.chunks(p)] for p in ("", "BREAK")] == [[0], [0]]


@torch.no_grad()
def test_each_chunk_is_a_text_of_its_own() -> None:
    for pad, filler in ((None, TOKENIZER.end), (0, 0)):
        read = reader(pad=pad)
        states, pooled = read(read.chunks("abcdef gh"), pooled=True)
        begin, end = TOKENIZER.start, TOKENIZER.end
        rows = [[begin, *TOKENIZER.ids("abcdef"), end], [begin, *TOKENIZER.ids("gh"), end, *[filler] * 4]]
        told = read.text(torch.tensor(rows))
        assert torch.equal(states, told.states)
        assert torch.equal(pooled, told.pooled)


@torch.no_grad()
def test_weights_multiply_and_the_mean_is_restored() -> None:
    read = reader()
    plain, _ = read(read.chunks("a b c"))
    told, _ = read(read.chunks("a (b:1.7) [c]"))
    times = torch.ones(8)
    times[2], times[3] = 1.7, 1 / 1.1
    wanted = plain * times[None, :, None]
    wanted = wanted * plain.mean() / wanted.mean()
    assert torch.allclose(told, wanted, rtol=1e-5)
    assert float(told.mean()) == pytest.approx(float(plain.mean()), rel=1e-4)
    literal = reader(weighting=False)
    assert [t.text for t in literal.report("a b")] == ["a", "b"]
    assert literal.report("(b:2)") != reader().report("(b:2)")


def test_weights_of_one_change_no_bit_and_rows_not_each_other() -> None:
    states = torch.randn(2, 5, 3)
    weights = torch.ones(2, 5)
    assert weighted(states, weights) is states
    weights[1, 2] = 2.0
    both = weighted(states, weights)
    assert torch.equal(both[0], states[0])
    assert torch.equal(both[1], weighted(states[1:], weights[1:])[0])
    nowhere = torch.tensor([[[1.0], [-2.0]]])
    assert torch.equal(weighted(nowhere, torch.tensor([[2.0, 1.0]])), torch.tensor([[[2.0], [-2.0]]]))


@torch.no_grad()
def test_layer_and_norm_are_those_asked_for() -> None:
    chunks = reader().chunks("a b")
    hidden = reader().text.hidden_states(reader()._laid(chunks)[0])
    last = reader().text.text_model["final_layer_norm"]
    assert torch.equal(reader(layer=-2, norm=False)(chunks)[0], hidden[1])
    assert torch.equal(reader(layer=-2)(chunks)[0], last(hidden[1]))
    assert torch.equal(reader()(chunks)[0], last(hidden[2]))


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidInput, match="no layer 3"):
        reader(layer=3)
    with pytest.raises(InvalidInput, match="no token 60"):
        reader(pad=60)
    with pytest.raises(InvalidInput, match="ids go to 49407, embeddings to 59"):
        PromptStates(ClipText(width=16, depth=1, heads=2, vocabulary=60))
