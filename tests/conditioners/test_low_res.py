"""Low resolution: the channels are those of the published upsamplers; wrong pictures are refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from sfumato.conditioners.low_res import LowRes
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.prediction import Noise as NoisePrediction
from sfumato.generation.generate import generate
from sfumato.model import Model
from sfumato.networks.adm import ADM
from sfumato.processes.betas import Betas
from sfumato.registry import build, describe
from sfumato.spaces.pixel import Pixel


def _picture(channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    drawn = torch.randint(0, 256, (channels, height, width), generator=torch.Generator().manual_seed(seed))
    return drawn / 127.5 - 1


def _stretched(small: Tensor, factor: int) -> Tensor:
    """Bilinear by its formula in float64: sample i lies at (i + 1/2) / factor - 1/2, clamped to the edges."""

    def weights(count: int) -> Tensor:
        at = ((torch.arange(count * factor, dtype=torch.float64) + 0.5) / factor - 0.5).clamp(0, count - 1)
        below = at.floor().long().clamp(max=count - 2)
        rows = torch.arange(count * factor)
        out = torch.zeros(count * factor, count, dtype=torch.float64)
        out[rows, below] += 1 - (at - below)
        out[rows, below + 1] += at - below
        return out

    return weights(small.shape[1]) @ small.double() @ weights(small.shape[2]).T


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_the_bilinear_picture(channels: int, factor: int) -> None:
    small = _picture(channels, 4, 6)
    told = LowRes((4 * factor, 6 * factor), factor, channels)(2, low_res=small)
    assert told.channels is not None
    assert told.vector is None
    for row in told.channels:
        torch.testing.assert_close(row.double(), _stretched(small, factor), rtol=0, atol=1e-6)


def test_a_large_picture_is_first_averaged_over_areas_as_in_training() -> None:
    conditioner = LowRes((16, 16), 4)
    large = _picture(3, 16, 16)
    averaged = large.view(3, 4, 4, 4, 4).mean(dim=(2, 4))
    torch.testing.assert_close(
        conditioner(1, low_res=large).channels, conditioner(1, low_res=averaged).channels, rtol=0, atol=1e-6
    )


def test_paths_images_and_tensors_are_one_picture(tmp_path: Path) -> None:
    numbers = torch.randint(0, 256, (4, 4, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    image = Image.fromarray(numbers.numpy())
    image.save(tmp_path / "small.png")
    conditioner = LowRes((16, 16), 4)
    tensor = numbers.permute(2, 0, 1) / 127.5 - 1
    rows = conditioner(
        4, low_res=[tmp_path / "small.png", str(tmp_path / "small.png"), image, tensor]
    ).channels
    assert rows is not None
    for row in rows[1:]:
        torch.testing.assert_close(row, rows[0], rtol=0, atol=1e-6)
    grey = LowRes((16, 16), 4, channels=1)(1, low_res=image).channels
    luma = (tensor * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    assert grey is not None
    torch.testing.assert_close(grey[0].double(), _stretched(luma, 4), rtol=0, atol=2 / 255)


def test_null_and_dropout_keep_the_picture() -> None:
    conditioner = LowRes((8, 8), 2)
    told = conditioner(3, low_res=[_picture(3, 4, 4, seed) for seed in range(3)])
    null = conditioner.null(told)
    assert torch.equal(null.channels, told.channels)  # type: ignore[arg-type]
    dropped = told.where(torch.tensor([True, False, False]), null)
    assert torch.equal(dropped.channels, told.channels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.zeros(3, 4, 6), "a picture of 6 x 4 for 16 x 16"),
        (torch.zeros(1, 4, 4), "a tensor"),
        (torch.zeros(1, 3, 4, 4), "a tensor"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "a tensor"),
        (torch.full((3, 4, 4), 255.0), "not all from -1 to 1"),
        (torch.full((3, 4, 4), float("nan")), "not all from -1 to 1"),
        (torch.zeros(3, 0, 0), "not all from -1 to 1"),
        (7, "int is no picture"),
        ("absent.png", "absent.png"),
    ],
)
def test_what_is_no_small_picture_is_refused_before_any_work(given: Any, said: str) -> None:
    conditioner = LowRes((16, 16), 4)
    for entrance in (conditioner.check, lambda **told: conditioner(1, **told)):
        with pytest.raises(InvalidInput, match=said):
            entrance(low_res=given)
    with pytest.raises(InvalidInput, match=said):
        conditioner.check(low_res=[torch.zeros(3, 4, 4), given])


def test_a_missing_picture_another_count_and_other_inputs_are_refused() -> None:
    conditioner = LowRes((16, 16), 4)
    with pytest.raises(InvalidInput, match="enlarges a picture and was given none"):
        conditioner(2)
    with pytest.raises(InvalidInput, match="enlarges a picture and was given none"):
        conditioner(2, low_res=[torch.zeros(3, 4, 4), None])
    with pytest.raises(InvalidInput, match="1 pictures for 2"):
        conditioner(2, low_res=[torch.zeros(3, 4, 4)])
    with pytest.raises(InvalidInput, match="no such input"):
        conditioner.check(label="cat")
    for size, factor, channels in (((16, 18), 4, 3), ((16, 16), 0, 3), ((16, 16), 4, 2), ((0, 16), 4, 3)):
        with pytest.raises(InvalidInput):
            LowRes(size, factor, channels)


def test_settings_come_back() -> None:
    told = describe(LowRes((16, 24), 4, 1))
    assert describe(build("conditioner", told)) == told


def test_an_upsampler_generates_from_a_picture() -> None:
    """The picture it is told matters, alone or in a batch; none, or another size, is refused."""
    network = ADM(in_channels=6, channels=32, multipliers=(1, 2), blocks=1, attention=(2,))
    torch.manual_seed(0)
    torch.nn.init.normal_(network.out[2].weight, std=0.05)
    denoiser = NetworkDenoiser(network, Betas(), NoisePrediction()).eval()
    model = Model(denoiser, LowRes((16, 16), 4), Pixel(multiple=2), {"size": [16, 16], "steps": 4})
    one, other = _picture(3, 4, 4, 1), _picture(3, 4, 4, 2)
    both = generate(model, count=2, seed=3, low_res=[one, other]).tensor
    alone = generate(model, seed=4, low_res=other).tensor
    torch.testing.assert_close(alone[0], both[1], rtol=0, atol=1e-4)
    assert (generate(model, seed=4, low_res=one).tensor - alone).abs().max() > 1e-3
    assert "low_res" in generate(model, seed=4, low_res=one).recipe["unrecorded"]
    with pytest.raises(InvalidInput, match="was given none"):
        generate(model, seed=3)
    with pytest.raises(InvalidInput, match=r"a map of \(16, 16\) beside one of \(32, 32\)"):
        generate(model, seed=3, low_res=one, size=32)
