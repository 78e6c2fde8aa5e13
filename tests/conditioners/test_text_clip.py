"""TextCLIP: prompts as Stable Diffusion 1, 2, XL and the refiner are told them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sfumato.conditioners.sizes import Sizes
from sfumato.conditioners.text_clip import TextCLIP
from sfumato.conditioners.together import Together
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.encoders.bpe import BPE, END, START
from sfumato.encoders.clip_text import ClipText
from sfumato.encoders.prompt_states import PromptStates
from sfumato.registry import build, describe

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENIZER = BPE({name: i for i, name in enumerate([*LETTERS, *(c + "</w>" for c in LETTERS), START, END])})


def tower(width: int, projection: int = 0, **settings: Any) -> PromptStates:
    text = ClipText(width, 2, 2, vocabulary=60, length=8, projection=projection, end=TOKENIZER.end)
    return PromptStates(text, TOKENIZER, **settings)


def sd1(**settings: Any) -> TextCLIP:
    torch.manual_seed(0)
    return TextCLIP((tower(16),), **settings).eval()


def sdxl() -> TextCLIP:
    torch.manual_seed(0)
    towers = (tower(16, layer=-2, norm=False), tower(24, 6, layer=-2, norm=False, pad=0))
    return TextCLIP(towers, pooled=True, zeros_for_empty=True).eval()


def alone(model: TextCLIP, number: int, row: list[int]) -> Any:
    encoder = model.encoders[number]
    return encoder.text(torch.tensor([row]), encoder.layer, encoder.norm)


def test_one_tower() -> None:
    model = sd1()
    begin, end = TOKENIZER.start, TOKENIZER.end
    told = model(2, prompt=["ab c", "d"])
    wanted = alone(model, 0, [begin, *TOKENIZER.ids("ab c"), end, end, end, end])
    assert told.mask is None
    assert told.vector is None
    assert torch.allclose(told.tokens[:1], wanted.states, rtol=1e-5, atol=1e-6)
    null = model.null(told)
    empty = alone(model, 0, [begin, *[end] * 7]).states
    assert torch.allclose(null.tokens, empty.expand(2, -1, -1), rtol=1e-5, atol=1e-6)
    assert torch.equal(model(1, prompt=None).tokens, model(1, prompt="").tokens)


def test_two_towers_side_by_side_and_the_pooled_vector_of_the_second() -> None:
    model = sdxl()
    begin, end = TOKENIZER.start, TOKENIZER.end
    told = model(1, prompt="ab c")
    ids = TOKENIZER.ids("ab c")
    first = alone(model, 0, [begin, *ids, end, end, end, end])
    second = alone(model, 1, [begin, *ids, end, 0, 0, 0])
    assert told.tokens.shape == (1, 8, 40)
    assert (model.tokens, model.vector) == (40, 6)
    assert torch.allclose(told.tokens, torch.cat((first.states, second.states), -1), rtol=1e-5, atol=1e-6)
    assert torch.allclose(told.vector, second.pooled, rtol=1e-5, atol=1e-6)


def test_a_prompt_of_xl_that_is_not_said_is_zeros_in_its_row_alone() -> None:
    model = sdxl()
    told = model(3, prompt=["a", None, ""])
    assert not told.tokens[1].any()
    assert not told.vector[1].any()
    assert torch.equal(told.tokens[:1], model(1, prompt="a").tokens)
    # The empty text is a text, and has states like any other.
    assert torch.equal(told.tokens[2:], model(1, prompt="").tokens)
    assert told.tokens[2].any()
    assert told.vector[2].any()
    null = model.null(told)
    assert not null.tokens.any()
    assert not null.vector.any()
    assert null.tokens.shape == told.tokens.shape


def test_long_prompts_are_told_whole_and_leave_short_ones_as_they_are() -> None:
    model = sd1()
    long = "abcdefgh ijk (lm:1.3)"
    told = model(2, prompt=[long, "n"])
    assert told.tokens.shape == (2, 24, 16)
    assert told.mask.sum(1).tolist() == [24, 8]
    assert torch.allclose(told.tokens[:1], model(1, prompt=long).tokens, rtol=1e-5, atol=1e-6)
    assert torch.allclose(told.tokens[1:, :8], model(1, prompt="n").tokens, rtol=1e-5, atol=1e-6)
    null = model.null(told)
    assert torch.equal(null.mask, told.mask)
    empty = model(1).tokens
    assert torch.equal(null.tokens[0], empty[0].repeat(3, 1))
    assert torch.equal(null.tokens[1, :8], empty[0])
    assert [token.chunk for token in model.report(long)] == [0] * 6 + [1] * 6 + [2]


def test_repeated_prompts_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = sd1(), []
    forward = ClipText.forward
    monkeypatch.setattr(
        ClipText, "forward", lambda self, ids, *rest: (seen.append(len(ids)), forward(self, ids, *rest))[1]
    )
    told = model(6, prompt=["a", "b", "a", None, "", "b"])
    assert seen == [3]
    assert torch.equal(told.tokens[0], told.tokens[2])
    assert torch.equal(told.tokens[3], told.tokens[4])
    assert not torch.equal(told.tokens[0], told.tokens[1])


def test_towers_are_frozen_unless_they_are_to_learn() -> None:
    frozen, learning = sd1(), sd1(trainable=True)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not frozen(1, prompt="a").tokens.requires_grad
    learning(1, prompt="a").tokens.sum().backward()
    assert all(p.grad is not None for p in learning.encoders[0].text.text_model["encoder"].parameters())


def test_captions_stand_in_for_prompts() -> None:
    model = sd1()
    both = model(2, prompt=["a", None], caption=["b", "c"])
    assert torch.equal(both.tokens, model(2, prompt=["a", "c"]).tokens)


def test_what_is_no_text_is_refused() -> None:
    model = sd1()
    model.check(prompt=["a", None], caption=None, size=None)
    for wrong in (3, ["a", 3], b"a"):
        with pytest.raises(InvalidInput, match=r"prompt: (int|bytes) is no text"):
            model.check(prompt=wrong)
    with pytest.raises(InvalidInput, match="no such input"):
        model.check(promt="a")
    with pytest.raises(InvalidInput, match="2 texts for 3"):
        model(3, prompt=["a", "b"])
    with pytest.raises(InvalidInput, match="at least one tower"):
        TextCLIP(())
    short = PromptStates(ClipText(16, 1, 2, vocabulary=60, length=6), TOKENIZER)
    with pytest.raises(InvalidInput, match="differ in length"):
        TextCLIP((tower(16), short))


def test_settings_and_weights_come_back() -> None:
    model = sdxl()
    again = build("conditioner", describe(model))
    again.load_state_dict(model.state_dict(), strict=True)
    assert describe(again) == describe(model)
    told, other = model(2, prompt=["a (b:1.2)", ""]), again.eval()(2, prompt=["a (b:1.2)", ""])
    assert torch.equal(told.tokens, other.tokens)
    assert torch.equal(told.vector, other.vector)


def test_xl_is_told_pooled_text_and_sizes_in_one_vector() -> None:
    text, sizes = sdxl(), Sizes((64, 48), 4)
    model = Together((text, sizes))
    told = model(2, prompt=["ab", "c"], crop=(3, 5))
    assert torch.equal(told.vector[:, :6], text(2, prompt=["ab", "c"]).vector)
    assert torch.equal(told.vector[:, 6:], sizes(2, crop=(3, 5)).vector)
    null = model.null(told)
    assert not null.vector[:, :6].any()
    assert not null.tokens.any()
    assert torch.equal(null.vector[:, 6:], told.vector[:, 6:])
    assert describe(build("conditioner", describe(model))) == describe(model)
    dropped = told.where(torch.tensor([True, False]), null)
    assert isinstance(dropped, Condition)
    assert torch.equal(dropped.vector[:, 6:], told.vector[:, 6:])
    refiner = Together((sdxl(), Sizes((64, 48), 4, scored=True)))
    told = refiner(1, prompt="ab")
    null = refiner.null(told)
    assert torch.equal(null.vector[:, 6:-4], told.vector[:, 6:-4])
    poor = refiner(1, prompt="ab", aesthetic_score=2.5)
    assert torch.equal(null.vector[:, -4:], poor.vector[:, -4:])
    assert not torch.equal(null.vector[:, -4:], told.vector[:, -4:])
