"""What a run will need, before it is started: parameters, memory, time a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.core.noise import Noise, derive
from sfumato.generation.memory import peak_bytes
from sfumato.training.optimizers import clip_gradients
from sfumato.training.order import DataOrder
from sfumato.training.parts import LossModule, accelerator_for, autocast, collate_of, seed_dropout
from sfumato.training.run_file import Run

_HOLES = 0.15
"""What the heap of a CPU takes besides what is asked of it: .09 to .28 by benchmarks/memory.py. With
MALLOC_MMAP_THRESHOLD_=131072 in the environment there are no holes, and a step takes a tenth longer."""


@dataclass(frozen=True)
class Plan:
    """What a run needs.

    Args:
        parameters: numbers trained.
        items: pictures in the data set.
        weights: bytes of weights.
        optimizer: bytes of the moments it keeps.
        averages: bytes of the running averages.
        step: bytes more at the highest point of a step, counted on real rows: what is kept for the way back,
            what either way takes for a while, the gradients there are by then.
        holes: bytes of the heap between these, on a CPU.
        checkpoint: bytes of one checkpoint on the disk.
        seconds_per_step: measured on this machine, data loading included.
        seconds: of the whole run, if its steps are known or its minutes given.
    """

    parameters: int
    items: int
    weights: int
    optimizer: int
    averages: int
    step: int
    holes: int
    checkpoint: int
    seconds_per_step: float
    seconds: float | None

    @property
    def memory(self) -> int:
        """Bytes at the highest point of a step, the library itself not counted."""
        return self.weights + self.optimizer + self.averages + self.step + self.holes


def plan(run: Run) -> Plan:
    """Measure a run on its own model and data: a step whose memory is counted, then one that is timed.

    Nothing is learnt, nothing kept, nothing written.
    """
    accelerator = accelerator_for(run)
    (model, data, _), objective = run.build(), run.build_objective()
    model.to(accelerator.device)
    for each in objective.modules().values():
        each.to(accelerator.device)
    module = LossModule(model, objective, replace(run, compile=False))
    named = dict(objective.parameters(model))
    parameters = list(named.values())
    optimizer = run.optimizer.build(named)
    order = DataOrder(len(data), run.batch, derive(run.seed, "order"), getattr(data, "bucket_of", None))
    rows = run.batch // run.accumulate // accelerator.num_processes
    drawn, collate, on_cpu = order(0), collate_of(data), accelerator.device.type == "cpu"

    def part(repeat: int) -> None:
        pairs = zip(drawn.indices[:rows], drawn.seeds[:rows], strict=True)
        batch = collate([data.load(index, seed) for index, seed in pairs])
        with autocast(model, run.precision):
            loss = module(batch, Noise(list(range(rows)), repeat))[0].mean()
        torch.autograd.backward(loss)

    def step() -> None:
        clip_gradients(parameters, run.optimizer.clip)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()

    def counted(work: Callable[[], None]) -> int:
        standing = [*parameters, *(each.grad for each in parameters if each.grad is not None)]
        return peak_bytes(work, on_cpu, standing)

    trained = sum(_bytes(parameter) for parameter in parameters)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        seed_dropout(run.seed % 2**62, accelerator.device)
        peak = counted(lambda: part(0))
        if run.accumulate > 1:
            # All later parts begin with gradients.
            peak = max(peak, trained + counted(lambda: part(0)))
        stepping = counted(step)
        moments = sum(
            _bytes(each) for state in optimizer.state.values() for each in state.values() if each.ndim
        )
        optimizer.zero_grad(set_to_none=True)
        start = time.perf_counter()
        part(1)
        taken = time.perf_counter() - start
        step()
        seconds = taken * run.accumulate + time.perf_counter() - start - taken
    # The first step of an optimizer is the one that makes its moments.
    most = max(peak, trained + stepping - moments)
    weights = sum(
        _bytes(tensor) for each in model.modules().values() for tensor in each.state_dict().values()
    )
    averages = 4 * sum(p.numel() for p in parameters) * len(run.ema)
    whole = run.steps * seconds if run.steps is not None else None
    limits = [limit for limit in (whole, run.minutes and 60 * run.minutes) if limit is not None]
    return Plan(
        parameters=sum(parameter.numel() for parameter in parameters),
        items=len(data),
        weights=weights,
        optimizer=moments,
        averages=averages,
        step=most,
        holes=int(_HOLES * (weights + moments + averages + most)) if on_cpu else 0,
        checkpoint=weights + moments + averages,
        seconds_per_step=seconds,
        seconds=min(limits) if limits else None,
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
