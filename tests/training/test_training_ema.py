"""Averages, the optimizer's schedule and clipping against closed forms."""

import math

import pytest
import torch
from torch import nn

from sfumato.core.errors import InvalidInput
from sfumato.training.ema import EMA, Average
from sfumato.training.optimizers import AdamW, clip_gradients, flatten_state, restore_state, set_rate


def parameters():
    return {"a": nn.Parameter(torch.zeros(3, 2)), "b": nn.Parameter(torch.zeros(5))}


def test_averages_of_a_straight_line_have_their_closed_form():
    """Parameters n at update n: a decay d lags by d / (1 - d), a half-life h by its own 1 / (2^(b/h) - 1)."""
    named = parameters()
    ema = EMA(named, (Average(0.9), Average(0.99), Average(half_life=64.0, ramp=0)))
    steps, batch = 3000, 16
    for n in range(steps):
        for p in named.values():
            p.data.fill_(float(n))
        ema.update(batch)
    state = ema.state_dict()
    for number, keep in enumerate((0.9, 0.99, 0.5 ** (batch / 64))):
        lag = steps - 1 - state[f"{number}.a"][0, 0].item()
        assert lag == pytest.approx(keep / (1 - keep), rel=1e-3)
    assert len(state) == 6


def test_the_warm_up_ramp_is_the_mean_of_what_was_seen():
    """Decays start at (1 + n) / (10 + n), half-lives at a share of the samples seen."""
    average = Average(0.9999)
    assert [average.keep(n, 8) for n in (0, 1, 90)] == [0.1, 2 / 11, 0.91]
    assert average.keep(10**6, 8) == 0.9999
    ramped = Average(half_life=1000.0, ramp=0.05)
    assert ramped.keep(0, 8) == 0
    assert ramped.keep(100, 8) == 0.5 ** (8 / 40)
    assert ramped.keep(10**6, 8) == 0.5 ** (8 / 1000)
    named = parameters()
    ema = EMA(named, (average,))
    expected = 0.0
    for n in range(50):
        value = math.sin(n)
        named["a"].data.fill_(value)
        ema.update(8)
        expected += (1 - (1 + n) / (10 + n)) * (value - expected)
    assert ema.state_dict()["0.a"][0, 0].item() == pytest.approx(expected, abs=1e-6)


def test_swapping_in_shows_the_average_and_gives_all_back():
    named = parameters()
    ema = EMA(named, (Average(0.5), Average(0.0)))
    for n in range(4):
        named["a"].data.fill_(float(n))
        ema.update(1)
    average = ema.state_dict()["0.a"].clone()
    assert not torch.equal(average, named["a"])
    places = [p.data_ptr() for p in named.values()]
    with ema.swapped(0):
        assert torch.equal(named["a"], average)
    with pytest.raises(RuntimeError), ema.swapped(0):
        torch.ones(2) + torch.ones(3)
    assert named["a"][0, 0] == 3
    assert places == [p.data_ptr() for p in named.values()]
    assert torch.equal(ema.state_dict()["0.a"], average)
    ema.copy_to(1)
    assert torch.equal(named["a"], ema.state_dict()["1.a"])


def test_averages_of_half_precision_weights_are_kept_in_float32():
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    ema = EMA({"w": weight}, (Average(half_life=1000.0, ramp=0),))
    weight.data.fill_(2.0)
    ema.update(1)
    assert ema.state_dict()["0.w"].dtype == torch.float32
    assert 1 < ema.state_dict()["0.w"][0].item() < 1.001
    with ema.swapped():
        assert weight.dtype == torch.bfloat16
    assert weight[0] == 2


def test_rates_follow_their_schedules():
    assert [AdamW(1.0, warm_up=4).rate_at(n, 0) for n in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    cosine = AdamW(2.0, decay="cosine", final=0.1)
    for progress in (0, 0.25, 0.5, 1.0):
        expected = 2 * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)
        assert cosine.rate_at(10, progress) == pytest.approx(expected)
    linear = AdamW(2.0, decay="linear", warm_up=10)
    assert linear.rate_at(4, 0.5) == pytest.approx(0.5)
    assert linear.rate_at(100, 1.5) == 0
    held = AdamW(3.0, decay="linear", hold=0.8, final=0.5)
    assert [held.rate_at(9, p) for p in (-1, 0, 0.8, 0.9, 1)] == pytest.approx([3, 3, 3, 2.25, 1.5])
    for hold in (-0.1, 1.0, math.nan):
        with pytest.raises(InvalidInput, match="is no share"):
            AdamW(hold=hold)


def test_adamw_is_torchs_own_and_vectors_do_not_decay():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    settings = AdamW(1e-2, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3)
    mine = settings.build(dict(ours.named_parameters()))
    reference = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.3}, {"params": [theirs.bias], "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.8, 0.9),
        eps=1e-6,
        fused=False,
        foreach=False,
    )
    for step in range(20):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        set_rate(mine, 1e-2)
        for network, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            (network(x) ** 2).mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_optimizers_memory_goes_by_name():
    network = nn.Linear(4, 3)
    names = {p: n for n, p in network.named_parameters()}
    one = AdamW().build(dict(network.named_parameters()))
    network(torch.ones(2, 4)).sum().backward()
    one.step()
    state = flatten_state(one, names)
    assert set(state) == {f"{k}.{n}" for k in ("step", "exp_avg", "exp_avg_sq") for n in ("weight", "bias")}
    two = AdamW().build(dict(list(network.named_parameters())[::-1]))
    restore_state(two, names, state)
    assert all(torch.equal(value, flatten_state(two, names)[key]) for key, value in state.items())


def test_clipping_is_by_the_global_norm():
    named = parameters()
    for p in named.values():
        p.grad = torch.full_like(p, 2.0)
    norm = math.sqrt(11 * 4)
    assert clip_gradients(named.values(), None) == pytest.approx(norm)
    assert clip_gradients(named.values(), 100.0) == pytest.approx(norm)
    assert named["a"].grad[0, 0] == 2
    assert clip_gradients(named.values(), 1.0) == pytest.approx(norm)
    assert clip_gradients(named.values(), None) == pytest.approx(1, rel=1e-5)
    named["b"].grad[0] = float("nan")
    assert math.isnan(clip_gradients(named.values(), 1.0))
    assert named["a"].grad[0, 0] == pytest.approx(2 / norm, rel=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Average(decay=1.0),
        lambda: Average(half_life=-1.0),
        lambda: AdamW(rate=0.0),
        lambda: AdamW(rate=float("nan")),
        lambda: AdamW(clip=0.0),
        lambda: AdamW(final=2.0),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(InvalidInput):
        make()
