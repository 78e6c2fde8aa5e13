"""A classifier of noisy data: trained by the trainer, saved, loaded, and steering with what it learnt."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from training_toys import LABELS, Blobs, Points, Toy, toy_model

from sfumato.conditioners.class_label import ClassLabel
from sfumato.core.classifier import NoisyClassifier
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.guidance.classifier import Classifier
from sfumato.model import Model
from sfumato.processes.vp import VP
from sfumato.registry import build, describe
from sfumato.training.levels.importance import Importance
from sfumato.training.objectives.classification import Classification
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.optimizers import AdamW
from sfumato.training.run_file import Run
from sfumato.training.settings import Settings, Validating
from sfumato.training.trainer import Trainer

TRUTH = GaussianMixture(
    torch.tensor([[-0.6, -0.6], [0.6, 0.6]], dtype=torch.float64),
    torch.tensor([0.1, 0.1], dtype=torch.float64),
    torch.tensor([0.3, 0.7], dtype=torch.float64),
)
"""What Blobs are drawn from, without their jitter."""


def classifier(seed: int = 0, **network: Any) -> Model:
    torch.manual_seed(seed)
    return Model(NoisyClassifier(Toy(**network), VP(), "kind", "time"), ClassLabel(LABELS), Points())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    folder = tmp_path_factory.mktemp("run")
    settings = Settings(
        batch=128,
        steps=500,
        device="cpu",
        optimizer=AdamW(1e-2),
        validation=Validating(every=500, items=256, bands=4),
    )
    with pytest.MonkeyPatch.context() as patch:
        # A toy stands in no folder, and cannot be saved by name.
        patch.setattr("sfumato.checkpoints.native.save", lambda model, path: "")
        patch.setattr(Model, "describe", lambda model: {"network": "toy"})
        data = Blobs(count=2000, jitter=0.0)
        return Trainer(classifier(), data, Classification(), settings, folder).train(), folder


def exact(x: Tensor, level: Level[Any]) -> Tensor:
    return TRUTH._joint(x, level).log_softmax(1)


def test_what_is_learnt_is_the_posterior_of_the_classes(trained: tuple[Model, Path]) -> None:
    """At every level log p(y | x_t) is Bayes' to some hundredths, as its cross-entropy must show."""
    model, _ = trained
    data = TRUTH.sample(Noise(range(2000)))
    for t in (0.05, 0.3, 0.6, 0.9):
        level = VP()(t)
        x = level.alpha * data + level.sigma * Noise(range(2000), 1).randn_like(data)
        with torch.no_grad():
            mine = model.denoiser.logits(x.float(), level).double().log_softmax(1)
        wanted = exact(x, level)
        divergence = (wanted.exp() * (wanted - mine)).sum(1).mean()
        assert divergence < 0.02


def test_validation_is_the_cross_entropy_by_noise_band(trained: tuple[Model, Path]) -> None:
    """In each band what Bayes' own answers cost, and a little more."""
    lines = [json.loads(line) for line in (trained[1] / "losses.jsonl").read_text().splitlines()]
    (bands,) = [line["bands"] for line in lines if line.get("bands")]
    count = 4000
    noise = Noise(range(count))
    data = TRUTH.sample(noise)
    for band, loss in enumerate(bands):
        t = (band + noise.uniform((count, 1), "time")[:, 0]) / 4
        level = VP()(t).like(data)
        right = (data.sum(1) > 0).long()
        x = level.alpha * data + level.sigma * noise.randn_like(data)
        entropy = -exact(x, level).gather(1, right[:, None]).mean().item()
        assert loss == pytest.approx(entropy, abs=0.07)
    assert bands == sorted(bands)


def test_the_share_of_the_class_rises_with_the_scale(trained: tuple[Model, Path]) -> None:
    """Steering the exact unconditional denoiser to the rarer class, .3 of the data."""
    model, _ = trained
    count = 400
    likelihood = model.denoiser.likelihood(torch.tensor([[1.0, 0.0]]))
    shares = []
    for scale in (0.0, 0.3, 1.0, 4.0):
        guided = Classifier(scale, lambda x, level, told: likelihood(x.float(), level, told))(
            TRUTH, Condition()
        )
        reverse = ReverseProcess(guided, VP(), Condition(), Noise(range(count)))
        with torch.inference_mode():
            x = sample(
                build("sampler", "ddim"),
                reverse,
                reverse.prior((count, 2)).double(),
                build("times", "uniform")(VP(), 30),
            )
        shares.append((x.sum(1) < 0).double().mean().item())
        assert (TRUTH.means[:, None] - x).norm(dim=-1).amin(0).quantile(0.9) < 0.5
    assert shares[0] == pytest.approx(0.3, abs=0.06)
    assert shares == sorted(shares)
    assert shares[1] > shares[0] + 0.1
    # With scale 1 the conditional model is sampled: all of the class but for what is not learnt exactly.
    assert shares[2] > 0.97
    assert shares[3] >= shares[2]


