"""The tables of CLIP's names: nothing is lost there and back, and the original outputs are ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sfumato.checkpoints import clip_keys as keys
from sfumato.core.errors import InvalidInput, KeyMismatch
from sfumato.encoders.clip import Clip
from sfumato.encoders.clip_image import ClipImage
from sfumato.encoders.clip_text import PUBLISHED, ClipText

TEXT = ClipText(32, 2, 4, vocabulary=99, length=12, projection=16, end=98)
IMAGE = ClipImage(16, 4, 24, 2, 3, projection=16)


class Original(nn.Module):
    """The text tower as OpenAI's and OpenCLIP's files name it, by torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(99, 32)
        self.positional_embedding = nn.Parameter(torch.randn(12, 32))
        blocks = [nn.ModuleDict() for _ in range(2)]
        for block in blocks:
            block["ln_1"], block["ln_2"] = nn.LayerNorm(32), nn.LayerNorm(32)
            block["attn"] = nn.MultiheadAttention(32, 4, batch_first=True)
            block["mlp"] = nn.ModuleDict({"c_fc": nn.Linear(32, 128), "c_proj": nn.Linear(128, 32)})
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        self.ln_final = nn.LayerNorm(32)
        self.text_projection = nn.Parameter(torch.randn(32, 16))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("attn_mask", torch.full((12, 12), -torch.inf).triu(1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h: Any = self.token_embedding(ids) + self.positional_embedding
        for block in self.transformer["resblocks"]:
            n = block["ln_1"](h)
            h = h + block["attn"](n, n, n, attn_mask=self.attn_mask, need_weights=False)[0]
            inner = block["mlp"]["c_fc"](block["ln_2"](h))
            h = h + block["mlp"]["c_proj"](inner * torch.sigmoid(1.702 * inner))
        return self.ln_final(h)[torch.arange(len(ids)), ids.argmax(1)] @ self.text_projection


@torch.no_grad()
def test_weights_under_the_original_names_give_the_original_outputs() -> None:
    torch.manual_seed(0)
    original = Original().eval()
    for parameter in original.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    tower = ClipText(32, 2, 4, vocabulary=99, length=12, projection=16, end=98)
    tower.load_state_dict(keys.from_openclip(keys.text_rows(tower), original.state_dict(), "it"), strict=True)
    ids = torch.randint(0, 98, (3, 12))
    ids[:, 7] = 98
    told = original(ids)
    assert float((tower(ids).pooled - told).abs().max() / told.abs().max()) < 1e-5
    back = keys.to_openclip(keys.text_rows(tower), tower.state_dict(), "us")
    for name, tensor in back.items():
        assert torch.equal(tensor, original.state_dict()[name])
    assert set(original.state_dict()) - set(back) == {"logit_scale", "attn_mask"}


@pytest.mark.parametrize(
    "rows, module",
    [
        (keys.text_rows(TEXT), TEXT),
        (keys.image_rows(IMAGE), IMAGE),
        (keys.clip_rows(Clip(TEXT, IMAGE)), Clip(TEXT, IMAGE)),
    ],
    ids=["text", "image", "both"],
)
def test_there_and_back(rows: Any, module: nn.Module) -> None:
    ours = module.state_dict()
    there = keys.to_openclip(rows, ours, "us")
    assert len(there) == len({row.ours for row in rows}) == len(rows)
    back = keys.from_openclip(rows, there, "them")
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)


@torch.no_grad()
def test_an_image_tower_has_the_original_layout() -> None:
    there = keys.to_openclip(keys.image_rows(IMAGE), IMAGE.state_dict(), "us")
    x = torch.randn(2, 3, 16, 16)
    h = F.conv2d(x, there["visual.conv1.weight"], stride=4).flatten(2).transpose(1, 2)
    h = (
        torch.cat((there["visual.class_embedding"].expand(2, 1, -1), h), 1)
        + there["visual.positional_embedding"]
    )
    h = F.layer_norm(h, (24,), there["visual.ln_pre.weight"], there["visual.ln_pre.bias"])
    assert torch.allclose(IMAGE.hidden_states(x)[0], h, atol=1e-5)
    last = F.layer_norm(
        IMAGE(x).states[:, 0], (24,), there["visual.ln_post.weight"], there["visual.ln_post.bias"]
    )
    assert torch.allclose(IMAGE(x).pooled, last @ there["visual.proj"], atol=1e-5)


def test_names_of_published_files() -> None:
    """A few of the names people's files have, letter by letter."""
    names = {
        row.ours for row in keys.text_rows(ClipText(**{**PUBLISHED["clip_b32"], "width": 64, "heads": 1}))
    }
    assert len(names) == 12 * 12 + 5
    assert {
        "token_embedding.weight",
        "positional_embedding",
        "transformer.resblocks.11.attn.in_proj_weight",
        "transformer.resblocks.0.attn.in_proj_bias",
        "transformer.resblocks.0.attn.out_proj.weight",
        "transformer.resblocks.0.ln_2.bias",
        "transformer.resblocks.0.mlp.c_proj.weight",
        "ln_final.weight",
        "text_projection",
    } <= names
    assert "text_model.encoder.layers.0.self_attn.k_proj.weight" in TEXT.state_dict()
    assert "vision_model.pre_layrnorm.weight" in IMAGE.state_dict()


def test_older_and_newer_names_of_transformers_are_read() -> None:
    ours = ClipText(32, 2, 4, vocabulary=99, length=12).state_dict()
    bare = {name.removeprefix("text_model."): tensor for name, tensor in ours.items()}
    older = {**ours, "text_model.embeddings.position_ids": torch.arange(12)[None]}
    for theirs in (bare, older):
        read = keys.from_transformers(theirs)
        assert read.keys() == ours.keys()
    both = Clip(TEXT, IMAGE).state_dict()
    assert keys.clip_from_transformers(keys.clip_to_transformers(both)).keys() == both.keys()


def test_what_is_missing_or_left_over_is_told() -> None:
    rows = keys.text_rows(TEXT)
    there = keys.to_openclip(rows, TEXT.state_dict(), "us")
    with pytest.raises(KeyMismatch, match=r"it: .*missing: ln_final\.bias"):
        keys.from_openclip(rows, {n: t for n, t in there.items() if n != "ln_final.bias"}, "it")
    with pytest.raises(KeyMismatch, match="1 unexpected: more"):
        keys.from_openclip(rows, {**there, "more": torch.ones(1)}, "it")
    plain = ClipText(32, 2, 4, vocabulary=99, length=12)
    assert "text_projection.weight" not in keys.from_openclip(keys.text_rows(plain), there, "it")


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_settings_are_found_by_shapes(name: str) -> None:
    with torch.device("meta"):
        tower = ClipText.published(name)
    shapes = {key: tuple(tensor.shape) for key, tensor in tower.state_dict().items()}
    found = ClipText.__dataclass_fields__
    told = keys.text_settings(shapes, "it")
    assert {key: getattr(tower, key) for key in told} == told
    assert told.keys() <= found.keys()


@pytest.mark.parametrize("name", ["clip_b32", "clip_l14_336", "openclip_h14", "openclip_bigg14"])
def test_settings_of_image_towers_are_found_by_shapes(name: str) -> None:
    with torch.device("meta"):
        tower = ClipImage.published(name)
    told = keys.image_settings({key: tuple(tensor.shape) for key, tensor in tower.state_dict().items()}, "it")
    assert {key: getattr(tower, key) for key in told} == told
    with pytest.raises(InvalidInput, match="not those of a tower"):
        keys.image_settings({}, "it")
