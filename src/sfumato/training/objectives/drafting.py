"""Drafting: the conditioner's first guess of x, before any network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sfumato.conditioners.text_draft import TextDraft
from sfumato.conditioners.text_small import TextSmall
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.encoders.word_piece import WordPiece
from sfumato.model import Model
from sfumato.training.objectives.objective import Loss, TrainingObjective, told

if TYPE_CHECKING:
    from sfumato.data.item import Batch


@dataclass(frozen=True)
class Drafting(TrainingObjective):
    """The squared error of a draft, mean((draft - x)²): trains the conditioner `text_draft` and no network.

    Its least is reached by E[x | caption]. A caption said of one picture alone is learnt by heart; held-out
    captions tell when that is all that is learnt.

    A text transformer that learns from pictures alone stays blind to the order of words for long: which of
    two things stands on the left follows from neither word alone, and while the one is not learnt the other
    is of no use. With `places` the words of things whose boxes are known ("objects" of the data) are taught
    to say where their thing stands, in the first two numbers of their states:

        error = mean((draft - x)²) + places · mean((state[:2] - centre)²),   centre (x, y) in [-1, 1]

    after which a network has only to look words up by place.

    Han, Zheng & Zhou 2022, arXiv:2206.07275, section 2.3 (the mean is trained first).

    Args:
        places: factor of the second error; 0 for none.
    """

    places: float = 0.0

    def __post_init__(self) -> None:
        if self.places < 0:
            raise InvalidInput(f"{self.places} is no weight", where="drafting.places", do="give 0 or more")

    def loss(self, model: Model, batch: Batch, noise: Noise) -> Loss:
        """Loss of pictures batch.image (B, C, H, W) with batch.inputs."""
        condition = told(model, batch)
        value = draft_error(condition, model.space.encode(batch.image.to(model.device)))
        parts = {"error": value.detach()}
        if self.places:
            error = place_error(model, condition, batch)
            parts["places"] = error.detach()
            value = value + self.places * error
        return Loss(value, torch.zeros(len(value)), parts)

    def parameters(self, model: Model) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the conditioner that ask for gradients."""
        for name, parameter in _drafting(model).named_parameters():
            if parameter.requires_grad:
                yield f"conditioner.{name}", parameter

    def timeless(self, model: Model, batch: Batch) -> Tensor:
        # No noise: a draft is of the latents' mean.
        return draft_error(told(model, batch), model.space.encode(batch.image.to(model.device)))


def draft_error(condition: Condition, x: Tensor) -> Tensor:
    """mean((draft - x)²) of rows (B, C, H, W)."""
    if condition.draft is None:
        raise InvalidInput("nothing is drafted", where="draft", do="tell the model by text_draft")
    if condition.draft.shape != x.shape:
        raise InvalidInput(
            f"a draft of {tuple(condition.draft.shape[1:])} of x {tuple(x.shape[1:])}",
            where="text_draft.shape",
            do=f"make it {list(x.shape[1:])}",
        )
    return ((condition.draft.float() - x) ** 2).flatten(1).mean(1)


def place_error(model: Model, condition: Condition, batch: Batch) -> Tensor:
    """Of rows (B,), by how much the words of things miss their places; 0 where no boxes are known.

    Args:
        model: whose conditioner read the captions, one of those with a text transformer of their own.
        condition: what it made of them.
        batch: with "caption", and "objects", each of which has a concept and a box as fractions.
    """
    if not isinstance(model.conditioner, TextSmall):
        raise InvalidInput(
            "places are taught to words that learn with the model",
            where="model.conditioner",
            do="make it {name: text_draft, ...} or text_small",
        )
    assert condition.tokens is not None
    tokenizer = model.conditioner.encoder.tokenizer
    errors = condition.tokens.new_zeros(len(condition.tokens), dtype=torch.float32)
    captions = batch.inputs.get("caption", ())
    for row, (caption, things) in enumerate(zip(captions, batch.inputs.get("objects", ()), strict=False)):
        named = ((_words(tokenizer, caption or "", thing), thing["box"]) for thing in things or ())
        found = [(at, _centre(box)) for at, box in named if at]
        if found:
            said = torch.stack([condition.tokens[row, at, :2].float().mean(0) for at, _ in found])
            errors[row] = ((said - said.new_tensor([centre for _, centre in found])) ** 2).mean()
    return errors


def _words(tokenizer: WordPiece, caption: str, thing: dict[str, Any]) -> slice | None:
    """Where a caption first names a thing, counted in tokens, the beginning included."""
    said, name = tokenizer.ids(caption), tokenizer.ids(thing["concept"])
    for start in range(len(said) - len(name) + 1):
        if said[start : start + len(name)] == name:
            return slice(1 + start, 1 + start + len(name))
    return None


def _centre(box: Sequence[float]) -> list[float]:
    """Of a box (x0, y0, x1, y1) in fractions: (x, y) from -1 to 1."""
    return [box[0] + box[2] - 1, box[1] + box[3] - 1]


def _drafting(model: Model) -> TextDraft:
    if not isinstance(model.conditioner, TextDraft):
        raise InvalidInput(
            "this model's conditioner drafts nothing",
            where="model.conditioner",
            do="make it {name: text_draft, ...}",
        )
    return model.conditioner
