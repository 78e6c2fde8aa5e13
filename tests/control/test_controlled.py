"""A network with controls: parity with diffusers, what scales mean, and that it is one like any other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from control_recipes import PARITY, asked, twins
from network_recipes import normal, randomised
from torch import Tensor

import sfumato
from sfumato.conditioners.hints import Hints
from sfumato.control.controlnet import ControlNet
from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.noise import Noise
from sfumato.core.prediction import Velocity
from sfumato.data.item import Batch
from sfumato.guidance.classifier_free import ClassifierFree
from sfumato.guidance.control_scale import ControlScale
from sfumato.model import Model
from sfumato.networks.controlled import Controlled
from sfumato.networks.sd_unet import SDUNet
from sfumato.processes.flow import Flow
from sfumato.registry import build, describe
from sfumato.spaces.pixel import Pixel
from sfumato.training.objectives.denoising import Denoising


def scales(rows: int, *each: tuple[float, float, float]) -> Tensor:
    return torch.tensor([each] * rows)


@torch.no_grad()
@pytest.mark.parametrize("guess", [False, True])
def test_two_controls_are_summed_as_diffusers_sums_them(guess: bool) -> None:
    """Each with its own strength; in guess mode a tenth of it at the finest map, all of it in the middle."""
    first, one, network = twins(PARITY["sd1"])
    second, two, _ = twins(PARITY["sd1"])
    for name, parameter in second.named_parameters():
        parameter.mul_(0.5 if name.startswith("zero_convs") else 1)
    for name, parameter in two.named_parameters():
        parameter.mul_(0.5 if name.startswith("controlnet_down") else 1)
    x, time, condition, hint, _ = asked(first)
    other = hint.flip(3)
    count = len(first.zero_convs) + 1
    decay = 10 ** (-1 / (count - 1)) if guess else 1.0
    both = Controlled(network, (first, second)).eval()
    said = replace(condition, hints=(hint, other), hint_scales=scales(2, (0.7, decay, 0), (1.5, decay, 0)))
    ours = both(x, time, said)
    sides: list[Tensor] = []
    for reference, seen, strength in ((one, hint, 0.7), (two, other, 1.5)):
        down, middle = reference(
            x, time, condition.tokens, seen, conditioning_scale=strength, guess_mode=guess, return_dict=False
        )
        made = [*down, middle]
        sides = [a + b for a, b in zip(sides, made, strict=True)] if sides else made
    theirs = network(x, time, replace(condition, residuals=tuple(sides)))
    assert (theirs - network(x, time, condition)).abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_weights_by_the_size_of_maps() -> None:
    """The paper's resolution weighting: 64 / h times as much where the map is h high, of 64."""
    control, _, network = twins(PARITY["sd1"])
    x, time, condition, hint, _ = asked(control)
    made = control(x, time, condition, hint)
    weighed = tuple(each * (made[0].shape[2] / each.shape[2]) for each in made)
    assert len({each.shape[2] for each in made}) == 3
    both = Controlled(network, (control,))
    ours = both(x, time, replace(condition, hints=(hint,), hint_scales=scales(2, (1, 1, 1))))
    torch.testing.assert_close(ours, network(x, time, replace(condition, residuals=weighed)))
    middle = Controlled(network, (control,), middle=True)(x, time, replace(condition, hints=(hint,)))
    silent = (*(torch.zeros_like(each) for each in made[:-1]), made[-1])
    torch.testing.assert_close(middle, network(x, time, replace(condition, residuals=silent)))


@torch.no_grad()
def test_nothing_changes_without_a_hint_and_with_a_fresh_control() -> None:
    network = randomised(SDUNet(**PARITY["sd1"]))
    both = Controlled(network, (ControlNet.of(network), ControlNet.of(network))).eval()
    x, time, condition, hint, _ = asked(both.controls[0])  # type: ignore[arg-type]
    x, hint, condition = x.float(), hint.float(), condition.to(torch.float32)
    plain = network(x, time, condition)
    for hints in ((), (None, None), (hint, None), (hint, hint)):
        assert torch.equal(both(x, time, replace(condition, hints=hints)), plain)
    with pytest.raises(InvalidInput, match="1 hints for 2 controls"):
        both(x, time, replace(condition, hints=(hint,)))
    with pytest.raises(InvalidInput, match="no control that reads hints"):
        network(x, time, replace(condition, hints=(hint,)))


def model(fresh: bool = False) -> Model:
    """Pictures of 16 pixels, one control of two names."""
    settings = {**PARITY["sd1"], "in_channels": 3, "out_channels": 3, "tokens": 0}
    network = randomised(SDUNet(**settings))
    controls = [ControlNet.of(network, hint_channels=3, factor=1) for _ in range(2)]
    if not fresh:
        controls = [randomised(each, seed) for seed, each in enumerate(controls)]
    denoiser = NetworkDenoiser(Controlled(network, tuple(controls)), Flow(), Velocity(), "thousand").eval()
    return Model(denoiser, Hints(("edges", "depth")), Pixel(multiple=4), {"size": [16, 16], "steps": 3})


