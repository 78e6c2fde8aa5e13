"""Plans: what they tell is what is then taken, and nothing is made meanwhile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato
from sfumato.checkpoints import native
from sfumato.core.errors import InvalidInput
from sfumato.generation.generate import Progress
from sfumato.generation.memory import bytes_at_most, peak_bytes
from sfumato.interfaces.cli import main
from sfumato.model import Model


@pytest.mark.parametrize(
    ("sampler", "calls"),
    [
        ("ddim", 5),
        ("euler", 5),
        ("ancestral", 5),
        ("dpm_solver_pp", 5),
        ("heun", 9),
        ("dpm2", 9),
        ({"name": "predictor_corrector"}, None),
    ],
)
def test_estimates_are_counted_as_the_sampler_asks_for_them(
    sampler: Any, calls: int | None, tiny: Model
) -> None:
    asked = []
    planned = sfumato.plan(tiny, steps=5, sampler=sampler, concept="cat", guidance=1.0)
    handle = tiny.denoiser.register_forward_hook(
        lambda _, given, out: None if given[0].is_meta else asked.append(1)
    )
    sfumato.generate(tiny, steps=5, sampler=sampler, concept="cat", guidance=1.0, seed=0)
    handle.remove()
    assert planned.calls == len(asked)
    assert calls in (None, planned.calls)
    assert planned.steps == 5


def test_memory_is_what_tensors_then_take(monkeypatch: pytest.MonkeyPatch) -> None:
    network = {"name": "adm", "channels": 32, "multipliers": [1, 2], "blocks": 1, "classes": 2}
    labels = {"name": "class_label", "labels": {"concept": ["cat", "lemon"]}}
    space = {
        "name": "latent",
        "autoencoder": {"name": "kl", "width": 32, "multipliers": [1, 2]},
        "multiple": 2,
    }
    network |= {"in_channels": 4, "out_channels": 4}
    description = {"network": network, "process": "vp", "prediction": "noise", "conditioner": labels}
    tiny = Model.from_description({**description, "space": space})
    asked: dict[str, Any] = {"size": 64, "steps": 2, "concept": "cat", "seed": 0}
    for more in ({"guidance": 1.0}, {"guidance": 4.0}, {"guidance": 4.0, "count": 3}):
        planned = sfumato.plan(tiny, **asked, **more)
        with monkeypatch.context() as plain:
            # What looks for room counts tensors without numbers, which would be counted again.
            plain.setattr("sfumato.generation.task.Task.room", lambda task, batch: len(task.seeds))
            taken = peak_bytes(lambda more=more: sfumato.generate(tiny, **asked, **more), scratch=True)
        assert 0.75 < (planned.memory - planned.weights) / taken < 1.25
        parts = tiny.modules().values()
        assert planned.weights == 4 * sum(p.numel() for part in parts for p in part.parameters())
    assert planned.batches == 1
    assert sfumato.plan(tiny, **asked, count=5, batch=2).batches == 3


NETWORKS: dict[str, dict[str, Any]] = {
    "adm": {"channels": 32, "multipliers": [1, 2], "blocks": 1},
    "sd_unet": {"channels": 32, "multipliers": [1, 2], "blocks": 1, "attention": [1, 2], "heads": 2},
    "dit": {"width": 32, "depth": 3, "heads": 2, "classes": 0},
    "ncsnpp": {"channels": 32, "multipliers": [1, 2], "blocks": 1},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("side", [16, 64])
def test_the_guess_from_above_is_above(name: str, side: int) -> None:
    """By a good deal, for guidance and a space with an autoencoder are asked of it, too."""
    network = {"name": name, "in_channels": 4, "out_channels": 4, **NETWORKS[name]}
    model = Model.from_description(
        {
            "network": network,
            "process": "vp",
            "prediction": "noise",
            "conditioner": "nothing",
            "space": {"name": "latent", "autoencoder": {"name": "kl", "width": 32, "multipliers": [1, 2]}},
        }
    )
    planned = sfumato.plan(model, size=side, steps=2, guidance=[{"name": "classifier_free", "scale": 3.0}])
    guess = bytes_at_most(model, model.space.shape(side, side), side**2)
    assert guess > 2 * (planned.walk + planned.decode)


def test_where_memory_is_plenty_it_is_not_measured(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*given: Any) -> int:
        raise RuntimeError("measured")

    monkeypatch.setattr("sfumato.generation.task.Task.bytes_walked", measured)
    asked: dict[str, Any] = {"steps": 2, "concept": "cat", "seed": 0}
    sfumato.generate(tiny, **asked)
    monkeypatch.setattr("sfumato.generation.task.available", lambda device: 2**20)
    with pytest.raises(RuntimeError, match="measured"):
        sfumato.generate(tiny, **asked)


def test_a_plan_refuses_what_generating_refuses(tiny: Model) -> None:
    with pytest.raises(InvalidInput, match="need about"):
        sfumato.plan(tiny, size=8192, count=4096, concept="cat")
    with pytest.raises(InvalidInput, match="steps"):
        sfumato.plan(tiny, steps=0)


def test_the_command_tells_it_and_makes_nothing(
    tiny: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    native.save(tiny, tmp_path / "m")
    words = ["generate", str(tmp_path / "m"), "--concept", "cat", "--plan", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "6 estimates of" in shown
    assert "at the most" in shown
    assert main([*words, "--json", "-n", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["pictures"], told["calls"]) == (2, 6)
    assert told["memory"] == told["weights"] + told["results"] + max(told["walk"], told["decode"])
    assert told["seconds"] > 0
    assert not (tmp_path / "out").exists()


def test_who_observes_is_told_what_the_data_are_taken_for(tiny: Model) -> None:
    events: list[Progress] = []
    images = sfumato.generate(
        tiny, seed=1, count=2, steps=4, sampler="ddim", concept="cat", observe=events.append
    )
    assert [event.x0.shape for event in events] == [(2, 3, 16, 16)] * 4
    # The last step goes to the estimate itself.
    torch.testing.assert_close(events[-1].preview(), images.tensor)
    assert (events[0].preview() - images.tensor).abs().mean() > 1e-3
    assert events[0].preview().abs().max() <= 1


def test_a_preview_is_written_and_stopping_leaves_nothing_half_done(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    native.save(tiny, tmp_path / "m")
    words = ["generate", str(tmp_path / "m"), "--concept", "cat", "-n", "2", "--out", str(tmp_path / "out")]
    assert main([*words, "--preview", str(tmp_path / "now.png")]) == 0
    capsys.readouterr()
    assert Image.open(tmp_path / "now.png").size == (32, 16)
    assert main([*words, "--preview", str(tmp_path / "now.jpg")]) == 2
    before = sorted(tmp_path.rglob("*"))

    def stop(event: Progress) -> Any:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGINT)
        return torch.zeros(2, 3, 16, 16)

    monkeypatch.setattr(Progress, "preview", stop)
    capsys.readouterr()
    assert main([*words, "--preview", str(tmp_path / "now.png")]) == 130
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "interrupted: nothing is left half written\n"
    assert sorted(tmp_path.rglob("*")) == before
