"""Run files: everything a training run is, as YAML of plain dictionaries."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sfumato.core.alone import ALONE
from sfumato.core.atomic import write_text
from sfumato.core.errors import InvalidInput, NotFound, nearest
from sfumato.core.noise import derive
from sfumato.model import Model
from sfumato.registry import build
from sfumato.training.settings import Settings

if typing.TYPE_CHECKING:
    from sfumato.data.item import Dataset
    from sfumato.training.objectives.objective import TrainingObjective


@dataclass(frozen=True)
class Run(Settings):
    """A training run: what is trained, on what, how; `Settings` says the rest.

    Args:
        model: what Model.describe gives: network, process, prediction, time_input, conditioner, space; for a
            classifier `classifies`, the input whose words are its classes, in place of prediction; or an
            `autoencoder` or an `encoder` alone. A latent space may name a trained one, autoencoder: {from:
            FOLDER}, and a conditioner of texts likewise its encoder; names and vocabularies may be left to
            the data: {from: data}. Left out, it is that of `start`.
        data: a data set by name and settings, e.g. {"name": "emoji", "size": 32}.
        objective: e.g. {"name": "denoising", "levels": {"name": "log_normal"}, "weight": "min_snr"}.
        held_out: data for the validation loss; None takes items of the training data.
        card: default settings that travel with the weights: sampler, times, steps, guidance, size, licence;
            where the model is that of `start`, beside its own.
        start: a model, as `load` takes it, whose weights training begins with; None begins with fresh ones.
        told: a conditioner that the model of `start` learns to be told by besides its own, e.g. {"name":
            "image"} or {"name": "masked_image"}; what it lays beside x counts for nothing at first.
        controls: fresh controls of the network of `start`, by the hint that each reads, e.g. {"hint":
            "controlnet"}; they alone are trained, or with the network's decoder: {"hint": {"name":
            "controlnet", "learns": "decoder"}}.
    """

    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "denoising"})
    held_out: dict[str, Any] | None = None
    card: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    told: dict[str, Any] | None = None
    controls: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("model", "data"):
            if not (getattr(self, key) or (key == "model" and self.start is not None)):
                raise InvalidInput(f"says nothing of {key}", where="run", do=f"add {key}: ...")
        more = next((key for key in ("told", "controls") if getattr(self, key)), None)
        if more is not None and (self.model or self.start is None):
            raise InvalidInput(
                "is for a model that is there already", where=more, do="say start, and nothing of model"
            )
        if self.model:
            self._check(self.model)

    def _check(self, model: Mapping[str, Any]) -> None:
        """Refuse a model that is none, and settings that do not go with it."""
        if unknown := set(model) - set(_MODEL_KEYS):
            name = sorted(unknown)[0]
            raise InvalidInput(f"unknown key {name!r}", where="model", do=nearest(name, _MODEL_KEYS))
        if (alone := next((kind for kind in ALONE if kind in model), None)) is not None:
            if others := sorted(set(model) - {alone}):
                raise InvalidInput(f"an {alone} has no {others[0]}", where="model", do="leave it out")
            if self.sample_every:
                raise InvalidInput(f"an {alone} draws none", where="sample_every", do="leave it out")
            said = self.objective.get("name") if isinstance(self.objective, Mapping) else self.objective
            if (wanted := _OBJECTIVES.get(alone)) is None:
                what = f"a {alone} is trained with the model that it steers"
                raise InvalidInput(what, where="model", do="say start, and controls: {hint: controlnet}")
            if said != wanted:
                what = f"an {alone} is not trained by {said}"
                raise InvalidInput(what, where="objective", do=f"say objective: {{name: {wanted}}}")
            return
        says = "classifies" if "classifies" in model else "prediction"
        if missing := [key for key in ("network", "process", says) if key not in model]:
            raise InvalidInput(f"lacks {', '.join(missing)}", where="model")
        if says == "classifies" and self.sample_every:
            raise InvalidInput("a classifier draws no pictures", where="sample_every", do="leave it out")

    def build_model(self, data: Dataset | None = None) -> Model:
        """The model with fresh weights, the same for the same seed, or with those of `start`.

        Args:
            data: the training data, where they are built already; what the model's settings leave to them is
                asked of them.
        """
        import torch

        from sfumato.checkpoints.keys import fit
        from sfumato.checkpoints.load import load
        from sfumato.training.from_data import asks, filled
        from sfumato.training.parts import weights
        from sfumato.training.trained_parts import named, with_trained_parts
        from sfumato.training.widen import widened
        from sfumato.training.with_controls import with_controls

        start = None if self.start is None else load(self.start, dtype=torch.float32)
        settings, card = self.model, dict(self.card)
        if start is not None and not settings:
            settings, card = start.describe(), {**_kept(start.card), **card}
            self._check(settings)
            if self.told is not None:
                start = widened(start, self.told, data or self.build_data(), card)
            if self.controls:
                start = with_controls(start, self.controls, data or self.build_data())
            if self.told is not None or self.controls:
                start.card = card
                return start
        if asks(settings):
            settings = filled(settings, data or self.build_data())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.seed, "weights"))
            make = with_trained_parts if any(named(settings)) else Model.from_description
            model = make(settings, card)
        if start is not None:
            fit(model.modules(), weights(start), str(self.start), strict=True)
        return model

    def build_data(self) -> Dataset:
        """The training data."""
        return build("data", self.data)

    def build_held_out(self) -> Dataset | None:
        """The validation data, if they are others."""
        return build("data", self.held_out) if self.held_out is not None else None

    def build(self) -> tuple[Model, Dataset, Dataset | None]:
        """The model, the training data and the validation data, made for each other.

        Sizes that the data derive (aspect buckets) take sides that the model's space takes.

        Raises:
            InvalidInput: the data are of a size that it does not take.
        """
        data, held_out = self.build_data(), self.build_held_out()
        model = self.build_model(data)
        for each in (data, held_out):
            if (align := getattr(each, "align", None)) is not None:
                align(model.space.step)
            for height, width in getattr(each, "sizes", ()):
                model.space.shape(height, width)
        return model, data, held_out

    def build_objective(self) -> TrainingObjective:
        """The objective."""
        return build("objective", self.objective)

    def describe(self) -> dict[str, Any]:
        """The run as plain data; `from_dict` is the inverse."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def from_dict(settings: Mapping[str, Any], where: str = "run") -> Run:
        """A run from plain data; InvalidInput names the field, and the nearest for unknown ones."""
        return _fill(Run, settings, where)

    def write(self, path: Path) -> None:
        """Write as YAML."""
        write_text(path, yaml.safe_dump(self.describe(), sort_keys=False, allow_unicode=True))


