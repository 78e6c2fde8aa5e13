"""The layer rule of DESIGN section 3, and what source files may never hold."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "sfumato"
LAYERS = [
    {"core", "registry"},
    {"processes", "times", "samplers", "guidance", "data"},
    {"networks"},
    {"encoders", "autoencoders", "spaces"},
    {"conditioners", "control", "adapters", "acceleration"},
    {"model"},
    {"generation", "checkpoints"},
    {"editing", "systems", "training", "metrics"},
    {"personalization", "distillation"},
    {"interfaces"},
]
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
FILES = sorted(ROOT.rglob("*.py"))
FORBIDDEN = {"diffusers", "transformers", "peft", "numpy", "torchvision"}


def imports(tree: ast.AST) -> list[str]:
    """Every module a file imports, anywhere in it; `from a import b` counts as a and as a.b."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            found += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def part_of(path: Path) -> str:
    """The folder below sfumato, or the file's own name."""
    inside = path.relative_to(ROOT)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def fault(mine: str, imported: str) -> str | None:
    """Why a part may not import a module, if so."""
    pieces = imported.split(".")
    if pieces[0] in FORBIDDEN:
        return f"{pieces[0]} is not a dependency"
    if pieces[0] != "sfumato" or len(pieces) == 1 or mine not in LAYER:
        return None
    theirs = pieces[1]
    if theirs not in LAYER:
        return None
    if theirs == "registry" and LAYER[mine] < LAYER["model"] and mine != "registry":
        return "the registry is used from model up"
    if theirs != mine and LAYER[theirs] >= LAYER[mine] and not {theirs, mine} <= {"core", "registry"}:
        return f"{mine} (layer {LAYER[mine]:g}) may not import {theirs} (layer {LAYER[theirs]:g})"
    return None


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """Every call with its dotted name."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def call_fault(mine: str, name: str, call: ast.Call) -> str | None:
    """Why a call may not be made, if so."""
    if name in {"eval", "exec", "compile", "__import__"}:
        return f"{name} runs text"
    if name == "print" and mine != "interfaces":
        return "a library does not print"
    if name == "torch.load":
        weights_only = next((k.value for k in call.keywords if k.arg == "weights_only"), None)
        if not (isinstance(weights_only, ast.Constant) and weights_only.value is True):
            return "torch.load without weights_only=True runs code"
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_source_file_keeps_the_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree, mine = ast.parse(text), part_of(path)
    faults = [f"{name}: {why}" for name in imports(tree) if (why := fault(mine, name))]
    faults += [
        f"line {call.lineno}: {why}" for name, call in calls(tree) if (why := call_fault(mine, name, call))
    ]
    unsafe = {"pickle", "cPickle", "dill", "marshal", "shelve"}
    faults += [f"{name} runs code on loading" for name in imports(tree) if name.split(".")[0] in unsafe]
    if len(text.splitlines()) > 400:
        faults.append("longer than 400 lines")
    assert not faults, "\n".join(faults)


def test_every_part_of_the_tree_has_a_layer() -> None:
    parts = {part_of(path) for path in FILES} - {"__init__", "__main__"}
    assert parts <= set(LAYER), "give new folders and files a layer in DESIGN section 3 and here"


@pytest.mark.parametrize(
    "mine, imported",
    [
        ("samplers", "sfumato.times.karras"),
        ("core", "sfumato.samplers.ddim"),
        ("networks", "sfumato.registry"),
        ("generation", "sfumato.checkpoints.load"),
        ("metrics", "numpy"),
    ],
)
def test_the_rule_refuses(mine: str, imported: str) -> None:
    assert fault(mine, imported)


@pytest.mark.parametrize(
    "line", ["eval('1')", "print('x')", "torch.load(f)", "torch.load(f, weights_only=False)"]
)
def test_the_call_rule_refuses(line: str) -> None:
    (name, call) = calls(ast.parse(line))[0]
    assert call_fault("core", name, call)
