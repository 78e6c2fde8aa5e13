"""Inception-v3 exactly as the Fréchet inception distance uses it: the TensorFlow graph of December 2015."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Filter(NamedTuple):
    """One convolution of a branch: its name in the weights, output channels, kernel and stride."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


# A branch is a chain of filters; a tuple of filters in last place is a fork whose outputs are concatenated.
Branch = Sequence[Filter | tuple[Filter, ...]]


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
        return functional.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Parallel branches of convolutions and one of pooling, concatenated over channels.

    Args:
        inputs: input channels.
        branches: the convolution branches in order of concatenation.
        pool: "mean" or "max" over 3x3, keeping the size; "halve" is max pooling of stride 2.
        projection: channels of the convolution behind the pooling; 0 for none.
    """

    def __init__(self, inputs: int, branches: Sequence[Branch], pool: str, projection: int = 0) -> None:
        super().__init__()
        self.branches, self.pool = branches, pool
        self.outputs = 0
        for branch in branches:
            width = inputs
            for step in branch:
                filters = step if not isinstance(step, Filter) else (step,)
                for each in filters:
                    conv = ConvNorm(width, each.channels, each.kernel, each.stride, padded=each.stride == 1)
                    self.add_module(each.name, conv)
                width = sum(each.channels for each in filters)
            self.outputs += width
        self.branch_pool = ConvNorm(inputs, projection, (1, 1)) if projection else None
        self.outputs += projection or inputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
        results = []
        for branch in self.branches:
            h = x
            for step in branch:
                filters = step if not isinstance(step, Filter) else (step,)
                h = torch.cat([self.get_submodule(each.name)(h) for each in filters], dim=1)
            results.append(h)
        results.append(self._pooled(x))
        return torch.cat(results, dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "halve":
            return functional.max_pool2d(x, 3, 2)
        if self.pool == "max":
            h = functional.max_pool2d(x, 3, 1, 1)
        else:
            # TensorFlow divides by the number of real pixels; torchvision's model counts the padding too.
            h = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return self.branch_pool(h) if self.branch_pool is not None else h


def _grid35(inputs: int, projection: int) -> Mixed:
    return Mixed(
        inputs,
        (
            (Filter("branch1x1", 64),),
            (Filter("branch5x5_1", 48), Filter("branch5x5_2", 64, (5, 5))),
            (
                Filter("branch3x3dbl_1", 64),
                Filter("branch3x3dbl_2", 96, (3, 3)),
                Filter("branch3x3dbl_3", 96, (3, 3)),
            ),
        ),
        "mean",
        projection,
    )


def _to_grid17() -> Mixed:
    return Mixed(
        288,
        (
            (Filter("branch3x3", 384, (3, 3), 2),),
            (
                Filter("branch3x3dbl_1", 64),
                Filter("branch3x3dbl_2", 96, (3, 3)),
                Filter("branch3x3dbl_3", 96, (3, 3), 2),
            ),
        ),
        "halve",
    )


def _grid17(middle: int) -> Mixed:
    return Mixed(
        768,
        (
            (Filter("branch1x1", 192),),
            (
                Filter("branch7x7_1", middle),
                Filter("branch7x7_2", middle, (1, 7)),
                Filter("branch7x7_3", 192, (7, 1)),
            ),
            (
                Filter("branch7x7dbl_1", middle),
                Filter("branch7x7dbl_2", middle, (7, 1)),
                Filter("branch7x7dbl_3", middle, (1, 7)),
                Filter("branch7x7dbl_4", middle, (7, 1)),
                Filter("branch7x7dbl_5", 192, (1, 7)),
            ),
        ),
        "mean",
        192,
    )


def _to_grid8() -> Mixed:
    return Mixed(
        768,
        (
            (Filter("branch3x3_1", 192), Filter("branch3x3_2", 320, (3, 3), 2)),
            (
                Filter("branch7x7x3_1", 192),
                Filter("branch7x7x3_2", 192, (1, 7)),
                Filter("branch7x7x3_3", 192, (7, 1)),
                Filter("branch7x7x3_4", 192, (3, 3), 2),
            ),
        ),
        "halve",
    )


def _grid8(inputs: int, pool: str) -> Mixed:
    return Mixed(
        inputs,
        (
            (Filter("branch1x1", 320),),
            (
                Filter("branch3x3_1", 384),
                (Filter("branch3x3_2a", 384, (1, 3)), Filter("branch3x3_2b", 384, (3, 1))),
            ),
            (
                Filter("branch3x3dbl_1", 448),
                Filter("branch3x3dbl_2", 384, (3, 3)),
                (Filter("branch3x3dbl_3a", 384, (1, 3)), Filter("branch3x3dbl_3b", 384, (3, 1))),
            ),
        ),
        pool,
        192,
    )


@dataclass(eq=False, repr=False)
class InceptionV3(nn.Module):
    """Inception-v3 as ported from inception-2015-12-05: the network behind every published FID.

    It differs from the textbook network in three ways that the weights depend on: average pooling does not
    count padding, the last block pools by maximum, and there are 1008 logits and no auxiliary head.

    Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision", arXiv:1512.00567;
    Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", arXiv:1706.08500.

    Args:
        classes: length of the logits.
    """

    classes: int = 1008

    def __post_init__(self) -> None:
        super().__init__()
        self.conv2d_1a_3x3 = ConvNorm(3, 32, (3, 3), 2, padded=False)
        self.conv2d_2a_3x3 = ConvNorm(32, 32, (3, 3), padded=False)
        self.conv2d_2b_3x3 = ConvNorm(32, 64, (3, 3))
        self.conv2d_3b_1x1 = ConvNorm(64, 80, (1, 1))
        self.conv2d_4a_3x3 = ConvNorm(80, 192, (3, 3), padded=False)
        self.mixed_5b = _grid35(192, 32)
        self.mixed_5c = _grid35(256, 64)
        self.mixed_5d = _grid35(288, 64)
        self.mixed_6a = _to_grid17()
        self.mixed_6b = _grid17(128)
        self.mixed_6c = _grid17(160)
        self.mixed_6d = _grid17(160)
        self.mixed_6e = _grid17(192)
        self.mixed_7a = _to_grid8()
        self.mixed_7b = _grid8(1280, "mean")
        self.mixed_7c = _grid8(2048, "max")
        self.fc = nn.Linear(2048, self.classes)

    def pooled(self, images: Tensor) -> Tensor:
        """The pool3 features.

        Args:
            images: (B, 3, 299, 299), (bytes - 128) / 128.

        Returns:
            (B, 2048).
        """
        h = self.conv2d_2b_3x3(self.conv2d_2a_3x3(self.conv2d_1a_3x3(images)))
        h = functional.max_pool2d(h, 3, 2)
        h = functional.max_pool2d(self.conv2d_4a_3x3(self.conv2d_3b_1x1(h)), 3, 2)
        h = self.mixed_5d(self.mixed_5c(self.mixed_5b(h)))
        h = self.mixed_6e(self.mixed_6d(self.mixed_6c(self.mixed_6b(self.mixed_6a(h)))))
        h = self.mixed_7c(self.mixed_7b(self.mixed_7a(h)))
        return torch.mean(h, (2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B, classes) of images (B, 3, 299, 299)."""
        logits: Tensor = self.fc(self.pooled(images))
        return logits


def from_public_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of pt_inception-2015-12-05 under the names used here (the same in lower case)."""
    return {key.lower(): value for key, value in state.items()}
