"""EfficientNet-Lite: published sizes, TensorFlow's padding, the public names of weights."""

import math

import pytest
import torch

from sfumato.networks.efficientnet import EfficientNetLite, SameConv2d, from_public_keys


@pytest.mark.parametrize(
    ("width", "depth", "parameters"),
    [
        (1, 1, 4_652_008),
        (1, 1.1, 5_416_680),
        (1.1, 1.2, 6_092_072),
        (1.2, 1.4, 8_197_096),
        (1.4, 1.8, 13_006_568),
    ],
)
def test_published_parameter_counts(width, depth, parameters):
    with torch.device("meta"):
        network = EfficientNetLite(width, depth)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 8, 13])
def test_same_padding_reads_where_tensorflow_reads(kernel, stride, size):
    conv = SameConv2d(1, 1, kernel, stride, bias=False)
    weight = torch.arange(1.0, kernel * kernel + 1).reshape(1, 1, kernel, kernel)
    conv.weight.data = weight
    x = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    out = math.ceil(size / stride)
    before = max((out - 1) * stride + kernel - size, 0) // 2
    expected = torch.zeros(1, 1, out, out)
    for row in range(out):
        for column in range(out):
            for i in range(kernel):
                for j in range(kernel):
                    y, z = row * stride + i - before, column * stride + j - before
                    if 0 <= y < size and 0 <= z < size:
                        expected[0, 0, row, column] += weight[0, 0, i, j] * x[0, 0, y, z]
    torch.testing.assert_close(conv(x), expected)


def test_any_size_gives_1280_features_and_the_classes():
    network = EfficientNetLite(classes=7).eval()
    with torch.no_grad():
        for size in ((64, 64), (33, 50)):
            images = torch.zeros(2, 3, *size)
            assert network.pooled(images).shape == (2, 1280)
            assert network(images).shape == (2, 7)


def test_the_picture_reaches_every_feature():
    torch.manual_seed(0)
    network = EfficientNetLite().train()
    images = torch.randn(4, 3, 64, 64, requires_grad=True)
    network.pooled(images).square().sum().backward()
    for name, parameter in network.named_parameters():
        if not name.startswith("fc"):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_public_names_map_onto_every_weight():
    names = EfficientNetLite().state_dict().keys()
    published = {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.running_mean": "bn0.running_mean",
        "_blocks.0._depthwise_conv.weight": "blocks.0.depthwise_conv.weight",
        "_blocks.15._bn2.num_batches_tracked": "blocks.15.bn2.num_batches_tracked",
        "_conv_head.weight": "conv_head.weight",
        "_fc.bias": "fc.bias",
    }
    for key, own in published.items():
        assert list(from_public_keys({key: torch.zeros(1)})) == [own]
        assert own in names
    assert len(names) == 296
