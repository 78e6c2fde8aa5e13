"""Drafts: what is guessed of x from a caption, how the guess is learnt, and how a network is told it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato
from sfumato.checkpoints import native
from sfumato.conditioners.text_draft import TextDraft
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.data.item import Item, collate
from sfumato.encoders.text_small import TextSmall
from sfumato.encoders.word_piece import WordPiece
from sfumato.guidance.image_and_text import ImageAndText
from sfumato.model import Model
from sfumato.registry import describe
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.objectives.drafting import Drafting, place_error
from sfumato.training.objectives.objective import told
from sfumato.training.optimizers import AdamW
from sfumato.training.settings import Saving, Settings
from sfumato.training.trainer import Trainer
from sfumato.training.widen import widened
from sfumato.training.with_controls import with_controls

WORDS = ("a red thing", "a blue thing", "something else")
DRAFT = {"name": "text_draft", "shape": [3, 8, 8], "hidden": 32}


@dataclass
class Pairs:
    """Of each caption two pictures, of which neither is likelier."""

    count: int = 6

    def __len__(self) -> int:
        return self.count

    def fingerprint(self) -> str:
        return "pairs"

    def load(self, index: int, seed: int) -> Item:
        g = torch.Generator().manual_seed(index)
        return Item(torch.rand(3, 8, 8, generator=g) * 1.6 - 0.8, {"caption": WORDS[index % 3]})


def start() -> Model:
    torch.manual_seed(0)
    encoder = TextSmall(WordPiece.of(WORDS), width=16, depth=1, heads=2, dim_head=8, length=8)
    text = {"name": "text_small", "encoder": describe(encoder), "pooled": True}
    network = {"name": "sd_unet", "in_channels": 3, "out_channels": 3, "channels": 32, "multipliers": [1]}
    network |= {"blocks": 1, "attention": [1], "heads": 2, "tokens": 16, "vector": 16}
    model = Model.from_description(
        {
            "network": network,
            "process": "flow",
            "prediction": "data",
            "time_input": "thousand",
            "conditioner": text,
            "space": {"name": "pixel"},
        }
    )
    for parameter in model.denoiser.network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def drafting() -> Model:
    return widened(start(), DRAFT, Pairs(), {})


def batch() -> Any:
    data = Pairs()
    return collate([data.load(i, 0) for i in range(len(data))])


def draft(model: Model, captions: list[str], **inputs: Any) -> Tensor:
    guess = model.conditioner(len(captions), prompt=captions, **inputs).draft
    assert guess is not None
    return guess


def test_it_takes_the_place_of_the_text_and_changes_nothing_at_first() -> None:
    old, made = start(), drafting()
    assert isinstance(made.conditioner, TextDraft)
    assert made.denoiser.network.in_channels == 6
    pictures = [sfumato.generate(m, prompt=WORDS[0], steps=3, seed=1, size=8).tensor for m in (old, made)]
    assert torch.equal(*pictures)


def test_the_guess_becomes_the_mean_of_a_captions_pictures(tmp_path: Path) -> None:
    model, data = drafting(), Pairs()
    network = {name: p.clone() for name, p in model.denoiser.network.named_parameters()}
    settings = Settings(
        batch=6,
        steps=400,
        optimizer=AdamW(1e-2, decay="linear"),
        ema=(),
        saving=Saving(every=1000, minutes=None),
    )
    Trainer(model, data, Drafting(), settings, tmp_path).train()
    images = batch().image
    wanted = torch.stack([(images[i] + images[i + 3]) / 2 for i in range(3)])
    assert (draft(model, list(WORDS)) - wanted).abs().max() < 0.02
    # No loss is below the spread of two pictures about their mean.
    least = ((images - wanted.repeat(2, 1, 1, 1)) ** 2).mean()
    error = Drafting().timeless(model, batch()).detach().mean()
    assert error == pytest.approx(least.item(), rel=0.01)
    for name, parameter in model.denoiser.network.named_parameters():
        assert torch.equal(parameter, network[name])


def head_gradients(model: Model, loss: Tensor) -> Tensor:
    model.conditioner.zero_grad()
    loss.mean().backward()
    return torch.cat(
        [torch.zeros(1) if p.grad is None else p.grad.flatten() for p in model.conditioner.head.parameters()]
    )


def test_beside_denoising_the_guess_learns_by_its_own_error_alone() -> None:
    model, noise = drafting(), Noise(torch.arange(6), 0)
    torch.nn.init.normal_(model.denoiser.network.input_blocks[0][0].weight, std=0.05)
    alone = head_gradients(model, Drafting().loss(model, batch(), noise).value)
    beside = head_gradients(model, Denoising(draft=0.5).loss(model, batch(), noise).value)
    torch.testing.assert_close(beside, 0.5 * alone)
    # Without, the network's error is what it learns by.
    through = head_gradients(model, Denoising(draft=0.0).loss(model, batch(), noise).value)
    assert through.norm() > 0
    assert not torch.allclose(through / through.norm(), alone / alone.norm(), atol=0.1)


def gradients(part: Any) -> dict[str, Tensor | None]:
    found = {name: p.grad for name, p in part.named_parameters()}
    part.zero_grad()
    return found


def test_a_conditioner_that_does_not_learn_leaves_the_network_its_lesson(tmp_path: Path) -> None:
    model, noise = drafting(), Noise(torch.arange(6), 0)
    network, words = model.denoiser.network, model.conditioner
    found = []
    for learns in (True, False):
        Denoising(conditioner=learns).loss(model, batch(), noise).value.mean().backward()
        found.append((gradients(network), gradients(words)))
    (both, taught), (alone, kept) = found
    assert all(torch.equal(both[name], alone[name]) for name in both)
    assert any(each is not None and each.norm() > 0 for each in taught.values())
    assert all(each is None for each in kept.values())
    before = {name: tensor.clone() for name, tensor in words.state_dict().items()}
    moved = network.input_blocks[0][0].weight.clone()
    settings = Settings(batch=6, steps=2, ema=(), saving=Saving(every=1000, minutes=None))
    Trainer(model, Pairs(), Denoising(conditioner=False), settings, tmp_path).train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in words.state_dict().items())
    assert not torch.equal(network.input_blocks[0][0].weight, moved)
    with pytest.raises(InvalidInput, match=r"denoising\.conditioner"):
        Denoising(draft=1.0, conditioner=False)


def test_its_null_is_the_empty_caption_beside_zeros() -> None:
    model = drafting()
    said = model.conditioner(2, prompt=list(WORDS[:2]))
    null = model.conditioner.null(said)
    empty = model.conditioner(2, prompt=["", ""])
    assert torch.equal(null.tokens, empty.tokens)
    assert torch.equal(null.draft, torch.zeros(2, 3, 8, 8))
    assert empty.draft.abs().max() > 0


def test_rows_lose_the_guess_alone_or_all_but_the_guess() -> None:
    model = drafting()
    said = told(model, collate([Pairs().load(i % 6, 0) for i in range(400)]))
    dropped = Denoising(drop=0.0, drop_each=0.25).dropped(model, said, Noise(torch.arange(400), 0))
    assert dropped.draft is not None
    assert dropped.vector is not None
    assert said.vector is not None
    blind = (dropped.draft == 0).flatten(1).all(1)
    wordless = (dropped.vector != said.vector).any(1)
    assert not (blind & wordless).any()
    for share in (blind.double().mean(), wordless.double().mean()):
        assert share == pytest.approx(0.25, abs=0.07)


def test_for_another_size_it_is_stretched() -> None:
    model = drafting()
    with torch.no_grad():
        small = draft(model, [WORDS[0]])
        large = draft(model, [WORDS[0]], size=(16, 24))
        again = draft(model, [WORDS[0]], size=[(8, 8)])
    assert torch.equal(again, small)
    assert large.shape == (1, 3, 16, 24)
    assert large.mean() == pytest.approx(small.mean().item(), abs=1e-3)
    wanted = torch.nn.functional.interpolate(small, (16, 24), mode="bilinear", antialias=True)
    assert torch.equal(large, wanted)


def test_a_picture_beside_the_guess_is_kept_where_the_words_are_forgotten() -> None:
    """A guess is of the words: it goes with them, in training and in guidance by picture and text."""

    class Given(Pairs):
        def load(self, index: int, seed: int) -> Item:
            item = super().load(index, seed)
            return Item(item.image, {**item.inputs, "image": item.image.flip(2)})

    model, data = drafting(), Given()
    made = widened(model, {"name": "image"}, data, {})
    assert made.denoiser.network.in_channels == 9
    said = told(made, collate([data.load(i % 6, 0) for i in range(200)]))
    torch.testing.assert_close(said.draft[:1], draft(model, [data.load(0, 0).inputs["caption"]]))
    dropped = Denoising(drop=0.0, drop_each=0.3).dropped(made, said, Noise(torch.arange(200), 0))
    guessless, blind = ((each == 0).flatten(1).all(1) for each in (dropped.draft, dropped.channels))
    assert guessless.sum() > 30
    assert blind.sum() > 30
    assert not (guessless & blind).any()
    assert torch.equal(guessless, (dropped.vector != said.vector).any(1))
    seen: list[Any] = []

    def watch(x: Tensor, level: Any, condition: Any) -> Any:
        seen.append(condition)
        return made.denoiser(x, level, condition)

    null = made.conditioner.null(said[:2])
    with torch.no_grad():
        ImageAndText(3.0, 2.0)(watch, null)(torch.zeros(2, 3, 8, 8), made.process(0.5), said[:2])
    nothing, picture, both = (seen[0][2 * i : 2 * i + 2] for i in range(3))
    for name, draft_there, picture_there in (
        (nothing, False, False),
        (picture, False, True),
        (both, True, True),
    ):
        assert bool(name.draft.any()) == draft_there
        assert bool(name.channels.any()) == picture_there


def test_controls_stand_beside_a_guess() -> None:
    """A fresh control is told the guess as the network is, and changes nothing until it has learnt."""
    model, hint = drafting(), torch.rand(3, 8, 8) * 2 - 1
    torch.nn.init.normal_(model.denoiser.network.input_blocks[0][0].weight, std=0.05)
    before = sfumato.generate(model, prompt=WORDS[0], steps=3, seed=1, size=8).tensor

    class Hinted(Pairs):
        def load(self, index: int, seed: int) -> Item:
            item = super().load(index, seed)
            return Item(item.image, {**item.inputs, "hint": hint})

    made = with_controls(model, {"hint": "controlnet"}, Hinted())
    told_so = {"prompt": WORDS[0], "hint": hint, "steps": 3, "seed": 1, "size": 8}
    assert torch.equal(sfumato.generate(made, **told_so).tensor, before)
    for zero in made.denoiser.network.controls[0].zero_convs:
        torch.nn.init.normal_(zero[0].weight, std=0.1)
    assert not torch.allclose(sfumato.generate(made, **told_so).tensor, before, atol=1e-3)


THINGS = ("cat", "dog", "cup", "red kite", "sun", "oak tree")


@dataclass
class Sides:
    """Two things side by side, said in either order; `new`, pairs that are else left out."""

    new: bool = False

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def pairs(self) -> list[tuple[int, int, bool]]:
        every = [(i, j, said) for i in range(6) for j in range(6) for said in (False, True) if i != j]
        return [(i, j, said) for i, j, said in every if ((i + 2 * j) % 5 == 0) == self.new]

    def fingerprint(self) -> str:
        return f"sides {self.new}"

    def load(self, index: int, seed: int) -> Item:
        left, right, turned = self.pairs[index]
        first, second, relation = (right, left, "right of") if turned else (left, right, "left of")
        caption = f"a {THINGS[first]} {relation} a {THINGS[second]}"
        boxes = {left: (0.1, 0.2, 0.4, 0.5), right: (0.7, 0.2, 0.9, 0.5)}
        objects = [{"concept": THINGS[i], "box": box} for i, box in boxes.items()]
        return Item(torch.zeros(3, 8, 8), {"caption": caption, "objects": objects})


def sided() -> Model:
    torch.manual_seed(0)
    captions = [
        Sides(new).load(i, 0).inputs["caption"] for new in (False, True) for i in range(len(Sides(new)))
    ]
    encoder = TextSmall(WordPiece.of(captions), width=32, depth=2, heads=2, dim_head=16, length=16)
    model = start()
    settings = {**model.describe(), "conditioner": {**DRAFT, "encoder": describe(encoder)}}
    settings["network"] |= {"in_channels": 6, "tokens": 32, "vector": 32}
    return Model.from_description(settings)


def test_words_learn_where_their_things_stand_in_pairs_never_said(tmp_path: Path) -> None:
    """Neither a word's place in the sentence nor the relation tells the side; both together do."""
    model = sided()
    settings = Settings(
        batch=40,
        steps=200,
        optimizer=AdamW(3e-3, decay="linear", warm_up=20),
        ema=(),
        saving=Saving(every=1000, minutes=None),
    )
    Trainer(model, Sides(), Drafting(places=1.0), settings, tmp_path).train()
    new = Sides(new=True)
    met = collate([new.load(i, 0) for i in range(len(new))])
    with torch.no_grad():
        missed = place_error(model, told(model, met), met)
        blind = place_error(sided(), told(sided(), met), met)
    # Centres are at x = -.5 and .6, so that not to know the side costs (1.1 / 2)² / 2 = .15.
    assert missed.max() < 0.05
    assert blind.min() > 0.15


