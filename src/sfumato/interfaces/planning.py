"""What a request will take: `sfumato.plan`, and `sfumato generate --plan`."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from sfumato.checkpoints.load import load as load_model
from sfumato.core.errors import InvalidInput
from sfumato.generation.plan import Plan
from sfumato.generation.plan import plan as measure
from sfumato.interfaces.request import Request
from sfumato.model import Model

_PLANNED = (inspect.signature(measure).parameters.keys() & Request.model_fields.keys()) - {
    "count",
    "inputs",
    "seed",
    "seeds",
}
"""Fields of a request that a plan depends on, beside how many pictures there are."""


def plan(model: Model, **fields: Any) -> Plan:
    """What `sfumato.generate` would take with the same arguments: memory and time; no picture is made.

    Raises as sfumato.generation.plan.plan does.
    """
    if not isinstance(model, Model):
        raise InvalidInput("give one model, as sfumato.load returns it", where="model")
    fields = {name: value for name, value in fields.items() if value is not None and name != "observe"}
    load = fields.pop("load", None)
    own = {name: value for name, value in fields.items() if name in Request.model_fields and name != "inputs"}
    inputs = {name: value for name, value in fields.items() if name not in own}
    return planned(model, Request.of(**own, inputs=inputs), load)


def planned(model: Model, request: Request, load: Any = None) -> Plan:
    """The plan of a checked request."""
    seeds: dict[str, Any] = {"seeds": request.seeds} if request.seeds else {"count": request.count}
    told = {name: getattr(request, name) for name in _PLANNED}
    load = load or functools.partial(load_model, device=model.device)
    return measure(model, **seeds, **told, load=load, **request.inputs)


def as_dict(plan: Plan) -> dict[str, Any]:
    """All of a plan as plain numbers, with what it comes to."""
    return {**vars(plan), "size": list(plan.size), "memory": plan.memory, "seconds": plan.seconds}


def in_words(plan: Plan) -> dict[str, Any]:
    """A plan for a reader."""
    height, width = plan.size
    batches = f", {plan.batches} batches of {plan.batch}" if plan.batches > 1 else ""
    return {
        "pictures": f"{plan.pictures} of {width} x {height}, {plan.steps} steps{batches}",
        "memory": {
            "in all": f"{_bytes(plan.memory)} at the most, beside the program itself",
            "weights": _bytes(plan.weights),
            "walk": _bytes(plan.walk),
            "decoding": _bytes(plan.decode),
            "pictures": _bytes(plan.results),
            "free": f"{_bytes(plan.free)}, the weights loaded",
        },
        "time": {
            "in all": f"{_seconds(plan.seconds)}, the weights loaded",
            "telling": _seconds(plan.seconds_telling),
            "walk": f"{plan.calls} estimates of {_seconds(plan.seconds_per_call)}",
            "decoding": _seconds(plan.seconds_decoding),
        },
    }


def _bytes(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _seconds(seconds: float) -> str:
    if seconds < 0.01:
        return "less than 0.01 s"
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
