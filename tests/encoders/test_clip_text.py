"""ClipText: every layer of the reference implementation, and what the published towers count."""

from __future__ import annotations

import pytest
import torch
from clip_recipes import TEXT, error, ids, text_pair

from sfumato.core.errors import InvalidInput, NotFound
from sfumato.encoders.clip_text import PUBLISHED, ClipText


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("projected", [False, True])
@torch.no_grad()
def test_all_layers_are_those_of_transformers(projected: bool, activation: str) -> None:
    theirs, ours = text_pair(projected, activation)
    tokens = ids()
    told = theirs(tokens, output_hidden_states=True)
    states = ours.hidden_states(tokens)
    assert len(states) == len(told.hidden_states) == 4
    for mine, other in zip(states, told.hidden_states, strict=True):
        assert error(mine, other) < 1e-5
    encoded = ours(tokens)
    assert error(encoded.states, told.last_hidden_state) < 1e-5
    assert error(encoded.pooled, told.text_embeds if projected else told.pooler_output) < 1e-5
    penultimate = ours(tokens, layer=-2, norm=False, pooled=False)
    assert error(penultimate.states, told.hidden_states[-2]) < 1e-5
    assert penultimate.pooled is None


@torch.no_grad()
def test_the_end_is_where_the_highest_id_is_or_where_it_says() -> None:
    """transformers takes an eos id of 2 for the older rule."""
    theirs, ours = text_pair(False, end=2)
    tokens = ids()
    tokens[:, 5] = 2
    assert ours.end == -1
    assert error(ours(tokens).pooled, theirs(tokens).pooler_output) < 1e-5
    theirs, ours = text_pair(False, end=50)
    tokens = ids().where(ids() != 50, 51)
    tokens[torch.arange(4), torch.tensor([2, 3, 4, 5])] = 50
    tokens[:, 9] = 50
    assert error(ours(tokens).pooled, theirs(tokens).pooler_output) < 1e-5
    assert torch.equal(ours(tokens).pooled, ours(tokens).states[torch.arange(4), [2, 3, 4, 5]])


@torch.no_grad()
def test_a_token_sees_those_before_it_alone() -> None:
    _, ours = text_pair(True)
    tokens, changed = ids(1), ids(1)
    changed[0, 7:] = 5
    changed[0, 3] = 98
    tokens[0, 3] = 98
    assert torch.equal(ours(tokens).states[:, :7], ours(changed).states[:, :7])
    assert not torch.allclose(ours(tokens).states[:, 7:], ours(changed).states[:, 7:])
    assert torch.equal(ours(tokens).pooled, ours(changed).pooled)  # type: ignore[arg-type]


@torch.no_grad()
def test_the_final_norm_and_the_layer_are_a_choice() -> None:
    _, ours = text_pair(False)
    tokens = ids()
    last = ours.text_model["final_layer_norm"]
    for layer in range(4):
        states = ours.hidden_states(tokens)[layer]
        assert torch.equal(ours(tokens, layer, norm=False).states, states)
        assert torch.equal(ours(tokens, layer - 4, norm=True).states, last(states))
        assert torch.equal(ours(tokens, layer).pooled, ours(tokens).pooled)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name, count",
    [
        ("clip_l14", 123_060_480),
        ("openclip_bigg14", 694_659_840),
        ("openclip_h14", 352_984_064),
        ("openclip_h14_penultimate", 340_387_840),
    ],
)
def test_published_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in ClipText.published(name).parameters()) == count


def test_it_starts_as_clip_was_started() -> None:
    torch.manual_seed(0)
    tower = ClipText(width=256, depth=2, heads=4, vocabulary=500, projection=64)
    layer = tower.text_model["encoder"].layers[1]
    for parameter, deviation in [
        (tower.text_model["embeddings"]["token_embedding"].weight, 0.02),
        (tower.text_model["embeddings"]["position_embedding"].weight, 0.01),
        (layer.self_attn.q_proj.weight, 256**-0.5),
        (layer.self_attn.out_proj.weight, (256 * 4) ** -0.5),
        (layer.mlp.fc1.weight, 512**-0.5),
        (layer.mlp.fc2.weight, (256 * 4) ** -0.5),
        (tower.text_projection.weight, 256**-0.5),
    ]:
        assert float(parameter.detach().std()) == pytest.approx(deviation, rel=0.03)
    assert not layer.mlp.fc1.bias.any()


def test_what_cannot_be_is_refused() -> None:
    tower = ClipText(**TEXT)
    with pytest.raises(InvalidInput, match="13 tokens, 12 at most"):
        tower(torch.zeros(1, 13, dtype=torch.int64))
    with pytest.raises(InvalidInput, match="no layer 4"):
        tower(ids(), layer=4)
    with pytest.raises(InvalidInput, match="fall into 5 heads"):
        ClipText(**{**TEXT, "heads": 5})
    with pytest.raises(NotFound, match="clip_l14"):
        ClipText.published("clip_l41")
    assert "openclip_h14" in PUBLISHED
