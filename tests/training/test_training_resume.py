"""A run killed and resumed is bit for bit the run that was not."""

import os
import signal

import pytest
import torch
from training_toys import Blobs, toy_model

from sfumato.core.errors import RunChanged
from sfumato.processes.betas import Betas
from sfumato.training.changes import check_unchanged
from sfumato.training.ema import Average
from sfumato.training.levels.importance import Importance
from sfumato.training.levels.log_normal import LogNormal
from sfumato.training.levels.logit_normal import LogitNormal
from sfumato.training.levels.uniform import Uniform
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.optimizers import AdamW
from sfumato.training.progress import LossLog
from sfumato.training.settings import Saving, Settings, Validating
from sfumato.training.trainer import Trainer
from sfumato.training.weights.min_snr import MinSNR

STEPS = 9
HOT = AdamW(rate=1e-2)


class Bucketed(Blobs):
    """The blobs in three buckets of unlike size."""

    def bucket_of(self, index):
        return "abbccc"[index % 6]


# name: (settings, model, objective, data, step of the kill)
CONFIGURATIONS = {
    "step 1": ({}, {}, {}, {}, 1),
    "step 4": ({}, {}, {}, {}, 4),
    "last step": ({}, {}, {}, {}, STEPS - 1),
    "epoch edge": ({}, {}, {}, {"count": 32}, 4),
    "inside an epoch": ({}, {}, {}, {"count": 100}, 4),
    "batch over an epoch edge": ({}, {}, {}, {"count": 30}, 4),
    "batch larger than the data": ({}, {}, {}, {"count": 3}, 4),
    "accumulate 2": ({"accumulate": 2}, {}, {}, {}, 4),
    "accumulate 4": ({"accumulate": 4}, {}, {}, {}, 3),
    "accumulate with dropout": ({"accumulate": 2}, {"dropout": 0.3}, {}, {}, 4),
    "muon": ({"optimizer": AdamW(rate=1e-2, matrices="muon", weight_decay=0.1)}, {}, {}, {}, 4),
    "no ema": ({"ema": ()}, {}, {}, {}, 4),
    "ema by half-life": ({"ema": (Average(half_life=40.0),)}, {}, {}, {}, 4),
    "three emas": ({"ema": (Average(0.5), Average(0.99), Average(half_life=20.0, ramp=0))}, {}, {}, {}, 4),
    "one worker": ({"workers": 1}, {}, {}, {}, 4),
    "two workers": ({"workers": 2}, {}, {}, {}, 4),
    "two workers, augmented": ({"workers": 2}, {}, {}, {"jitter": 0.5}, 5),
    "bf16": ({"precision": "bf16"}, {}, {}, {}, 4),
    "bf16, dropout, accumulate": ({"precision": "bf16", "accumulate": 2}, {"dropout": 0.2}, {}, {}, 4),
    "bf16, convolutions": (
        {"precision": "bf16"},
        {"size": 12, "channels": 3},
        {},
        {"shape": (3, 2, 2)},
        4,
    ),
    "dropout": ({}, {"dropout": 0.5}, {}, {}, 4),
    "warm-up": ({"optimizer": AdamW(rate=1e-2, warm_up=6)}, {}, {}, {}, 4),
    "cosine": ({"optimizer": AdamW(rate=1e-2, decay="cosine")}, {}, {}, {}, 4),
    "linear, warm-up": ({"optimizer": AdamW(rate=1e-2, warm_up=3, decay="linear", final=0.1)}, {}, {}, {}, 4),
    "hard clipping": ({"optimizer": AdamW(rate=1e-2, clip=0.05)}, {}, {}, {}, 4),
    "no clipping": ({"optimizer": AdamW(rate=1e-2, clip=None)}, {}, {}, {}, 4),
    "weight decay": ({"optimizer": AdamW(rate=1e-2, weight_decay=0.1, betas=(0.8, 0.95))}, {}, {}, {}, 4),
    "importance": ({}, {}, {"levels": "importance"}, {}, 5),
    "importance, accumulate": ({"accumulate": 2}, {}, {"levels": "importance"}, {}, 6),
    "log-normal": ({}, {}, {"levels": LogNormal()}, {}, 4),
    "logit-normal, stratified": ({}, {}, {"levels": LogitNormal(stratified=True)}, {}, 4),
    "min-snr": ({}, {}, {"weight": MinSNR()}, {}, 4),
    "discrete": ({}, {"process": Betas(), "prediction": "noise"}, {"levels": Uniform(discrete=True)}, {}, 4),
    "learned range": (
        {},
        {"process": Betas(), "prediction": "noise", "outputs": 2},
        {"levels": Uniform(discrete=True)},
        {},
        4,
    ),
    "no condition dropout": ({}, {}, {"drop": 0.0}, {}, 4),
    "offset noise": ({}, {}, {"offset_noise": 0.1}, {}, 4),
    "validation": ({"validation": Validating(every=2, items=6, bands=3)}, {}, {}, {}, 5),
    "validation, dropout": ({"validation": Validating(every=3, items=6)}, {"dropout": 0.3}, {}, {}, 5),
    "buckets": ({}, {}, {}, {"bucketed": True}, 4),
    "bad items": ({"most_bad": 0.2}, {}, {}, {"bad": (3, 11)}, 4),
    "another seed": ({"seed": 2**62 + 5}, {}, {}, {}, 4),
    "compiled, validation": (
        {"compile": True, "validation": Validating(every=2, items=6, bands=3)},
        {"size": 12, "classes": 2},
        {},
        {"shape": (3, 2, 2)},
        4,
    ),
    "pictures": ({}, {"size": 12, "classes": 2}, {}, {"shape": (3, 2, 2)}, 4),
}


