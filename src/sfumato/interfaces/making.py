"""The commands that make pictures: generate, bench and replay."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sfumato.checkpoints.load import load
from sfumato.core.atomic import write_atomically
from sfumato.core.errors import InvalidInput, nearest
from sfumato.core.sampler import StepEvent
from sfumato.generation.generate import Progress
from sfumato.generation.images import to_image
from sfumato.generation.plan import Plan
from sfumato.interfaces.planning import planned
from sfumato.interfaces.receipt import bench as measure
from sfumato.interfaces.recipe import encode, save_png, write_new
from sfumato.interfaces.replay import replay as again
from sfumato.interfaces.request import Request
from sfumato.model import Model
from sfumato.registry import describe


def generate(
    place: str | Path | Model,
    fields: dict[str, Any],
    inputs: dict[str, Any],
    out: Path,
    device: str | None,
    options: Sequence[str],
    preview: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Generate and write pictures; yields {"path", "seed"} for each.

    Args:
        place: the model, or where it is.
        fields: of the request; None where nothing is said.
        inputs: what the model is told.
        out: folder to write to.
        device: where to compute.
        options: names of the command's own options, to guess at what a misspelt one meant.
        preview: a PNG that shows the pictures of the batch as they come, replaced after every step.
    """
    _check_preview(preview)
    model, request = _asked(place, fields, inputs, device, options)
    with _bar() as step:
        images = request.run(model, _shown(step, preview))
    for row, (picture, recipe) in enumerate(zip(images.images, images.recipes, strict=True)):
        path = save_png(picture, recipe, out)
        line: dict[str, Any] = {"path": str(path), "seed": recipe["seed"]}
        if images.film is not None:
            strip = torch.cat(list(images.film[row]), dim=2)
            line["film"] = str(save_png(to_image(strip), recipe, out, f"{path.stem[6:]}-film"))
        yield line


def plan(
    place: str | Path,
    fields: dict[str, Any],
    inputs: dict[str, Any],
    device: str | None,
    options: Sequence[str],
) -> Plan:
    """What `generate` would take with the same arguments; no picture is made."""
    model, request = _asked(place, fields, inputs, device, options)
    return planned(model, request)


def bench(
    place: str | Path,
    fields: dict[str, Any],
    inputs: dict[str, Any],
    fast: Sequence[Any],
    turns: int,
    device: str | None,
    options: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """How fast the pictures of a request are made here, plainly and with each of some accelerations."""
    model, request = _asked(place, fields, inputs, device, options)
    return measure(model, request, fast, turns)


def replay(picture: Path, place: Path | None, out: Path, given: Sequence[Path] = ()) -> dict[str, Any]:
    """Make a picture again and write it; {"path", "identical", "why"}."""
    with _bar() as step:
        result = again(picture, place, step, given)
    path = write_new(result.data, out, f"-replay-{picture.stem}.png")
    why = (
        f"{result.pixels_differ:.2%} of the pixels' values differ"
        if result.pixels_differ
        else ("the pixels are the same, the file is packed otherwise")
    )
    if result.changed:
        why += "; " + ", ".join(result.changed)
    return {"path": str(path), "identical": result.identical, "why": "" if result.identical else why}


def _asked(
    place: str | Path | Model,
    fields: dict[str, Any],
    inputs: dict[str, Any],
    device: str | None,
    options: Sequence[str],
) -> tuple[Model, Request]:
    """The model and the checked request."""
    lists = [len(value) for value in inputs.values() if isinstance(value, list)]
    fields = {name: value for name, value in fields.items() if value is not None}
    fields.setdefault("count", max(lists, default=1))
    request = Request.of(**fields, inputs=inputs)
    model = place if isinstance(place, Model) else load(place, device=_device(device))
    given = model.card.get("guidance") if request.guidance is None else describe(request.guidance)
    for name in inputs:
        # A model that the guidance names may heed inputs of its own; what nobody heeds is refused later.
        if name not in model.conditioner.inputs and not _names_model(given):
            known = [*model.conditioner.inputs, *options]
            raise InvalidInput(
                f"neither an option nor an input of this model (it heeds "
                f"{', '.join(model.conditioner.inputs) or 'none'})",
                where=f"--{name}",
                do=nearest(name, known) if known else "",
            )
    if not isinstance(place, Model):
        model.card.setdefault("name", Path(place).resolve().name)
    return model, request


def _check_preview(file: Path | None) -> None:
    if file is not None and (file.suffix.lower() != ".png" or not file.parent.is_dir()):
        raise InvalidInput("is no PNG in a folder that is there", where=f"--preview {file}")


def _shown(step: Callable[[StepEvent], None] | None, file: Path | None) -> Callable[[Any], None] | None:
    """What observes the steps: the bar, and the preview beside each other in one picture."""
    if file is None:
        return step

    def show(event: Progress) -> None:
        if step is not None:
            step(event)
        data = encode(to_image(torch.cat(list(event.preview()), dim=2)), {})

        def write(target: Path) -> None:
            target.write_bytes(data)

        write_atomically(file, write)

    return show


def _names_model(part: Any) -> bool:
    """Whether a described guidance, or one inside it, names a second model."""
    if isinstance(part, Mapping):
        return "model" in part or any(map(_names_model, part.values()))
    return isinstance(part, list | tuple) and any(map(_names_model, part))


def _device(name: str | None) -> torch.device | None:
    try:
        return None if name is None else torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(
            f"{name!r} cannot be used: {str(error).splitlines()[0][:80]}", where="device"
        ) from None


@contextmanager
def _bar() -> Iterator[Callable[[StepEvent], None] | None]:
    """A progress bar on stderr, where somebody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("steps", total=None)

        def step(event: StepEvent) -> None:
            bar.update(task, advance=1, total=event.steps * getattr(event, "batches", 1))

        yield step
