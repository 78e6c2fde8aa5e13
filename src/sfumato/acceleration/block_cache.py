"""Block caching: the deep part of a network is computed at every few steps, and reused between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sfumato.core.acceleration import Acceleration
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Context, Hooks, Site, all_sites
from sfumato.core.level import Level
from sfumato.core.reverse import Plan


@dataclass(frozen=True)
class BlockCache(Acceleration):
    """The deep part of the network, computed at every `every`-th estimate and reused at those between.

    From one step to the next the features of small maps hardly change. Of a U-Net the first `shallow` stages
    and the last ones, which are shown what those make, are computed always; in place of all others stands
    what the last of them made before. Of a transformer so many blocks at either end are computed always, and
    in place of the others stands what they added before.

    An estimate between costs what the outer stages cost; `plan` tells what is left of a walk. Estimates in a
    call of another batch or size (guidance in an interval) are computed whole.

    Ma, Fang & Wang 2024, "DeepCache: Accelerating Diffusion Models for Free", arXiv:2312.00858, section 3.3;
    for transformers Chen, Chen et al. 2024, "Δ-DiT", arXiv:2406.01125.

    Args:
        every: estimates from one that is computed whole to the next; 1 is the network as it is.
        shallow: stages, or blocks, at either end that are always computed.

    Raises:
        InvalidInput: settings that are none; when asked, a network without stages and blocks, or of so few
            that nothing is left to reuse.
    """

    every: int = 3
    shallow: int = 1

    def __post_init__(self) -> None:
        for name in ("every", "shallow"):
            if getattr(self, name) < 1:
                raise InvalidInput(
                    f"{getattr(self, name)} is none", where=f"block_cache.{name}", do="give 1 or more"
                )

    def plan(self, network: nn.Module) -> Plan:
        """Whole estimates and reuse in turn, from the first level on."""
        deep, memory = self._deep(network), _Memory()

        def hooks(level: Level[float]) -> Hooks | None:
            # Whoever comes back to where the walk began walks it again.
            if memory.began is None or level == memory.began:
                memory.began, memory.asked = level, 0
            memory.whole, memory.call = memory.asked % self.every == 0, -1
            memory.asked += 1
            return None if self.every == 1 else _Reuse(deep, memory)

        return hooks

    def _deep(self, network: nn.Module) -> _Deep:
        """The sites between those that are always computed."""
        sites = all_sites(network)
        # Beside controls, copies of its stages have the names of the network's own.
        stages = list(dict.fromkeys(site.name for site in sites if site.kind == "stage"))
        down = [name for name in stages if name.startswith("input_blocks.")]
        up = [name for name in stages if name.startswith("output_blocks.")]
        middle = [name for name in stages if name not in (*down, *up)]
        blocks = [site.name for site in sites if site.kind == "transformer"]
        if down and len(down) == len(up):
            names = [*down[self.shallow :], *middle, *up[: len(up) - self.shallow]]
            first, adds = down[0], False
        elif blocks and not stages:
            names, first, adds = blocks[self.shallow : len(blocks) - self.shallow], blocks[0], True
        else:
            raise InvalidInput(
                "this network has neither a U-Net's stages nor blocks of one width", where="block_cache"
            )
        if self.shallow >= (len(blocks) + 1) // 2 if adds else self.shallow > len(down):
            raise InvalidInput(
                f"{self.shallow} at either end are all there are", where="block_cache.shallow", do="give less"
            )
        return _Deep(first, names[0], names[-1], frozenset(names), adds)


@dataclass(frozen=True)
class _Deep:
    """What is reused: the first site of the network, the first and the last that are reused, and all those;
    and whether they add to what they are given.
    """

    begin: str
    first: str
    last: str
    names: frozenset[str]
    adds: bool


@dataclass
class _Memory:
    """What one walk remembers: of each call of the network in an estimate its input's shape, and by site what
    shape was made; of the last the values.
    """

    began: Level[float] | None = None
    asked: int = 0
    whole: bool = True
    call: int = -1
    inputs: dict[int, torch.Size] = field(default_factory=dict)
    shapes: dict[tuple[int, str], torch.Size] = field(default_factory=dict)
    made: dict[int, Tensor] = field(default_factory=dict)
    given: Tensor | None = None


class _Reuse(Hooks):
    """Computes an estimate whole and remembers it, or leaves its deep part out."""

    def __init__(self, deep: _Deep, memory: _Memory) -> None:
        self.deep, self.memory = deep, memory
        self.computing = True

    def block(self, site: Site, context: Context, run: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        """One stage or block, computed or not."""
        deep, memory = self.deep, self.memory
        if site.name == deep.begin:
            memory.call += 1
            self.computing = memory.whole or memory.inputs.get(memory.call) != h.shape
            memory.inputs[memory.call] = h.shape
        if site.name not in deep.names:
            return run(h)
        if self.computing:
            return self._remembered(site, run, h)
        if deep.adds:
            return h + memory.made[memory.call] if site.name == deep.first else h
        if site.name == deep.last:
            return memory.made[memory.call]
        # Nobody looks at what these make but stages that are left out as well.
        return h.new_zeros(()).expand(memory.shapes[memory.call, site.name])

    def _remembered(self, site: Site, run: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        deep, memory = self.deep, self.memory
        if deep.adds and site.name == deep.first:
            memory.given = h
        made = run(h)
        memory.shapes[memory.call, site.name] = made.shape
        if site.name == deep.last:
            memory.made[memory.call] = made - memory.given if deep.adds and memory.given is not None else made
        return made
