"""The command line. Data go to stdout, everything else to stderr; heavy imports happen inside commands."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato import __version__
from sfumato.core.errors import SfumatoError
from sfumato.interfaces import benching, changing, controlling, detecting, words

app = typer.Typer(
    name="sfumato",
    help="Diffusion models: train, sample, evaluate and look into them.",
    epilog="Start with: sfumato demo. Errors are one line; --debug, anywhere, shows the traceback.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to; nothing in it is overwritten.")]
Spoken = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL PROMPT --INPUT VALUE",
        help="A model's folder or file, if left out the embedded one, emoji; what to draw; other inputs.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 done, 1 internal error, 2 something the user can mend, 130 interrupted, 143 terminated.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or bool(os.environ.get("SFUMATO_DEBUG"))
    given = [word for word in given if word != "--debug"]
    restore = _exit_on_signals()
    try:
        app(args=given, prog_name="sfumato")
    except _Interrupted as leave:
        _say(f"{leave.args[1]}: nothing is left half written")
        return int(leave.code or 0)
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BrokenPipeError:
        # Whoever read us has seen enough; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except SfumatoError as error:
        if debug:
            raise
        _say(f"error: {error}")
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        _say(f"internal error: {type(error).__name__}: {error} (--debug shows where; please report it)")
        return 1
    finally:
        restore()
    return 0


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Tell the version.")] = False,
) -> None:
    if version:
        typer.echo(f"sfumato {__version__}")
        raise typer.Exit


@app.command(epilog="Example: sfumato demo --out demo")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("demo"),
    minutes: Annotated[float, typer.Option(help="Training time.")] = 4.0,
) -> None:
    """Train a small model on embedded pictures and draw with it, in some five minutes on two cores."""
    from sfumato.interfaces.demo import run

    run(out, minutes)


@app.command(epilog="Examples: sfumato train apple.yaml --set steps=2000; sfumato train --resume runs/apple")
def train(
    run_file: Annotated[
        Path | None, typer.Argument(help="YAML: model, data, objective and settings of a run.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run's folder; runs/NAME if not said.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: a.b=value; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell the plan and stop.")] = False,
    resume: Annotated[Path | None, typer.Option(help="The folder of a run to go on with.")] = None,
    allow_change: Annotated[
        bool, typer.Option("--allow-change", help="Resume although data, settings or code changed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a model as a run file says, or go on with a run that was stopped."""
    from sfumato.interfaces.training import train as start

    _print(start(run_file, out, overrides or [], dry_run, resume, allow_change), as_json)


