"""Write docs/reference.md: everything that can be named, with its first sentence, settings and source.

    python tools/reference.py            # writes docs/reference.md
    python tools/reference.py --check    # fails when the page is not what the code says

The folders are the registry, so the page is complete by construction.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from sfumato.registry import FOLDERS, find, kinds, names, summary

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
SOURCE = re.compile(r"arXiv:\d{4}\.\d{4,5}")


def default(field: dataclasses.Field[Any]) -> str:
    """A setting with its default, as it is typed."""
    if field.default is not dataclasses.MISSING:
        shown = repr(field.default)
        return f"{field.name} = {shown if len(shown) < 60 else shown[:50] + '…'}"
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
        shown = type(made).__name__ if dataclasses.is_dataclass(made) else repr(made)
        return f"{field.name} = {shown}"
    return field.name


def row(kind: str, name: str) -> str:
    """One line of a table."""
    cls = find(kind, name)
    settings = ", ".join(f"`{default(field)}`" for field in dataclasses.fields(cls) if field.init)
    papers = sorted(set(SOURCE.findall(inspect.getdoc(cls) or "")))
    links = ", ".join(f"[{paper[6:]}](https://arxiv.org/abs/{paper[6:]})" for paper in papers)
    return f"| `{name}` | {summary(kind, name)} | {settings or '-'} | {links or '-'} |".replace("\n", " ")


def page() -> str:
    """The whole page."""
    parts = [
        "# Reference\n\nEverything that can be named, on the command line, in run files and in Python, by "
        "kind. A name is the file that\nholds it. `sfumato show NAME` explains one with its formula. Written "
        "by `python tools/reference.py`.\n"
    ]
    for kind in kinds():
        folder = FOLDERS[kind].replace(".", "/") + "/" if kind in FOLDERS else "core/prediction.py"
        rows = "\n".join(row(kind, name) for name in names(kind))
        head = "| name | what it is | settings | source |\n|---|---|---|---|"
        parts.append(f"## {kind}\n\n`sfumato/{folder}`\n\n{head}\n{rows}\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    text = page()
    if parser.parse_args().check:
        sys.exit(0 if PAGE.read_text() == text else f"{PAGE} is out of date: run python tools/reference.py")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
