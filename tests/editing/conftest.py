"""Makes the networks' recipes and this folder's importable from the tests of this folder."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "networks")]


@pytest.fixture(autouse=True)
def unmeasured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is measured where a test is of memory; else that is most of the work of tiny models."""
    if "memory" not in request.node.name:
        monkeypatch.setattr("sfumato.generation.task.bytes_per_sample", lambda *asked: 1)