def trainer(directory, name, observe=None, every=100):
    settings, model, objective, data, _ = CONFIGURATIONS[name]
    settings = {"batch": 8, "steps": STEPS, "optimizer": HOT, "ema": (Average(0.9),)} | settings
    if objective.get("levels") == "importance":
        objective = objective | {"levels": Importance(bins=3, memory=2)}
    kind = Bucketed if data.get("bucketed") else Blobs
    data = {key: value for key, value in data.items() if key != "bucketed"}
    return Trainer(
        toy_model(**model),
        kind(**data),
        Denoising(**objective),
        Settings(saving=Saving(every=every), **settings),
        directory,
        observe,
    )


class Killed(Exception):
    """Stands for a crash without warning."""


def crash_at(step):
    def observe(event):
        if event.kind in ("step", "skipped") and event.step == step:
            raise Killed

    return observe


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_resume_is_bit_identical(tmp_path, name):
    whole = trainer(tmp_path / "whole", name)
    whole_model = whole.train()
    kill = CONFIGURATIONS[name][-1]
    with pytest.raises(Killed):
        # Saved at `kill`, crashed a step later where there is one: that step is lost and done again.
        trainer(tmp_path / "parts", name, crash_at(kill + 1), every=kill).train()
    resumed = trainer(tmp_path / "parts", name)
    assert resumed.store.steps() == [kill]
    model = resumed.train()
    one, two = whole.store.load(), resumed.store.load()
    assert one.step == two.step == STEPS
    assert one.tensors.keys() == two.tensors.keys()
    for group, tensors in one.tensors.items():
        assert tensors.keys() == two.tensors[group].keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, two.tensors[group][key]), f"{group} {key}"
    assert LossLog.read(tmp_path / "whole") == LossLog.read(tmp_path / "parts")
    for key, tensor in whole_model.denoiser.network.state_dict().items():
        assert torch.equal(tensor, model.denoiser.network.state_dict()[key])
    same = ("step", "epoch", "seen", "skipped", "ema_updates", "run", "bad_items")
    assert all(one.state[key] == two.state[key] for key in same)
    # Not trivially equal: training moved the weights, and each group that should be there is.
    start = trainer(tmp_path / "start", name).model.denoiser.network.state_dict()
    assert not torch.equal(start["inner.0.weight"], one.tensors["model"]["network.inner.0.weight"])
    assert "optimizer" in one.tensors
    assert ("objective" in one.tensors) == name.startswith("importance")


