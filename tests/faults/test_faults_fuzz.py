"""Changed files of every kind: read, or refused by one typed line; nothing is done, and nothing takes long.

A hundredth of benchmarks/fuzz.py, in this process.
"""

from __future__ import annotations

import random
import time
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from sfumato.core.errors import SfumatoError

COUNTS = {
    "config: diffusers unet": 12,
    "config: diffusers scheduler": 12,
    "config: native": 12,
    "index of shards": 8,
    "weights: compvis, headers": 10,
    "weights: torch.save": 60,
    "tokenizer: vocab.json": 60,
    "tokenizer: merges.txt": 100,
    "tokenizer: vocab.txt": 200,
    "picture: png": 250,
    "picture: jpeg": 250,
    "picture: webp": 250,
    "map: semantic, depth and mask": 150,
    "recipe: the PNG": 150,
    "recipe: what it says, replayed": 6,
    "recipe: the web UIs' text": 300,
    "run file": 12,
}


@pytest.mark.parametrize("name", COUNTS)
def test_changed_files_are_read_or_refused_by_one_line(name: str, fuzz: ModuleType, tmp_path: Path) -> None:
    _, make = fuzz.ROWS[name]
    draw = random.Random(f"suite {name}")
    change, read = make(tmp_path)
    read()
    refused = 0
    for _ in range(COUNTS[name]):
        change(draw)
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = None
            try:
                read()
            except SfumatoError as error:
                said = str(error)
        refused += said is not None
        assert "\n" not in (said or "")
        assert len(said or "") < 8000
        assert time.process_time() - start < 10
    # The web UIs' text is anybody's, and never wrong.
    assert (refused > COUNTS[name] / 8) == (name != "recipe: the web UIs' text")
