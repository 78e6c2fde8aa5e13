"""Clip: similarities of the reference implementation, and that it learns to tell pictures by words."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from clip_recipes import IMAGE, TEXT, clip_pair, error, ids

from sfumato.core.errors import InvalidInput
from sfumato.encoders.clip import Clip
from sfumato.encoders.clip_image import ClipImage
from sfumato.encoders.clip_text import ClipText
from sfumato.registry import build, describe


@torch.no_grad()
def test_similarities_are_those_of_transformers() -> None:
    theirs, ours = clip_pair()
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    told = theirs(input_ids=ids(), pixel_values=x)
    assert error(ours(x, ids()), told.logits_per_image) < 1e-5
    assert error(ours.texts(ids()), told.text_embeds) < 1e-5
    assert error(ours.images(x), told.image_embeds) < 1e-5


@torch.no_grad()
def test_the_scale_never_exceeds_100() -> None:
    _, ours = clip_pair()
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    cosine = ours.images(x) @ ours.texts(ids()).T
    ours.logit_scale.fill_(7.0)
    assert torch.allclose(ours(x, ids()), 100 * cosine, rtol=1e-5)
    ours.cap()
    assert float(ours.logit_scale) == pytest.approx(math.log(100))
    ours.logit_scale.fill_(-1.0)
    ours.cap()
    assert float(ours.logit_scale) == 0


def test_it_comes_back_from_its_description() -> None:
    _, ours = clip_pair()
    again = build("encoder", describe(ours))
    again.load_state_dict(ours.state_dict(), strict=True)
    assert describe(again) == describe(ours)
    with pytest.raises(InvalidInput, match="a text is 32 numbers and a picture 16"):
        Clip(ClipText(**TEXT), ClipImage(**IMAGE))


def test_it_learns_which_words_go_with_which_picture() -> None:
    """Eight colours, each a token: a contrastive loss of ln 8 at first, and all told apart after."""
    torch.manual_seed(0)
    clip = Clip(ClipText(**{**TEXT, "depth": 1, "projection": 16}), ClipImage(**{**IMAGE, "depth": 1}))
    corners = torch.tensor([[r, g, b] for r in (-1.0, 1) for g in (-1.0, 1) for b in (-1.0, 1)])
    texts = torch.full((8, 4), 98)
    texts[:, 0], texts[:, 1] = 97, torch.arange(8) + 10
    optimizer = torch.optim.AdamW(clip.parameters(), 3e-3)
    labels, losses = torch.arange(8), []
    for _ in range(60):
        image = (corners[:, :, None, None] + 0.5 * torch.randn(8, 3, 16, 16)).clamp(-1, 1)
        logits = clip(clip.image.prepare(image), texts)
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clip.cap()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 < math.log(8) / 2 < losses[0]
    fresh = (corners[:, :, None, None] + 0.5 * torch.randn(8, 3, 16, 16)).clamp(-1, 1)
    assert torch.equal(clip(clip.image.prepare(fresh), texts).argmax(1), labels)
