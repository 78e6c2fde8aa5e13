"""Condition: everything a network is told besides x and the noise level, slot by slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Hooks

_ROWS = ("vector", "tokens", "mask", "channels", "draft", "image_tokens", "hint_scales", "branch")
_PLAIN = ("vector", "channels", "draft", "image_tokens", "hint_scales")
"""Slots of one tensor, of one length in every branch."""


@dataclass(frozen=True)
class Condition:
    """What the network is told, in slots named by HOW it enters, not by what it means.

    Args:
        vector: (B, D) added to the time embedding: class, pooled text, sizes, guidance weight.
        tokens: (B, L, D) attended to: text, boxes, scene graph, subjects.
        mask: (B, L) bool, True where a token is real.
        channels: (B, C, H, W) concatenated to x: low resolution, semantic map, depth, masked image.
        draft: (B, C, H, W) concatenated to x before these: x as the words alone let one guess it. It is
            forgotten with the words, where the channels are kept.
        image_tokens: (B, M, D) a second attention (image prompt).
        residuals: tensors (B, C, H, W) added to features (T2I-Adapter, and what controls make of hints).
        hints: pictures (B, C, H, W) in pixels that controls read, one a control; None where one is silent.
        hint_scales: (B, controls, 3), how strongly each hint is heeded, by how much less each residual
            farther from the middle, and with which power of the map's halvings more (ControlScale).
        branch: (B,) int64, which guidance branch a row belongs to.
        hooks: around-advice for attentions and blocks; not a row, shared by the batch.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    channels: Tensor | None = None
    draft: Tensor | None = None
    image_tokens: Tensor | None = None
    residuals: tuple[Tensor, ...] = ()
    hints: tuple[Tensor | None, ...] = ()
    hint_scales: Tensor | None = None
    branch: Tensor | None = None
    hooks: Hooks | None = None

    def __len__(self) -> int:
        """Number of rows; 0 when nothing is said at all."""
        for name in _ROWS:
            value = getattr(self, name)
            if value is not None:
                return int(value.shape[0])
        told = [each for each in (*self.residuals, *self.hints) if each is not None]
        return int(told[0].shape[0]) if told else 0

    def map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        """Apply a function to every tensor; hooks are kept."""
        changed: dict[str, Any] = {
            name: function(value) for name in _ROWS if (value := getattr(self, name)) is not None
        }
        hints = tuple(None if hint is None else function(hint) for hint in self.hints)
        return replace(self, residuals=tuple(map(function, self.residuals)), hints=hints, **changed)

    def __getitem__(self, rows: int | slice | Tensor) -> Condition:
        """Some of the rows; an int keeps the batch dimension."""
        index = slice(rows, rows + 1 or None) if isinstance(rows, int) else rows
        return self.map(lambda value: value[index])

    def to(self, *args: Any, **kwargs: Any) -> Condition:
        """Move or cast as Tensor.to does; masks and branches keep their dtype."""

        def move(value: Tensor) -> Tensor:
            moved = value.to(*args, **kwargs)
            return moved if value.is_floating_point() else moved.to(value.dtype)

        return self.map(move)

    def tile(self, rows: int) -> Condition:
        """The rows over and over until there are `rows`: for a batch that a guidance outside has stacked."""
        if len(self) in (0, rows):
            return self
        if rows % len(self):
            raise InvalidInput(f"{len(self)} rows for a batch of {rows}", where="condition")
        return self.map(lambda value: value.repeat(rows // len(self), *[1] * (value.ndim - 1)))

    @staticmethod
    def stack(conditions: Sequence[Condition]) -> Condition:
        """Rows of several conditions one after another, each numbered in `branch` by its place.

        Token sequences of unlike length are padded and masked. A slot must be filled in all or in none.
        """
        filled: dict[str, Any] = {}
        if len({c.hint_scales is None for c in conditions}) == 2:
            raise InvalidInput(
                "controls are weighed outside of what guides",
                where="hint_scales",
                do="put control_scale first",
            )
        for name in _PLAIN:
            if values := _all_or_none(name, [getattr(c, name) for c in conditions]):
                filled[name] = torch.cat(values)
        if _all_or_none("tokens", [c.tokens for c in conditions]):
            filled["tokens"], filled["mask"] = _pad(conditions)
        counts = {len(c.residuals) for c in conditions}
        if len(counts) != 1:
            raise InvalidInput("conditions to stack have unlike numbers of residuals", where="residuals")
        filled["residuals"] = tuple(
            torch.cat(rs) for rs in zip(*(c.residuals for c in conditions), strict=True)
        )
        if len({len(c.hints) for c in conditions}) != 1:
            raise InvalidInput("conditions to stack have unlike numbers of hints", where="hints")
        filled["hints"] = tuple(
            torch.cat(told) if (told := _all_or_none("hints", hints)) else None
            for hints in zip(*(c.hints for c in conditions), strict=True)
        )
        device = next(
            (getattr(conditions[0], n).device for n in _ROWS if getattr(conditions[0], n) is not None), None
        )
        filled["branch"] = torch.cat(
            [torch.full((len(c),), i, device=device) for i, c in enumerate(conditions)]
        )
        hooks = next((c.hooks for c in conditions if c.hooks is not None), None)
        return Condition(hooks=hooks, **filled)

    def where(self, keep: Tensor, null: Condition) -> Condition:
        """Rows of self where keep (B,) bool is true, of null elsewhere; how condition dropout is done."""
        mixed: dict[str, Any] = {}
        for name in _PLAIN:
            if both := _all_or_none(name, [getattr(self, name), getattr(null, name)]):
                mixed[name] = _rows(keep, *both)
        if self.residuals and null.residuals:
            pairs = zip(self.residuals, null.residuals, strict=True)
            mixed["residuals"] = tuple(_rows(keep, mine, other) for mine, other in pairs)
        if self.hints and null.hints:
            mixed["hints"] = tuple(
                _rows(keep, *both) if (both := _all_or_none("hints", pair)) else None
                for pair in zip(self.hints, null.hints, strict=True)
            )
        if _all_or_none("tokens", [self.tokens, null.tokens]):
            tokens, mask = _pad([self, null])
            mine, other = tokens.chunk(2)
            rows = keep.to(mine.device)
            mixed["tokens"] = torch.where(rows[:, None, None], mine, other)
            if mask is not None:
                mixed["mask"] = torch.where(rows[:, None], *mask.chunk(2))
        return replace(self, **mixed)

    def merge(self, other: Condition) -> Condition:
        """The slots of both: vectors and channels side by side, tokens one after another, residuals summed.

        Hooks of both act as a chain; hints and a draft are those of one, as a conditioner tells them
        together. This is how conditioners combine.
        """
        from sfumato.core.hooks import Chain

        joined: dict[str, Any] = {}
        for field in fields(self):
            mine, his = getattr(self, field.name), getattr(other, field.name)
            if mine is None or his is None:
                joined[field.name] = his if mine is None else mine
        for name in ("vector", "channels", "image_tokens", "tokens"):
            if name not in joined:
                joined[name] = torch.cat([getattr(self, name), getattr(other, name)], dim=1)
        if (
            self.tokens is not None
            and other.tokens is not None
            and (self.mask is None) != (other.mask is None)
        ) or "mask" not in joined:
            joined["mask"] = torch.cat([_mask(self), _mask(other)], dim=1)
        joined.setdefault("branch", self.branch)
        if self.draft is not None and other.draft is not None:
            raise InvalidInput("both guess x, which one conditioner does", where="draft")
        if self.hints and other.hints:
            raise InvalidInput("both tell hints, which one conditioner tells together", where="hints")
        joined["hints"] = self.hints or other.hints
        joined.setdefault("hint_scales", self.hint_scales)
        if self.residuals and other.residuals:
            joined["residuals"] = tuple(a + b for a, b in zip(self.residuals, other.residuals, strict=True))
        else:
            joined["residuals"] = self.residuals or other.residuals
        if "hooks" not in joined:
            joined["hooks"] = Chain(*(c.hooks for c in (self, other) if c.hooks is not None))
        return Condition(**joined)


def _all_or_none(name: str, values: Sequence[Tensor | None]) -> list[Tensor]:
    """The values of a slot that is filled in all; none of one that is filled in none."""
    present = [value for value in values if value is not None]
    if present and len(present) < len(values):
        raise InvalidInput(
            "a condition fills this slot and its null (or another branch) does not", where=name
        )
    return present


def _rows(keep: Tensor, mine: Tensor, other: Tensor) -> Tensor:
    return torch.where(keep.to(mine.device).view(-1, *[1] * (mine.ndim - 1)), mine, other)


def _mask(condition: Condition) -> Tensor:
    assert condition.tokens is not None
    if condition.mask is not None:
        return condition.mask
    return torch.ones(condition.tokens.shape[:2], dtype=torch.bool, device=condition.tokens.device)


def _pad(conditions: Sequence[Condition]) -> tuple[Tensor, Tensor | None]:
    tokens = [c.tokens for c in conditions if c.tokens is not None]
    longest = max(t.shape[1] for t in tokens)
    if all(t.shape[1] == longest for t in tokens) and all(c.mask is None for c in conditions):
        return torch.cat(tokens), None
    padded = [torch.nn.functional.pad(t, (0, 0, 0, longest - t.shape[1])) for t in tokens]
    masks = [torch.nn.functional.pad(_mask(c), (0, longest - c.tokens.shape[1])) for c in conditions]  # type: ignore[union-attr]
    return torch.cat(padded), torch.cat(masks)