# The loss ---------------------------------------------------------------------------------------------------


def batch(count: int, kinds: Any = None) -> SimpleNamespace:
    kinds = kinds or [LABELS["kind"][i % 2] for i in range(count)]
    return SimpleNamespace(image=Noise(range(count)).randn((count, 2), "image"), inputs={"kind": kinds})


def test_the_loss_is_the_cross_entropy_at_the_drawn_levels() -> None:
    model, noise = classifier(), Noise(range(6), 3)
    loss = Classification().loss(model, batch(6), noise)  # type: ignore[arg-type]
    level = VP()(loss.t).like(torch.zeros(6, 2))
    x_t = level.alpha * batch(6).image + level.sigma * noise.randn_like(batch(6).image)
    logits = model.denoiser.logits(x_t, level)
    labels = torch.arange(6) % 2
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss.value, expected)
    torch.testing.assert_close(loss.parts["error"], expected.detach())
    assert torch.equal(loss.parts["accuracy"], (logits.argmax(1) == labels).float())
    condition = model.conditioner(6, **batch(6).inputs)
    again = Classification().errors(
        model, batch(6).image, condition, loss.t, noise.randn_like(batch(6).image)
    )
    torch.testing.assert_close(again, expected)


def test_rows_without_a_class_add_nothing_and_rows_stand_alone() -> None:
    model = classifier()
    kinds = ["left", None, "right"]
    loss = Classification().loss(model, batch(3, kinds), Noise(range(3)))  # type: ignore[arg-type]
    assert loss.value[1] == 0
    assert (loss.value[[0, 2]] > 0).all()
    alone = SimpleNamespace(image=batch(3).image[2:], inputs={"kind": ["right"]})
    value = Classification().loss(model, alone, Noise([2])).value  # type: ignore[arg-type]
    torch.testing.assert_close(value[0], loss.value[2])


def test_a_law_of_levels_that_learns_keeps_the_expected_loss() -> None:
    """Importance weights: the mean over many draws is that of the uniform law."""
    model, law = classifier(), Importance(bins=4, memory=2)
    objective = Classification(law)
    rows = batch(4000)
    objective.observe(model, torch.linspace(0.01, 0.99, 400).double(), torch.linspace(0.1, 3, 400))
    weighed = objective.loss(model, rows, Noise(range(4000))).value  # type: ignore[arg-type]
    plain = Classification().loss(model, rows, Noise(range(4000), 1)).value  # type: ignore[arg-type]
    error = (weighed.var() / 4000 + plain.var() / 4000).sqrt().item()
    assert abs((weighed.mean() - plain.mean()).item()) < 4 * error
    fresh = Classification(Importance(bins=4, memory=2))
    fresh.load_state_dict(objective.state_dict())
    assert fresh.state_dict().keys() == objective.state_dict().keys()
    assert len(objective.state_dict())


# Models -----------------------------------------------------------------------------------------------------

DESCRIPTION: dict[str, Any] = {
    "network": {"name": "adm_classifier", "channels": 32, "head_channels": 16, "size": 8, "classes": 2},
    "process": "flow",
    "classifies": "kind",
    "time_input": "thousand",
    "conditioner": {"name": "class_label", "labels": LABELS},
}


def test_a_description_makes_a_classifier_and_comes_back() -> None:
    model = Model.from_description(DESCRIPTION)
    assert isinstance(model.denoiser, NoisyClassifier)
    told = model.describe()
    assert told["classifies"] == "kind"
    assert "prediction" not in told
    assert Model.from_description(json.loads(json.dumps(told))).describe() == told
    assert describe(build("objective", "classification")) == {"name": "classification"}


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(InvalidInput, match="a classifier of 'label' heeds that input alone"):
        Model.from_description({**DESCRIPTION, "classifies": "label"})
    nothing = SimpleNamespace(image=torch.zeros(2, 2), inputs={"style": ["a", "b"]})
    with pytest.raises(InvalidInput, match="kind: the data say no class"):
        Classification().loss(classifier(), nothing, Noise([1, 2]))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="says data, not classes"):
        Classification().loss(toy_model(), batch(2), Noise([1, 2]))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="a classifier makes no pictures"):
        Denoising().loss(classifier(), batch(2), Noise([1, 2]))  # type: ignore[arg-type]
    run: dict[str, Any] = {"model": DESCRIPTION, "data": {"name": "emoji"}}
    assert isinstance(Run.from_dict(run).build_model().denoiser, NoisyClassifier)
    with pytest.raises(InvalidInput, match="sample_every: a classifier draws no pictures"):
        Run.from_dict({**run, "sample_every": 10})
    with pytest.raises(InvalidInput, match="lacks prediction"):
        Run.from_dict({**run, "model": {k: v for k, v in DESCRIPTION.items() if k != "classifies"}})
