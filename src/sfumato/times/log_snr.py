"""Even steps in log-SNR."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.process import Process
from sfumato.core.times import even, from_ratios


@dataclass(frozen=True)
class LogSNR:
    """N equal steps in log-SNR, the variable exponential integrators work in, ending at the smallest noise.

    Lu et al. 2022, "DPM-Solver", arXiv:2206.00927, section 3.3: every step has the same h. The picture keeps
    the smallest noise of the process; `clean` moves the last time to clean data.

    Args:
        clean: end in clean data instead.
    """

    clean: bool = False

    def __call__(self, process: Process, steps: int) -> Tensor:
        """Decreasing times (steps + 1,), float64."""
        log_snr = even(*process.log_snr_range(), steps + 1)
        times = from_ratios((-log_snr).exp(), process, steps, clean=False)
        if self.clean:
            times[-1] = 0.0
        return times
