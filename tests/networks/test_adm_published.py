"""ADM by name: the published settings and their sizes."""

from __future__ import annotations

import pytest
import torch

from sfumato.core.errors import NotFound
from sfumato.networks.adm import ADM, PUBLISHED

COUNTS: dict[str, int | float] = {
    "imagenet_64": 295_904_454,
    "imagenet_128": 421_529_606,
    "imagenet_256": 553_838_086,
    "imagenet_256_unconditional": 552_814_086,
    "lsun_256": 552_814_086,
    "imagenet_512": 558_997_638,
    "imagenet_64_to_256": 311_795_910,
    "imagenet_128_to_512": 308_835_270,
    "improved_cifar": 52.55,
    "improved_imagenet_64": 121.06,
    "improved_imagenet_64_classes": 273.05,
    "improved_lsun_256": 113.68,
    "ddpm_cifar": 35_746_307,
    "ddpm_256": 113_673_219,
}
"""Exact, or in millions to the digits published."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_has_its_published_size(name: str) -> None:
    expected = COUNTS[name]
    with torch.device("meta"):
        count = sum(p.numel() for p in ADM.published(name).parameters())
    assert count == expected if isinstance(expected, int) else round(count / 1e6, 2) == expected


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean imagenet_64"):
        ADM.published("imagenet64")
