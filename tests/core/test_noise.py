"""The counter-based generator: known answers, statistics, and that a row depends on its own seed alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sfumato.core.errors import InvalidInput
from sfumato.core.noise import MAX_SEED, Noise, derive, philox

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ONES,) * 4, (ONES,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "digits of pi"],
)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, ...], expected: str
) -> None:
    assert " ".join(f"{int(word):08x}" for word in philox(counter, key)) == expected


def test_the_stream_is_a_contract() -> None:
    """Recipes in old pictures promise these numbers: a change here makes `replay` give other pictures."""
    assert Noise([0, 1]).words(4, "step", 0.5).tolist() == [
        [3495734313, 1293002025, 2608368155, 1039658043],
        [3497798282, 4049049739, 973729775, 3182090578],
    ]
    torch.testing.assert_close(
        Noise([0, MAX_SEED]).randn((2, 3), "prior"),
        torch.tensor(
            [
                [1.3056423664093018, -0.13731975853443146, 0.09016641974449158],
                [-0.16526122391223907, 1.0862244367599487, -0.18550892174243927],
            ]
        ),
        rtol=1e-6,
        atol=0,
    )
    assert Noise([7], step=3).uniform((1, 2), "level", 0.25).tolist() == [
        [0.6034464706899598, 0.20894736621994525]
    ]
    assert derive(0, "epoch", 3) == 1718301742790108267
    assert derive(123, 1, "item", 2) == 7919265398654907969


def test_normal_numbers_are_normal() -> None:
    z = Noise(range(400)).randn((400, 1000), "prior").double().flatten()
    n = len(z)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - moment) < 4 * math.sqrt(spread / n), power
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3


def test_uniform_numbers_are_uniform_and_inside() -> None:
    u = Noise(range(400)).uniform((400, 1000), "level").flatten()
    assert float(u.min()) > 0
    assert float(u.max()) < 1
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
    counts = torch.histc(u, 256, 0, 1)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    "other",
    [
        Noise(range(1, 201)).randn((200, 500), "prior"),
        Noise(range(200), step=1).randn((200, 500), "prior"),
        Noise(range(200)).randn((200, 500), "step"),
        Noise(range(200)).randn((200, 500), "prior", 0.25),
        Noise([2**32 + s for s in range(200)]).randn((200, 500), "prior"),
    ],
    ids=["seed", "step", "purpose", "moment", "high half of the seed"],
)
def test_draws_of_another_key_are_independent(other: torch.Tensor) -> None:
    base = Noise(range(200)).randn((200, 500), "prior")
    for value in (base * other, (base**2 - 1) * (other**2 - 1) / 2):
        assert abs(float(value.double().mean())) < 4 / math.sqrt(value.numel())


def test_values_inside_a_row_are_uncorrelated() -> None:
    z = Noise(range(100)).randn((100, 2000), "prior").double()
    for lag in (1, 2, 3, 4, 8):
        assert abs(float((z[:, lag:] * z[:, :-lag]).mean())) < 4 / math.sqrt(z.numel())


@settings(max_examples=50, deadline=None)
@given(
    seeds=st.lists(st.integers(0, MAX_SEED), min_size=1, max_size=6),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    moment=st.floats(0, 1),
)
def test_a_row_is_the_same_alone(seeds: list[int], shape: list[int], moment: float) -> None:
    batch = Noise(seeds).randn((len(seeds), *shape), "step", moment)
    for row, seed in enumerate(seeds):
        assert torch.equal(batch[row : row + 1], Noise([seed]).randn((1, *shape), "step", moment))
    assert torch.equal(batch[-1:], Noise(seeds)[-1:].randn((1, *shape), "step", moment))


def test_a_longer_draw_begins_with_the_shorter() -> None:
    assert torch.equal(Noise([5]).randn((1, 7), "a"), Noise([5]).randn((1, 64), "a")[:, :7])


def test_randn_like_keeps_the_dtype_and_the_numbers() -> None:
    x = torch.zeros(2, 3, 4, dtype=torch.float64)
    z = Noise([1, 2]).randn_like(x, "noise")
    assert z.dtype == torch.float64
    assert torch.equal(z, Noise([1, 2]).randn((2, 3, 4), "noise").double())


@pytest.mark.parametrize("seeds", [[-1], [[1, 2]]])
def test_seeds_that_are_none(seeds: list) -> None:
    with pytest.raises(InvalidInput, match="seed"):
        Noise(seeds)


def test_a_batch_of_another_size_is_refused() -> None:
    with pytest.raises(InvalidInput, match="2 seeds for a batch of 3"):
        Noise([1, 2]).randn((3, 1), "prior")


def test_derived_seeds_do_not_collide() -> None:
    paths = [(a, b) for a in range(250) for b in range(200)]
    seeds = {derive(0, a, b) for a, b in paths} | {derive(0, "epoch", a, b) for a, b in paths}
    assert len(seeds) == 100_000
    assert all(0 <= seed <= MAX_SEED for seed in seeds)


def test_derived_seeds_depend_on_order_and_kind() -> None:
    seeds = [derive(1, 2, 3), derive(1, 3, 2), derive(1, "2", 3), derive(2, 1, 3), derive(1, 2), derive(1)]
    assert len(set(seeds)) == len(seeds)
