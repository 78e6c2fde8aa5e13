"""Sizes: the numbers SDXL is told, in its order and as its sinusoids."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sfumato.conditioners.sizes import Sizes
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.generation.generate import generate
from sfumato.model import Model
from sfumato.registry import build, describe


def reference(numbers: list[float]) -> torch.Tensor:
    from diffusers.models.embeddings import Timesteps

    embed = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
    return embed(torch.tensor(numbers, dtype=torch.float32)).flatten()


@pytest.mark.parametrize(
    "settings, inputs, numbers",
    [
        ({}, {}, [1024, 1024, 0, 0, 1024, 1024]),
        ({}, {"size": (512, 768)}, [512, 768, 0, 0, 512, 768]),
        (
            {},
            {"original_size": (300, 400), "crop": (10, 20), "target_size": (512, 768)},
            [300, 400, 10, 20, 512, 768],
        ),
        ({"size": (64, 32)}, {"original_size": "400x300"}, [300, 400, 0, 0, 64, 32]),
        ({"scored": True}, {"size": (512, 768)}, [512, 768, 0, 0, 6.0]),
        ({"scored": True}, {"crop": "1x2", "aesthetic_score": "5.5"}, [1024, 1024, 2, 1, 5.5]),
    ],
)
def test_sinusoids_are_those_of_the_reference(
    settings: dict[str, Any], inputs: dict[str, Any], numbers: list[float]
) -> None:
    sizes = Sizes(**settings)
    told = sizes(2, **inputs)
    assert told.vector.shape == (2, sizes.vector) == (2, 256 * len(numbers))
    assert torch.allclose(told.vector[0], reference(numbers), atol=1e-5)
    assert torch.equal(told.vector[0], told.vector[1])


def test_published_lengths() -> None:
    assert Sizes().vector + 1280 == 2816
    assert Sizes(scored=True).vector + 1280 == 2560


def test_a_row_each() -> None:
    sizes = Sizes()
    told = sizes(3, original_size=[(1, 2), None, "4x3"], crop=[(0, 5), (6, 0), None], size=(8, 9))
    for row, numbers in enumerate([[1, 2, 0, 5, 8, 9], [8, 9, 6, 0, 8, 9], [3, 4, 0, 0, 8, 9]]):
        assert torch.allclose(told.vector[row], reference([float(n) for n in numbers]), atol=1e-5)


def test_the_null_keeps_sizes_and_takes_a_poor_score() -> None:
    told = Sizes()(2, crop=(1, 2))
    assert torch.equal(Sizes().null(told).vector, told.vector)
    scored = Sizes(scored=True)
    null = scored.null(scored(2, crop=(1, 2)))
    assert torch.equal(null.vector, scored(2, crop=(1, 2), aesthetic_score=2.5).vector)
    # A negative prompt says the null's score beside itself.
    assert scored.denied == {"aesthetic_score": 2.5}
    assert not Sizes().denied


@pytest.mark.parametrize(
    "inputs, match",
    [
        ({"crop": (-1, 0)}, "crop: .* is no top and left"),
        ({"original_size": (0, 5)}, "no height and width"),
        ({"size": "big"}, "'big' is no height"),
        ({"size": [(1, 2, 3), (1, 2)]}, "no height"),
        ({"target_size": [(1, 2)]}, "1 values for 2"),
        ({"target_size": 3.5}, "3.5 is no height"),
        ({"origin_size": (1, 2)}, "no such input .*original_size"),
        ({"aesthetic_score": 3.0}, "no such input"),
    ],
)
def test_what_is_no_size_is_refused(inputs: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        Sizes()(2, **inputs)


@pytest.mark.parametrize("score", ["good", float("nan"), True])
def test_what_is_no_score_is_refused(score: Any) -> None:
    with pytest.raises(InvalidInput, match="is no number"):
        Sizes(scored=True).check(aesthetic_score=[score])


def test_settings_come_back() -> None:
    sizes = Sizes((512, 768), 8, True, 5.0)
    again = build("conditioner", describe(sizes))
    assert torch.equal(again(1).vector, sizes(1).vector)
    with pytest.raises(InvalidInput, match="no pairs"):
        Sizes(width=7)


def test_generate_tells_the_size_that_is_generated(tiny: Model) -> None:
    """And to both sides of guidance, a negative included."""
    sizes = Sizes(size=(16, 16), width=2)
    network = type(tiny.denoiser.network)(classes=sizes.vector).eval()
    denoiser = NetworkDenoiser(network, tiny.process, tiny.denoiser.prediction)
    model = Model(denoiser, sizes, tiny.space, {"steps": 2, "guidance": []})
    seen: list[torch.Tensor | None] = []

    def spy(denoiser, null):  # type: ignore[no-untyped-def]
        def looks(x, level, condition):  # type: ignore[no-untyped-def]
            seen.extend((condition.vector, null.vector))
            return denoiser(x, level, condition)

        return looks

    generate(model, seeds=[0, 1], size=(24, 40), crop="4x8", negative={"crop": "0x0"}, guidance=spy)
    told, null = seen[-2:]
    assert told is not None
    assert null is not None
    torch.testing.assert_close(told, sizes(2, size=[(24, 40)] * 2, crop="4x8").vector)
    torch.testing.assert_close(null, sizes(2, size=[(24, 40)] * 2, crop="0x0").vector)
    made = generate(model, seed=0, size=(24, 40), guidance=[])
    assert made.recipe["size"] == [24, 40]
    assert "size" not in made.recipe["inputs"]
