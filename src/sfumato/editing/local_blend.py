"""Local blend: an edit that stays where some words are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.edit import Edit, Scene, Turn
from sfumato.core.errors import InvalidInput
from sfumato.core.region import Region
from sfumato.core.reverse import ReverseProcess, always, nested
from sfumato.core.sampler import Sampler, State
from sfumato.data.picture import masks
from sfumato.editing.attended import Recorder, sides_of
from sfumato.editing.prompt_to_prompt import PromptToPrompt
from sfumato.editing.word_alignment import Wording, found, wordings


@dataclass(frozen=True)
class LocalBlend:
    """An edit of a first picture that changes nothing but the places where some words are, or a region.

    After each step, from `start` of the walk on, x of every edit is laid into the source's:

        x = x_source + mask · (x - x_source),    mask = (m_source or m_edit) and not subtracted,
        m = pool(Σ_steps mean_{layers, heads} Σ_words A) / its largest > threshold

    where the source's and the edit's maps A of attention to the words are summed over the steps, widened by a
    pixel (pool), and resized to x. Outside the edit is the source, to the bit, in the space of x.

    Hertz et al. 2022, "Prompt-to-Prompt", arXiv:2208.01626, section 3.2, as its authors released it.

    Args:
        words: of the source's prompt or of an edit's; in each picture those that stand in its prompt.
        subtract: words whose places stay as they are; their maps are not widened.
        region: no place outside of it changes; without words, all inside may.
        edit: what changes, of pictures walked together.
        threshold: part of a map's largest value from which it counts.
        subtract_threshold: the same for words to subtract.
        start: the fraction of the walk's steps before which nothing is blended.
        side: the maps used are those whose side is nearest to this: 16 of Stable Diffusion at 512 pixels.

    Raises:
        InvalidInput: settings that are none, words that stand in no prompt; a network that attends to no
            text, at the first step.
    """

    words: tuple[str, ...] = ()
    subtract: tuple[str, ...] = ()
    region: Region | None = None
    edit: Edit = field(default_factory=PromptToPrompt)
    threshold: float = 0.3
    subtract_threshold: float = 0.3
    start: float = 0.2
    side: int = 16

    together: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.words, str) or isinstance(self.subtract, str):
            raise InvalidInput("give a list of words", where="local_blend.words")
        if not self.words and self.region is None:
            raise InvalidInput("say words, or a region", where="local_blend")
        if not 0 <= self.start <= 1 or self.side < 1:
            raise InvalidInput("start is from 0 to 1, side 1 or more", where="local_blend")
        if not callable(getattr(self.edit, "turn", None)) or hasattr(self.edit, "canvas"):
            raise InvalidInput("blends edits of pictures that are made, not given", where="local_blend.edit")

    def turn(self, scene: Scene) -> Turn:
        """The walk of the edit inside, blended."""
        inner: Turn = self.edit.turn(scene)  # type: ignore[attr-defined]
        if len(scene) < 2:
            raise InvalidInput("one picture has no source", where="local_blend")
        height, width = scene.shape[1:]
        inside = None
        if self.region is not None:
            read = partial(masks, where="local_blend.region.mask")
            inside = self.region.places(scene.size, (height, width), read)
        recorder = None
        if self.words or self.subtract:
            said = wordings(scene)
            groups = [_indicators(said, names, scene) for names in (self.words, self.subtract)]
            recorder = Recorder(scene, torch.stack(groups, dim=-1))

        def blended(sampler: Sampler) -> Sampler:
            own = sampler if inner.sampler is None else inner.sampler(sampler)
            return _Blended(own, self, recorder, inside, scene.time(self.start))

        plan = inner.plan if recorder is None else nested(always(recorder), inner.plan)
        return replace(inner, plan=plan, sampler=blended)


def _indicators(said: list[Wording], words: tuple[str, ...], scene: Scene) -> Tensor:
    """(B, L), 1 at the places of any of the words."""
    assert scene.condition.tokens is not None, "wordings has seen to it"
    laid = torch.zeros(scene.condition.tokens.shape[:2])
    for word in words:
        for row, places in enumerate(found(said, word, "local_blend.words")):
            laid[row, places] = 1
    return laid


@dataclass(frozen=True)
class _Blended(Sampler):
    """A sampler that lays all rows but the first into the first, from a time of the walk on."""

    sampler: Sampler
    blend: LocalBlend
    recorder: Recorder | None
    inside: Tensor | None
    start: float

    def init(self, x: Tensor) -> State:
        if self.recorder is not None:
            self.recorder.reset()
        return self.sampler.init(x)

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: Any
    ) -> tuple[Tensor, State]:
        x, state = self.sampler.step(reverse, x, t, s, state)
        if self.recorder is not None and self.recorder.places is None:
            self._choose(self.recorder)
        if t > self.start:
            return x, state
        mask = self._mask((x.shape[2], x.shape[3])).to(x)
        return torch.where(mask > 0, torch.lerp(x[:1].expand_as(x), x, mask), x[:1]), state

    def _mask(self, sides: tuple[int, int]) -> Tensor:
        """(B or 1, 1, h, w), 0 to 1."""
        inside = torch.ones(1, 1, *sides) if self.inside is None else self.inside
        if self.recorder is None:
            return inside
        sums = list(self.recorder.sums.values())
        maps = (sum(sums[1:], sums[0]) / len(sums)).transpose(1, 2)
        words, others = maps.reshape(*maps.shape[:2], *sides_of(maps.shape[2], sides)).chunk(2, dim=1)
        mask = inside.to(maps)
        if self.blend.words:
            mask = mask * _above(F.max_pool2d(words, 3, stride=1, padding=1), sides, self.blend.threshold)
        if self.blend.subtract:
            mask = mask * ~_above(others, sides, self.blend.subtract_threshold)
        return mask

    def _choose(self, recorder: Recorder) -> None:
        """Of all maps that a first step has met, those of the side wanted."""
        sizes = {total.shape[1] for total in recorder.sums.values()}
        if not sizes:
            raise InvalidInput("nothing in this network attends to the prompt", where="local_blend")
        recorder.keep(min(sizes, key=lambda places: abs(math.log(places / self.blend.side**2))))


def _above(maps: Tensor, sides: tuple[int, int], threshold: float) -> Tensor:
    """Maps (B, 1, h, w) → where they, or the first, are above a part of their largest, at the size of x."""
    large = F.interpolate(maps, sides, mode="nearest")
    tops = large.amax(dim=(2, 3), keepdim=True).clamp_min(torch.finfo(large.dtype).tiny)
    above = large / tops > threshold
    return above | above[:1]
