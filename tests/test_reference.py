"""docs/reference.md says what the code says, and `sfumato list` shows the same things."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sfumato.interfaces.looking import catalogue

ROOT = Path(__file__).parent.parent


def test_the_reference_page_is_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    text = (ROOT / "docs" / "reference.md").read_text("utf-8")
    assert text == reference.page(), "run python tools/reference.py"
    for kind, things in catalogue().items():
        section = text.partition(f"\n## {kind}\n")[2].partition("\n## ")[0]
        for name, what in things.items():
            assert f"| `{name}` | {what} |" in section
