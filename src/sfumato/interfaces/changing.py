"""The command that changes a given picture by words: edit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer


def edit(
    picture: Annotated[Path, typer.Argument(help="What is to be changed.")],
    prompt: Annotated[str, typer.Argument(help="What it is to show.")],
    source: Annotated[
        str | None, typer.Option("--from", help="What it shows: its layout is kept, and its words changed.")
    ] = None,
    model: Annotated[str, typer.Option(help="The model that does it.")] = "emoji",
    mask: Annotated[Path | None, typer.Option(help="White where it may change.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much of the walk, above 0 to 1; .6, with --from or --mask 1.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="With --from: a word; nothing but where it is may change.")
    ] = None,
    keep: Annotated[float, typer.Option(help="With --from: part of the walk in which words stay put.")] = 0.8,
    keep_shapes: Annotated[float, typer.Option(help="With --from: likewise of shapes.")] = 0.4,
    null: Annotated[
        str | None, typer.Option(help="With --from: text (slow, exact) or prompt, to make up for guidance.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Scale of guidance by the prompt.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the walk.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is made anew; -1 is random.")] = -1,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("outputs"),
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Change a picture by words: made over (SDEdit), in a part, or with its own words changed (inversion)."""
    from sfumato.core.errors import InvalidInput

    asked = {"guidance": guidance, "steps": steps}
    if source is None:
        if only or null:
            raise InvalidInput("says nothing without --from", where="--only" if only else "--null")
        edit: dict[str, Any] = {"name": "image_to_image", "image": str(picture)}
        if mask is not None:
            edit = {"name": "inpaint", "image": str(picture), "mask": str(mask)}
        if strength is not None:
            edit["strength"] = strength
        lines = remade(model, prompt, edit, {**asked, "seed": seed}, out)
    else:
        if mask is not None:
            raise InvalidInput("is for a part made anew", where="--mask", do="with --from say --only WORD")
        words, part = (source, prompt), (keep, keep_shapes)
        lines = reworded(model, picture, words, tuple(only or ()), part, null, strength, asked, out)
    for line in lines:
        typer.echo(json.dumps(line) if as_json else line["path"])


def remade(
    place: str, prompt: str, edit: dict[str, Any], asked: dict[str, Any], out: Path
) -> Iterator[dict[str, Any]]:
    """Make a picture over, or a part of it, and write it with its recipe; yields {"path", "seed"}."""
    from sfumato.interfaces.making import generate

    yield from generate(place, {**asked, "edit": edit}, {"prompt": prompt}, out, None, ())


def reworded(
    place: str,
    picture: Path,
    said: tuple[str, str],
    only: tuple[str, ...],
    kept: tuple[float, float],
    null: str | None,
    strength: float | None,
    asked: dict[str, Any],
    out: Path,
) -> Iterator[dict[str, Any]]:
    """Invert a picture, change the words that it is made of, and write what comes; yields {"path"}.

    Args:
        place: of the model.
        picture: which shows what the first of the prompts says.
        said: what it shows, and what it is to show.
        only: words outside of whose places nothing changes.
        kept: parts of the walk in which words and shapes stay where they are.
        null: as `invert` takes it.
        strength: the part of the walk from its noise that is walked; None is all.
        asked: guidance and steps; None is the model's own.
        out: folder to write to.

    Raises:
        InvalidInput, NotFound: as `load`, `invert` and `generate`.
    """
    from sfumato.checkpoints.load import load
    from sfumato.core.errors import InvalidInput
    from sfumato.editing.invert import invert
    from sfumato.editing.local_blend import LocalBlend
    from sfumato.editing.prompt_to_prompt import PromptToPrompt
    from sfumato.interfaces.recipe import save_png
    from sfumato.interfaces.request import clean

    source, wanted = (clean(each, "prompt") for each in said)
    for word in only:
        if word.lower() not in f"{source} {wanted}".lower():
            # Before the way up is walked, which is most of the work.
            raise InvalidInput(f"{word!r} stands in neither prompt", where="--only")
    change: Any = PromptToPrompt(cross=kept[0], self_attention=kept[1])
    if only:
        change = LocalBlend(words=only, edit=change)
    model = load(place)
    size = model.card.get("size")
    settings = {"steps": asked["steps"] or model.card.get("steps", 50), "null": _null(null)}
    if asked["guidance"] is not None and null:
        settings["scale"] = asked["guidance"]
    found = invert(model, picture, prompt=source, size=tuple(size) if size else None, **settings)
    walk = {} if asked["guidance"] is None else {"guidance": asked["guidance"]}
    inverted = {} if strength is None else {"strength": strength}
    images = found.make(prompt=[source, wanted], seeds=[0, 0], edit=change, **inverted, **walk)
    yield {"path": str(save_png(images.images[1], images.recipes[1], out))}


def _null(told: str | None) -> Any:
    from sfumato.core.errors import InvalidInput

    if told not in (None, "text", "prompt"):
        raise InvalidInput(f"{told!r} is none", where="--null", do="give text or prompt")
    return told
