"""Generation: a picture depends on its seed and what it is told, not on its company; faults are named."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sfumato.core.errors import InvalidInput, NotFinite
from sfumato.generation import memory
from sfumato.generation.generate import Progress, generate
from sfumato.model import Model
from sfumato.processes.flow import Flow
from sfumato.samplers.ddim import DDIM

APPLE = {"concept": "red apple", "style": "noto"}


def test_a_picture_is_the_same_alone_and_in_a_batch(tiny: Model) -> None:
    concepts = ["red apple", "cat", "lemon", None, "cat"]
    together = generate(tiny, count=5, seed=7, concept=concepts, style="noto")
    assert together.seeds == (7, 8, 9, 10, 11)
    for i, concept in enumerate(concepts):
        alone = generate(tiny, seed=7 + i, concept=concept, style="noto")
        assert torch.allclose(alone.tensor[0], together.tensor[i], atol=2e-6)
    split = generate(tiny, count=5, seed=7, batch=2, concept=concepts, style="noto")
    assert torch.allclose(split.tensor, together.tensor, atol=2e-6)
    assert [recipe["inputs"]["concept"] for recipe in split.recipes] == concepts
    assert (together.tensor[1] - together.tensor[4]).abs().max() > 0.01


def test_what_is_said_matters(tiny: Model) -> None:
    base = generate(tiny, seed=1, **APPLE).tensor
    for change in (
        {"seed": 2},
        {"concept": "cat"},
        {"guidance": 1.0},
        {"steps": 7},
        {"sampler": "ddim", "times": "uniform"},
        {"negative": {"concept": "lemon"}},
    ):
        assert (generate(tiny, **{"seed": 1, **APPLE, **change}).tensor - base).abs().max() > 1e-4


def test_negative_inputs_are_the_null(tiny: Model) -> None:
    both = generate(tiny, seed=1, guidance=0.0, negative={"concept": "cat"}, concept="lemon").tensor
    assert torch.equal(both, generate(tiny, seed=1, guidance=1.0, concept="cat").tensor)


def test_parts_are_names_dictionaries_or_objects(tiny: Model) -> None:
    pictures = [
        generate(tiny, seed=3, sampler=sampler, times="uniform", path=path, **APPLE)
        for sampler, path in (("ddim", "flow"), ({"name": "ddim"}, {"name": "flow"}), (DDIM(), Flow()))
    ]
    assert all(torch.equal(pictures[0].tensor, each.tensor) for each in pictures)
    assert all(each.recipe == pictures[0].recipe for each in pictures)
    assert pictures[0].recipe["path"] == {"name": "flow"}


def test_parts_of_ones_own_are_walked_and_the_recipe_says_so(tiny: Model) -> None:
    """An idea is tested without a file in the package; a picture that cannot be made again is told apart."""

    class Mine:
        def init(self, x: torch.Tensor) -> None:
            return None

        def step(self, reverse, x, t, s, state):  # type: ignore[no-untyped-def]
            return DDIM().step(reverse, x, t, s, None)

    def halves(process, steps):  # type: ignore[no-untyped-def]
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    asked = {"concept": "cat", "style": "noto", "seed": 3, "steps": 4}
    usual = generate(tiny, sampler="ddim", times="uniform", guidance=[], **asked)
    own = generate(tiny, sampler=Mine(), times=halves, guidance=lambda denoiser, null: denoiser, **asked)
    torch.testing.assert_close(own.tensor, usual.tensor)
    assert own.recipes[0]["unrecorded"] == ["guidance", "sampler", "times"]
    assert "unrecorded" not in usual.recipes[0]
    doubled = generate(
        tiny, sampler=Mine(), guidance=lambda _, null: lambda x, t, c: tiny.denoiser(x, t, null), **asked
    )
    assert not torch.allclose(doubled.tensor, own.tensor)
    for kind, wrong in (("sampler", DDIM), ("sampler", 3), ("times", 0.5), ("guidance", [None]), ("path", 1)):
        with pytest.raises(InvalidInput, match="is none"):
            generate(tiny, **asked, **{kind: wrong})


def test_seeds_are_drawn_and_told(tiny: Model) -> None:
    drawn = generate(tiny, **APPLE)
    assert torch.equal(generate(tiny, seeds=drawn.seeds, **APPLE).tensor, drawn.tensor)
    assert generate(tiny, **APPLE).seeds != drawn.seeds


def test_eight_threads_give_what_one_gives(tiny: Model) -> None:
    def one(seed: int) -> torch.Tensor:
        sampler = ("dpm_solver_pp", "euler_ancestral", "ddim", "lms")[seed % 4]
        concept = ("red apple", "cat", "lemon")[seed % 3]
        return generate(tiny, seed=seed, sampler=sampler, concept=concept).tensor

    serial = [one(seed) for seed in range(32)]
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(one, range(32)))
    assert all(torch.equal(a, b) for a, b in zip(serial, parallel, strict=True))


def test_nothing_is_left_behind_by_a_request(tiny: Model) -> None:
    state = torch.random.get_rng_state()
    first = generate(tiny, seed=1, **APPLE).tensor
    for seed in range(5):
        generate(tiny, seed=seed, guidance=8.0, sampler="unipc", concept="cat")
    assert torch.equal(generate(tiny, seed=1, **APPLE).tensor, first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_non_finite_names_module_and_step(tiny: Model) -> None:
    network = tiny.denoiser.network
    healthy = network.norm.forward

    def sick(h: torch.Tensor) -> torch.Tensor:
        return healthy(h) * (float("nan") if clock["time"] < clock["limit"] else 1)

    seen: list[float] = []

    def remember(module, given) -> None:
        clock["time"] = float(given[1][0])
        seen.append(clock["time"])

    # Outside of the modules: the second walk is that of a copy, and both must see the same clock.
    clock = {"time": 0.0, "limit": -1.0}
    handle = network.register_forward_pre_hook(remember)
    network.norm.forward = sick
    generate(tiny, seed=1, **APPLE)
    clock["limit"] = (sorted(seen)[2] + sorted(seen)[3]) / 2
    with pytest.raises(NotFinite, match=r"network\.norm: NaN or infinity at step 4 of 6"):
        generate(tiny, seed=1, **APPLE)
    handle.remove()


def test_non_finite_of_weights_sampler_and_conditioner(tiny: Model) -> None:
    class Overflowing(DDIM):
        def step(self, reverse, x, t, s, state):
            return x * 1e38, state

    with pytest.raises(NotFinite, match="sampler or guidance: NaN or infinity at step 2 of 6"):
        generate(tiny, seed=1, sampler=Overflowing(), **APPLE)
    with torch.no_grad():
        tiny.denoiser.network.leave.bias[1] = float("inf")
    with pytest.raises(NotFinite, match=r"network\.leave: NaN or infinity at step 1 of 6"):
        generate(tiny, seed=1, **APPLE)
    assert not tiny.denoiser.network.leave._forward_hooks


def test_progress_and_cancelling(tiny: Model) -> None:
    events: list[Progress] = []
    generate(tiny, count=3, seed=1, batch=2, observe=events.append, **APPLE)
    assert len(events) == 12
    assert [event.batch for event in events] == [0] * 6 + [1] * 6
    assert events[-1].done == 1
    assert [e.done for e in events] == sorted(e.done for e in events)

    class Enough(Exception):
        pass

    def stop(event: Progress) -> None:
        events.append(event)
        if event.index == 2:
            raise Enough

    events.clear()
    with pytest.raises(Enough):
        generate(tiny, seed=1, observe=stop, **APPLE)
    assert len(events) == 3


def test_film_runs_from_noise_to_the_picture(tiny: Model) -> None:
    images = generate(tiny, count=3, seed=1, film=3, batch=2, **APPLE)
    assert images.film is not None
    assert images.film.shape == (3, 3, 3, 16, 16)
    assert torch.equal(images.film[:, -1], images.tensor)
    assert torch.equal(images.tensor, generate(tiny, count=3, seed=1, batch=2, **APPLE).tensor)
    with pytest.raises(InvalidInput, match="film"):
        generate(tiny, film=7, **APPLE)


def test_half_precision_networks_walk_in_float32(tiny: Model) -> None:
    full = generate(tiny, seed=1, **APPLE).tensor
    half = generate(tiny.to(torch.bfloat16), seed=1, **APPLE)
    assert half.recipe["precision"] == "bfloat16"
    assert half.tensor.dtype == torch.float32
    assert 0 < (half.tensor - full).abs().mean() < 0.1


def test_dropout_is_off_meanwhile_and_on_again_after(tiny: Model) -> None:
    tiny.denoiser.network.norm = torch.nn.Sequential(tiny.denoiser.network.norm, torch.nn.Dropout(0.5))
    tiny.denoiser.train()
    first = generate(tiny, seed=1, **APPLE).tensor
    assert torch.equal(first, generate(tiny, seed=1, **APPLE).tensor)
    assert tiny.denoiser.network.norm[1].training


def test_memory_is_estimated_and_too_much_refused_before_allocation(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match=r"size: 1 of 131072 x 131072 need about .* GiB"):
        generate(tiny, size=2**17, **APPLE)
    condition = tiny.conditioner(1)
    each = [
        memory.bytes_per_sample(tiny.denoiser, [], (3, side, side), condition, condition) for side in (32, 64)
    ]
    assert 3.8 < each[1] / each[0] < 4.2
    monkeypatch.setattr("sfumato.generation.memory.available", lambda device: 10**6)
    import importlib

    module = importlib.import_module("sfumato.generation.task")
    monkeypatch.setattr(module, "available", lambda device: int(3.5 * each[0] / 0.8))
    events: list[Progress] = []
    generate(tiny, count=6, size=32, guidance=1.0, seed=1, observe=events.append, **APPLE)
    assert events[-1].batches == 2


def test_bytes_are_counted_while_their_tensors_live() -> None:
    side = 32 * 64 * 64 * 4

    def chain() -> torch.Tensor:
        h = torch.empty(1, 32, 64, 64)
        for _ in range(5):
            h = torch.relu(h)  # the one before last is gone by the time the next is made
        return h.view(-1)  # no bytes of its own

    assert memory.peak_bytes(chain) == 3 * side or memory.peak_bytes(chain) == 2 * side

    def kept() -> list[torch.Tensor]:
        return [torch.empty(1, 32, 64, 64) for _ in range(7)]

    assert memory.peak_bytes(kept) == 7 * side


def test_bad_settings_are_named(tiny: Model) -> None:
    for settings, word in (
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"count": 0}, "count"),
        ({"seed": -1}, "seed"),
        ({"seed": 1, "seeds": [1]}, "seeds"),
        ({"size": (16, 17)}, "size"),
        ({"guidance": float("nan")}, "guidance"),
        ({"concept": "appel"}, "did you mean red apple|unknown concept"),
        ({"concpt": "cat"}, "did you mean concept"),
        ({"concept": ["cat", "cat"]}, "2 values for 1 pictures"),
        ({"batch": 0}, "batch"),
    ):
        with pytest.raises(InvalidInput, match=word):
            generate(tiny, **settings)


def test_a_scale_keeps_what_else_the_card_does(tiny: Model) -> None:
    tiny.card["guidance"] = [{"name": "classifier_free", "scale": 3.0}, "threshold"]
    bare = {"name": "threshold"}
    assert generate(tiny, seed=1, guidance=2.0).recipe["guidance"] == [
        {"name": "classifier_free", "scale": 2.0},
        bare,
    ]
    assert generate(tiny, seed=1, guidance=1).recipe["guidance"] == [bare]
    assert generate(tiny, seed=1, guidance=[]).recipe["guidance"] == []
