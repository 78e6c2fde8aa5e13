"""Predictor-corrector sampling: any sampler, with Langevin steps before each of its own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State
from sfumato.samplers.ancestral import Ancestral
from sfumato.samplers.langevin import Langevin
from sfumato.samplers.unipc import UniPC


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """Predictor-corrector: at each time first Langevin steps there, then the predictor's step to the next.

    The predictor is any sampler and carries its memory as alone; the corrector brings x back towards the
    distribution of its time, whatever error the predictor had made of it. A step costs the estimates of both.
    Nothing follows the predictor's last step, to clean data.

    The published pair is `reverse_diffusion` (on a noise ladder: `ancestral` with the large variance) and one
    step by norms with an snr of .16. Here the predictor is `ancestral`, which is exact for data at a point on
    every path, and the step is chosen by level, so that it is the same for every sample.

    Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole 2021, "Score-Based Generative Modeling through
    Stochastic Differential Equations", arXiv:2011.13456, algorithm 1 (the text corrects after predicting; the
    authors' code, and this, before).

    Args:
        predictor: what steps from one time to the next.
        corrector: what is done at each time before it.

    Raises:
        InvalidInput: UniPC with its own corrector as predictor, which would undo the Langevin steps.
    """

    predictor: Sampler = field(default_factory=Ancestral)
    corrector: Langevin = field(default_factory=lambda: Langevin(snr=0.16, steps=1))

    def __post_init__(self) -> None:
        if isinstance(self.predictor, UniPC) and self.predictor.corrector:
            raise InvalidInput(
                "UniPC corrects the last step from before it, which would undo the Langevin steps",
                where="predictor_corrector.predictor",
                do="give unipc with corrector: false",
            )

    def init(self, x: Tensor) -> State:
        return self.predictor.init(x)

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        # The predictor may be of Langevin steps too: the corrector's draws have a name of their own.
        x = self.corrector.correct(replace(reverse, turn=f"{reverse.turn}corrector "), x, t)
        return self.predictor.step(reverse, x, t, s, state)
