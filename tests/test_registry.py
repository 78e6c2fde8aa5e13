"""The registry: every name of every kind is described and built back, and mistakes are named."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sfumato.core.errors import InvalidInput, NotFound
from sfumato.guidance.classifier_free import ClassifierFree
from sfumato.guidance.interval import Interval
from sfumato.registry import build, describe, find, kinds, name_of, names, summary, table
from sfumato.samplers.churn import Churn
from sfumato.samplers.ddim import DDIM
from sfumato.samplers.heun import Heun
from sfumato.samplers.langevin import Langevin
from sfumato.times.karras import Karras
from sfumato.times.shifted import Shifted

EVERY = [(kind, name) for kind in kinds() for name in names(kind)]
PLAIN = [
    (kind, name) for kind, name in EVERY if kind in {"process", "times", "sampler", "guidance", "prediction"}
]


def needed(cls: type) -> list[str]:
    missing = dataclasses.MISSING
    return [
        f.name
        for f in dataclasses.fields(cls)
        if f.init and f.default is missing and f.default_factory is missing
    ]


def test_the_folders_are_listed() -> None:
    assert {"euler", "ddim", "heun", "unipc"} <= set(names("sampler"))
    assert {"vp", "betas", "flow"} <= set(names("process"))
    assert names("prediction") == ["data", "edm", "flow", "noise", "score", "velocity"]


@pytest.mark.parametrize("kind, name", EVERY)
def test_every_name_is_a_configurable_class(kind: str, name: str) -> None:
    cls = find(kind, name)
    assert dataclasses.is_dataclass(cls)
    assert name_of(cls) == name
    sentence = summary(kind, name)
    assert sentence
    assert "\n" not in sentence
    assert (name, sentence) in list(table(kind))


@pytest.mark.parametrize("kind, name", EVERY)
def test_defaults_are_the_name_alone(kind: str, name: str) -> None:
    if needed(find(kind, name)):
        with pytest.raises(InvalidInput, match=needed(find(kind, name))[0]):
            build(kind, name)
        return
    try:
        thing = build(kind, name)
    except InvalidInput as error:
        # Some defaults are empty and say so: the labels of class_label.
        assert str(error).startswith(name)  # noqa: PT017
        return
    except NotFound as error:
        # Or stand on files of the system, and say which package brings them: the data set of idx.
        assert error.do.startswith("install")  # noqa: PT017
        return
    assert describe(thing) == {"name": name}
    assert type(build(kind, describe(thing))) is type(thing)
    assert type(build(kind, {"name": name})) is find(kind, name)


PARTS = {
    "Guidance": st.builds(ClassifierFree, st.floats(-20, 20)),
    "Langevin": st.builds(Langevin, st.floats(0.05, 0.3), st.integers(1, 5)),
    "Sampler": st.builds(DDIM, st.floats(0, 1)),
    "Times": st.builds(Karras, st.floats(1, 20)),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a constructor's argument, by its type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*(values(option) for option in args))
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin is tuple:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if hint is type(None):
        return st.none()
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(1, 5)
    if hint is float:
        return st.floats(0.01, 50)
    return PARTS.get(getattr(hint, "__name__", ""), st.just(()))


@pytest.mark.parametrize("kind, name", PLAIN)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(data=st.data())
def test_any_settings_come_back(kind: str, name: str, data: st.DataObject) -> None:
    """Described, written as JSON and YAML, read and built: the same object."""
    cls = find(kind, name)
    hints = typing.get_type_hints(cls)
    arguments = {f.name: data.draw(values(hints[f.name])) for f in dataclasses.fields(cls) if f.init}
    try:
        thing = cls(**arguments)
    except InvalidInput:
        assume(False)
    described = describe(thing)
    assert build(kind, described) == thing
    assert build(kind, json.loads(json.dumps(described))) == thing
    assert build(kind, yaml.safe_load(yaml.safe_dump(described))) == thing
    assert describe(build(kind, described)) == described


@pytest.mark.parametrize(
    "kind, thing, described",
    [
        (
            "guidance",
            Interval(0.3, 5.0, ClassifierFree(3.0)),
            {
                "name": "interval",
                "low": 0.3,
                "high": 5.0,
                "guidance": {"name": "classifier_free", "scale": 3.0},
            },
        ),
        (
            "times",
            Shifted(2.0, Karras(rho=5.0)),
            {"name": "shifted", "shift": 2.0, "times": {"name": "karras", "rho": 5.0}},
        ),
        (
            "times",
            Shifted(2.0, Shifted(1.5, Karras())),
            {
                "name": "shifted",
                "shift": 2.0,
                "times": {"name": "shifted", "shift": 1.5, "times": {"name": "karras"}},
            },
        ),
        (
            "sampler",
            Churn(Heun(straight=True), 0.2),
            {"name": "churn", "sampler": {"name": "heun", "straight": True}, "amount": 0.2},
        ),
    ],
    ids=["interval of classifier-free", "shifted karras", "shifted twice", "churned heun"],
)
def test_parts_inside_parts(kind: str, thing: Any, described: dict) -> None:
    assert describe(thing) == described
    assert build(kind, described) == thing


def test_a_part_may_be_a_name_alone() -> None:
    assert build("times", {"name": "shifted", "times": "karras"}) == Shifted(times=Karras())


def test_a_part_may_be_built_already() -> None:
    assert build("times", {"name": "shifted", "times": Karras()}) == Shifted(times=Karras())
    assert build("sampler", {"name": "churn", "sampler": DDIM(0.2)}) == Churn(DDIM(0.2))


@pytest.mark.parametrize(
    "kind, wrong, hint",
    [
        ("sampler", "dmd", "ddim|dpm2"),
        ("sampler", "hen", "heun"),
        ("process", "subvp", "sub_vp"),
        ("prediction", "velocty", "velocity"),
        ("times", "carras", "karras"),
        ("sampler", "zzz", "known: ancestral, .*ddim"),
        ("sampler", "../times/karras", "known"),
        ("sampler", "os.path", "known"),
        ("sampler", "__init__", "known"),
    ],
)
def test_unknown_names(kind: str, wrong: str, hint: str) -> None:
    with pytest.raises(NotFound, match=hint):
        build(kind, wrong)


def test_unknown_kinds() -> None:
    with pytest.raises(NotFound, match="did you mean sampler"):
        build("sampeler", "ddim")
    with pytest.raises(NotFound, match="known"):
        names("zzz")


@pytest.mark.parametrize(
    "kind, wrong, match",
    [
        ("sampler", {"name": "ddim", "etta": 0.5}, r"sampler ddim: has no setting 'etta' \(did you mean eta"),
        ("sampler", {"name": "ddim", "eta": "much"}, r"sampler ddim\.eta: 'much' is not a float"),
        ("sampler", {"name": "ddim", "eta": True}, r"ddim\.eta"),
        ("sampler", {"name": "ddim", "eta": None}, r"ddim\.eta"),
        ("sampler", {"name": "ddim", "eta": [0.5]}, r"ddim\.eta"),
        ("sampler", {"name": "dpm_solver_pp", "order": 2.5}, r"dpm_solver_pp\.order"),
        ("sampler", {"name": "dpm_solver_pp", "order": True}, r"dpm_solver_pp\.order"),
        (
            "sampler",
            {"name": "dpm_solver_pp", "variant": "mid"},
            r"variant: 'mid' is not one of midpoint, heun",
        ),
        (
            "sampler",
            {"name": "churn", "sampler": {"name": "ddim", "etta": 0.1}},
            r"sampler ddim: has no setting 'etta'.*eta",
        ),
        ("sampler", {"name": "churn", "sampler": {"name": "ddim", "eta": "x"}}, r"ddim\.eta"),
        ("sampler", {"name": "churn", "sampler": 0.1}, r"churn\.sampler: 0.1 is no sampler"),
        ("times", {"name": "shifted", "times": {"name": "carras"}}, "did you mean karras"),
        ("times", {"name": "shifted", "times": 3}, r"shifted\.times: 3 is no times"),
        ("guidance", {"name": "interval", "guidance": {"scale": 2}}, "guidance: give a name"),
        ("process", {"name": "betas", "values": [0.1, "x"]}, r"betas\.values"),
        ("process", {"name": "betas", "schedule": "sigmoid"}, r"betas\.schedule"),
        ("sampler", {"eta": 0.5}, "sampler: give a name"),
        ("sampler", 3, "sampler: give a name"),
        ("sampler", None, "sampler: give a name"),
    ],
)
def test_wrong_settings_are_named(kind: str, wrong: Any, match: str) -> None:
    with pytest.raises((InvalidInput, NotFound), match=match):
        build(kind, wrong)


def test_whole_numbers_are_floats_where_floats_are_wanted() -> None:
    assert build("guidance", {"name": "classifier_free", "scale": 3}) == ClassifierFree(3.0)
    assert type(build("guidance", {"name": "classifier_free", "scale": 3}).scale) is float


@pytest.mark.parametrize("thing", [object(), {1, 2}, lambda: 0])
def test_what_cannot_be_described(thing: Any) -> None:
    with pytest.raises(InvalidInput, match="cannot be described"):
        describe(thing)
