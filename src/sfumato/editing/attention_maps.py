"""Attention maps: which pixels of a picture each word of its prompt moved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.edit import Scene, Turn
from sfumato.core.errors import InvalidInput
from sfumato.core.reverse import always, nested
from sfumato.editing.attended import Recorder, sides_of
from sfumato.editing.word_alignment import Wording, wordings
from sfumato.generation.generate import generate
from sfumato.generation.images import Images, to_image
from sfumato.model import Model

if TYPE_CHECKING:
    from PIL.Image import Image

_COLD, _WARM, _HOT = (-1.0, -0.9, 0.2), (0.9, 0.1, -0.6), (1.0, 1.0, 0.0)
"""Red, green and blue of the least, the middling and the most heat, in [-1, 1]."""


@dataclass(frozen=True)
class Maps:
    """Pictures, and where in them the words of their prompts were attended to.

    Args:
        images: the pictures, as without maps.
        said: their prompts.
        tokens: (B, W, h, w): how much attention each token of the words got, summed over the walk, mean over
            layers and heads, at the size of x.
    """

    images: Images
    said: tuple[Wording, ...]
    tokens: Tensor

    def heat(self, word: str, row: int = 0) -> Tensor:
        """How much attention a word, or several in a row, got from each pixel: (H, W), 0 or more.

        The mean over its tokens, wherever it stands in the prompt, resized smoothly (bicubic).

        Raises:
            InvalidInput: it does not stand in the prompt.
        """
        if not 0 <= row < len(self.said):
            raise InvalidInput(f"{row} is not from 0 to {len(self.said) - 1}", where="row")
        said = self.said[row]
        found = said.find(word)
        if not found:
            raise InvalidInput(f"{word!r} does not stand in {said.prompt[:60]!r}", where="word")
        numbers = [said.places.index(place) for place in found]
        mean = self.tokens[row, numbers].mean(dim=0)[None, None]
        return F.interpolate(mean, self.images.tensor.shape[2:], mode="bicubic").clamp_min(0)[0, 0]

    def relative(self, word: str, row: int = 0) -> Tensor:
        """The same from 0, where it is least, to 1, where it is most; 0 where it is even."""
        heat = self.heat(word, row)
        low, high = heat.min(), heat.max()
        return (heat - low) / (high - low).clamp_min(torch.finfo(heat.dtype).tiny)

    def mask(self, word: str, threshold: float = 0.4, row: int = 0) -> Tensor:
        """Where the word is: (H, W) bool, its relative heat above a threshold."""
        return self.relative(word, row) > threshold

    def overlay(self, word: str, strength: float = 0.6, row: int = 0) -> Image:
        """The picture, tinted from blue over red to yellow with the word's relative heat."""
        heat = self.relative(word, row)
        cold, warm, hot = (torch.tensor(each).view(3, 1, 1) for each in (_COLD, _WARM, _HOT))
        tint = torch.where(
            heat < 0.5, torch.lerp(cold, warm, 2 * heat), torch.lerp(warm, hot, (2 * heat - 1).clamp_min(0))
        )
        picture = self.images.tensor[row]
        picture = picture[:3] if len(picture) >= 3 else picture[:1].expand(3, -1, -1)
        return to_image(torch.lerp(picture, tint, strength))


def maps(model: Model, /, **asked: Any) -> Maps:
    """Generate pictures, and see where their words were attended to: DAAM.

        found = maps(model, prompt="a cat on a red sofa", seed=7)
        found.overlay("cat").save("cat.png")

    Attention maps of all layers that attend to the prompt, resized to x (bicubic), are averaged; those of the
    smallest size are left out where there are larger ones, as they hardly say where. The pictures are those
    made without looking. All are walked together.

    Tang, Liu, Pandey, Jiang, Yang, Kumar, Stenetorp, Lin & Ture 2023, "What the DAAM: Interpreting Stable
    Diffusion Using Cross Attention", arXiv:2210.04885, section 2.2.

    Args:
        model: which attends to text.
        asked: as `sfumato.generate` takes it; an edit must be one of the walk, not of given pictures.

    Raises:
        InvalidInput: a model that attends to no text; as `generate`.
    """
    look = _Look(asked.pop("edit", None))
    images = generate(model, **asked, edit=look)
    # The last batch that was looked at is the one walked, after those measured.
    scene, recorder = look.seen[-1]
    sums = list(recorder.sums.values())
    if not sums:
        raise InvalidInput("nothing in this network attends to the prompt", where="attention_maps")
    if look.edit is None:
        images = replace(images, recipes=tuple(_plain(recipe) for recipe in images.recipes))
    sides = (scene.shape[1], scene.shape[2])
    smallest, largest = (pick(total.shape[1] for total in sums) for pick in (min, max))
    kept = [total for total in sums if total.shape[1] > smallest or smallest == largest]
    large = [
        F.interpolate(
            total.transpose(1, 2).reshape(len(total), -1, *sides_of(total.shape[1], sides)),
            sides,
            mode="bicubic",
        ).clamp_min(0)
        for total in kept
    ]
    return Maps(images, tuple(wordings(scene)), torch.stack(large).mean(dim=0).cpu())


class _Look:
    """An edit that changes nothing, and records around what another does."""

    together = True

    def __init__(self, edit: Any) -> None:
        if edit is not None and (hasattr(edit, "canvas") or not callable(getattr(edit, "turn", None))):
            raise InvalidInput("maps are of pictures that are made, not given", where="edit")
        self.edit = edit
        self.seen: list[tuple[Scene, Recorder]] = []

    def turn(self, scene: Scene) -> Turn:
        """The same walk, recorded."""
        inner: Turn = Turn() if self.edit is None else self.edit.turn(scene)
        said = wordings(scene)
        assert scene.condition.tokens is not None, "wordings has seen to it"
        groups = torch.zeros(*scene.condition.tokens.shape[:2], max(1, *(len(each.places) for each in said)))
        for row, each in enumerate(said):
            groups[row, each.places, range(len(each.places))] = 1
        recorder = Recorder(scene, groups)
        self.seen.append((scene, recorder))
        return replace(inner, plan=nested(always(recorder), inner.plan))


def _plain(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe without the edit that changed nothing."""
    lost = [name for name in recipe.get("unrecorded", ()) if name != "edit"]
    kept = {name: value for name, value in recipe.items() if name != "unrecorded"}
    return {**kept, "unrecorded": lost} if lost else kept
