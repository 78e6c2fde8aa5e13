"""Prompt-to-prompt: a picture made again with some of its words changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.edit import Scene, Turn
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Attend, Context, Hooks, Site
from sfumato.core.level import Level
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State
from sfumato.editing.attended import grouped, rest_of, text_keys, told
from sfumato.editing.word_alignment import Wording, found, refining, replacing, wordings

Span = float | tuple[float, float]
"""A part of the walk, in fractions of its steps: (start, end), or an end alone."""


@dataclass(frozen=True)
class PromptToPrompt:
    """Keep the layout of one picture in others of changed prompts, by keeping where its words were attended.

    The first picture is the source, the others are edits of it, from the same noise; all are walked together:
    `generate(model, prompt=["a red apple", "a green apple"], seeds=[7, 7], edit=PromptToPrompt())`. In the
    part `cross` of the walk the attention of an edit's places to its tokens n is

        A[:, n] = weight_n · Edit[:, n]

    where `replace` (as many words as before) is Edit = A_source M, M taking each word to the one in its
    place, and `refine` (words added or left out) is Edit[:, n] = A_source[:, m] where token n is aligned to
    the source's m, and its own where it is new. In the part `self_attention` places attend to each other as
    the source's do, in maps of few places. The same prompt twice, with weights, heeds words more or less.
    Rows of attention are not scaled back to 1, as published.

    All is linear in the values, A v = A_source (P v) + A_own (D v), so that maps are never laid out, masks
    are those of each prompt, and attention that is not edited stays as it is. What guidance tells of no
    prompt is left alone. Networks that attend to text and places at once (ADM) have both parts edited alike.
    Prompts are weighted, and of any length, as long as they are of as many chunks of 77 tokens.

    Hertz, Mokady, Tenenbaum, Aberman, Pritch & Cohen-Or 2022, "Prompt-to-Prompt Image Editing with Cross
    Attention Control", arXiv:2208.01626, section 3.

    Args:
        method: "replace" or "refine"; "auto" is replace where the numbers of words agree.
        cross: the part of the walk in which attention to words is the source's.
        cross_words: another part for some words of the edited prompts.
        self_attention: the part of the walk in which attention of places to each other is.
        places: of at most so many places; the published notebooks have 16² and 32².
        weights: of words of the edited prompts, while `cross` holds; -2 to 5 are of use, 1 is none.
        unlike_seeds: the pictures may start from unlike noise.

    Raises:
        InvalidInput: settings that are none; fewer than two pictures, unlike seeds, words that do not stand
            in the prompts, prompts that cannot be aligned; a network with nothing to edit, at the first step.
    """

    method: Literal["auto", "replace", "refine"] = "auto"
    cross: Span = 0.8
    cross_words: dict[str, Span] = field(default_factory=dict)
    self_attention: Span = 0.4
    places: int = 1024
    weights: dict[str, float] = field(default_factory=dict)
    unlike_seeds: bool = False

    together: ClassVar[bool] = True

    def __post_init__(self) -> None:
        spans = {"cross": self.cross, "self_attention": self.self_attention}
        spans |= {f"cross_words.{word}": span for word, span in self.cross_words.items()}
        for name, span in spans.items():
            start, end = _ends(span)
            if not 0 <= start <= end <= 1:
                raise InvalidInput(
                    f"{span} is no part of the walk",
                    where=f"prompt_to_prompt.{name}",
                    do="give a start and an end from 0 to 1",
                )
        if self.method not in ("auto", "replace", "refine"):
            raise InvalidInput(
                f"{self.method!r} is not auto, replace or refine", where="prompt_to_prompt.method"
            )
        if self.places < 1 or not all(map(math.isfinite, self.weights.values())):
            raise InvalidInput("places are 1 or more, weights numbers", where="prompt_to_prompt")

    def turn(self, scene: Scene) -> Turn:
        """The walk, in which edits attend as the source does."""
        if len(scene) < 2:
            raise InvalidInput(
                "one picture has no source",
                where="prompt_to_prompt",
                do='say prompt=["source", "edit"], seeds=[7, 7]',
            )
        if len(set(scene.seeds)) > 1 and not self.unlike_seeds:
            raise InvalidInput(
                "the source and its edits start from the same noise",
                where="seeds",
                do=f"say seeds={[scene.seeds[0]] * min(len(scene), 9)}, or unlike_seeds=True",
            )
        script = _Script(self, scene)
        return Turn(plan=script.hooks, sampler=lambda sampler: _Checked(sampler, script.check))


def _ends(span: Span) -> tuple[float, float]:
    return span if isinstance(span, tuple) else (0.0, span)


class _Script:
    """What is edited at which level of a batch's walk, and what of it was met."""

    def __init__(self, edit: PromptToPrompt, scene: Scene) -> None:
        said = wordings(scene)
        source, targets = said[0], said[1:]
        assert scene.condition.tokens is not None, "wordings has seen to it"
        self.tokens, self.limit = scene.condition.tokens, edit.places
        columns = self.tokens.shape[1]
        chosen = [_aligned(edit.method, source, target, columns) for target in targets]
        self.moves = torch.stack([moves for moves, _ in chosen])
        self.known = torch.stack([known for _, known in chosen]).float()
        self.weights = _of_words(edit.weights, targets, columns, "weights")
        self.within_self = scene.between(*_ends(edit.self_attention))
        self.within: list[tuple[Tensor, Callable[[Level[float]], bool]]] = []
        others = torch.ones(len(targets), columns, dtype=torch.bool)
        for word, span in edit.cross_words.items():
            these = _of_words({word: 0.0}, targets, columns, "cross_words") == 0
            self.within.append((these, scene.between(*_ends(span))))
            others &= ~these
        self.within.append((others, scene.between(*_ends(edit.cross))))
        self.cross_met = self.self_met = self.asked_cross = self.asked_self = False
        self.least: int | None = None

    def hooks(self, level: Level[float]) -> Hooks | None:
        """Those of a level; None where nothing is edited."""
        active = torch.zeros_like(self.known, dtype=torch.bool)
        for these, within in self.within:
            if within(level):
                active |= these
        injects = self.within_self(level)
        if not injects and not active.any():
            return None
        scale = active * self.weights
        moved = self.moves * (scale * self.known)[:, None]
        kept = torch.where(active, scale * (1 - self.known), 1.0)
        self.asked_cross |= bool(active.any())
        self.asked_self |= injects
        return _Injection(self, moved, kept, injects)

    def check(self) -> None:
        """Refuse a network in which there was nothing to edit, for the edit would silently do nothing."""
        if self.asked_cross and not self.cross_met:
            raise InvalidInput("nothing in this network attends to the prompt", where="prompt_to_prompt")
        if self.asked_self and not self.self_met:
            what = "none" if self.least is None else f"the smallest has {self.least}"
            raise InvalidInput(
                f"no self-attention of this network has at most {self.limit} places: {what}",
                where="prompt_to_prompt.places",
                do="self_attention=0 leaves it alone",
            )


