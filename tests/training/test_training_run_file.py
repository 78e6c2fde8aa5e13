"""Run files: read, overridden, refused with the nearest name, planned, trained."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from training_toys import distributed_case

from sfumato.checkpoints import native
from sfumato.core.errors import InvalidInput, NotFound, SfumatoError
from sfumato.training import read, train
from sfumato.training.checkpoint import CheckpointStore
from sfumato.training.plan import plan as measure
from sfumato.training.progress import LossLog
from sfumato.training.run_file import Run


@pytest.fixture
def folder(tmp_path):
    """Ten small pictures in two folders, and a run file that trains on them."""
    for number in range(10):
        colour = (255 - 20 * number, 30, 20 * number)
        path = tmp_path / "pictures" / ("warm" if number < 5 else "cool") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(path)
    text = f"""
model:
  network: {{name: adm, channels: 32, multipliers: [1], blocks: 1, attention: [], classes: 2}}
  process: vp
  prediction: velocity
  time_input: thousand
  conditioner: {{name: class_label, labels: {{label: [warm, cool]}}}}
data: {{name: images, root: "{tmp_path}/pictures", size: 8}}
objective: {{name: denoising, weight: {{name: min_snr}}, drop: 0.2}}
optimizer: {{rate: 1e-3, warm_up: 2}}
ema: [{{decay: 0.9}}]
batch: 4
steps: 5
saving: {{every: 2, keep: {{last: 1}}}}
validation: {{every: 5, items: 4, bands: 2}}
card: {{size: [8, 8]}}
"""
    (tmp_path / "run.yaml").write_text(text)
    return tmp_path


def test_reading_and_writing_are_inverse(folder):
    run = read(folder / "run.yaml")
    assert run.optimizer.rate == 1e-3
    assert run.ema[0].decay == 0.9
    assert run.saving.keep.last == 1
    assert run.model["process"] == "vp"
    run.write(folder / "again.yaml")
    assert read(folder / "again.yaml") == run
    assert Run.from_dict(run.describe()) == run


def test_overrides(folder):
    said = [
        "optimizer.rate=3e-4",
        "optimizer.betas=[0.8, 0.9]",
        "ema.0.decay=.5",
        "model.network.channels=64",
        "model.process.beta_max=15",
        "objective.levels=log_normal",
        "steps=null",
        "minutes=2",
        "seed=1_000",
        "precision=bf16",
    ]
    run = read(folder / "run.yaml", said)
    assert run.optimizer.rate == 3e-4
    assert run.optimizer.betas == (0.8, 0.9)
    assert run.ema[0].decay == 0.5
    assert run.model["network"]["channels"] == 64
    assert run.model["process"] == {"name": "vp", "beta_max": 15}
    assert run.build_objective().levels.mean == -1.2
    assert (run.steps, run.minutes, run.precision) == (None, 2.0, "bf16")
    assert run.seed == 1000


@pytest.mark.parametrize(
    "override, message",
    [
        ("optimizer.rat=1", "unknown key 'rat'.*did you mean rate"),
        ("stps=3", "unknown key 'stps'.*did you mean steps"),
        ("saving.keep.lst=3", "run.yaml.saving.keep.*did you mean last"),
        ("model.netwrk=adm", "unknown key 'netwrk'.*did you mean network"),
        ("optimizer.rate=fast", "'fast' is not a float"),
        ("optimizer.decay=cosin", "'cosin' is not one of constant, cosine, linear"),
        ("optimizer.betas=[0.9]", "expected 2 values, got 1"),
        ("batch=true", "True is not a int"),
        ("batch=0", "does not fall into"),
        ("steps=null", "without end"),
        ("seed=-1", "no seed"),
        ("ema.3.decay=1", "leads nowhere"),
        ("ema.0.decay=1.0", "decay in"),
        ("batch.x=1", "leads nowhere"),
        ("batch", "sets nothing"),
        ("batch=[", "no YAML"),
        ("validation=5", "no dictionary"),
        ("optimizer=null", "cannot be null|no dictionary"),
    ],
)
def test_nonsense_is_refused_by_name(folder, override, message):
    with pytest.raises(InvalidInput, match=f"(?s){message}"):
        read(folder / "run.yaml", [override])


def test_files_that_are_none(tmp_path):
    with pytest.raises(NotFound):
        read(tmp_path / "none.yaml")
    for text in ("just words", "- a\n- b", "{a: [", "a: !!python/object/apply:os.system [true]"):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(InvalidInput):
            read(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("batch: 3")
    with pytest.raises(InvalidInput, match="says nothing of model"):
        read(tmp_path / "x.yaml")


def test_unknown_parts_are_refused_when_built(folder):
    for override in ("model.network.name=adn", "objective.weight=minsnr", "data.name=image"):
        run = read(folder / "run.yaml", [override])
        with pytest.raises(SfumatoError, match="did you mean"):
            run.build_model(), run.build_objective(), run.build_data()


def test_the_same_seed_gives_the_same_fresh_weights(folder):
    one, two = (read(folder / "run.yaml").build_model() for _ in range(2))
    other = read(folder / "run.yaml", ["seed=1"]).build_model()
    key = "time_embed.0.weight"
    assert torch.equal(one.denoiser.network.state_dict()[key], two.denoiser.network.state_dict()[key])
    assert not torch.equal(one.denoiser.network.state_dict()[key], other.denoiser.network.state_dict()[key])


def test_a_plan_says_what_a_run_needs(folder):
    run = read(folder / "run.yaml")
    plan = measure(run)
    parameters = sum(p.numel() for p in run.build_model().denoiser.parameters())
    assert plan.parameters == parameters
    assert plan.weights == 4 * parameters
    assert plan.optimizer == 8 * parameters
    assert plan.averages == 4 * parameters
    assert plan.items == 10
    assert plan.seconds == pytest.approx(5 * plan.seconds_per_step)
    # In two parts a step takes what half of it takes alone, beside the gradients of the first.
    whole, parts, half = (
        measure(read(folder / "run.yaml", changes)).step
        for changes in (["batch=8"], ["batch=8", "accumulate=2"], ["batch=4"])
    )
    assert half < parts < whole
    assert half + 2 * parameters < parts <= half + 4 * parameters
    assert plan.step > 10 * 4 * 4 * 32 * 64, "at least ten feature maps of the batch are kept"


def test_a_run_file_is_trained_to_a_model_that_loads(folder):
    events = []
    model = train(read(folder / "run.yaml"), folder / "out", events.append)
    out = folder / "out"
    assert {p.name for p in out.iterdir()} >= {"run.yaml", "model", "loss.png", "status.json", "losses.jsonl"}
    assert [e.step for e in events if e.kind == "validated"] == [5]
    again = native.read(out / "model")
    assert again.card["size"] == [8, 8]
    assert again.card["training"] == {"steps": 5, "images": 20}
    for key, tensor in model.denoiser.network.state_dict().items():
        assert torch.equal(tensor, again.denoiser.network.state_dict()[key])
    assert yaml.safe_load((out / "run.yaml").read_text())["batch"] == 4
    # The run directory's own file resumes it: nothing is left to do, and nothing changes.
    train(read(out / "run.yaml"), out)
    # More pictures than it was started with are refused.
    Image.new("RGB", (8, 8)).save(folder / "pictures" / "warm" / "new.png")
    with pytest.raises(SfumatoError, match="data fingerprint"):
        train(read(out / "run.yaml", ["steps=6"]), out)


def test_two_processes_train_what_one_does(tmp_path):
    """Two ranks over gloo: rows, noise and losses are those of one process, to the rounding of sums."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; "
        "from training_toys import distributed_case; distributed_case(Path(sys.argv[2]))"
    )
    common = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "two")]
    ranks = [
        subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [rank.wait(timeout=200) for rank in ranks] == [0, 0]
    distributed_case(tmp_path / "one")
    one, two = (CheckpointStore(tmp_path / name / "checkpoints").load() for name in ("one", "two"))
    assert one.step == two.step == 6
    for group, tensors in one.tensors.items():
        for key, tensor in tensors.items():
            assert torch.allclose(tensor, two.tensors[group][key], atol=2e-5), f"{group} {key}"
    for a, b in zip(LossLog.read(tmp_path / "one"), LossLog.read(tmp_path / "two"), strict=True):
        assert a.get("bands", a.get("loss")) == pytest.approx(b.get("bands", b.get("loss")), rel=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: " + "[" * 20_000, "is nested deeper than 64"),
        ("model: " + "{a: " * 20_000, "is nested deeper than 64"),
        ("\n".join(" " * i + "a:" for i in range(600)), "is nested deeper than 64"),
        ("steps: [" + "1, " * 100_000 + "]", "is 300,009 letters long, more than 262,144"),
    ],
)
def test_files_without_end_are_refused_before_they_cost_anything(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InvalidInput, match=re.escape(message)):
        read(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("part", "objective"), [("autoencoder: tiny", "autoencoding"), ("encoder: text_small", "clip")]
)
def test_a_part_alone_is_not_trained_by_denoising(tmp_path: Path, part: str, objective: str) -> None:
    (tmp_path / "run.yaml").write_text(f"model: {{{part}}}\ndata: {{name: emoji, size: 32}}\n")
    kind = part.partition(":")[0]
    with pytest.raises(InvalidInput, match=f"an {kind} is not trained by denoising.*name: {objective}"):
        read(tmp_path / "run.yaml")
