"""Reconstruction: PSNR and SSIM against a reference and closed forms, and of an autoencoder."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from sfumato.conditioners.nothing import Nothing
from sfumato.core.alone import Coder
from sfumato.core.errors import InvalidInput
from sfumato.core.posterior import Posterior
from sfumato.data.item import Batch
from sfumato.metrics.evaluate import ask, model_names
from sfumato.metrics.features import as_bytes
from sfumato.metrics.reconstruction import psnr, reconstruction, ssim
from sfumato.model import Model
from sfumato.spaces.pixel import Pixel


def pictures(count: int, seed: int = 0, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 6, generator=generator) * 2 - 1
    return nn.functional.interpolate(coarse, (24, 30), mode="bicubic").clamp(-1, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_the_reference(channels: int, noise: float) -> None:
    x = pictures(4, channels=channels)
    y = (x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)
    one, other = (as_bytes(each)[:, :channels].double() for each in (x, y))
    _, full = structural_similarity_index_measure(
        one, other, data_range=255.0, reduction="none", return_full_image=True
    )
    # Its mean counts windows that reach over mirrored borders too; the paper's does not.
    theirs = full[..., 5:-5, 5:-5].flatten(1).mean(1)
    torch.testing.assert_close(ssim(x, y), theirs, rtol=1e-9, atol=1e-9)
    theirs = peak_signal_noise_ratio(one, other, data_range=255.0, reduction="none", dim=(1, 2, 3))
    # Its logarithm of 10 is one of float32.
    torch.testing.assert_close(psnr(x, y), theirs, rtol=1e-6, atol=0)


def test_closed_forms() -> None:
    """Bytes k apart: 20 log10(255 / k) decibels; grey a and b: (2ab + c1) / (a² + b² + c1)."""
    one, other = (torch.full((1, 3, 16, 16), byte / 127.5 - 1) for byte in (100.0, 110.0))
    assert psnr(one, other).item() == pytest.approx(20 * math.log10(25.5), abs=1e-9)
    c1 = 2.55**2
    assert ssim(one, other).item() == pytest.approx((22000 + c1) / (10000 + 12100 + c1), abs=1e-9)
    assert ssim(one, one).item() == pytest.approx(1)
    assert psnr(one, one).item() == pytest.approx(10 * math.log10(255**2 * one.numel()))


class Rounding(nn.Module):
    """Pixels to whole numbers of steps, as an autoencoder."""

    channels, in_channels, factor, precision = 3, 3, 1, "float32"

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(step))

    def encode(self, image: Tensor) -> Posterior:
        return Posterior((image / self.step).round())

    def decode(self, z: Tensor) -> Tensor:
        return z * self.step


def coder(step: float) -> Any:
    return Model(Coder(Rounding(step)), Nothing(), Pixel())


def test_an_autoencoder_is_asked() -> None:
    """An even error of one step: PSNR 10 log10(4 / (step² / 12)) of pictures in [-1, 1]."""
    assert "reconstruction" in model_names()
    torch.manual_seed(0)
    batches = [Batch(torch.rand(8, 3, 32, 32) * 1.6 - 0.8, {}) for _ in range(2)]
    wanted = 10 * math.log10(4 * 12 / 0.2**2)
    found = {each.name: each for each in ask(coder(0.2), lambda: batches, ["reconstruction"])}
    assert found["psnr"].value == pytest.approx(wanted, abs=0.1)
    low, high = found["psnr"].low, found["psnr"].high
    assert low is not None
    assert high is not None
    assert found["psnr"].n == 16
    assert low < found["psnr"].value < high
    finer = reconstruction(coder(0.05), batches, perceptual=False)
    assert [each.name for each in finer] == ["psnr", "ssim"]
    assert finer[0].value > high
    assert finer[1].value > found["ssim"].value


def test_what_cannot_be_asked() -> None:
    with pytest.raises(InvalidInput, match="no pictures"):
        reconstruction(coder(0.1), [], perceptual=False)
    model = coder(0.1)
    model.denoiser = nn.Identity()
    with pytest.raises(InvalidInput, match="has no autoencoder"):
        reconstruction(model, [])
    with pytest.raises(InvalidInput, match="11 pixels"):
        ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
