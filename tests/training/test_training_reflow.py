"""Reflow: its pairs, its teacher, and that walks become straight."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from training_toys import Blobs, toy_model

from sfumato.checkpoints import native
from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised
from sfumato.core.errors import InvalidInput, KeyMismatch
from sfumato.core.noise import Noise
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.model import Model
from sfumato.processes.flow import Flow
from sfumato.processes.vp import VP
from sfumato.registry import build, describe
from sfumato.samplers.euler import Euler
from sfumato.samplers.heun import Heun
from sfumato.times.uniform import Uniform as UniformTimes
from sfumato.training.ema import Average
from sfumato.training.levels.importance import Importance
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.objectives.reflow import Reflow, straightness
from sfumato.training.optimizers import AdamW
from sfumato.training.run_file import Run
from sfumato.training.settings import Saving, Settings
from sfumato.training.trainer import Trainer

STD = 0.3


class Gaussian(torch.nn.Module):
    """The exact denoiser of N(0, STD²); `coupled`, of the pairs its own walks make: x0 = STD · eps."""

    def __init__(self, process: Any, coupled: bool = False) -> None:
        super().__init__()
        self.process, self.coupled = process, coupled
        self.prediction = toy_model().denoiser.prediction
        self.network = torch.nn.Linear(1, 1).double()

    def forward(self, x: Tensor, level: Any, condition: Condition) -> Denoised:
        if self.coupled:
            return Denoised(STD / (level.alpha * STD + level.sigma) * x)
        return Denoised(level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2) * x)


def gaussian(process: Any, coupled: bool = False) -> Model:
    model = toy_model()
    model.denoiser = Gaussian(process, coupled)  # type: ignore[assignment]
    return model


def batch(count: int) -> Any:
    data = Blobs(count=count)
    whole = data.collate([data.load(i, 0) for i in range(count)])
    whole.image = whole.image.double()
    return whole


@pytest.mark.parametrize("process", [Flow(), VP()], ids=["flow", "vp"])
def test_pairs_are_the_ends_of_the_walks(process: Any) -> None:
    """Closed form: the flow of a Gaussian is linear, x0 = STD · eps (VP starts a little off pure noise)."""
    objective = Reflow(steps=200)
    like = torch.zeros(32, 2, dtype=torch.float64)
    x, eps = objective.pairs(gaussian(process), like, Condition(), Noise(range(32)))
    torch.testing.assert_close(x, STD * eps, rtol=6e-3, atol=1e-4)
    assert eps.std().item() == pytest.approx(1, abs=0.2)


def test_a_model_that_knows_the_pairs_has_no_loss_and_one_that_knows_the_data_has() -> None:
    objective = Reflow(steps=100)
    model = gaussian(Flow())
    data, noise = batch(64), Noise(range(64))
    assert objective.loss(model, data, noise).value.mean() > 1e-3
    model.denoiser.coupled = True  # type: ignore[assignment]
    # The teacher stays what it was.
    assert objective.loss(model, data, noise).value.max() < 1e-5


def test_straightness_of_a_gaussian_is_its_integral() -> None:
    """x_t = sqrt((1-t)² s² + t²) eps: S = |eps|² times the integral of the squared gap of velocities."""
    times = UniformTimes()(Flow(), 400)
    start = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = (torch.arange(100000, dtype=torch.float64) + 0.5) / 100000
    speed = (t - (1 - t) * STD**2) / ((1 - t) ** 2 * STD**2 + t**2).sqrt()
    expected = ((speed - (1 - STD)) ** 2).mean() * (start**2).sum(1)
    curved = straightness(ReverseProcess(Gaussian(Flow()), Flow()), start, Heun(), times)
    torch.testing.assert_close(curved, expected, rtol=5e-3, atol=0)
    straight = straightness(ReverseProcess(Gaussian(Flow(), True), Flow()), start, Euler(), times)
    assert straight.max() < 1e-20


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Székely's: 0 for equal laws, up to sampling."""
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


def walked(model: Model, steps: int, sampler: Any, count: int = 2000) -> tuple[Tensor, Tensor]:
    """Ends and straightness of walks."""
    nothing = Condition(vector=torch.zeros(count, 2))
    reverse = ReverseProcess(model.denoiser, model.process, nothing, Noise(range(count)))
    start, times = reverse.prior((count, 2)), UniformTimes()(model.process, steps)
    with torch.no_grad():
        return sample(sampler, reverse, start, times), straightness(reverse, start, sampler, times)


def test_a_reflowed_model_draws_in_one_step_what_took_many(tmp_path) -> None:
    """Two blobs: after reflow the error of one step, measured in two ways, and the curvature fall."""
    data = Blobs(count=400, weight=0.5, jitter=0.0)

    def settings(steps: int, rate: float) -> Settings:
        return Settings(
            batch=128,
            steps=steps,
            optimizer=AdamW(rate=rate, decay="cosine", warm_up=20),
            ema=(Average(half_life=3000.0),),
            saving=Saving(every=steps, minutes=None),
        )

    model = toy_model(width=64, process=Flow(), prediction="flow")
    Trainer(model, data, Denoising(drop=1.0), settings(800, 1e-2), tmp_path / "first").train()
    before = copy.deepcopy(model)
    Trainer(model, data, Reflow(steps=8, drop=1.0), settings(800, 4e-3), tmp_path / "second").train()
    truth = torch.stack([data.load(i, 0).image for i in range(400)])
    measured = []
    for each in (before, model):
        one, _ = walked(each, 1, Euler())
        many, bent = walked(each, 32, Heun())
        measured.append(
            (
                (one - many).pow(2).sum(1).mean().sqrt().item(),
                energy_distance(one, truth),
                energy_distance(many, truth),
                bent.mean().item(),
            )
        )
    (off, law, fine, curved), (off_2, law_2, fine_2, curved_2) = measured
    assert off_2 < off / 4
    assert law_2 < law / 20
    assert curved_2 < curved / 20
    # What it draws in many steps is what it drew before.
    assert fine_2 < fine + 0.01
    moved = walked(model, 32, Heun())[0] - walked(before, 32, Heun())[0]
    assert moved.pow(2).sum(1).mean().sqrt() < 0.2


