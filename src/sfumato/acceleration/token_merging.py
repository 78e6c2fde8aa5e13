"""Token merging: places that look alike attend as one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.acceleration import Acceleration
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Attend, Context, Hooks, Site, all_sites
from sfumato.core.level import Level
from sfumato.core.reverse import Plan


@dataclass(frozen=True)
class TokenMerging(Acceleration):
    """Self-attention of large maps among fewer places: those most alike are merged before and parted after.

    In every cell of 2 x 2 places one, drawn at random, is a goal. Of the others the share `ratio` of all
    places that are most like a goal, by the cosine of what the block is given, is merged into it: queries,
    keys and values of a goal are the mean of all that came to it, and what attention says to a goal it says
    to each of them. As queries, keys and values are linear, this is the paper's merging of tokens before
    them. Attention to a text and the layers after it see all places.

    It takes from attention the square of what is merged; where attention is cheap beside convolutions, as in
    small maps on a CPU, it gains little.

    Bolya & Hoffman 2023, "Token Merging for Fast Stable Diffusion", arXiv:2303.17604, sections 3 and 4.

    Args:
        ratio: share of all places that is merged, 0 to .75.
        factor: how many times smaller than the first map a map may be, for its places to be merged: 1, only
            those of the full size.

    Raises:
        InvalidInput: settings that are none; when asked, a network without blocks of self-attention.
    """

    ratio: float = 0.5
    factor: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 0.75:
            raise InvalidInput(f"{self.ratio} is not from 0 to .75", where="token_merging.ratio")
        if self.factor < 1:
            raise InvalidInput(f"{self.factor} is none", where="token_merging.factor", do="give 1 or more")

    def plan(self, network: nn.Module) -> Plan:
        """The same at every level, with goals drawn anew."""
        blocks = frozenset(site.name for site in all_sites(network) if site.kind == "transformer")
        if not blocks:
            raise InvalidInput("this network has no blocks of self-attention", where="token_merging")

        def hooks(level: Level[float]) -> Hooks | None:
            # By the level, so that a walk walked again draws the same.
            seed = hash((float(level.alpha), float(level.sigma))) % (1 << 31)
            return _Merging(self, blocks, seed) if self.ratio else None

        return hooks


@dataclass
class _Merging(Hooks):
    """The hooks of one estimate, which remember the size of maps and what block they are in."""

    settings: TokenMerging
    blocks: frozenset[str]
    seed: int
    full: int = 0
    sides: tuple[int, int] | None = None
    merging: list[Merged | None] = field(default_factory=list)

    def block(self, site: Site, context: Context, run: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        """Around stages, whose maps tell height and width, and blocks, whose places are compared."""
        if site.kind == "stage":
            self.sides = (h.shape[2], h.shape[3])
            self.full = max(self.full, h.shape[2] * h.shape[3])
            return run(h)
        if site.name not in self.blocks:
            return run(h)
        self.merging.append(self._merged(h))
        try:
            return run(h)
        finally:
            self.merging.pop()

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        """Among the merged places, if they attend to each other."""
        merged = self.merging[-1] if self.merging else None
        if merged is None or site.kind != "self" or q.shape[2] != k.shape[2]:
            return attend(q, k, v)
        return merged.part(attend(merged.merge(q), merged.merge(k), merged.merge(v)))

    def _merged(self, h: Tensor) -> Merged | None:
        """What is merged of places (B, N, C); None where the map is small."""
        count = h.shape[1]
        sides = self.sides
        if sides is None or sides[0] * sides[1] != count:
            side = math.isqrt(count)
            sides = (side, side)
        if sides[0] * sides[1] != count or min(sides) < 2:
            return None
        self.full = max(self.full, count)
        if math.ceil(math.sqrt(self.full // count)) > self.settings.factor:
            return None
        return Merged.of(h, sides, self.settings.ratio, self.seed)


@dataclass(frozen=True)
class Merged:
    """Which places of a map go where.

    Args:
        kept: (B, U) places that stay, goals apart.
        gone: (B, R) places that are merged.
        goals: (G,) the goals.
        to: (B, R) which goal, of 0 to G - 1, each merged place goes to.
    """

    kept: Tensor
    gone: Tensor
    goals: Tensor
    to: Tensor

    @staticmethod
    def of(h: Tensor, sides: tuple[int, int], ratio: float, seed: int) -> Merged:
        """Of places (B, N, C) of a map of so many rows and columns; cells at an odd border have no goal."""
        (rows, columns), device = sides, h.device
        tall, wide = rows // 2, columns // 2
        draw = torch.Generator().manual_seed(seed)
        choice = torch.randint(4, (tall, wide), generator=draw)
        down = 2 * torch.arange(tall)[:, None] + choice // 2
        across = 2 * torch.arange(wide)[None, :] + choice % 2
        goals = (down * columns + across).flatten()
        others = torch.ones(rows * columns, dtype=torch.bool)
        others[goals] = False
        rest = others.nonzero()[:, 0].to(device)
        goals = goals.to(device)
        metric = F.normalize(h, dim=-1)
        likeness, nearest = (metric[:, rest] @ metric[:, goals].mT).max(-1)
        order = likeness.argsort(dim=-1, descending=True)
        count = min(int(ratio * rows * columns), len(rest))
        first, last = order[:, :count], order[:, count:]
        return Merged(rest[last], rest[first], goals, nearest.gather(1, first))

    def merge(self, values: Tensor) -> Tensor:
        """(B, heads, N, D) → (B, heads, U + G, D)."""
        goals = values[:, :, self.goals]
        index = self.to[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3])
        mean = goals.scatter_reduce(2, index, _taken(values, self.gone), "mean", include_self=True)
        return torch.cat((_taken(values, self.kept), mean), dim=2)

    def part(self, values: Tensor) -> Tensor:
        """(B, heads, U + G, D) → (B, heads, N, D): to each merged place what its goal has."""
        staying, going = self.kept.shape[1], self.gone.shape[1]
        kept, goals = values[:, :, :staying], values[:, :, staying:]
        count = staying + going + len(self.goals)
        out = values.new_empty(*values.shape[:2], count, values.shape[3])
        out[:, :, self.goals] = goals
        _put(out, self.kept, kept)
        _put(out, self.gone, _taken(goals, self.to))
        return out


def _taken(values: Tensor, rows: Tensor) -> Tensor:
    """Places (B, K) of values (B, heads, N, D)."""
    return values.gather(2, rows[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3]))


def _put(values: Tensor, rows: Tensor, given: Tensor) -> None:
    values.scatter_(2, rows[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3]), given)
