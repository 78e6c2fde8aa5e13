"""One validated request behind Python, the command line and the network."""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Concatenate, ParamSpec

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sfumato.acceleration.presets import spelled_out
from sfumato.checkpoints.load import load as load_model
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import MAX_SEED
from sfumato.core.sampler import Observe
from sfumato.generation.generate import generate as walk
from sfumato.generation.images import Images
from sfumato.generation.second_models import Load
from sfumato.interfaces.words import is_place, prompted
from sfumato.model import Model
from sfumato.registry import build

P = ParamSpec("P")

MAX_COUNT = 4096
MAX_SIDE = 8192
MAX_TEXT = 10_000

_DEPTH = 8
_LIMITS = {"scale": (0.0, 50.0), "image_scale": (0.0, 50.0), "eta": (0.0, 1.0)}
"""Settings of parts that are held to a range wherever they stand."""

_KINDS = {
    "sampler": "sampler",
    "times": "times",
    "guidance": "guidance",
    "path": "process",
    "edit": "edit",
    "fast": "acceleration",
}


def _whole(low: int, high: int, words: str = "") -> Any:
    text = words or f"a whole number from {low} to {high}"
    return Field(ge=low, le=high, strict=True, description=text)


_Side = Annotated[int, Field(ge=1, le=MAX_SIDE, strict=True)]


class Request(BaseModel):
    """What is asked of a model; every field has its range, and a value outside it is named with the range.

    Parts (sampler, times, guidance, path, fast, edit) are names, dictionaries as `describe` gives them, or,
    from Python, objects.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    count: Annotated[int, _whole(1, MAX_COUNT)] = 1
    seed: Annotated[int, _whole(-1, MAX_SEED, "a whole number from 0 to 2^63 - 1, or -1 for random")] = -1
    seeds: Annotated[
        list[Annotated[int, Field(ge=0, le=MAX_SEED, strict=True)]] | None,
        Field(min_length=1, max_length=MAX_COUNT, description="a list of whole numbers from 0 to 2^63 - 1"),
    ] = None
    steps: Annotated[int | None, _whole(1, 1000)] = None
    size: Annotated[
        _Side | tuple[_Side, _Side] | None,
        Field(description=f"height and width in pixels, whole numbers from 1 to {MAX_SIDE}"),
    ] = None
    batch: Annotated[int | None, _whole(1, MAX_COUNT)] = None
    film: Annotated[int, _whole(0, 1000)] = 0
    sampler: Any = None
    times: Any = None
    guidance: Any = None
    path: Any = None
    fast: Any = None
    edit: Any = None
    negative: dict[str, Any] | None = Field(default=None, description="inputs by name")
    inputs: dict[str, Any] = Field(default_factory=dict, description="inputs by name")

    @field_validator("sampler", "times", "path", "edit")
    @classmethod
    def _part(cls, value: Any, info: Any) -> Any:
        return value if value is None else _built(info.field_name, value)

    @field_validator("guidance")
    @classmethod
    def _guidances(cls, value: Any) -> Any:
        if isinstance(value, int | float):
            low, high = _LIMITS["scale"]
            if isinstance(value, bool) or not low <= value <= high:
                raise InvalidInput(
                    f"{short(value)} is not a number from {low:g} to {high:g}", where="guidance"
                )
            return float(value)
        if isinstance(value, list | tuple):
            return [_built("guidance", each) for each in value]
        return value if value is None else [_built("guidance", value)]

    @field_validator("fast")
    @classmethod
    def _fast(cls, value: Any) -> Any:
        return value if value is None else [_built("fast", each) for each in spelled_out(value)]

    @field_validator("inputs", "negative")
    @classmethod
    def _inputs(cls, value: dict[str, Any] | None, info: Any) -> Any:
        if value is None:
            return None
        for name in value:
            if not name.isidentifier() or len(name) > 100:
                raise InvalidInput(f"{short(name)} is not the name of an input", where=info.field_name)
        return {name: clean(each, name) for name, each in value.items()}

    @classmethod
    def of(cls, **fields: Any) -> Request:
        """A checked request. InvalidInput names the field, the value and the range, in one line."""
        try:
            return cls(**fields)
        except ValidationError as error:
            raise _explained(error) from None

    def run(self, model: Model, observe: Observe | None = None, load: Load | None = None) -> Images:
        """The pictures; models that a guidance names are read by `load`, as sfumato.load does if not said.

        Raises as sfumato.generation.generate.generate does.
        """
        seeds: dict[str, Any] = {"seeds": self.seeds} if self.seeds else {"count": self.count}
        try:
            return walk(
                model,
                **seeds,
                seed=None if self.seed == -1 else self.seed,
                steps=self.steps,
                sampler=self.sampler,
                times=self.times,
                guidance=self.guidance,
                size=self.size,
                path=self.path,
                fast=self.fast,
                edit=self.edit,
                negative=self.negative,
                batch=self.batch,
                film=self.film,
                observe=observe,
                load=load or functools.partial(load_model, device=model.device),
                **self.inputs,
            )
        except (OverflowError, ZeroDivisionError) as error:
            raise InvalidInput(
                f"these settings lead to numbers out of range: {error}", where="times"
            ) from error


def _validated(
    function: Callable[Concatenate[Model, P], Images],
) -> Callable[Concatenate[Model | str, P], Images]:
    @functools.wraps(function)
    def checked(model: Model | str, /, *args: P.args, **kwargs: P.kwargs) -> Images:
        fields: dict[str, Any] = {"inputs": {}}
        observe: Any = kwargs.pop("observe", None)
        load: Any = kwargs.pop("load", None)
        for name, value in dict[str, Any](kwargs).items():
            if name in Request.model_fields and name != "inputs":
                # None means "not said" throughout.
                if value is not None:
                    fields[name] = list(value) if name == "seeds" and _many(value) else value
            else:
                fields["inputs"][name] = value
        if isinstance(model, str):
            if is_place(model):
                raise InvalidInput(
                    "this says where a model is", where="model", do="give what sfumato.load returns"
                )
            fields["inputs"] = prompted(fields["inputs"], model)
            model = _embedded()
        if args or not isinstance(model, Model):
            raise InvalidInput("give one model, as sfumato.load returns it, or a prompt", where="model")
        return Request.of(**fields).run(model, observe, load)

    return checked


@functools.cache
def _embedded() -> Model:
    return load_model()


generate = _validated(walk)
"""`sfumato.generate`: the walk of generation/generate.py behind a checked request; a prompt in place of the
model is asked of the embedded one."""


def clean(value: Any, where: str, depth: int = 0) -> Any:
    """An input as it is used: text in normal form C, free of control characters, numbers finite.

    Raises:
        InvalidInput: with the position of what is refused.
    """
    if depth > _DEPTH:
        raise InvalidInput(f"nested deeper than {_DEPTH}", where=where)
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidInput(f"{value} is not a finite number", where=where)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidInput(f"{short(value)} does not fit 64 bits", where=where)
    if isinstance(value, list | tuple):
        if len(value) > MAX_TEXT:
            raise InvalidInput(f"{len(value)} values, more than {MAX_TEXT}", where=where)
        return [clean(each, where, depth + 1) for each in value]
    if isinstance(value, Mapping):
        if any(not isinstance(key, str) for key in value):
            raise InvalidInput("names must be texts", where=where)
        return {clean(k, where, depth + 1): clean(v, where, depth + 1) for k, v in value.items()}
    return value


def short(value: Any) -> str:
    """A value for a message: one line, at most 60 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out integers of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else text[:59] + "…"


