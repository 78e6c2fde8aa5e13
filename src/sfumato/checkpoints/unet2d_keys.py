"""Names of unconditional U-Nets' weights: guided diffusion's, which are ours, to diffusers' and back."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints import sd_unet_keys
from sfumato.checkpoints.translation import Layout, Row, translated
from sfumato.core.errors import InvalidInput

_ATTENTION: dict[str, tuple[str, ...]] = {
    "norm": ("group_norm",),
    "qkv": ("to_q", "to_k", "to_v"),
    "proj_out": ("to_out.0",),
}
"""Inside an attention; all else is named as in latent U-Nets."""

_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""As diffusers wrote it up to 0.14: the published folders hold these names."""

_INVERSE = {theirs: ours for ours, names in _ATTENTION.items() for theirs in names}
_FLAT = Layout(lambda given: given[0].unsqueeze(-1), lambda mine: [mine.squeeze(-1)])
"""A convolution over a row of places here, (C, C, 1), that is a matrix (C, C) there."""


def table(names: Iterable[str], network: Mapping[str, Any]) -> list[Row]:
    """Our names beside diffusers', for `translation.to_ours` and `to_theirs`.

    Args:
        names: of our state dict.
        network: settings of the ADM, of which blocks, heads, head_channels and new_attention_order count.

    Raises:
        InvalidInput: a name of another network.
    """
    rows = []
    for name in names:
        theirs = sd_unet_keys.to_diffusers(name, network["blocks"])
        found = re.fullmatch(r"(.+\.attentions\.\d+)\.(norm|qkv|proj_out)\.(weight|bias)", theirs)
        if not found:
            rows.append(Row(name, (theirs,)))
            continue
        place, part, kind = found.groups()
        held = tuple(f"{place}.{each}.{kind}" for each in _ATTENTION[part])
        if part == "qkv":
            rows.append(Row(name, held, _stacked(network, kind == "weight")))
        else:
            rows.append(Row(name, held, _FLAT) if (part, kind) == ("proj_out", "weight") else Row(name, held))
    return rows


def from_diffusers(network: Mapping[str, Any], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under diffusers' names, old or new, under ours; those that are none as they are, for reports.

    Args:
        network: settings of the ADM, as `table` takes them.
        theirs: tensors, which may be without numbers.
    """
    held = {_renewed(name): tensor for name, tensor in theirs.items()}
    attended = sd_unet_keys.attended_of(held)
    ours = []
    for name in held:
        # Names that are none stay on the other side.
        with contextlib.suppress(InvalidInput):
            ours.append(_to_ours(name, network["blocks"], attended))
    return translated(table(dict.fromkeys(ours), network), held)


def _to_ours(name: str, blocks: int, attended: frozenset[int]) -> str:
    """The name of ours that one of diffusers' is, or is a part of."""
    found = re.fullmatch(r"(.+\.attentions\.\d+)\.(.+)\.(weight|bias)", name)
    if found and found[2] in _INVERSE:
        name = f"{found[1]}.{_INVERSE[found[2]]}.{found[3]}"
    return sd_unet_keys.to_compvis(name, blocks, attended)


def _renewed(name: str) -> str:
    """A name of today for one of old."""
    found = re.fullmatch(r"(.+\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    return f"{found[1]}.{_OLD[found[2]]}.{found[3]}" if found else name


def _stacked(network: Mapping[str, Any], weight: bool) -> Layout:
    """Three projections that are one here: of each head its q, k and v; or heads inside of these (new)."""
    size = network.get("head_channels", 0)
    outer = 0 if network.get("new_attention_order", False) else 1

    def heads(channels: int) -> int:
        return channels // size if size else int(network.get("heads", 1))

    def join(given: list[Tensor]) -> Tensor:
        parts = [each.reshape(heads(len(each)), -1, *each.shape[1:]) for each in given]
        whole = torch.stack(parts, outer).flatten(0, 2)
        return whole.unsqueeze(-1) if weight else whole

    def split(mine: Tensor) -> list[Tensor]:
        flat = mine.squeeze(-1) if weight else mine
        count = heads(len(flat) // 3)
        parts = flat.reshape(*((3, count) if outer == 0 else (count, 3)), -1, *flat.shape[1:])
        return [part.flatten(0, 1) for part in parts.unbind(outer)]

    return Layout(join, split)