def test_the_error_of_places_is_of_the_first_two_numbers_of_the_words_named() -> None:
    model, data = sided(), Sides()
    item = data.load(1, 0)
    assert item.inputs["caption"] == "a dog right of a cat"
    tokens = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1))
    batch = collate([item, Item(item.image, {"caption": "a dog right of a cat"})])
    # begin, a, dog, right, of, a, cat, end
    tokens[0, 6, :2], tokens[0, 2, :2] = torch.tensor([-0.5, -0.3]), torch.tensor([0.6, -0.3])
    said = told(model, batch)
    exact = place_error(model, replace(said, tokens=tokens), batch)
    torch.testing.assert_close(exact, torch.zeros(2), rtol=0, atol=1e-7)
    tokens[0, 6, 0] += 0.2
    off = place_error(model, replace(said, tokens=tokens), batch)
    silent = collate([Item(item.image, {**item.inputs, "caption": None})] * 2)
    assert not place_error(model, told(model, silent), silent).any()
    torch.testing.assert_close(off, torch.tensor([0.04 / 4, 0.0]))
    whole = Drafting(places=2.0).loss(model, batch, Noise(torch.arange(2), 0))
    torch.testing.assert_close(whole.value.detach(), whole.parts["error"] + 2 * whole.parts["places"])
    assert whole.parts["places"][0] > 0
    noise = Noise(torch.arange(2), 0)
    beside, without = (Denoising(drop=0.0, places=factor).loss(model, batch, noise) for factor in (3.0, 0.0))
    torch.testing.assert_close(beside.value - without.value, 3 * beside.parts["places"])
    torch.testing.assert_close(beside.parts["places"], whole.parts["places"])


def test_a_file_of_it_is_read_back(tmp_path: Path) -> None:
    model = drafting()
    native.save(model, tmp_path / "model")
    loaded = sfumato.load(tmp_path / "model", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(draft(loaded, list(WORDS)), draft(model, list(WORDS)))


def test_what_cannot_draft_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"drafts nothing.*text_draft"):
        list(Drafting().parameters(start()))
    with pytest.raises(InvalidInput, match="pooled"):
        widened(start(), {**DRAFT, "pooled": False}, Pairs(), {})
    with pytest.raises(InvalidInput, match=r"text_draft\.shape"):
        widened(start(), {**DRAFT, "shape": [3, 0, 8]}, Pairs(), {})
    with pytest.raises(InvalidInput, match="nothing is drafted"):
        Denoising(draft=1.0).loss(start(), batch(), Noise(torch.arange(6), 0))
    with pytest.raises(InvalidInput, match="draft"):
        Denoising(draft=-1.0)
    with pytest.raises(InvalidInput, match=r"denoising\.places"):
        Denoising(places=-1.0)
    with pytest.raises(InvalidInput, match=r"drafting\.places"):
        Drafting(places=-1.0)