class Killed(Exception):
    """Stands for a crash without warning."""


@pytest.mark.parametrize("levels", ["uniform", "importance"])
def test_a_resumed_run_has_the_same_teacher(tmp_path, levels: str) -> None:
    """Killed at step 7 of 9 and resumed: bit for bit the run that was not, though the model began anew."""

    def trainer(directory, observe=None, every=100, objective=None) -> Trainer:
        law = {"levels": Importance(bins=3, memory=2)} if levels == "importance" else {}
        return Trainer(
            toy_model(process=Flow(), prediction="flow", dropout=0.2),
            Blobs(),
            objective or Reflow(steps=2, drop=0.3, **law),
            Settings(
                batch=8, steps=9, optimizer=AdamW(1e-2), ema=(Average(0.9),), saving=Saving(every=every)
            ),
            directory,
            observe,
        )

    def crash(event: Any) -> None:
        if event.kind == "step" and event.step == 7:
            raise Killed

    whole = trainer(tmp_path / "whole")
    whole.train()
    with pytest.raises(Killed):
        trainer(tmp_path / "parts", crash, every=5).train()
    resumed = trainer(tmp_path / "parts")
    resumed.train()
    one, two = whole.store.load(), resumed.store.load()
    assert one.tensors.keys() == two.tensors.keys()
    for group, tensors in one.tensors.items():
        assert tensors.keys() == two.tensors[group].keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, two.tensors[group][key]), f"{group} {key}"
    fresh = toy_model(process=Flow(), prediction="flow", dropout=0.2).denoiser.state_dict()
    for key, tensor in fresh.items():
        assert torch.equal(one.tensors["objective"][f"teacher.{key}"], tensor)
    assert any("levels." in key for key in one.tensors["objective"]) == (levels == "importance")

    # Were the teacher made of what is resumed, it would be another: the test can fail.
    class Forgetful(Reflow):
        def load_state_dict(self, state: Any) -> None:
            super().load_state_dict({k: v for k, v in state.items() if not k.startswith("teacher.")})

    if levels == "uniform":
        with pytest.raises(Killed):
            trainer(tmp_path / "third", crash, 5, Forgetful(steps=2, drop=0.3)).train()
        lost = trainer(tmp_path / "third", objective=Forgetful(steps=2, drop=0.3))
        lost.train()
        name = "network.inner.0.weight"
        assert not torch.equal(one.tensors["model"][name], lost.store.load().tensors["model"][name])


def test_the_loss_of_a_row_hangs_on_nothing_but_the_row() -> None:
    model, data, objective = gaussian(Flow()), batch(16), Reflow(steps=4)
    whole = objective.loss(model, data, Noise(range(16)))
    data.image, data.inputs = data.image[8:], {"kind": data.inputs["kind"][8:]}
    half = objective.loss(model, data, Noise(range(8, 16)))
    assert torch.allclose(whole.value[8:], half.value, rtol=1e-12)
    # Of the data only the shape is used.
    data.image = data.image + 7
    assert torch.equal(objective.loss(model, data, Noise(range(8, 16))).value, half.value)


def test_it_is_described_by_its_settings() -> None:
    settings = {
        "name": "reflow",
        "sampler": {"name": "euler"},
        "steps": 4,
        "levels": {"name": "logit_normal"},
    }
    assert describe(build("objective", settings)) == settings
    with pytest.raises(InvalidInput, match="no walk"):
        Reflow(steps=0)


def test_a_run_file_starts_from_a_trained_model(tmp_path) -> None:
    settings: dict[str, Any] = {
        "model": {
            "network": {"name": "adm", "channels": 8, "multipliers": [1], "blocks": 1, "attention": []},
            "process": "flow",
            "prediction": "flow",
            "time_input": "thousand",
        },
        "data": "emoji",
        "objective": "reflow",
    }
    trained = Run.from_dict({**settings, "seed": 5}).build_model()
    native.save(trained, tmp_path / "model")
    started = Run.from_dict({**settings, "start": str(tmp_path / "model")}).build_model()
    fresh = Run.from_dict(settings).build_model()
    name = "input_blocks.0.0.weight"
    ours, theirs = (m.denoiser.network.state_dict()[name] for m in (trained, started))
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, fresh.denoiser.network.state_dict()[name])
    assert all(p.requires_grad for p in started.denoiser.network.parameters())
    settings["model"]["network"]["channels"] = 16
    with pytest.raises(KeyMismatch, match="model"):
        Run.from_dict({**settings, "start": str(tmp_path / "model")}).build_model()
