"""The command that measures how fast a model draws here: bench."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def bench(
    context: typer.Context,
    said: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL PROMPT --INPUT VALUE", help="As for generate."),
    ] = None,
    fast: Annotated[
        str, typer.Option(help="What to measure: presets or accelerations, with commas or as a list.")
    ] = "lossless,int8,balanced,draft",
    turns: Annotated[int, typer.Option(help="How often each draws; medians are told.")] = 3,
    count: Annotated[int, typer.Option("--count", "-n", help="Pictures drawn each time.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the first picture.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Steps of the walk, 1 to 1000.")] = None,
    guidance: Annotated[str | None, typer.Option(help="A scale, or a dictionary or list of them.")] = None,
    size: Annotated[str | None, typer.Option(help="Pixels: 64, or WIDTHxHEIGHT.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Measure how fast a model draws on this machine, and what each acceleration gains and changes."""
    from sfumato.interfaces import making, receipt, words
    from sfumato.interfaces.looking import text_of

    fields = {
        "count": count,
        "seed": seed,
        "steps": steps,
        "guidance": words.part(guidance, "guidance"),
        "size": words.pixels(size),
    }
    model, heeded = words.spoken(said or [])
    ways = words.part(f"[{fast}]" if "[" not in fast else fast, "fast")
    options = [name.lstrip("-") for parameter in context.command.params for name in parameter.opts]
    rows = making.bench(model, fields, heeded, ways, turns, device, options)
    typer.echo(json.dumps(rows) if as_json else text_of(receipt.in_words(rows)))
