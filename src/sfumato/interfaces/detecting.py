"""The command that draws hints for controls: detect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer


def detect(
    name: Annotated[str, typer.Argument(help="Of a detector; all of them: sfumato list detector.")],
    source: Annotated[Path, typer.Argument(help="A picture, key points as .json, or a folder of them.")],
    out: Annotated[Path, typer.Argument(help="The PNG to write; a folder where one is read.")],
    told: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, such as low=50; may be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of what the settings leave to chance.")] = None,
) -> None:
    """Draw what a control is told of a picture: its edges, lines, key points, depth, ..., as a PNG."""
    from sfumato.interfaces import words

    settings = {key: words.part(value, key) for key, value in words.pairs(told or (), "--set").items()}
    for path in draw(name, source, out, settings, seed):
        typer.echo(path)


def draw(
    name: str, source: Path, out: Path, settings: dict[str, Any], seed: int | None = None
) -> Iterator[Path]:
    """Draw the hint of a file, or of each in a folder; yields the paths written.

    Args:
        name: of the detector.
        source: a picture, a map or a .json of key points; of a folder all pictures, or all .json where there
            are none.
        out: a PNG; for a folder another folder, where the files have the same names.
        settings: of the detector, as plain data.
        seed: of what the settings leave to chance, with the file's name; None leaves nothing to it.

    Raises:
        NotFound: no such detector, file or folder.
        InvalidInput: settings or files that cannot be used, names of two files that would be one.
    """
    from sfumato.core.atomic import write_atomically
    from sfumato.generation.images import to_image
    from sfumato.interfaces.recipe import encode
    from sfumato.registry import build

    detector = build("detector", {**settings, "name": name})
    for read, target in _paired(source, out):
        hint = detector(read, None if seed is None else f"{seed}:{read.name}")
        data = encode(to_image(hint), {})

        def write(temporary: Path, data: bytes = data) -> None:
            temporary.write_bytes(data)

        write_atomically(target, write)
        yield target


def _paired(source: Path, out: Path) -> list[tuple[Path, Path]]:
    """What is read and what is written, all checked before anything is."""
    from sfumato.core.errors import InvalidInput, NotFound
    from sfumato.data.files import list_pictures, natural

    if not source.exists():
        raise NotFound("no such file or folder", where=str(source))
    if source.is_dir():
        there = [path.relative_to(source).as_posix() for path in source.rglob("*.json")]
        names = list_pictures(source) or sorted(there, key=natural)
        if not names:
            raise InvalidInput("holds no pictures and no .json", where=str(source))
        pairs = [(source / name, out / Path(name).with_suffix(".png")) for name in names]
    else:
        if out.suffix.lower() != ".png" or out.is_dir():
            raise InvalidInput("is no name of a PNG", where=str(out), do="end it in .png")
        pairs = [(source, out)]
    found: dict[Path, Path] = {}
    for read, target in pairs:
        if target.resolve() == read.resolve():
            raise InvalidInput("would be replaced by its own hint", where=str(read), do="name another place")
        if (other := found.setdefault(target, read)) != read:
            raise InvalidInput(f"{other.name} and {read.name} have one name", where=str(source))
    for folder in {target.parent for target in found}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"cannot be made: {error.strerror or error}", where=str(folder)) from error
    return pairs
