"""Noise: one counter-based generator a sample, keyed by seed, step and purpose."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput

MAX_SEED = 2**63 - 1
_MASK = 0xFFFFFFFF
Word = TypeVar("Word", int, Tensor)


def philox(
    counter: Sequence[Tensor | int], key: Sequence[Tensor | int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10 over broadcast int64 tensors holding 32-bit words.

    Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3". Integer arithmetic only,
    so every device gives the same words.
    """
    return _rounds(*(torch.as_tensor(word, dtype=torch.int64) for word in (*counter, *key)))


def _rounds(c0: Word, c1: Word, c2: Word, c3: Word, k0: Word, k1: Word) -> tuple[Word, Word, Word, Word]:
    for _ in range(10):
        # An int64 holds all bits of a product of two 32-bit numbers, though it takes the first for a sign.
        one, two = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        # What is above 32 bits in the other words is never looked at.
        c0, c1, c2, c3 = (two >> 32 ^ c1 ^ k0) & _MASK, two, (one >> 32 ^ c3 ^ k1) & _MASK, one
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1 & _MASK, c2, c3 & _MASK


class Noise:
    """Random numbers of a batch: each row depends on its own seed, the step and the purpose, on nothing else.

    Row i of a batch, alone or in company, on any device, starts from the same numbers: draws are made on the
    CPU (or where `device` says, with the same integers) and moved to where they are needed.

    Args:
        seeds: one a sample, each 0 .. 2⁶³ - 1.
        step: counted into every draw; training uses the step of the run.
        device: where draws are made.
    """

    def __init__(
        self, seeds: Sequence[int] | Tensor, step: int = 0, device: str | torch.device = "cpu"
    ) -> None:
        self.seeds = torch.as_tensor(seeds, dtype=torch.int64).to(device)
        if self.seeds.ndim != 1 or bool((self.seeds < 0).any()):
            raise InvalidInput("seeds are a list of whole numbers from 0 to 2^63 - 1", where="seed")
        self.step = step

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, rows: slice | Tensor) -> Noise:
        """The noise of some of the rows."""
        return Noise(self.seeds[rows], self.step, self.seeds.device)

    def words(self, count: int, purpose: str, moment: float = 0.0) -> Tensor:
        """Random 32-bit words (B, count) as int64, for a purpose at a moment (a time of the walk)."""
        blocks = torch.arange(-(-count // 4), device=self.seeds.device)
        low, high = struct.unpack("<II", struct.pack("<d", moment))
        name = zlib.crc32(purpose.encode()) ^ low
        counter = (blocks[None, :], self.step & _MASK, name, high)
        key = ((self.seeds & _MASK)[:, None], (self.seeds >> 32)[:, None])
        return torch.stack(philox(counter, key), dim=-1).flatten(1)[:, :count]

    def uniform(self, shape: Sequence[int], purpose: str, moment: float = 0.0) -> Tensor:
        """Uniform numbers strictly inside (0, 1), float64, shape (B, ...)."""
        self._check(shape)
        words = self.words(math.prod(shape[1:]), purpose, moment)
        return ((words.double() + 0.5) / 2**32).view(tuple(shape))

    def randn(self, shape: Sequence[int], purpose: str, moment: float = 0.0) -> Tensor:
        """Standard normal numbers, float32, shape (B, ...), by the Box-Muller transform."""
        self._check(shape)
        count = math.prod(shape[1:])
        pairs = self.uniform((len(self), count + count % 2), purpose, moment).view(len(self), -1, 2)
        radius = torch.sqrt(-2 * torch.log(pairs[..., 0]))
        angle = 2 * math.pi * pairs[..., 1]
        normal = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(1)
        return normal[:, :count].float().view(tuple(shape))

    def randn_like(self, x: Tensor, purpose: str = "noise", moment: float = 0.0) -> Tensor:
        """Standard normal numbers of x's shape and dtype, on its device."""
        return self.randn(x.shape, purpose, moment).to(x)

    def _check(self, shape: Sequence[int]) -> None:
        if shape[0] != len(self):
            raise InvalidInput(
                f"{len(self)} seeds for a batch of {shape[0]}", where="noise", do="give one seed a row"
            )


def derive(seed: int, *path: int | str) -> int:
    """A seed of its own for a place inside a run: derive(seed, "epoch", 3), 0 .. 2⁶³ - 1, without collisions
    in practice.
    """
    words = [seed & _MASK, seed >> 32]
    for place in path:
        number = zlib.crc32(place.encode()) | 1 << 40 if isinstance(place, str) else place
        words = list(_rounds(number & _MASK, number >> 32 & _MASK, 0, 1, *words)[:2])
    return (words[1] << 32 | words[0]) & MAX_SEED
