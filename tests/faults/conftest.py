"""The files of benchmarks/fuzz.py, of which the suite tries a small part."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def fuzz() -> ModuleType:
    """benchmarks/fuzz_rows.py as a module."""
    path = Path(__file__).parents[2] / "benchmarks" / "fuzz_rows.py"
    spec = importlib.util.spec_from_file_location("fuzz_rows", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def folders(fuzz: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stable Diffusion as model/ of diffusers/ and of native/, and as one file."""
    root = tmp_path_factory.mktemp("models")
    for form in ("diffusers", "native"):
        fuzz.files(root / form, form)
    fuzz.files(root, "compvis")
    return root
