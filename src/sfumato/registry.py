"""Registry: the folder is the registry, and constructor arguments are the configuration.

`find("sampler", "ddim")` is the class DDIM of samplers/ddim.py; `describe` turns a configured object into a
plain dictionary {"name": "ddim", "eta": 0.5} and `build` turns it back. Names only, never dotted targets.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from sfumato.core.errors import InvalidInput, NotFound, nearest

FOLDERS = {
    "process": "processes",
    "times": "times",
    "sampler": "samplers",
    "guidance": "guidance",
    "network": "networks",
    "autoencoder": "autoencoders",
    "encoder": "encoders",
    "space": "spaces",
    "conditioner": "conditioners",
    "acceleration": "acceleration",
    "control": "control",
    "detector": "control.detectors",
    "edit": "editing",
    "data": "data",
    "levels": "training.levels",
    "weight": "training.weights",
    "objective": "training.objectives",
}
"""Each kind a user can name, and the folder that lists it. Predictions stand together in core/prediction.py.
"""


def kinds() -> list[str]:
    """Everything that can be named: sampler, process, ..."""
    return sorted([*FOLDERS, "prediction"])


def names(kind: str) -> list[str]:
    """The names of a kind, sorted; a file of the folder is a name when it holds a class of that name."""
    if kind == "prediction":
        from sfumato.core.prediction import PREDICTIONS

        return sorted(PREDICTIONS)
    package = importlib.import_module(f"sfumato.{_folder(kind)}")
    found = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg]
    return sorted(name for name in found if _class_in(package.__name__, name) is not None)


def find(kind: str, name: str) -> type[Any]:
    """The class of a name; NotFound names the nearest."""
    if kind == "prediction":
        from sfumato.core.prediction import PREDICTIONS

        found: type[Any] | None = PREDICTIONS.get(name)
    else:
        found = _class_in(f"sfumato.{_folder(kind)}", name) if name.isidentifier() else None
    if found is None:
        raise NotFound(f"no {kind} is called {name!r}", where=kind, do=nearest(name, names(kind)))
    return found


def describe(thing: Any) -> Any:
    """A configured object as plain data: {"name": ..., and the fields that differ from their defaults}.

    A part that stands in no folder (a group of settings, such as a measurement's operator) has no name.
    """
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        settings: dict[str, Any] = {"name": name_of(type(thing))} if _kind_of(type(thing)) else {}
        for field in dataclasses.fields(thing):
            if not field.init:
                continue
            value = getattr(thing, field.name)
            if not _is_default(field, value):
                settings[field.name] = describe(value)
        return settings
    if isinstance(thing, Mapping):
        return {str(key): describe(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [describe(value) for value in thing]
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    raise InvalidInput(f"{type(thing).__name__} is no plain data and cannot be described")


def build(kind: str, settings: Any) -> Any:
    """The inverse of describe: an object from its name, or from {"name": ..., settings}."""
    if isinstance(settings, str):
        settings = {"name": settings}
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        raise InvalidInput("give a name, or a dictionary with a name and settings", where=kind)
    name = settings["name"]
    rest = {key: value for key, value in settings.items() if key != "name"}
    return _construct(kind, find(kind, name), rest, f"{kind} {name}")


def _construct(kind: str, cls: type[Any], settings: Mapping[str, Any], where: str) -> Any:
    """A dataclass from plain data, each setting checked against its field's type."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in settings.items():
        if key not in fields:
            raise InvalidInput(f"has no setting {key!r}", where=where, do=nearest(str(key), fields))
        arguments[key] = _coerce(kind, hints[key], value, f"{where}.{key}")
    missing = [
        name
        for name, field in fields.items()
        if name not in arguments
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InvalidInput(f"needs {', '.join(missing)}", where=where)
    return cls(**arguments)


def name_of(cls: type[Any]) -> str:
    """The name a user types for a class: the file it stands in; a prediction's own key."""
    from sfumato.core.prediction import PREDICTIONS

    for name, prediction in PREDICTIONS.items():
        if prediction is cls:
            return name
    return cls.__module__.rpartition(".")[2]


def is_named(thing: Any) -> bool:
    """Whether a configured object stands in a folder, so that `build` makes it again from its description."""
    return dataclasses.is_dataclass(thing) and _kind_of(type(thing)) is not None


def summary(kind: str, name: str) -> str:
    """The first sentence of a thing's docstring."""
    return " ".join((find(kind, name).__doc__ or "").strip().split("\n\n")[0].split())


def _folder(kind: str) -> str:
    if kind not in FOLDERS:
        raise NotFound(f"no such kind of thing as {kind!r}", do=nearest(kind, kinds()))
    return FOLDERS[kind]


def _class_in(package: str, name: str) -> type[Any] | None:
    if name.startswith("_"):
        return None
    try:
        module = importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        if error.name == f"{package}.{name}":
            return None
        raise
    wanted = name.replace("_", "").lower()
    for key, value in vars(module).items():
        named = key.lower() == wanted and dataclasses.is_dataclass(value)
        if named and isinstance(value, type) and value.__module__ == module.__name__:
            return value
    return None


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    if field.default is not dataclasses.MISSING:
        return bool(type(value) is type(field.default) and value == field.default)
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return False


def _coerce(kind: str, hint: Any, value: Any, where: str) -> Any:
    """Plain data to what a constructor takes: lists to tuples, dictionaries to parts, ints to floats."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        problems = []
        for option in args:
            try:
                return _coerce(kind, option, value, where)
            except InvalidInput as error:
                problems.append(error)
        raise problems[0]
    if origin is tuple and isinstance(value, list | tuple):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_coerce(kind, args[0], item, where) for item in value)
        if len(args) != len(value):
            raise InvalidInput(f"expected {len(args)} values, got {len(value)}", where=where)
        return tuple(_coerce(kind, hint, item, where) for hint, item in zip(args, value, strict=True))
    if origin is dict and isinstance(value, Mapping):
        return {_coerce(kind, args[0], k, where): _coerce(kind, args[1], v, where) for k, v in value.items()}
    if origin is list and isinstance(value, list | tuple):
        return [_coerce(kind, args[0], item, where) for item in value]
    if origin is typing.Literal:
        if value in args:
            return value
        raise InvalidInput(f"{value!r} is not one of {', '.join(map(str, args))}", where=where)
    if hint is Any:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and hint not in (int, float, str, bool, dict, list, tuple):
        named = _kind_of(hint)
        if isinstance(value, Mapping) and named is None and dataclasses.is_dataclass(hint):
            return _construct(kind, hint, value, where)
        if isinstance(value, Mapping | str):
            return build(named or kind, value)
        # A contract is typed by a Protocol, which cannot be asked; what fills it is a configured part.
        contract = getattr(hint, "_is_protocol", False)
        if dataclasses.is_dataclass(value) if contract else isinstance(value, hint):
            return value
        raise InvalidInput(f"{value!r} is no {named or hint.__name__}", where=where)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise InvalidInput(f"{value!r} is not a {getattr(hint, '__name__', hint)}", where=where)


def _kind_of(hint: type[Any]) -> str | None:
    """Which kind a part named in a type hint is: its class's folder, or the contract of core it is typed
    with.
    """
    module = hint.__module__.removeprefix("sfumato.")
    if module.startswith("core."):
        return module.removeprefix("core.") if module.removeprefix("core.") in kinds() else None
    folder = module.rpartition(".")[0]
    return next((kind for kind, place in FOLDERS.items() if place == folder), None)


def table(kind: str) -> Iterable[tuple[str, str]]:
    """Names of a kind with their one-line descriptions."""
    return ((name, summary(kind, name)) for name in names(kind))