def _text(value: str, where: str) -> str:
    if len(value) > MAX_TEXT:
        raise InvalidInput(f"{len(value):,} characters, more than {MAX_TEXT:,}", where=where)
    for position, character in enumerate(value):
        category = unicodedata.category(character)
        if (category == "Cc" and character not in "\n\t") or category == "Cs":
            word = "half of a surrogate pair" if category == "Cs" else "control character"
            raise InvalidInput(f"{word} U+{ord(character):04X} at position {position}", where=where)
    return unicodedata.normalize("NFC", value)


def _built(field: str, value: Any) -> Any:
    if not isinstance(value, str | Mapping):
        if value is None or isinstance(value, bool | int | float | list | tuple | bytes):
            raise InvalidInput(f"{short(value)} is not a name or a dictionary with a name", where=field)
        return value
    settings = clean(value, field)
    _check_limits(settings, field)
    try:
        return build(_KINDS[field], settings)
    except (ArithmeticError, TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"{short(settings)} cannot be built: {error}", where=field) from error


def _check_limits(settings: Any, where: str) -> None:
    if isinstance(settings, list):
        for each in settings:
            _check_limits(each, where)
    if isinstance(settings, dict):
        for key, value in settings.items():
            low, high = _LIMITS.get(key, (-math.inf, math.inf))
            if isinstance(value, int | float) and not low <= value <= high:
                raise InvalidInput(f"{short(value)} is not from {low:g} to {high:g}", where=f"{where}.{key}")
            _check_limits(value, where)


def _explained(error: ValidationError) -> InvalidInput:
    problem = error.errors(include_url=False)[0]
    name = str(problem["loc"][0]) if problem["loc"] else "request"
    field = Request.model_fields.get(name)
    if field is None:
        return InvalidInput("no such field", where=name[:60])
    value = problem["input"] if len(problem["loc"]) == 1 else problem.get("input")
    return InvalidInput(f"{short(value)} is not {field.description}", where=name)


def _many(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes | Mapping)