@app.command(
    epilog='Examples: sfumato generate "a red apple, fluent 3d"; '
    'sfumato generate demo/model --concept "red apple" --style noto --count 4 --seed 7',
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def generate(
    context: typer.Context,
    said: Spoken = None,
    count: Annotated[int | None, typer.Option("--count", "-n", help="How many pictures.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first picture; -1 is random.")] = -1,
    steps: Annotated[int | None, typer.Option(help="Steps of the walk, 1 to 1000.")] = None,
    sampler: Annotated[str | None, typer.Option(help="A name, or {name: ddim, eta: 0.5}.")] = None,
    times: Annotated[str | None, typer.Option(help="A name or a dictionary likewise.")] = None,
    guidance: Annotated[str | None, typer.Option(help="A scale, or a dictionary or list of them.")] = None,
    path: Annotated[str | None, typer.Option(help="Process to walk along.")] = None,
    fast: Annotated[
        str | None,
        typer.Option(help="lossless, int8, balanced, draft; or what saves work, such as block_cache."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Pixels: 64, or WIDTHxHEIGHT.")] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="What to tell the model: name=value. Or --name value.")
    ] = None,
    negative: Annotated[list[str] | None, typer.Option(help="What to steer away from: name=value.")] = None,
    edit: Annotated[
        str | None, typer.Option(help="A change of a picture: {name: inpaint, image: a.png, mask: m.png}.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="A picture to make over, or with --mask in part.")] = None,
    mask: Annotated[str | None, typer.Option(help="A picture, white where --image is made anew.")] = None,
    strength: Annotated[float | None, typer.Option(help="How much of the walk, above 0 to 1.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures at once; as memory allows.")] = None,
    film: Annotated[int, typer.Option(help="Also write so many frames of each picture appearing.")] = 0,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda.")] = None,
    preview: Annotated[
        Path | None, typer.Option(help="A PNG that shows the pictures as they come, step by step.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Tell the memory and time it would take, and stop.")
    ] = False,
    out: Out = Path("outputs"),
    as_json: Json = False,
) -> None:
    """Generate pictures; each carries its recipe. What a model can be told: sfumato inspect MODEL."""
    from sfumato.interfaces import making, planning

    fields = {
        "count": count,
        "seed": seed,
        "steps": steps,
        "sampler": words.part(sampler, "sampler"),
        "times": words.part(times, "times"),
        "guidance": words.part(guidance, "guidance"),
        "path": words.part(path, "path"),
        "fast": words.part(fast, "fast"),
        "edit": words.edit(words.part(edit, "edit"), image, mask, strength),
        "size": words.pixels(size),
        "negative": words.pairs(negative or [], "negative") or None,
        "batch": batch,
        "film": film,
    }
    model, heeded = words.spoken(said or [])
    heeded = {**words.pairs(inputs or [], "input"), **heeded}
    options = [name.lstrip("-") for parameter in context.command.params for name in parameter.opts]
    if plan:
        told = making.plan(model, fields, heeded, device, options)
        _print(planning.as_dict(told) if as_json else planning.in_words(told), as_json)
        return
    for line in making.generate(model, fields, heeded, out, device, options, preview):
        typer.echo(json.dumps(line) if as_json else line["path"])


@app.command(
    epilog="Examples: sfumato grid 'a red apple' --x guidance=1,2,4 --y steps=5,10,25; "
    "sfumato grid demo/model --x guidance=1,2,4 --y 'concept=[red apple, penguin]'",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def grid(
    x: Annotated[str, typer.Option("--x", help="A setting or input and its values: guidance=1,3,6.")],
    said: Spoken = None,
    y: Annotated[str | None, typer.Option("--y", help="Another one, downwards.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda.")] = None,
    out: Out = Path("outputs"),
) -> None:
    """Draw one picture for every pair of values of two settings, labelled; all else as --name value."""
    from sfumato.interfaces.grid import write

    model, heeded = words.spoken(said or [])
    for path in write(model, x, y, heeded, out, device):
        typer.echo(path)


@app.command(epilog="Example: sfumato replay outputs/00001-seed7.png")
def replay(
    picture: Annotated[Path, typer.Argument(help="A PNG that sfumato made.")],
    model: Annotated[Path | None, typer.Option(help="Where its model is now.")] = None,
    given: Annotated[
        list[Path] | None,
        typer.Option(help="A picture it was made from, where it is elsewhere now; may be repeated."),
    ] = None,
    out: Out = Path("outputs"),
    as_json: Json = False,
) -> None:
    """Make a picture again from its recipe: the same bytes on the same machine."""
    from sfumato.interfaces.making import replay as start

    result = start(picture, model, out, given or [])
    typer.echo(json.dumps(result) if as_json else result["path"])
    _say("identical bytes" if result["identical"] else f"not identical: {result['why']}")


@app.command(epilog="Example: sfumato evaluate demo/model --data emoji --count 1000")
def evaluate(
    model: Annotated[Path, typer.Argument(help="A model's folder.")],
    data: Annotated[str, typer.Option(help="Real pictures: a name, or {name: images, folder: cats}.")],
    count: Annotated[int, typer.Option(help="Pictures on each side.")] = 1000,
    metrics: Annotated[
        str, typer.Option(help="Names, with commas; likelihood and bound tell bits/dim of the real pictures.")
    ] = "frechet,kid,precision_recall",
    features: Annotated[
        str, typer.Option(help="efficientnet_lite0, or the path of Inception weights.")
    ] = "efficientnet_lite0",
    seed: Annotated[int, typer.Option(help="Of the first picture.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Steps of the walk.")] = None,
    guidance: Annotated[str | None, typer.Option(help="A scale, or a dictionary or list of them.")] = None,
    batch: Annotated[int, typer.Option(help="Pictures at once.")] = 32,
    as_json: Json = False,
) -> None:
    """Compare a model's pictures with real ones, told the same things."""
    from sfumato.interfaces.measuring import evaluate as start

    walk = {"steps": steps, "guidance": words.part(guidance, "guidance")}
    report = start(model, words.part(data, "data"), count, metrics.split(","), features, seed, batch, walk)
    typer.echo(json.dumps(report.as_dict()) if as_json else str(report))


@app.command(epilog="Example: sfumato inspect demo/model")
def inspect(
    path: Annotated[Path, typer.Argument(help="A model's folder, a weights file or a picture.")],
    as_json: Json = False,
) -> None:
    """Tell what something is: parts, parameters, inputs, licence, and whether its weights fit."""
    from sfumato.interfaces.looking import inspect as look

    _print(look(path), as_json)


@app.command(epilog="Example: sfumato fetch stable-diffusion-v1-5/stable-diffusion-v1-5 --variant fp16")
def fetch(
    name: Annotated[str, typer.Argument(help="owner/name of the hub, or owner/name@revision.")],
    variant: Annotated[str, typer.Option(help="Of the weights, such as fp16.")] = "",
    as_json: Json = False,
) -> None:
    """Copy a model from the Hugging Face hub to this machine; no other command uses the network."""
    from sfumato.checkpoints.hub import fetch as start

    folder, source = start(name, variant, sys.stderr.isatty())
    _print({"name": source, "path": str(folder)}, as_json)


@app.command(epilog="Example: sfumato convert sd15.safetensors sd15 --format diffusers")
def convert(
    source: Annotated[Path, typer.Argument(help="A model's folder or file, or owner/name of the hub.")],
    target: Annotated[Path, typer.Argument(help="The folder, or the .safetensors file, to write.")],
    form: Annotated[str, typer.Option("--format", help="native, diffusers or compvis.")] = "native",
    dtype: Annotated[
        str | None, typer.Option(help="float16, bfloat16 or float32; as it is if not said.")
    ] = None,
    prediction: Annotated[
        str | None, typer.Option(help="noise or velocity, where the weights do not tell.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Of a folder's files, such as fp16.")] = None,
    strict: Annotated[bool, typer.Option(help="Refuse weights that do not fit exactly.")] = True,
    told: Annotated[
        list[str] | None,
        typer.Option("--set", help="More that weights do not tell, such as heads=8; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model in another format; everything that reads that format reads it."""
    from sfumato.interfaces import words
    from sfumato.interfaces.converting import convert as start

    said = {"prediction": prediction, "variant": variant}
    settings = {name: value for name, value in said.items() if value is not None}
    more = {name: words.part(value, name) for name, value in words.pairs(told or (), "--set").items()}
    _print(start(source, target, form, dtype, strict, {**settings, **more}), as_json)


@app.command("list", epilog="Example: sfumato list sampler")
def list_(
    kind: Annotated[str | None, typer.Argument(help="One kind of thing; all of them if not said.")] = None,
    as_json: Json = False,
) -> None:
    """List everything that has a name, with what it is in one line."""
    from sfumato.interfaces.looking import catalogue

    _print(catalogue(kind), as_json)


@app.command(epilog="Examples: sfumato show heun; sfumato show outputs/00001-seed7.png")
def show(
    what: Annotated[str, typer.Argument(help="A name from `sfumato list`, or a picture.")],
    as_json: Json = False,
) -> None:
    """Show all that is known of a named thing and its settings, or the recipe of a picture."""
    from sfumato.interfaces.looking import explain

    _print(explain(what), as_json, prose=True)


@app.command(epilog="Example: sfumato data emoji --out emoji")
def data(
    name: Annotated[str, typer.Argument(help="emoji, or scenes composed of them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to; must be new or empty.")],
    count: Annotated[int, typer.Option(help="How many scenes.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 0,
) -> None:
    """Write an embedded data set as ordinary files."""
    from sfumato.interfaces.unpacking import unpack

    typer.echo(unpack(name, out, count, seed))


app.command(
    epilog="Examples: sfumato bench; sfumato bench sd15 'a red apple' --fast lossless --turns 1",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(benching.bench)
app.command(epilog="Example: sfumato detect canny cat.png edges.png --set low=50")(detecting.detect)
app.command(epilog='Example: sfumato edit apple.png "a green apple, noto" --from "a red apple, noto"')(
    changing.edit
)
app.command(epilog='Example: sfumato control runs/canny apple.png "a green apple, noto" --detect canny')(
    controlling.control
)


def _print(value: Any, as_json: bool, prose: bool = False) -> None:
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
        return
    from sfumato.interfaces.looking import text_of

    typer.echo(text_of(value, prose))


def _say(text: str) -> None:
    typer.echo(" ".join(text.split("\n")), err=True)


class _Interrupted(SystemExit):
    """Whoever ran us wants us to stop: (exit code, the word for it)."""

    def __init__(self, code: int, word: str) -> None:
        super().__init__(code, word)
        self.code = code


def _exit_on_signals() -> Callable[[], None]:
    """Ctrl-C and SIGTERM leave at once with 130 and 143; training handles them in its own way meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def leave(number: int, frame: Any) -> None:
        raise _Interrupted(128 + number, "interrupted" if number == signal.SIGINT else "terminated")

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


if __name__ == "__main__":
    sys.exit(main())
