"""Receipts: how fast a model draws on this machine, and what each acceleration gains and changes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.sampler import StepEvent
from sfumato.generation.generate import Progress
from sfumato.generation.images import Images
from sfumato.generation.memory import bytes_of_weights
from sfumato.generation.optimize import optimize
from sfumato.interfaces.request import Request
from sfumato.model import Model

PLAIN = "as it is"
_BANDS = 5


def bench(model: Model, request: Request, fast: Sequence[Any], turns: int = 3) -> dict[str, dict[str, Any]]:
    """Seconds of a request with no acceleration and with each, and how far its pictures then are.

    All draw the same pictures from the same noise and take turns, as machines drift; the first turn, which
    warms up, is not counted.

    Args:
        model: what draws.
        request: what is drawn; its seeds are said.
        fast: presets or accelerations, measured one after the other.
        turns: that are counted.

    Returns:
        By name: seconds of all pictures (median, least, most), how many times as fast as the model is,
        seconds to prepare it, bytes it takes more; of the estimates of the data in each fifth of the walk,
        noisiest first, the root mean square of the difference against that of the plain estimates; and of the
        pictures the peak signal-to-noise ratio in dB.

    Raises:
        InvalidInput, NotFound: as `generate`, and for no turns.
    """
    if turns < 1:
        raise InvalidInput(f"{turns} turns measure nothing", where="turns", do="give 1 or more")
    models, rows = {PLAIN: model}, {PLAIN: dict[str, Any]()}
    told = {"count": request.count, "size": request.size, "guidance": request.guidance, **request.inputs}
    own = bytes_of_weights(*model.modules().values())
    for each in fast:
        name, start = str(each), time.perf_counter()
        models[name] = optimize(model, each, **told)
        ready = time.perf_counter() - start
        more = bytes_of_weights(*models[name].modules().values()) - own
        rows[name] = {"ready in seconds": ready, "bytes more": more}
    times: dict[str, list[float]] = {name: [] for name in models}
    made: dict[str, tuple[list[Tensor], Images]] = {}
    for turn in range(turns + 1):
        for name, each in models.items():
            estimates: list[Tensor] = []
            start = time.perf_counter()
            images = request.run(each, _remembering(estimates) if turn == 0 else None)
            if turn:
                times[name].append(time.perf_counter() - start)
            else:
                made[name] = estimates, images
    plain = statistics.median(times[PLAIN])
    for name, row in rows.items():
        seconds = {
            "seconds": statistics.median(times[name]),
            "from": min(times[name]),
            "to": max(times[name]),
        }
        rows[name] = {**seconds, "times as fast": plain / seconds["seconds"], **row}
        if name != PLAIN:
            rows[name] |= _receipt(*made[name], *made[PLAIN])
    return rows


def in_words(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """The rows for a reader."""
    told: dict[str, dict[str, str]] = {}
    for name, row in rows.items():
        spread = f"{row['seconds']:.2f} ({row['from']:.2f} to {row['to']:.2f})"
        told[name] = {"seconds": spread}
        if name != PLAIN:
            told[name] |= {
                "times as fast": f"{row['times as fast']:.2f}",
                "ready in": f"{row['ready in seconds']:.1f} s",
                "memory": f"{row['bytes more'] / 2**20:.0f} MiB more",
                "estimates are off by": ", ".join(f"{error:.1e}" for error in row["error by fifth"]),
                "pictures are off by": "nothing" if row["psnr"] == math.inf else f"{row['psnr']:.1f} dB",
            }
    return told


def _remembering(estimates: list[Tensor]) -> Any:
    def observe(event: StepEvent) -> None:
        assert isinstance(event, Progress)
        estimates.append(event.x0.float().cpu())

    return observe


def _receipt(
    estimates: list[Tensor], images: Images, plain: list[Tensor], pictures: Images
) -> dict[str, Any]:
    """How far estimates are in each fifth of the walk, and the pictures."""
    errors = [
        float(((mine - own).square().mean() / own.square().mean()).sqrt())
        for mine, own in zip(estimates, plain, strict=True)
    ]
    ends = [round(band * len(errors) / _BANDS) for band in range(_BANDS + 1)]
    fifths = [statistics.mean(errors[a:b]) for a, b in pairwise(ends) if b > a]
    # Of pictures in [-1, 1] the peak is 2.
    off = torch.mean((images.tensor - pictures.tensor).square()).item()
    return {"error by fifth": fifths, "psnr": 10 * math.log10(4 / off) if off else math.inf}
