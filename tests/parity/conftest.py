"""Makes the recipes of this folder importable from its tests, whatever way pytest imports them."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A pipeline of diffusers with the model read from its folder, by its kind; each is made once."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from sd_cases import Case

    root = tmp_path_factory.mktemp("pipelines")
    return functools.cache(lambda kind: Case(kind, root))
