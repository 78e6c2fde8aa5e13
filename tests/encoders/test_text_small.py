"""TextSmall: latent diffusion's text encoder, its counts, and masks that keep captions to themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sfumato.core.errors import InvalidInput
from sfumato.encoders.text_small import PUBLISHED, TextSmall
from sfumato.encoders.word_piece import WordPiece

CAPTIONS = ["a red apple left of a cat", "a cat", "the kite above the cat and the apple"]
WORDS = WordPiece.of(CAPTIONS)


def small(**settings: Any) -> TextSmall:
    torch.manual_seed(0)
    return TextSmall(
        WORDS, **{"width": 24, "depth": 2, "heads": 2, "dim_head": 8, "length": 16, **settings}
    ).eval()


def theirs_to_ours(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of diffusers' port → those of latent diffusion."""
    found = {}
    for name, tensor in theirs.items():
        name = name.removeprefix("model.")
        name = name.replace("embed_tokens", "token_emb").replace("embed_positions", "pos_emb.emb")
        if name.startswith("layers."):
            number, rest = name.removeprefix("layers.").split(".", 1)
            for mine, place in [
                ("self_attn_layer_norm", "0.0"),
                ("self_attn.q_proj", "0.1.to_q"),
                ("self_attn.k_proj", "0.1.to_k"),
                ("self_attn.v_proj", "0.1.to_v"),
                ("self_attn.out_proj", "0.1.to_out"),
                ("final_layer_norm", "1.0"),
                ("fc1", "1.1.net.0.0"),
                ("fc2", "1.1.net.2"),
            ]:
                if rest.startswith(mine):
                    half, inside = place.split(".", 1)
                    layer = 2 * int(number) + int(half)
                    name = f"attn_layers.layers.{layer}.{inside}{rest.removeprefix(mine)}"
        found[name.replace("layer_norm.", "norm.") if name.startswith("layer_norm") else name] = tensor
    return found


@torch.no_grad()
def test_it_is_latent_diffusions() -> None:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    count = len(WORDS.vocabulary)
    config = LDMBertConfig(
        vocab_size=count,
        max_position_embeddings=16,
        encoder_layers=2,
        encoder_ffn_dim=96,
        d_model=24,
        encoder_attention_heads=2,
        head_dim=8,
    )
    theirs = LDMBertModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    ours = small(masked=False, logits=True)
    ours.load_state_dict(theirs_to_ours(theirs.state_dict()), strict=True)
    ids, real = ours.lay(CAPTIONS)
    assert real is None
    assert ids.shape == (3, 16)
    told = theirs.model(ids)[0]
    assert float((ours(ids) - told).abs().max() / told.abs().max()) < 1e-5


@pytest.mark.parametrize("name, count", [("ldm_text", 581_994_042), ("ldm_text_256", 186_154_682)])
def test_published_counts(name: str, count: int) -> None:
    assert name in PUBLISHED
    with torch.device("meta"):
        assert sum(p.numel() for p in TextSmall.published(name).parameters()) == count


@torch.no_grad()
def test_a_masked_caption_is_the_same_in_any_company() -> None:
    encoder = small()
    ids, real = encoder.lay(CAPTIONS)
    together = encoder(ids, real)
    for row, caption in enumerate(CAPTIONS):
        alone = encoder(*encoder.lay([caption]))
        assert torch.allclose(together[row, : alone.shape[1]], alone[0], atol=1e-5)
        assert int(real[row].sum()) == alone.shape[1]
    forward = encoder(ids[:, :4])
    changed = ids[:, :4].clone()
    changed[:, 3] = 5
    assert not torch.allclose(encoder(changed)[:, 1], forward[:, 1], atol=1e-4), "words see those after them"


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidInput, match="15 tokens, and there is room for 14"):
        small().lay(["cat " * 15])
    with pytest.raises(InvalidInput, match="pieces and 5 ids"):
        small(vocabulary=5)
    with pytest.raises(InvalidInput, match="too small"):
        small(length=2)
