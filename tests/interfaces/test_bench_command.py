"""`sfumato bench`: who is timed takes turns, and what changed is told as it is."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import sfumato
from sfumato.acceleration.block_cache import BlockCache
from sfumato.core.errors import InvalidInput
from sfumato.interfaces import receipt
from sfumato.interfaces.cli import app
from sfumato.interfaces.receipt import PLAIN, bench, in_words
from sfumato.interfaces.request import Request
from sfumato.model import Model

ASKED: dict[str, Any] = {
    "seed": 3,
    "size": 8,
    "steps": 10,
    "guidance": 2.0,
    "inputs": {"prompt": "a red cat"},
}


def test_what_changed_is_told(text_unet: Callable[..., Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the walks themselves; by a clock that says each call took a second longer than the last."""
    ticks = (n * (n + 1) / 2 for n in itertools.count())
    monkeypatch.setattr(receipt.time, "perf_counter", lambda: next(ticks))
    fast = [{"name": "block_cache", "every": 1}, {"name": "block_cache", "every": 4}]
    model = text_unet()
    rows = bench(model, Request.of(**ASKED), fast, turns=3)
    assert list(rows) == [PLAIN, *map(str, fast)]
    same, other = (rows[str(each)] for each in fast)
    assert same["error by fifth"] == [0.0] * 5
    assert same["psnr"] == math.inf
    walks: list[list[torch.Tensor]] = [[], []]
    asked = {**ASKED, **ASKED["inputs"]}
    del asked["inputs"]
    pictures = [
        sfumato.generate(
            model, **asked, fast=BlockCache(every=every), observe=lambda event, w=walk: w.append(event.x0)
        ).tensor
        for every, walk in zip((1, 4), walks, strict=True)
    ]
    errors = [
        float((mine - own).square().mean().sqrt() / own.square().mean().sqrt())
        for own, mine in zip(*walks, strict=True)
    ]
    means = [sum(errors[i : i + 2]) / 2 for i in range(0, 10, 2)]
    assert other["error by fifth"] == pytest.approx(means, rel=1e-4)
    assert max(means) > 1e-4
    off = (pictures[0] - pictures[1]).square().mean().item()
    assert other["psnr"] == pytest.approx(10 * math.log10(4 / off), rel=1e-5)
    # Whoever comes first in a turn has the shorter second, and the first turn is not counted.
    assert rows[PLAIN]["seconds"] < same["seconds"] < other["seconds"]
    assert rows[PLAIN]["from"] < rows[PLAIN]["seconds"] < rows[PLAIN]["to"]
    assert other["times as fast"] == rows[PLAIN]["seconds"] / other["seconds"]
    told = in_words(rows)
    assert told[str(fast[0])]["pictures are off by"] == "nothing"
    assert "dB" in told[str(fast[1])]["pictures are off by"]


def test_the_command_measures_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is measured of layers is kept at home.
    monkeypatch.setenv("HOME", str(tmp_path))
    line = ["bench", "a red apple, noto", "--fast", "lossless,block_cache", "--steps", "2", "--turns", "1"]
    rows = json.loads(CliRunner().invoke(app, [*line, "--json"], catch_exceptions=False).stdout)
    assert list(rows) == [PLAIN, "lossless", "block_cache"]
    assert rows["lossless"]["psnr"] > 60 > rows["block_cache"]["psnr"]
    assert all(row["seconds"] > 0 for row in rows.values())
    assert (tmp_path / ".cache" / "sfumato" / "prepack.json").exists()
    for wrong, words in ((["--turns", "0"], "turns"), (["--fast", "quick"], "quick")):
        found = CliRunner().invoke(app, [*line, *wrong])
        assert isinstance(found.exception, InvalidInput | sfumato.SfumatoError)
        assert words in str(found.exception)
