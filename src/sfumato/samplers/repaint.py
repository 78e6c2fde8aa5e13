"""RePaint: filling in what is unknown of a picture, by any sampler and an unconditional model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.process import Process
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State
from sfumato.samplers.ancestral import Ancestral
from sfumato.samplers.churn import noised


@dataclass(frozen=True)
class RePaint(Sampler):
    """Inpainting by resampling: keep what is known at every level, and walk each stretch several times.

    A step [t, s] of the walk is a stretch of `jump` smaller steps, even in time. After each of them, at time
    u, what is known is put back, freshly noised,

        x_u = keep · (alpha_u x0 + sigma_u z) + (1 - keep) · x_u,

    and from s the walk is noised back up to t and goes down again, `resample` times in all, so that the
    unknown part can come to terms with the known. Once (`resample` 1) is plain replacement, whose unknown
    part does not know enough of the known. The paper's T = 250, j = 10, r = 10 is a grid of 25 even steps
    (it does not repeat its first stretch and its very last small step). A step costs jump · resample times
    what the inner sampler's costs. The inner sampler's memory starts anew where the walk turns.

    No small step ends between clean data and the process's t_min, where no network is asked. With nothing
    known there is nothing to come to terms with: each step is the inner sampler's own, whole.

    Lugmayr, Danelljan, Romero, Yu, Timofte & Van Gool 2022, "RePaint: Inpainting using Denoising Diffusion
    Probabilistic Models", arXiv:2201.09865, algorithm 1 and figure 9. (Its algorithm 1 misses the square
    roots of the noise scales; the text and the authors' code have them.)

    Args:
        sampler: what walks down.
        jump: small steps in a step, j.
        resample: how often each stretch is walked, r.
        known: nothing, or two tensors (picture, keep) in the space of x: the picture (B or 1, C, H, W), of
            which only the kept part is looked at, and a mask that broadcasts with it, 1 or True where the
            picture is kept, 0 or False where it is to be filled in. Pictures are no plain data: a RePaint
            that holds them cannot be described.

    Raises:
        InvalidInput: counts below 1, another RePaint inside, a mask of other values, or tensors that do not
            fit x.
    """

    sampler: Sampler = field(default_factory=Ancestral)
    jump: int = 10
    resample: int = 10
    known: Sequence[Tensor] = field(default=())

    def __post_init__(self) -> None:
        if self.jump < 1 or self.resample < 1:
            raise InvalidInput("whole numbers of at least 1 are needed", where="repaint.jump, resample")
        if isinstance(self.sampler, RePaint):
            raise InvalidInput("what is inside is resampled already", where="repaint.sampler")
        if len(self.known) not in (0, 2):
            raise InvalidInput(
                f"{len(self.known)} tensors",
                where="repaint.known",
                do="give a picture and what to keep of it",
            )
        if self.known and not bool(((self.known[1] == 0) | (self.known[1] == 1)).all()):
            raise InvalidInput(
                "a part cannot be half kept", where="repaint.known", do="give a mask of 0 and 1"
            )

    def init(self, x: Tensor) -> State:
        for given in self.known:
            # Either may be of one row or channel, but must not make x larger.
            if given.ndim > x.ndim or any(
                a not in (1, b) for a, b in zip(given.shape[::-1], x.shape[::-1], strict=False)
            ):
                raise InvalidInput(
                    f"a picture or mask of shape {tuple(given.shape)} for x of {tuple(x.shape)}",
                    where="repaint.known",
                )
        return self.sampler.init(x)

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        if not self.known:
            return self.sampler.step(reverse, x, t, s, state)
        stretch = self.stretch(reverse.process, t, s)
        for turn in range(self.resample):
            again = replace(reverse, turn=f"{reverse.turn}turn {turn} ") if turn else reverse
            if turn:
                x, state = noised(again, x, s, t, "back up"), self.sampler.init(x)
            for here, there in pairwise(stretch):
                x, state = self.sampler.step(again, x, here, there, state)
                x = self._with_known(again, x, there)
        return x, state

    def stretch(self, process: Process, t: float, s: float) -> list[float]:
        """The times of one step cut small: from t to s, both visited."""
        inner = (t + (s - t) * i / self.jump for i in range(1, self.jump))
        return [t, *(u for u in inner if u >= process.t_min), s]

    def _with_known(self, reverse: ReverseProcess, x: Tensor, u: float) -> Tensor:
        picture, keep = self.known
        level = reverse.level(u)
        drawn = level.alpha * picture.to(x)
        if level.sigma > 0:
            drawn = drawn + level.sigma * reverse.randn_like(x, u, "known")
        return torch.where(keep.to(x.device, torch.bool), drawn, x)
