"""DiT: published sizes, parity with diffusers, positions, what it starts as."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from network_recipes import drawn, normal, randomised
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.networks.dit import DiT, positions
from sfumato.networks.layers.transformer import TransformerBlock

# Published sizes --------------------------------------------------------------------------------------------

# Trainable parameters of patch 2 in millions (the table of positions, d · 256, is not one), and GMACs of a
# 32 x 32 latent at patch 2, 4 and 8.
PUBLISHED = {
    "S": (32.87, (6.06, 1.41, 0.36)),
    "B": (130.32, (23.01, 5.57, 1.42)),
    "L": (457.84, (80.70, 19.70, 5.01)),
    "XL": (674.83, (118.6, 29.04, 7.39)),
}
_WIDTHS = {"S": (384, 12), "B": (768, 12), "L": (1024, 24), "XL": (1152, 28)}


@pytest.mark.parametrize("size", PUBLISHED)
@pytest.mark.parametrize(("place", "patch"), [(0, 2), (1, 4), (2, 8)])
def test_published_sizes(size: str, place: int, patch: int) -> None:
    millions, gmacs = PUBLISHED[size]
    d, depth = _WIDTHS[size]
    with torch.device("meta"):
        network = DiT.published(size, patch)
        count = sum(p.numel() for p in network.parameters())
        with FlopCounterMode(display=False) as counter:
            vector = torch.zeros(1, 1001)
            out = network(torch.zeros(1, 4, 32, 32), torch.zeros(1), Condition(vector=vector))
    assert out.shape == (1, 8, 32, 32)
    # Patches, time, classes; qkv, projection, feed-forward and modulation of each block; the last layer.
    enter = (4 * patch**2 + 1) * d + (256 + 1) * d + (d + 1) * d + 1001 * d
    assert count == enter + depth * (18 * d**2 + 15 * d) + 2 * (d + 1) * d + (d + 1) * 8 * patch**2
    if patch == 2:
        assert round(count / 1e6, 2) == millions
    if (size, patch) == ("S", 2):
        assert count == 32_865_056
    # The smallest is published with two digits only.
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs[place], rel=5e-3, abs=5e-3)


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(NotFound, match="size"):
        DiT.published("XS")


def test_state_dict_names_are_the_published_ones() -> None:
    with torch.device("meta"):
        keys = set(DiT.published("S").state_dict())
    block = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
    modules = [
        "x_embedder.proj",
        "t_embedder.mlp.0",
        "t_embedder.mlp.2",
        *(f"blocks.{i}.{layer}" for i in range(12) for layer in block),
        "final_layer.linear",
        "final_layer.adaLN_modulation.1",
    ]
    expected = {f"{m}.{part}" for m in modules for part in ("weight", "bias")}
    assert keys == expected | {"y_embedder.embedding_table.weight"}


# Parity with diffusers --------------------------------------------------------------------------------------

_OUTER = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "transformer_blocks.0.norm1.emb.class_embedder.embedding_table",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}


@pytest.mark.parametrize("patch", [2, 4])
def test_parity_with_diffusers(patch: int) -> None:
    network = DiT(in_channels=3, out_channels=6, patch=patch, width=32, depth=3, heads=4, classes=6).eval()
    reference = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=3,
        sample_size=16,
        patch_size=patch,
        num_embeds_ada_norm=5,
        # The published code has 1e-6 in both norms of a block.
        norm_eps=1e-6,
    ).eval()
    theirs = drawn(reference.state_dict(), 1)
    # There each block has an embedder of its own; a published file fills them all alike.
    for key in theirs:
        if ".norm1.emb." in key:
            theirs[key] = theirs["transformer_blocks.0." + key.split(".", 2)[2]]
    reference.load_state_dict(theirs)
    # diffusers spaces the frequencies by 1 / 127 where the published code, which the recorded outputs above
    # come from, has 1 / 128.
    for block in reference.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    names = dict(_OUTER)
    for i in range(network.depth):
        names |= {f"blocks.{i}.{a}": f"transformer_blocks.{i}.{b}" for a, b in _BLOCK.items()}
    ours = {}
    for mine, his in names.items():
        for part in ("weight", "bias"):
            if f"{his}.{part}" in theirs:
                ours[f"{mine}.{part}"] = theirs[f"{his}.{part}"]
    for i in range(network.depth):
        for part in ("weight", "bias"):
            three = [theirs[f"transformer_blocks.{i}.attn1.to_{x}.{part}"] for x in "qkv"]
            ours[f"blocks.{i}.attn.qkv.{part}"] = torch.cat(three)
    network.load_state_dict(ours)
    x, time, labels = normal(2, 3, 16, 16), torch.tensor([3, 950]), torch.tensor([1, 5])
    with torch.no_grad():
        expected = reference(x, time, class_labels=labels).sample
        out = network(x, time.float(), Condition(vector=torch.eye(6)[labels]))
    assert expected.std() > 0.1
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


# Positions --------------------------------------------------------------------------------------------------


def test_positions_are_columns_then_rows() -> None:
    table = positions(2, 3, 8).view(2, 3, 8).double()
    for row in range(2):
        for column in range(3):
            expected = []
            for place in (column, row):
                angles = [place, place / 100]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert table[row, column].tolist() == pytest.approx(expected, abs=1e-7)


# Initialisation ---------------------------------------------------------------------------------------------

TINY: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "width": 32,
    "depth": 2,
    "heads": 4,
    "classes": 4,
    "tokens": 5,
}


def test_output_is_zero_and_blocks_are_identities_at_initialisation() -> None:
    network = DiT(**TINY)
    seen = []

    def check(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert torch.equal(output, inputs[0])
        seen.append(module)

    blocks = [m for m in network.modules() if isinstance(m, TransformerBlock)]
    for block in blocks:
        block.register_forward_hook(check)
    condition = Condition(vector=torch.eye(4)[:2], tokens=normal(2, 3, 5))
    out = network(normal(2, 3, 8, 8), torch.tensor([1.0, 2.0]), condition)
    assert out.shape == (2, 3, 8, 8)
    assert not out.any()
    assert seen == blocks
    assert len(blocks) == TINY["depth"]


def test_weights_are_drawn_as_published() -> None:
    torch.manual_seed(0)
    network = DiT(width=64, depth=2, heads=4, classes=50)
    zero = [n for n, p in network.named_parameters() if p.ndim > 1 and not p.any()]
    assert zero == [
        *(f"blocks.{i}.adaLN_modulation.1.weight" for i in range(2)),
        "final_layer.linear.weight",
        "final_layer.adaLN_modulation.1.weight",
    ]
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            assert not parameter.any(), name
        elif name not in zero:
            out, into = parameter.flatten(1).shape
            small = name.startswith(("t_embedder", "y_embedder"))
            std = 0.02 if small else math.sqrt(2 / (into + out))
            assert parameter.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * parameter.numel())), (
                name
            )


# Condition slots --------------------------------------------------------------------------------------------

X, TIME = normal(2, 3, 8, 8), torch.tensor([10.0, 700.0])


@pytest.fixture(scope="module")
def network() -> DiT:
    return randomised(DiT(**TINY))


def run(network: DiT, x: Tensor = X, time: Tensor = TIME, **slots: Any) -> Tensor:
    with torch.no_grad():
        return network(x, time, Condition(**slots))


def differ(a: Tensor, b: Tensor) -> bool:
    return not torch.allclose(a, b, atol=1e-3)


def test_no_class_is_a_zero_vector_and_classes_mix_linearly(network: DiT) -> None:
    vector = torch.tensor([[0.2, 0.0, 0.5, 0.3], [0.0, 1.0, 0.0, 0.0]])
    assert torch.equal(run(network), run(network, vector=torch.zeros(2, 4)))
    assert differ(run(network), run(network, vector=vector))
    assert network.y_embedder is not None
    told = network.y_embedder(vector)
    rows = network.y_embedder(torch.eye(4))
    torch.testing.assert_close(told[0], 0.2 * rows[0] + 0.5 * rows[2] + 0.3 * rows[3])
    torch.testing.assert_close(told[1], rows[1])


def test_widths_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidInput, match="width"):
        DiT(width=30, heads=2)
    with pytest.raises(InvalidInput, match="heads"):
        DiT(width=32, heads=5)


def test_patches_go_back_where_they_came_from() -> None:
    """With blocks switched off, a last layer that undoes the first gives x back, patch by patch."""
    network = DiT(in_channels=3, out_channels=3, patch=2, width=16, depth=1, heads=2)
    nn.init.zeros_(network.x_embedder.proj.weight)
    # Twelve features hold the patch (row, column, channel).
    for i in range(12):
        row, column, channel = i // 6, i // 3 % 2, i % 3
        network.x_embedder.proj.weight.data[i, channel, row, column] = 1
        network.final_layer.linear.weight.data[i, i] = 1
    x = normal(1, 3, 4, 6)
    grid = positions(2, 3, 16)
    tokens = network.x_embedder(x)[0] + grid
    patches = nn.functional.layer_norm(tokens, (16,), eps=1e-6)[:, :12]
    out = run(network, x, torch.zeros(1))
    expected = patches.view(2, 3, 2, 2, 3).permute(4, 0, 2, 1, 3).reshape(1, 3, 4, 6)
    torch.testing.assert_close(out, expected)
