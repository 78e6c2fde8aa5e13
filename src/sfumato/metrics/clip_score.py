"""CLIP score and retrieval: how well pictures show what their texts say, by a network of two towers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput, NotFinite
from sfumato.metrics.estimate import Estimate, half_width, wilson


class Judge(Protocol):
    """Two towers that meet in one space: texts and pictures (B, 3, H, W) in [-1, 1] to rows of length 1."""

    def texts(self, captions: Sequence[str], /) -> Tensor: ...

    def images(self, image: Tensor, /) -> Tensor: ...


@torch.no_grad()
def clip_score(
    judge: Judge, images: Tensor, captions: Sequence[str], *, name: str = "judge", batch: int = 64
) -> Estimate:
    """100 max(cos, 0) of each picture with its own text, on average, with the normal 95 % interval.

    Scores of different judges never compare, and one says little without that of real pictures beside it.

    Hessel et al. 2021, "CLIPScore", arXiv:2104.08718, section 3, there times 2.5 in place of 100.

    Args:
        judge: what compares.
        images: (B, 3, H, W) in [-1, 1].
        captions: B texts.
        name: of the judge, for the label.
        batch: pictures a forward pass.

    Raises:
        InvalidInput: fewer than two pictures, or other than one text for each.
        NotFinite: the judge says NaN.
    """
    shown, said = _both(judge, images, captions, batch)
    scores = 100 * (shown * said).sum(1).clamp_min(0)
    value, n = float(scores.mean()), len(scores)
    half = half_width(float(scores.std()) / n**0.5, n - 1)
    return Estimate("clip_score", value, value - half, value + half, n, 0, name)


@torch.no_grad()
def retrieval(
    judge: Judge,
    images: Tensor,
    captions: Sequence[str],
    *,
    first: int = 1,
    among: int = 100,
    seed: int = 0,
    name: str = "judge",
    batch: int = 64,
) -> Estimate:
    """Share of pictures whose own text is among the first few of so many, with its Wilson interval.

    The others are drawn for each picture, by seed, from those of the texts that say something else. Of real
    pictures it says how good the judge is; of generated ones how well they show what was asked.

    Args:
        judge: what compares.
        images: (B, 3, H, W) in [-1, 1].
        captions: B texts.
        first: how many count as found.
        among: how many texts there are to choose from, the own one included.
        seed: of the draw.
        name: of the judge, for the label.
        batch: pictures a forward pass.

    Raises:
        InvalidInput: fewer other texts than are to be drawn, or other than one text a picture.
        NotFinite: the judge says NaN.
    """
    others = [sum(other != text for other in captions) for text in captions]
    if not 1 <= first <= among or not others or min(others) < among - 1:
        raise InvalidInput(
            f"the first {first} of {among} texts, of which {min(others, default=0)} others are there",
            where="retrieval",
            do="give more pictures, or choose among fewer",
        )
    shown, said = _both(judge, images, captions, batch)
    near = shown @ said.T
    order = torch.rand(near.shape, generator=torch.Generator().manual_seed(seed))
    order[torch.tensor([[one == other for other in captions] for one in captions])] = -1
    drawn = near.gather(1, order.topk(among - 1).indices)
    ahead = (drawn >= near.diagonal()[:, None]).sum(1)
    found = int((ahead < first).sum())
    low, high = wilson(found, len(shown))
    return Estimate(f"recall@{first}/{among}", found / len(shown), low, high, len(shown), 0, name)


def _both(judge: Judge, images: Tensor, captions: Sequence[str], batch: int) -> tuple[Tensor, Tensor]:
    """Rows of length 1 of pictures and texts, float64 on the CPU."""
    if len(images) != len(captions) or len(images) < 2:
        raise InvalidInput(f"{len(images)} pictures and {len(captions)} texts", where="images")
    shown = torch.cat([judge.images(part).cpu().double() for part in torch.split(images, batch)])
    cuts = range(0, len(captions), batch)
    said = torch.cat([judge.texts(captions[i : i + batch]).cpu().double() for i in cuts])
    if not (torch.isfinite(shown).all() and torch.isfinite(said).all()):
        raise NotFinite("the judge says NaN or infinity", where="judge")
    return shown, said