def _kept(card: Mapping[str, Any]) -> dict[str, Any]:
    """What of a card stays true of a model that is trained further."""
    return {key: card[key] for key in _TRAVELS if key in card}


_TRAVELS = ("name", "sampler", "times", "steps", "guidance", "size", "licence", "first_stage")

_OBJECTIVES = {"autoencoder": "autoencoding", "encoder": "clip"}
"""What a part that is trained alone is trained by."""

_MODEL_KEYS = (
    *ALONE,
    "network",
    "process",
    "prediction",
    "classifies",
    "time_input",
    "learned_range",
    "conditioner",
    "space",
)


def read(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """A run file with overrides such as "optimizer.rate=1e-3", "ema.0.decay=.999" or "model.network.depth=4".

    Raises:
        NotFound: there is no such file.
        InvalidInput: it is not YAML, or a field is unknown or of the wrong kind.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise NotFound(f"no run file: {error.strerror}", where=str(path)) from None
    settings = _yaml(text, str(path))
    if not isinstance(settings, dict):
        raise InvalidInput("is no dictionary of settings", where=str(path))
    for override in overrides:
        _override(settings, override)
    return Run.from_dict(settings, str(path))


# PyYAML's own reader takes seconds for a file of a few hundred kilobytes; libyaml's, where it is, a tenth.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_DEEPEST = 64
_LONGEST = 256 * 2**10


class _Loader(_Safe):  # type: ignore[misc]
    """YAML 1.1 reads 1e-3 as a word; people mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _yaml(text: str, where: str) -> Any:
    if len(text) > _LONGEST:
        raise InvalidInput(
            f"is {len(text):,} letters long, more than {_LONGEST:,}",
            where=where,
            do="leave long lists to the data: {from: data}",
        )
    try:
        depth = 0
        for event in yaml.parse(text, _Loader):
            # libyaml goes down into what is nested without end until the process dies.
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise InvalidInput(f"is nested deeper than {_DEEPEST}", where=where)
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader with one more number format
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidInput(f"is no YAML: {' '.join(str(error).split())[:200]}", where=where) from None


def _override(settings: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InvalidInput(f"{override!r} sets nothing", where="--set", do="write a.b=value")
    *parents, last = path.split(".")
    place: Any = settings
    for key in parents:
        if isinstance(place, list) and key.isdigit() and int(key) < len(place):
            place = place[int(key)]
            continue
        if not isinstance(place, dict):
            raise InvalidInput(f"{key!r} leads nowhere", where=f"--set {path}")
        if isinstance(place.get(key), str):
            # A part given by its bare name becomes the dictionary it stands for.
            place[key] = {"name": place[key]}
        place = place.setdefault(key, {})
        if place is None:
            raise InvalidInput(f"{key!r} is null", where=f"--set {path}")
    value = _yaml(text, f"--set {path}")
    if isinstance(place, list):
        if not last.isdigit() or int(last) >= len(place):
            raise InvalidInput(f"{last!r} is no place in a list of {len(place)}", where=f"--set {path}")
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise InvalidInput(f"{last!r} leads nowhere", where=f"--set {path}")


def _fill(cls: type[Any], settings: Any, where: str) -> Any:
    """A dataclass of settings from a dictionary."""
    if not isinstance(settings, Mapping):
        raise InvalidInput(f"{settings!r} is no dictionary of settings", where=where)
    hints, names = typing.get_type_hints(cls), [f.name for f in dataclasses.fields(cls)]
    arguments = {}
    for key, value in settings.items():
        if key not in names:
            raise InvalidInput(f"unknown key {key!r}", where=where, do=nearest(str(key), names))
        arguments[key] = _value(hints[key], value, f"{where}.{key}" if where else key)
    return cls(**arguments)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            if type(None) in args:
                return None
            raise InvalidInput("cannot be null", where=where)
        hints = [arg for arg in args if arg is not type(None)]
        # Of several plain kinds the one the value is of; of one, that one says what is wrong.
        return _value(next((hint for hint in hints if type(value) is hint), hints[0]), value, where)
    if origin is typing.Literal:
        if value in args and type(value) is str:
            return value
        raise InvalidInput(f"{value!r} is not one of {', '.join(args)}", where=where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) != len(value):
            raise InvalidInput(f"expected {len(kinds)} values, got {len(value)}", where=where)
        return tuple(_value(k, v, f"{where}.{i}") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, str):
        return {"name": value}
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(hint):
        return _fill(typing.cast(type[Any], hint), value, where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise InvalidInput(f"{value!r} is not a {getattr(hint, '__name__', hint)}", where=where)