@torch.no_grad()
def test_guess_mode_controls_the_conditional_side_alone_and_intervals_are_exact() -> None:
    made = model()
    x, level = normal(2, 3, 16, 16), Level(0.5, 0.5)
    told = made.conditioner(2, edges=[normal(3, 16, 16).clamp(-1, 1)] * 2)
    null = made.conditioner.null(told)
    calls: list[Condition] = []

    def seen(x: Tensor, level: Any, condition: Condition) -> Any:
        calls.append(condition)
        return made.denoiser(x, level, condition)

    plain = made.denoiser(x, level, Condition()).x0
    full = made.denoiser(x, level, told).x0
    assert (full - plain).abs().max() > 1e-3
    guided = ClassifierFree(3.0)(ControlScale(conditional=True)(seen, null), null)
    torch.testing.assert_close(guided(x, level, told).x0, plain + 3 * (full - plain), rtol=1e-4, atol=1e-4)
    # Both sides controlled alike leave guidance nothing to do, as nothing else is said here.
    even = ClassifierFree(3.0)(ControlScale()(seen, null), null)
    torch.testing.assert_close(even(x, level, told).x0, full, rtol=1e-4, atol=1e-4)
    inside, outside = ControlScale(low=0.5, high=1.0), ControlScale(low=1.0, high=2.0)
    assert torch.equal(inside(seen, null)(x, level, told).x0, full)
    assert torch.equal(outside(seen, null)(x, level, told).x0, plain)
    assert calls[-1].hints == ()
    assert torch.equal(ControlScale(0.0)(seen, null)(x, level, told).x0, plain)
    with pytest.raises(InvalidInput, match="3 strengths for 2 controls"):
        ControlScale((1.0, 2.0, 3.0))(seen, null)(x, level, told)
    for wrong in ({"strength": float("nan")}, {"decay": -1.0}, {"low": 2.0, "high": 1.0}, {"strength": ()}):
        with pytest.raises(InvalidInput):
            ControlScale(**wrong)  # type: ignore[arg-type]


def test_it_is_saved_loaded_and_asked_like_any_model(tmp_path: Any) -> None:
    made = model()
    sfumato.save(made, tmp_path / "m")
    again = sfumato.load(tmp_path / "m")
    assert again.describe() == made.describe()
    picture = normal(3, 16, 16).clamp(-1, 1)
    ours, theirs = (sfumato.generate(each, edges=picture, seed=3, count=2).tensor for each in (made, again))
    assert torch.equal(ours, theirs)
    both = sfumato.generate(made, edges=picture, depth=picture.flip(1), seed=3, count=2).tensor
    none = sfumato.generate(made, seed=3, count=2).tensor
    weak = sfumato.generate(made, edges=picture, seed=3, count=2, guidance=[ControlScale(0.0)]).tensor
    assert torch.equal(weak, none)
    assert (ours - none).abs().max() > 1e-3
    assert (both - ours).abs().max() > 1e-3
    # The second hint alone says the size too, and errors say whose they are.
    small = sfumato.generate(made, depth=normal(3, 8, 12).clamp(-1, 1), seed=3)
    assert small.tensor.shape == (1, 3, 8, 12)
    with pytest.raises(InvalidInput, match=r"^depth: "):
        sfumato.generate(made, depth=normal(2, 16, 16))
    # Guess mode, as a user asks for it: memory is measured before.
    guess = [ControlScale(decay=0.825, conditional=True), ClassifierFree(3.0)]
    guessed = sfumato.generate(made, edges=picture, seed=3, count=2, guidance=guess).tensor
    assert (guessed - ours).abs().max() > 1e-3
    with pytest.raises(InvalidInput, match="did you mean edges"):
        sfumato.generate(made, edge=picture)
    with pytest.raises(InvalidInput, match="of some pictures and not of others"):
        sfumato.generate(made, edges=[picture, None], seeds=[1, 2])


@pytest.mark.parametrize(
    "learns, kinds", [("control", {"held"}), ("decoder", {"held", "out", "output_blocks"})]
)
def test_what_is_locked_does_not_learn(learns: Any, kinds: set[str]) -> None:
    made = model()
    network = made.denoiser.network
    assert isinstance(network, Controlled)
    made.denoiser.network = Controlled(network.network, network.controls, learns)
    objective = Denoising(drop=0.5)
    batch = Batch(normal(4, 3, 16, 16).clamp(-1, 1), {"edges": list(normal(4, 3, 16, 16).clamp(-1, 1))})
    loss = objective.loss(made, batch, Noise(range(4), 0)).value.mean()
    loss.backward()
    learnt = [name.removeprefix("network.") for name, _ in objective.parameters(made)]
    moved = {n for n, p in made.denoiser.network.named_parameters() if p.grad is not None and p.grad.any()}
    places = {name.split(".")[1] if name.startswith("network.") else name.split(".")[0] for name in learnt}
    assert places == kinds
    assert all(name.startswith(("held.0.", "network.")) for name in moved)
    assert any(name.startswith("held.0.zero_convs") for name in moved)
    assert any(name.startswith("network.output_blocks") for name in moved) == (learns == "decoder")


def test_descriptions_come_back() -> None:
    described = describe(model().denoiser.network)
    assert describe(build("network", described)) == described
    assert described["controls"][0]["name"] == "controlnet"
    told = describe(Hints(("edges",), 1))
    assert describe(build("conditioner", told)) == told
    with pytest.raises(InvalidInput, match="one control or more"):
        Controlled(SDUNet(**PARITY["sd1"]), ())
    for wrong in ((), ("a b",), ("size",), ("a", "a")):
        with pytest.raises(InvalidInput, match="names of inputs"):
            Hints(wrong)
