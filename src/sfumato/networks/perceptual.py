"""Perceptual distance: how different two pictures look, by the features of a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput, KeyMismatch
from sfumato.networks.released import read_tensors
from sfumato.networks.vgg16 import CHANNELS, VGG16

_LEAST = 1e-10


class Perceptual(nn.Module):
    """The distance of two pictures' features, each place's scaled to unit length.

        d(x, y) = Σ_l mean over places of Σ_c w_lc (x_lc / ‖x_l‖ - y_lc / ‖y_l‖)²

    Without weights of LPIPS all w are 1/5, the mean over the five layers of 2 - 2 cos of the angle between
    features. It is computed in float32 at least, whatever the context.

    Zhang, Isola, Efros, Shechtman & Wang 2018, "The Unreasonable Effectiveness of Deep Features as a
    Perceptual Metric", arXiv:1801.03924, equation 1.

    Args:
        network: the features, frozen here.
        weights: of each layer's channels, at least 0; None for even ones.
        name: of network and weights, for results.

    Raises:
        InvalidInput: weights of other layers, or below 0.
    """

    weights: Tensor

    def __init__(self, network: VGG16, weights: list[Tensor] | None = None, name: str = "perceptual") -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.name = name
        given = [torch.full((c,), 1 / len(CHANNELS)) for c in CHANNELS] if weights is None else weights
        if [tuple(each.shape) for each in given] != [(c,) for c in CHANNELS]:
            raise InvalidInput(f"needs weights for layers of {CHANNELS} channels", where="perceptual.weights")
        if min(float(each.min()) for each in given) < 0:
            raise InvalidInput("no weight of a distance is below 0", where="perceptual.weights")
        self.register_buffer("weights", torch.cat(given), persistent=False)

    @staticmethod
    def pretrained(trunk: str | Path | None = None, heads: str | Path | None = None) -> Perceptual:
        """The distance by weights learnt on ImageNet: see `VGG16.pretrained`.

        Args:
            trunk: a file of torchvision's VGG16; None for the package's, which is near it in use and another
                distance in numbers.
            heads: a file of LPIPS' weights for VGG16 (lin0.model.1.weight to lin4), which were learnt on
                torchvision's channels and fit no others.

        Raises:
            InvalidInput: heads without a trunk.
            What `VGG16.pretrained` raises, for either file.
        """
        if heads is not None and trunk is None:
            raise InvalidInput(
                "the weights of LPIPS belong to torchvision's VGG16",
                where="heads",
                do="give its file as trunk too",
            )
        name = "vgg16-hed" if trunk is None else "vgg16" if heads is None else "lpips-vgg16"
        weights = None if heads is None else _heads(read_tensors(Path(heads)), str(heads))
        return Perceptual(VGG16.pretrained(trunk), weights, name)

    def train(self, mode: bool = True) -> Perceptual:
        """Nothing is trained here."""
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (B,) of pictures (B, 1 or 3, H, W) in [-1, 1], differentiable in both."""
        if x.shape != y.shape:
            raise InvalidInput(f"{tuple(x.shape)} and {tuple(y.shape)} do not compare", where="perceptual")
        with torch.autocast(x.device.type, enabled=False):
            pair = torch.cat((x, y)).to(self.network.shift.dtype)
            total = pair.new_zeros(len(x))
            layers = zip(self.network(pair), torch.split(self.weights, list(CHANNELS)), strict=True)
            for features, weights in layers:
                # Under the root, not beside it: the gradient of features that are all 0 stays finite.
                unit = features / (features.square().sum(1, keepdim=True) + _LEAST).sqrt()
                one, other = unit.chunk(2)
                total = total + ((one - other).square() * weights.view(1, -1, 1, 1)).sum(1).mean((1, 2))
        return total


def _heads(tensors: Mapping[str, Tensor], where: str) -> list[Tensor]:
    found = []
    for number, channels in enumerate(CHANNELS):
        tensor = tensors.get(f"lin{number}.model.1.weight")
        if tensor is None or tensor.numel() != channels:
            raise KeyMismatch(f"no weights of {channels} channels for layer {number}", where=where)
        found.append(tensor.flatten().float())
    return found