def _aligned(method: str, source: Wording, target: Wording, columns: int) -> tuple[Tensor, Tensor]:
    """Where the source's tokens went, and which of the target's are known to the source."""
    alike = len(source.words) == len(target.words)
    if method == "replace" or (method == "auto" and alike):
        return replacing(source, target, columns), torch.ones(columns, dtype=torch.bool)
    return refining(source, target, columns)


def _of_words(numbers: dict[str, float], said: list[Wording], columns: int, where: str) -> Tensor:
    """(prompts, columns): the number of each word at the places of its tokens, 1 elsewhere."""
    laid = torch.ones(len(said), columns)
    for word, number in numbers.items():
        for row, places in enumerate(found(said, word, f"prompt_to_prompt.{where}")):
            laid[row, places] = number
    return laid


class _Injection(Hooks):
    """Lets the rows of edits attend as their source's does.

    Args:
        script: whose it is.
        moved: P (edits, L, L): the source's attention to token s goes to token t's value.
        kept: D (edits, L): how much of an edit's own attention stays.
        injects: whether places attend to each other as the source's do.
    """

    def __init__(self, script: _Script, moved: Tensor, kept: Tensor, injects: bool) -> None:
        self.script, self.moved, self.kept, self.injects = script, moved, kept, injects
        self.rewords = bool((kept != 1).any()) or bool(moved.any())

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        script, places = self.script, q.shape[2]
        text = text_keys(site, context, q, k)
        own = k.shape[2] - text
        few = self.injects and 0 < own <= script.limit
        if site.kind == "self":
            script.least = min(own, script.least or own)
            script.self_met |= few
        script.cross_met |= text > 0
        if not few and not (text and self.rewords):
            return attend(q, k, v)
        batch = len(script.tokens)
        ours = told(context.condition, len(q), script.tokens).to(q.device)[:, None, None, None, None]
        q_, k_, v_ = (grouped(each, batch) for each in (q, k, v))
        if not text:
            q, k = (
                torch.cat((each[:, :1], torch.where(ours, each[:, :1], each[:, 1:])), dim=1).flatten(0, 1)
                for each in (q_, k_)
            )
            return attend(q, k, v)
        words, others = v_[:, 1:, :, :text], v_[:, 1:, :, text:]
        none = torch.zeros_like(others)
        extra = text - self.moved.shape[-1]
        moved = F.pad(self.moved, (0, extra, 0, extra)).to(words)
        kept = F.pad(self.kept, (0, extra), value=1.0).to(words)
        sent = torch.cat((torch.einsum("est,gehtd->gehsd", moved, words), others if few else none), dim=3)
        stays = torch.cat((words * kept[None, :, None, :, None], none if few else others), dim=3)
        base = torch.cat((v_[:, :1], torch.where(ours, stays, v_[:, 1:])), dim=1)
        out = grouped(attend(q, k, base.flatten(0, 1)), batch)
        # The source attends once more for each edit, in its own row, where the mask is its own.
        rest = rest_of(self, context, attend, q, k, v)
        turns = [torch.cat((sent[:, [edit]], v_[:, 1:]), dim=1).flatten(0, 1) for edit in range(batch - 1)]
        gains = [grouped(attend(q, k, values) - rest, batch)[:, :1] for values in turns]
        changed = out[:, 1:] + torch.where(ours, torch.cat(gains, dim=1), 0)
        return torch.cat((out[:, :1], changed), dim=1).reshape(len(q), -1, places, v.shape[-1])


@dataclass(frozen=True)
class _Checked(Sampler):
    """A sampler after each of whose steps something is checked."""

    sampler: Sampler
    check: Callable[[], None]

    def init(self, x: Tensor) -> State:
        return self.sampler.init(x)

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: Any
    ) -> tuple[Tensor, State]:
        stepped = self.sampler.step(reverse, x, t, s, state)
        self.check()
        return stepped
