"""The command that draws along a hint: control."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer


def control(
    control: Annotated[str, typer.Argument(help="A control's folder or file, or a model trained with it.")],
    picture: Annotated[Path, typer.Argument(help="The hint; with --detect a picture that it is drawn from.")],
    prompt: Annotated[str, typer.Argument(help="What to draw.")] = "",
    detect: Annotated[str | None, typer.Option(help="A detector: a name, or {name: canny, low: 50}.")] = None,
    model: Annotated[str, typer.Option(help="The model that is steered.")] = "emoji",
    strength: Annotated[float, typer.Option(help="How strongly the hint is heeded; 0 is not at all.")] = 1.0,
    start: Annotated[float, typer.Option(help="From which fraction of the walk on.")] = 0.0,
    end: Annotated[float, typer.Option(help="Up to which fraction of the walk.")] = 1.0,
    guess: Annotated[bool, typer.Option("--guess", help="Without a prompt: the hint alone tells.")] = False,
    count: Annotated[int, typer.Option("--count", "-n", help="How many pictures.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the first picture; -1 is random.")] = -1,
    steps: Annotated[int | None, typer.Option(help="Steps of the walk.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Scale of guidance by the prompt.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("outputs"),
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Draw pictures along a hint: edges, a mask, key points; what is drawn of a picture is written, too."""
    asked = {"count": count, "seed": seed, "steps": steps}
    walk = {"strength": strength, "start": start, "end": end, "guess": guess, "scale": guidance}
    place = f"{model} +hint={control}"
    for line in draw(place, picture, prompt, _detector(detect), walk, asked, out):
        typer.echo(json.dumps(line) if as_json else line["path"])


def draw(
    place: str,
    picture: Path,
    prompt: str,
    detector: dict[str, Any] | None,
    walk: dict[str, Any],
    asked: dict[str, Any],
    out: Path,
) -> Iterator[dict[str, Any]]:
    """Draw and write; yields {"path", ...} for the hint, where one is made, and for each picture.

    Args:
        place: of the model with the control beside it.
        picture: the hint, or what a detector makes it of.
        prompt: what to draw.
        detector: described; None where the picture is the hint.
        walk: strength, start, end, guess and scale.
        asked: fields of the request.
        out: folder to write to.

    Raises:
        InvalidInput: a part of the walk that is none; as `generate`.
    """
    from sfumato.checkpoints.load import load
    from sfumato.generation.walk import Walk
    from sfumato.interfaces.detecting import draw as detected
    from sfumato.interfaces.making import generate

    hint = picture
    if detector is not None:
        hint = out / f"{picture.stem}-{detector['name']}.png"
        settings = {key: value for key, value in detector.items() if key != "name"}
        for path in detected(detector["name"], picture, hint, settings):
            yield {"path": str(path), "hint": True}
    model = load(place)
    usual = Walk.plan(model, None, None, walk["scale"], asked["steps"], None, None)
    fields = {**asked, "guidance": [_scale(walk, usual), *_described(usual, walk)]}
    told = {"hint": str(hint), **({} if walk["guess"] or not prompt else {"prompt": prompt})}
    yield from generate(model, fields, told, out, None, ())


def _scale(walk: dict[str, Any], usual: Any) -> dict[str, Any]:
    """The guidance that weighs the control, its part of the walk in sigma/alpha."""
    from sfumato.core.errors import InvalidInput

    if not 0 <= walk["start"] < walk["end"] <= 1:
        what = f"{walk['start']:g} to {walk['end']:g} is no part of the walk"
        raise InvalidInput(what, where="start, end", do="give 0 <= start < end <= 1")
    times = usual.times(usual.path, usual.steps).tolist()
    last = len(times) - 1
    high, low = (usual.path(times[math.floor(walk[name] * last + 1e-9)]).ratio for name in ("start", "end"))
    told: dict[str, Any] = {"name": "control_scale", "strength": walk["strength"]}
    told |= {"low": float(low)} if walk["end"] < 1 else {}
    told |= {"high": float(high)} if walk["start"] > 0 else {}
    return {**told, **({"decay": 0.825, "conditional": True} if walk["guess"] else {})}


def _described(usual: Any, walk: dict[str, Any]) -> list[dict[str, Any]]:
    """What guides else: as the card says, or with another scale; guess mode wants one of 3 to 5."""
    from sfumato.registry import describe

    if walk["guess"] and walk["scale"] is None:
        return [{"name": "classifier_free", "scale": 3.0}]
    return [describe(each) for each in usual.guidance]


def _detector(text: str | None) -> dict[str, Any] | None:
    from sfumato.core.errors import InvalidInput
    from sfumato.interfaces import words

    told = words.part(text, "--detect")
    if told is None:
        return None
    if isinstance(told, str):
        return {"name": told}
    if not isinstance(told, dict) or not isinstance(told.get("name"), str):
        raise InvalidInput(f"{text!r} names no detector", where="--detect", do="give canny or {name: canny}")
    return told
