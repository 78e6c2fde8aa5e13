"""Grid: one picture for every pair of values of two settings, side by side with their labels."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.checkpoints.load import load
from sfumato.core.errors import InvalidInput, nearest
from sfumato.generation.images import to_image
from sfumato.interfaces import words
from sfumato.interfaces.recipe import encode, write_new
from sfumato.interfaces.request import Request
from sfumato.model import Model

if TYPE_CHECKING:
    from PIL.Image import Image

MOST = 1024
"""Pictures of a grid."""

_CELL = 160  # pixels a side from which pictures are not enlarged
_GAP, _LINE, _FONT = 6, 18, 14
_NOT_HERE = ("count", "seeds", "batch", "film")


@dataclass(frozen=True)
class Axis:
    """One setting and its values: a field of a request, or an input of the model.

    Args:
        name: such as "guidance", "steps", "seed" or "prompt".
        values: one a column, or a row.
    """

    name: str = ""
    values: tuple[Any, ...] = field(default_factory=lambda: (None,))

    @property
    def labels(self) -> list[str]:
        """What stands beside each value."""
        if not self.name:
            return [""]
        return [f"{self.name} {_text(value)}".replace("prompt ", "", 1) for value in self.values]


def grid(
    model: Model,
    x: Mapping[str, Sequence[Any]],
    y: Mapping[str, Sequence[Any]] | None = None,
    *,
    seed: int = 0,
    observe: Callable[[int, int], None] | None = None,
    **said: Any,
) -> Image:
    """A sheet of pictures over two settings, all else and the noise the same.

        sfumato.grid(model, {"guidance": [1, 3, 6]}, {"prompt": ["a cat", "a dog"]}, steps=20)

    All that is asked is checked before the first picture is made.

    Args:
        model: what is asked.
        x: the name of a setting of `generate` or an input of the model, and its values, a column each.
        y: likewise of rows.
        seed: of every picture, unless it is an axis.
        observe: called with (made, total) after each picture.
        said: settings and inputs that are the same for all.

    Raises:
        InvalidInput: no values, one setting twice or over a thousand pictures; and what `generate` refuses.
    """
    across, down = _axis(x, "x"), Axis() if y is None else _axis(y, "y")
    names = [across.name, down.name, *said]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InvalidInput("is said twice", where=twice[0], do="say it once, as an axis or for all")
    total = len(across.values) * len(down.values)
    if total > MOST:
        raise InvalidInput(f"{total:,} pictures, more than {MOST:,}", where="grid", do="give fewer values")
    cells = [
        [_request(model, {"seed": seed, **said, across.name: a, down.name: b}) for a in across.values]
        for b in down.values
    ]
    made: list[list[Tensor]] = []
    for row in cells:
        made.append([])
        for request in row:
            made[-1].append(request.run(model).tensor[0])
            if observe is not None:
                observe(sum(map(len, made)), total)
    return sheet(made, across.labels, down.labels)


def sheet(cells: Sequence[Sequence[Tensor]], columns: Sequence[str], rows: Sequence[str]) -> Image:
    """Pictures (C, H, W) in [-1, 1] in rows, with labels above the columns and before the rows.

    Smaller pictures stand in the middle of a cell of the largest; small ones are enlarged by a whole number.
    """
    from PIL import Image, ImageDraw, ImageFont

    height = max(picture.shape[1] for row in cells for picture in row)
    width = max(picture.shape[2] for row in cells for picture in row)
    times = max(1, _CELL // max(height, width))
    height, width = height * times, width * times
    heads = [textwrap.wrap(text, max(8, width // 8)) for text in columns]
    sides = [textwrap.wrap(text, 24) for text in rows]
    top = max(map(len, heads)) * _LINE + _GAP
    left = max((len(line) for side in sides for line in side), default=0) * 8 + _GAP
    page = Image.new(
        "RGB", (left + len(columns) * (width + _GAP), top + len(rows) * (height + _GAP)), "white"
    )
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(_FONT)
    for number, lines in enumerate(heads):
        middle = left + number * (width + _GAP) + width / 2
        for line, text in enumerate(lines):
            draw.text((middle, _GAP + line * _LINE), text, "black", font, "ma")
    for number, (lines, row) in enumerate(zip(sides, cells, strict=True)):
        edge = top + number * (height + _GAP)
        for line, text in enumerate(lines):
            place = edge + height / 2 + (line - len(lines) / 2) * _LINE
            draw.text((left - _GAP, place), text, "black", font, "ra")
        for column, picture in enumerate(row):
            large = to_image(F.interpolate(picture[None], scale_factor=times, mode="nearest")[0])
            inset = ((width - large.width) // 2, (height - large.height) // 2)
            page.paste(large, (left + column * (width + _GAP) + inset[0], edge + inset[1]))
    return page


def write(
    place: str | Path, x: str, y: str | None, said: Mapping[str, Any], out: Path, device: str | None
) -> Iterator[str]:
    """The command: a sheet written into a folder, with what it was made of in its text; yields its path."""
    axes = {name: dict([_parsed(text, name)]) for name, text in (("x", x), ("y", y)) if text is not None}
    fields = {name: _value(name, value) for name, value in said.items()}
    model = load(place, device=None if device is None else torch.device(device))
    page = grid(model, axes["x"], axes.get("y"), **fields)
    about = {
        "model": model.card.get("name", Path(place).name),
        "hash": model.card.get("hash"),
        **axes,
        **fields,
    }
    yield str(write_new(encode(page, {"grid": json.dumps(about, default=str)}), out, "-grid.png"))


def _axis(given: Mapping[str, Sequence[Any]], where: str) -> Axis:
    (name, values), *more = given.items() or [("", ())]
    if more or isinstance(values, str | bytes) or not isinstance(values, Sequence) or not values:
        raise InvalidInput("is not one setting with a list of values", where=where, do='{"guidance": [1, 3]}')
    return Axis(name, tuple(values))


def _request(model: Model, said: Mapping[str, Any]) -> Request:
    fields: dict[str, Any] = {"inputs": {}}
    for name, value in said.items():
        if name in _NOT_HERE:
            raise InvalidInput("a grid has one picture a cell", where=name, do="leave it out")
        if name in Request.model_fields and name != "inputs":
            fields[name] = value
        elif name in model.conditioner.inputs:
            fields["inputs"][name] = value
        elif name:
            known = [*Request.model_fields, *model.conditioner.inputs]
            what = "neither a setting nor an input of this model"
            raise InvalidInput(what, where=name, do=nearest(name, known))
    request = Request.of(**{name: value for name, value in fields.items() if value is not None})
    if request.seed < 0:
        raise InvalidInput("all pictures of a grid have one noise", where="seed", do="give 0 or more")
    if (check := getattr(model.conditioner, "check", None)) is not None:
        check(**request.inputs)
    return request


def _parsed(text: str, where: str) -> tuple[str, list[Any]]:
    """ "guidance=1,2,4" or "prompt=[a cat, 'a dog, noto']" as a name and a list."""
    name, sign, values = text.partition("=")
    if not sign or not name:
        raise InvalidInput(f"{text!r} is not NAME=VALUE,VALUE", where=f"--{where}")
    listed = words.part(values if values.lstrip().startswith("[") else f"[{values}]", f"--{where}")
    return name.replace("-", "_"), [words.pixels(each) if name == "size" else each for each in listed]


def _value(name: str, text: Any) -> Any:
    if name == "size":
        return words.pixels(text)
    return words.part(text, name) if name in Request.model_fields else text


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        rest = ", ".join(f"{key} {_text(each)}" for key, each in value.items() if key != "name")
        return f"{value.get('name', '')} {rest}".strip()
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)
