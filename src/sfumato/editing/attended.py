"""What edits that look into attention share: where the text stands, whose rows are whose, what map it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.edit import Scene
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Attend, Context, Hooks, Site
from sfumato.guidance.windows import Windows


def text_keys(site: Site, context: Context, q: Tensor, k: Tensor) -> int:
    """How many of an attention's keys, the first, are the condition's tokens."""
    tokens = context.condition.tokens
    own = 0 if site.kind == "cross" else q.shape[2]
    return k.shape[2] - own if tokens is not None and k.shape[2] - own == tokens.shape[1] else 0


def grouped(rows: Tensor, batch: int) -> Tensor:
    """(groups · batch, ..) → (groups, batch, ..): guidance stacks the batch whole."""
    return rows.reshape(-1, batch, *rows.shape[1:])


def rest_of(hook: Hooks, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor | float:
    """What an attention answers whatever the values are: other hooks may add to it what a picture says.

    It is nothing, and not asked for, where there are none.
    """
    return 0.0 if context.hooks is hook else attend(q, k, torch.zeros_like(v))


def told(condition: Condition, rows: int, tokens: Tensor) -> Tensor:
    """Which of the groups of rows are told what the pictures are told: (groups,) bool.

    Guidance stacks the batch several times: once told nothing, once told what was said, perhaps once told
    another thing. What a branch is called says less than its tokens, and no row is picked by what it holds:
    the answer stays on the device.

    Args:
        condition: of all rows.
        rows: how many there are.
        tokens: (B, L, D) of the pictures.

    Raises:
        InvalidInput: no whole number of groups.
    """
    if rows % len(tokens) or condition.tokens is None or len(condition.tokens) != rows:
        raise InvalidInput(f"{rows} rows for {len(tokens)} pictures walked together", where="edit")
    groups = grouped(condition.tokens, len(tokens))
    if groups.shape[2] < tokens.shape[1]:
        return torch.zeros(len(groups), dtype=torch.bool, device=groups.device)
    return (groups[:, :, : tokens.shape[1]] == tokens.to(groups)).flatten(1).all(dim=1)


def sides_of(places: int, sides: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a map of so many places, for x of (height, width): both divided by one number."""
    height, width = sides
    factor = round((height * width / places) ** 0.5)
    if factor < 1 or (height // factor) * (width // factor) != places:
        raise InvalidInput(f"{places} places are no smaller map of {width} x {height}", where="edit")
    return height // factor, width // factor


class Recorder(Hooks):
    """Sums over a walk how much attention groups of tokens get at each place, mean of the heads.

    The map itself is never laid out: softmax(q kᵀ) E, with E the indicators of the groups in place of the
    values, are its columns summed, by the same fused attention, masks and other hooks included.

    Args:
        scene: the batch.
        groups: (B, L, W), 1 where a token of a picture belongs to a group.
    """

    def __init__(self, scene: Scene, groups: Tensor) -> None:
        if any(isinstance(each, Windows) for each in _every(scene.guidance)):
            raise InvalidInput(
                "maps of windows are not put together", where="guidance", do="leave windows out"
            )
        assert scene.condition.tokens is not None, "whoever knows the words has seen to it"
        self.tokens, self.groups = scene.condition.tokens, groups
        self.sums: dict[str, Tensor] = {}
        self.places: int | None = None

    def reset(self) -> None:
        """Before a walk."""
        self.sums, self.places = {}, None

    def keep(self, places: int) -> None:
        """Of maps of so many places alone; others are forgotten."""
        self.places = places
        self.sums = {name: total for name, total in self.sums.items() if total.shape[1] == places}

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        text = text_keys(site, context, q, k)
        if text and self.places in (None, q.shape[2]):
            seen = told(context.condition, len(q), self.tokens)
            rest = rest_of(self, context, attend, q, k, v)
            parts = [
                self._summed(attend, q, k, v, each, rest)
                for each in torch.split(self.groups, v.shape[-1], dim=-1)
            ]
            maps = grouped(torch.cat(parts, dim=-1), len(self.tokens))
            # The first group that is told it: a guidance may perturb attention in those that follow.
            first = seen.int().argmax().to(maps.device).view(1)
            maps = maps.index_select(0, first)[0] * seen.any()
            total = self.sums.get(site.name)
            self.sums[site.name] = maps if total is None else total + maps
        return attend(q, k, v)

    def _summed(
        self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, groups: Tensor, rest: Tensor | float
    ) -> Tensor:
        """(rows, N, groups)."""
        values = v.new_zeros((len(self.tokens), k.shape[2], v.shape[-1]))
        values[:, : groups.shape[1], : groups.shape[2]] = groups.to(values)
        values = values.repeat(len(q) // len(values), 1, 1)[:, None].expand(v.shape)
        return (attend(q, k, values) - rest)[..., : groups.shape[2]].float().mean(dim=1)


def _every(guidance: Any) -> list[Callable[..., Any]]:
    """Guidances, and those inside them."""
    inner = [each.guidance for each in guidance if callable(getattr(each, "guidance", None))]
    return [*guidance, *_every(inner)] if inner else list(guidance)
