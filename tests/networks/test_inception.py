"""The FID Inception-v3: published size, names, its pooling, and numbers recorded from torch-fidelity."""

import pytest
import torch
from torch.nn import functional

from sfumato.metrics.features import resize_like_tensorflow1
from sfumato.networks.inception import InceptionV3, Mixed, from_public_keys


def test_published_parameter_count():
    # torchvision publishes 27,161,264 for 1000 classes with the auxiliary head of 3,326,696.
    with torch.device("meta"):
        assert sum(p.numel() for p in InceptionV3(1000).parameters()) == 27_161_264 - 3_326_696
        assert sum(p.numel() for p in InceptionV3().parameters()) == 27_161_264 - 3_326_696 + 8 * 2049


def test_public_names():
    with torch.device("meta"):
        names = InceptionV3().state_dict().keys()
    # 94 convolutions with a batch normalisation of five tensors, and the last layer.
    assert len(names) == 94 * 6 + 2
    for key in (
        "Conv2d_1a_3x3.conv.weight",
        "Conv2d_4a_3x3.bn.running_var",
        "Mixed_5b.branch5x5_2.conv.weight",
        "Mixed_6a.branch3x3.bn.bias",
        "Mixed_6e.branch7x7dbl_5.conv.weight",
        "Mixed_7a.branch7x7x3_4.bn.weight",
        "Mixed_7c.branch3x3dbl_3b.conv.weight",
        "Mixed_7c.branch_pool.bn.running_mean",
        "fc.weight",
    ):
        (own,) = from_public_keys({key: torch.zeros(1)})
        assert own in names, key


def test_shapes_of_every_stage():
    with torch.device("meta"):
        network = InceptionV3()
        shapes = {}
        for name, child in network.named_children():
            child.register_forward_hook(
                lambda module, given, out, name=name: shapes.update({name: tuple(out.shape[1:])})
            )
        assert network(torch.empty(2, 3, 299, 299)).shape == (2, 1008)
    assert shapes["conv2d_2b_3x3"] == (64, 147, 147)
    assert shapes["conv2d_4a_3x3"] == (192, 71, 71)
    assert [shapes[f"mixed_5{x}"] for x in "bcd"] == [(256, 35, 35), (288, 35, 35), (288, 35, 35)]
    assert {shapes[f"mixed_6{x}"] for x in "abcde"} == {(768, 17, 17)}
    assert [shapes[f"mixed_7{x}"] for x in "abc"] == [(1280, 8, 8), (2048, 8, 8), (2048, 8, 8)]


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_pooling_does_not_see_the_padding(pool):
    block = Mixed(1, (), pool, 1).eval()
    assert block.branch_pool is not None
    block.branch_pool.conv.weight.data.fill_(1)
    pooled = block(torch.ones(1, 1, 5, 5))
    torch.testing.assert_close(pooled, torch.full((1, 1, 5, 5), 1 / (1 + 1e-3) ** 0.5))


def test_the_last_block_pools_by_maximum_and_the_others_by_mean():
    with torch.device("meta"):
        network = InceptionV3()
    pools = {name: child.pool for name, child in network.named_children() if isinstance(child, Mixed)}
    assert [name for name, pool in pools.items() if pool == "max"] == ["mixed_7c"]
    assert [name for name, pool in pools.items() if pool == "halve"] == ["mixed_6a", "mixed_7a"]
    x = torch.arange(25.0).reshape(1, 1, 5, 5)
    block = Mixed(1, (), "max", 1).eval()
    assert block.branch_pool is not None
    block.branch_pool.conv.weight.data.fill_(1)
    torch.testing.assert_close(block(x) * (1 + 1e-3) ** 0.5, functional.max_pool2d(x, 3, 1, 1))


def waves(state):
    """Weights anyone can write down again: sines of the position, scaled to keep activations near one."""
    for index, (key, value) in enumerate(sorted(state.items())):
        if not value.is_floating_point():
            continue
        wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.731 + index).reshape(
            value.shape
        )
        if key.endswith("running_var"):
            wave = 1 + wave / 2
        elif key.endswith("bn.weight"):
            wave = 1 + wave / 4
        elif value.ndim == 4:
            wave = wave * (6 / value[0].numel()) ** 0.5
        elif value.ndim == 2:
            wave = wave / value.shape[1] ** 0.5
        else:
            wave = wave / 10
        value.copy_(wave)


def test_features_and_logits_recorded_from_torch_fidelity():
    # torch-fidelity 0.4.0, its InceptionV3 with these weights and this 20 x 24 picture, in float64.
    network = InceptionV3().eval()
    waves(network.state_dict())
    network = network.double()
    levels = (torch.arange(3 * 24 * 20).reshape(1, 3, 24, 20) * 37 % 256).double()
    with torch.no_grad():
        pooled = network.pooled((resize_like_tensorflow1(levels, 299) - 128) / 128)
        logits = network.fc(pooled)
    kept = pooled[0, [0, 500, 1000, 1500, 2047]]
    torch.testing.assert_close(
        kept,
        torch.tensor([0, 0.016529299318790436, 0, 0.30598878860473633, 0]).double(),
        rtol=1e-5,
        atol=1e-6,
    )
    assert float(pooled.mean()) == pytest.approx(0.26311832666397095, rel=1e-6)
    assert float(pooled.std()) == pytest.approx(0.5462888479232788, rel=1e-6)
    recorded = torch.tensor([-0.4160536229610443, -0.9818426966667175, -1.0867260694503784]).double()
    torch.testing.assert_close(logits[0, [0, 7, 1007]], recorded, rtol=1e-5, atol=1e-6)
