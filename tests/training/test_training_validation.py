"""Validation: comparable, of small variance, unbiased; the plot and the logs of a run."""

import json

import pytest
import torch
from PIL import Image
from training_toys import Blobs, toy_model

from sfumato.core.errors import NotFound
from sfumato.training.ema import Average
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.optimizers import AdamW
from sfumato.training.plot import plot_run, running_mean
from sfumato.training.progress import Clock, LossLog
from sfumato.training.settings import Saving, Settings, Validating
from sfumato.training.trainer import Trainer
from sfumato.training.validation import Validation, fixed_items, summarise


def estimate(model, data, seed, stratified, items=16):
    validation = Validation(
        [data.load(i, 0) for i in range(items)],
        [seed * 1000 + i for i in range(items)],
        data.collate,
        bands=4,
        stratified=stratified,
    )
    return validation.table(model, Denoising()).mean(0)


def test_strata_take_most_of_the_variance_and_leave_the_mean(tmp_path):
    data = Blobs(shape=(3, 4, 4), jitter=0.0)
    model = toy_model(size=48, width=64)
    settings = Settings(
        batch=32, steps=200, optimizer=AdamW(3e-3), ema=(Average(0.9),), saving=Saving(minutes=None)
    )
    Trainer(model, data, Denoising(), settings, tmp_path).train()
    runs = {
        kind: torch.stack([estimate(model, data, seed, kind) for seed in range(80)]) for kind in (False, True)
    }
    error = ((runs[False].var(0) + runs[True].var(0)) / 80).sqrt()
    assert bool(((runs[True].mean(0) - runs[False].mean(0)).abs() < 4 * error).all())
    variance = {kind: values.mean(1).var().item() for kind, values in runs.items()}
    # Measured: 2.8 times smaller.
    assert variance[True] < variance[False] / 2


def test_the_same_model_gives_the_same_numbers_whatever_the_batch_or_share():
    model, data = toy_model(), Blobs()
    one = fixed_items(data, 5, 12, 3, 4, data.collate)
    two = fixed_items(data, 5, 12, 3, 12, data.collate)
    table = one.table(model, Denoising())
    assert table.shape == (12, 3)
    assert torch.allclose(table, two.table(model, Denoising()), rtol=1e-5)
    shares = [one.table(model, Denoising(), slice(rank, None, 2)) for rank in range(2)]
    assert torch.allclose(torch.stack(shares, 1).flatten(0, 1), table, rtol=1e-5)
    result = summarise(one.edges(model), table)
    assert result.mean == pytest.approx(table.mean().item())
    assert result.edges[0] == model.process.t_min
    assert result.edges[-1] == 1


def run(directory, observe=None, **more):
    settings = {"batch": 16, "steps": 60, "ema": (Average(0.9),), "saving": Saving(every=30)} | more
    return Trainer(toy_model(), Blobs(), Denoising(), Settings(**settings), directory, observe)


def test_a_run_watches_itself(tmp_path):
    events = []
    trainer = run(
        tmp_path, events.append, validation=Validating(every=20, items=8, bands=3), tensorboard=True
    )
    trainer.train()
    kinds = [event.kind for event in events]
    assert kinds.count("step") == 60
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert [e.step for e in events if e.kind == "saved"] == [30, 60]
    validated = [e for e in events if e.kind == "validated"]
    assert [e.step for e in validated] == [20, 40, 60]
    assert all(len(e.bands) == 3 for e in validated)
    assert validated[-1].loss < validated[0].loss
    step = next(e for e in events if e.kind == "step" and e.step == 40)
    assert step.images_per_second > 0
    assert step.gradient_norm > 0
    assert step.fraction == pytest.approx(2 / 3)
    assert step.eta == pytest.approx(20 * 16 / step.images_per_second, rel=0.5)
    assert step.epoch == 16
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "finished"
    assert status["step"] == 60
    assert list((tmp_path / "tensorboard").iterdir())
    # The score is the mean of the bands, so the best checkpoint is known.
    assert trainer.store.best() == 60
    plot_run(tmp_path, tmp_path / "loss.png")
    image = Image.open(tmp_path / "loss.png")
    assert image.size == (900, 840)
    colours = {colour for _, colour in image.getcolors(10**6)}
    assert {(30, 90, 190), (68, 1, 84), (220, 190, 30)} <= colours


def test_averaged_weights_are_judged_and_kept(tmp_path):
    """Validation sees the average, training goes on from the raw weights, the result is the average."""
    seen = {}

    def grid(model, step):
        seen[step] = next(model.denoiser.parameters()).detach().clone()
        assert not model.denoiser.network.training
        return Image.new("RGB", (4, 4))

    plain = run(tmp_path / "plain")
    plain.train()
    watched = run(tmp_path / "watched", validation=Validating(every=7, items=4), sample_every=20)
    watched.sample_grid = grid
    model = watched.train()
    saved = watched.store.load().tensors
    for key, tensor in plain.store.load().tensors["model"].items():
        assert torch.equal(tensor, saved["model"][key])
    assert torch.equal(seen[60], saved["ema"]["0.network.inner.0.weight"])
    assert torch.equal(next(model.denoiser.parameters()), saved["ema"]["0.network.inner.0.weight"])
    assert not torch.equal(seen[60], saved["model"]["network.inner.0.weight"])
    assert sorted(p.name for p in (tmp_path / "watched" / "samples").iterdir()) == [
        f"step_{n:08d}.png" for n in (20, 40, 60)
    ]


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path):
    with LossLog(tmp_path, 0) as log:
        for step in range(1, 6):
            log.add(step=step, loss=0.1 * step)
    with (tmp_path / "losses.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with LossLog(tmp_path, 3) as log:
        log.add(step=4, loss=7.0)
    assert [(line["step"], line["loss"]) for line in LossLog.read(tmp_path)][-2:] == [(3, 0.1 * 3), (4, 7.0)]


def test_running_means_and_empty_plots(tmp_path):
    points = [(n, float(n)) for n in range(1, 201)]
    assert running_mean(points)[-1] == (200, (197 + 198 + 199 + 200) / 4)
    assert running_mean(points[:10]) == points[:10]
    with pytest.raises(NotFound):
        plot_run(tmp_path, tmp_path / "x.png")
    (tmp_path / "losses.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    plot_run(tmp_path, tmp_path / "x.png")
    (tmp_path / "losses.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 0.5}\n')
    plot_run(tmp_path, tmp_path / "x.png")


def test_the_clock_knows_the_time_left():
    clock = Clock(100, None, 8, elapsed=50.0)
    assert clock.eta(10) is None
    clock.tick()
    assert clock.elapsed >= 50
    assert not clock.late
    timed = Clock(None, 1.0, 8, elapsed=45.0)
    assert timed.fraction(3) == pytest.approx(0.75, abs=0.01)
    assert timed.eta(3) == pytest.approx(15, abs=0.5)
    assert Clock(None, 1.0, 8, elapsed=61.0).late
