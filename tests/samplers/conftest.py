"""The measurements of benchmarks/certify.py, so that tests and docs/solvers.md say the same."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "certify.py"


@pytest.fixture(scope="session")
def certify() -> ModuleType:
    spec = importlib.util.spec_from_file_location("certify", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
