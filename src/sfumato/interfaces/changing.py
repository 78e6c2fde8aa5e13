"""The command that changes a given picture by words: edit."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    steps: Annotated[int | None, typer.Option(help="Steps of the walk; with --from 25.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is made anew; -1 is random.")] = -1,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("outputs"),
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Change a picture by words: made over (SDEdit), in a part, or with its own words changed (inversion)."""
    from sfumato.core.errors import InvalidInput
    from sfumato.interfaces.making import generate

    asked: dict[str, Any] = {"guidance": guidance, "steps": steps}
    told: str | list[str] = prompt
    if source is None:
        if only or null:
            raise InvalidInput("says nothing without --from", where="--only" if only else "--null")
        change: dict[str, Any] = {"name": "image_to_image", "image": str(picture)}
        if mask is not None:
            change = {"name": "inpaint", "image": str(picture), "mask": str(mask)}
        asked["seed"] = seed
    else:
        if mask is not None:
            raise InvalidInput("is for a part made anew", where="--mask", do="with --from say --only WORD")
        change = reworded(picture, (source, prompt), only or (), (keep, keep_shapes), null)
        # Without nulls of its own only the words' own flow makes the picture again.
        scale = guidance if guidance is not None else 2.0 if null else 1.0
        change["scale"] = scale
        # What is undone step by step comes back the nearer the more there are.
        steps = 25 if steps is None else steps
        told = [source, prompt]
        asked |= {"guidance": scale, "steps": steps, "sampler": "ddim", "seeds": [0, 0]}
    if strength is not None:
        change["strength"] = strength
    lines = list(generate(model, {**asked, "edit": change}, {"prompt": told}, out, None, ()))
    for line in lines[-1:]:
        typer.echo(json.dumps(line) if as_json else line["path"])


def reworded(
    picture: Path, said: tuple[str, str], only: Sequence[str], kept: tuple[float, float], null: str | None
) -> dict[str, Any]:
    """The edit that inverts a picture and changes the words that it is made of, as plain data.

    Args:
        picture: which shows what the first of the prompts says.
        said: what it shows, and what it is to show.
        only: words outside of whose places nothing changes.
        kept: parts of the walk in which words and shapes stay where they are.
        null: as `invert` takes it.

    Raises:
        InvalidInput: a word that stands in neither prompt, or no such null.
    """
    from sfumato.core.errors import InvalidInput

    if null not in (None, "text", "prompt"):
        raise InvalidInput(f"{null!r} is none", where="--null", do="give text or prompt")
    for word in only:
        if word.lower() not in " ".join(said).lower():
            # Before the way up is walked, which is most of the work.
            raise InvalidInput(f"{word!r} stands in neither prompt", where="--only")
    change: dict[str, Any] = {"name": "prompt_to_prompt", "cross": kept[0], "self_attention": kept[1]}
    if only:
        change = {"name": "local_blend", "words": list(only), "edit": change}
    return {"name": "inverted", "image": str(picture), "prompt": said[0], "null": null, "edit": change}
