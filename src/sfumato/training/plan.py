"""What a run will need, before it is started: parameters, memory, time a step."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sfumato.core.noise import Noise, derive
from sfumato.training.optimizers import clip_gradients
from sfumato.training.order import DataOrder
from sfumato.training.parts import LossModule, accelerator_for, autocast, collate_of, seed_dropout
from sfumato.training.run_file import Run


@dataclass(frozen=True)
class Plan:
    """What a run needs.

    Args:
        parameters: numbers trained.
        items: pictures in the data set.
        weights: bytes of weights.
        gradients: bytes of gradients.
        optimizer: bytes of the moments it keeps.
        averages: bytes of the running averages.
        activations: bytes kept for the backward pass of one accumulated part, measured on real rows.
        checkpoint: bytes of one checkpoint on the disk.
        seconds_per_step: measured on this machine, data loading included.
        seconds: of the whole run, if its steps are known or its minutes given.
    """

    parameters: int
    items: int
    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int
    checkpoint: int
    seconds_per_step: float
    seconds: float | None

    @property
    def memory(self) -> int:
        """Bytes at the highest point of a step, the library itself not counted."""
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations


def plan(run: Run, repeats: int = 2) -> Plan:
    """Measure a run on its own model and data: a few parts of a step, nothing kept, nothing written."""
    accelerator = accelerator_for(run)
    (model, data, _), objective = run.build(), run.build_objective()
    model.to(accelerator.device)
    for part in objective.modules().values():
        part.to(accelerator.device)
    module = LossModule(model, objective, replace(run, compile=False))
    named = dict(objective.parameters(model))
    parameters = list(named.values())
    optimizer = run.optimizer.build(named)
    order = DataOrder(len(data), run.batch, derive(run.seed, "order"), getattr(data, "bucket_of", None))
    rows = run.batch // run.accumulate // accelerator.num_processes
    drawn, collate = order(0), collate_of(data)
    kept = _Kept({parameter.untyped_storage().data_ptr() for parameter in parameters})
    times = []
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        seed_dropout(run.seed % 2**62, accelerator.device)
        for repeat in range(repeats):
            start = time.perf_counter()
            pairs = zip(drawn.indices[:rows], drawn.seeds[:rows], strict=True)
            batch = collate([data.load(index, seed) for index, seed in pairs])
            noise = Noise(list(range(rows)), repeat)
            with kept, autocast(model, run.precision):
                loss = module(batch, noise)[0].mean()
            torch.autograd.backward(loss)
            taken = time.perf_counter() - start
            clip_gradients(parameters, run.optimizer.clip)
            # Nothing is learnt here, but the first step of an optimizer is slower than the others.
            for group in optimizer.param_groups:
                group["lr"] = 0.0
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            times.append(taken * run.accumulate + time.perf_counter() - start - taken)
    seconds = min(times)
    weights = sum(
        _bytes(tensor) for part in model.modules().values() for tensor in part.state_dict().values()
    )
    moments = sum(_bytes(each) for state in optimizer.state.values() for each in state.values() if each.ndim)
    trained = sum(_bytes(parameter) for parameter in parameters)
    averages = 4 * sum(p.numel() for p in parameters) * len(run.ema)
    whole = run.steps * seconds if run.steps is not None else None
    limits = [limit for limit in (whole, run.minutes and 60 * run.minutes) if limit is not None]
    return Plan(
        parameters=sum(parameter.numel() for parameter in parameters),
        items=len(data),
        weights=weights,
        gradients=trained,
        optimizer=moments,
        averages=averages,
        activations=kept.bytes,
        checkpoint=weights + moments + averages,
        seconds_per_step=seconds,
        seconds=min(limits) if limits else None,
    )


class _Kept:
    """Counts the bytes autograd keeps while entered, each storage once, parameters not at all."""

    def __init__(self, known: set[int]) -> None:
        self.known = known
        self.bytes = 0

    def __enter__(self) -> None:
        self._seen: dict[int, Tensor] = {}
        self._hooks: Any = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)
        self._hooks.__enter__()

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)
        self.bytes = sum(tensor.untyped_storage().nbytes() for tensor in self._seen.values())
        self._seen.clear()

    def _note(self, tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage().data_ptr()
        if key not in self.known:
            # Held until the end, so that no storage is freed and its address counted for another.
            self._seen[key] = tensor
        return tensor


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
