"""Kernels of our own: built once, found again, and done without where they cannot be had."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sfumato.acceleration import native as module
from sfumato.acceleration.native import native

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place of its own, and nothing remembered."""
    monkeypatch.setattr(module, "KEPT", tmp_path / "kept")
    native.cache_clear()
    yield tmp_path / "kept"
    native.cache_clear()


@needs_compiler
def test_a_library_is_built_once_and_found_again(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native("int8.cpp") is not None
    (made,) = fresh.iterdir()
    lines: list[list[str]] = []
    run = subprocess.run

    def noted(line: list[str], **told: Any) -> Any:
        lines.append(line)
        return run(line, **told)

    monkeypatch.setattr(subprocess, "run", noted)
    native.cache_clear()
    assert native("int8.cpp") is not None
    assert [line[1:] for line in lines] == [["--version"]]
    # Of another processor, or another source, it is another.
    monkeypatch.setattr(module, "_processor", lambda: b"another")
    native.cache_clear()
    assert native("int8.cpp") is not None
    assert made in fresh.iterdir()
    assert len(list(fresh.iterdir())) == 2


@needs_compiler
def test_what_does_not_build_leaves_nothing(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FLAGS", (*module._FLAGS, "-Dends=("))
    assert native("int8.cpp") is None
    assert list(fresh.iterdir()) == []
    monkeypatch.setattr(module, "KEPT", Path("/proc/nowhere"))
    native.cache_clear()
    assert native("int8.cpp") is None


def test_without_a_compiler_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert native("int8.cpp") is None


@needs_compiler
def test_threads_are_those_of_pytorch() -> None:
    """One OpenMP in the process: with two, threads of each would stand in the others' way."""
    assert native("int8.cpp") is not None
    maps = {
        line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line
    }
    assert len(maps) == 1