def test_there_are_thirty_configurations():
    assert len(CONFIGURATIONS) >= 30


def losses(directory):
    return [line["loss"] for line in LossLog.read(directory)]


def test_workers_and_a_signal_change_nothing(tmp_path):
    trainer(tmp_path / "a", "dropout").train()

    def stop(event):
        if event.kind == "step" and event.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Exception, match="SIGTERM"):
        trainer(tmp_path / "b", "dropout", stop).train()
    resumed = trainer(tmp_path / "b", "dropout")
    assert resumed.store.steps() == [5]
    resumed.train()
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    trainer(tmp_path / "c", "step 1").train()
    trainer(tmp_path / "d", "two workers").train()
    assert losses(tmp_path / "c") == losses(tmp_path / "d")


def test_a_finished_run_resumed_does_nothing_more(tmp_path):
    first = trainer(tmp_path, "step 4").train()
    again = trainer(tmp_path, "step 4").train()
    for key, tensor in first.denoiser.network.state_dict().items():
        assert torch.equal(tensor, again.denoiser.network.state_dict()[key])
    assert len(losses(tmp_path)) == STEPS


def test_a_changed_run_is_refused_with_the_difference(tmp_path):
    def make(rate=1e-2, data=None, allow=False, steps=4, width=32, workers=0, decay="constant"):
        settings = Settings(
            batch=8, steps=steps, workers=workers, optimizer=AdamW(rate=rate, decay=decay), ema=()
        )
        return Trainer(
            toy_model(width=width), data or Blobs(), Denoising(), settings, tmp_path, allow_change=allow
        )

    make().train()
    with pytest.raises(RunChanged, match=r"optimizer.rate: 0.01 -> 0.02"):
        make(rate=2e-2, steps=6).train()
    with pytest.raises(RunChanged, match="data fingerprint"):
        make(data=Blobs(count=41)).train()
    with pytest.raises(RunChanged, match=r"model.network.width: None -> 16"):
        make(width=16).train()
    # More steps at a constant rate are the same run, and so are other loading threads.
    make(steps=6, workers=1).train()
    assert len(losses(tmp_path)) == 6
    with pytest.raises(RunChanged, match="decay"):
        make(steps=8, decay="cosine").train()
    make(rate=2e-2, steps=8, allow=True).train()
    assert len(losses(tmp_path)) == 8


def test_a_setting_that_came_later_was_at_its_default():
    check_unchanged({"batch": 8}, {"batch": 8, "accumulate": 1, "compile": True}, "run")
    with pytest.raises(RunChanged, match="accumulate: 1 -> 2"):
        check_unchanged({"batch": 8}, {"batch": 8, "accumulate": 2}, "run")
    before, after = {"optimizer": {"rate": 1e-3}}, {"optimizer": {"rate": 1e-3, "hold": 0.0}}
    check_unchanged(before, after, "run")
    after["optimizer"]["hold"] = 0.5
    with pytest.raises(RunChanged, match=r"optimizer.hold: 0.0 -> 0.5"):
        check_unchanged(before, after, "run")


def test_a_corrupt_newest_checkpoint_costs_one_interval(tmp_path):
    trainer(tmp_path / "whole", "step 4").train()
    with pytest.raises(Killed):
        trainer(tmp_path / "parts", "step 4", crash_at(7), every=3).train()
    resumed = trainer(tmp_path / "parts", "step 4")
    assert resumed.store.steps() == [3, 6]
    os.truncate(resumed.store.path(6) / "optimizer.safetensors", 100)
    with pytest.warns(UserWarning, match="falling back"):
        resumed.train()
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    for group, tensors in trainer(tmp_path / "whole", "step 4").store.load().tensors.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, resumed.store.load().tensors[group][key])
