"""Weights of DiT: the published class-conditional diffusion transformers, and those its code trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.checkpoints.report import Report
from sfumato.checkpoints.weights import find
from sfumato.core.errors import InvalidInput, SfumatoError
from sfumato.model import Model
from sfumato.networks.dit import SIZES, positions

_NAMES = (
    "x_embedder.proj.weight",
    "t_embedder.mlp.0.weight",
    "y_embedder.embedding_table.weight",
    "blocks.0.adaLN_modulation.1.weight",
    "final_layer.linear.weight",
)
_POSITIONS = "pos_embed"
_FACTOR = 8
"""Pixels a place of the latents of the autoencoder all of them were trained on."""


def matches(path: Path) -> bool:
    """Whether a file holds a transformer under the names of DiT."""
    try:
        return path.is_file() and find(path, _NAMES) is not None
    except SfumatoError:
        return False


def read(
    path: str | Path,
    *,
    strict: bool = True,
    heads: int | None = None,
    labels: Sequence[str] | None = None,
) -> Model:
    """The model of a file, on the CPU: latents under classes, by betas linear from 1e-4 to .02 in 1000 steps.

    Its autoencoder is in no such file, so that it makes latents and no pictures.

    Args:
        path: a file of torch.save or safetensors; of a training checkpoint the averaged weights are used.
        strict: refuse weights that do not fit exactly, or NaN among them; else warn and load what fits.
        heads: of attention, where the size is none of the published S, B, L and XL.
        labels: names of the classes, without "no class", the last; their numbers if not said.

    Raises:
        InvalidInput: heads that nobody tells, positions of another kind, shapes of another network.
        CheckpointCorrupt, KeyMismatch, NotFinite: the weights are damaged or do not fit.
    """
    return report(path, heads=heads, labels=labels).read(path, strict)


def report(path: str | Path, heads: int | None = None, labels: Sequence[str] | None = None) -> Report:
    """What a file is found to be, with the settings of `read`; no weights are read. Raises as `read` does."""
    where = str(path)
    table = find(path, _NAMES)
    if table is None:
        raise InvalidInput("it holds no network under the names of DiT", where=where)
    shapes = table.shapes
    try:
        network, places = _settings(shapes)
    except (ValueError, ZeroDivisionError, IndexError) as error:
        raise InvalidInput(f"the weights are not those of a DiT ({error!r})", where=where) from None
    width, depth, patch = network["width"], network["depth"], network["patch"]
    size = next((name for name, (w, d, _) in SIZES.items() if (w, d) == (width, depth)), "")
    if heads is None and not size:
        raise InvalidInput(
            f"how many heads attend is not told by the weights, and no published DiT is {width} wide and "
            f"{depth} deep",
            where=where,
            do="say heads=16, as it was trained",
        )
    count = network["classes"] - 1
    names = list(map(str, range(count))) if labels is None else list(labels)
    if len(names) != count:
        raise InvalidInput(f"{len(names)} labels for {count} classes", where="labels")
    side = math.isqrt(places) * patch * _FACTOR if places else 0
    card: dict[str, Any] = {
        "name": f"DiT-{size}-{patch}" if size else Path(where).stem,
        "autoencoder": "not included: the KL autoencoder of Stable Diffusion (sd-vae-ft-mse or -ema), whose "
        "latents times .18215 are x",
        "sampler": {"name": "ancestral", "variance": "learned"},
        "times": "linspace",
        "steps": 250,
        "guidance": [{"name": "classifier_free", "scale": 4.0, "channels": 3}],
        **({"size": [side, side]} if side else {}),
    }
    channels = network["in_channels"]
    learned = network["out_channels"] == 2 * channels
    if not learned:
        card["sampler"] = {"name": "ancestral", "variance": "large"}
    described = {
        "network": {"name": "dit", **network, "heads": SIZES[size][2] if heads is None else heads},
        "process": "betas",
        "prediction": "noise",
        "time_input": "index",
        "learned_range": learned,
        "conditioner": {"name": "class_label", "labels": {"label": names}, "null_row": True},
        "space": {"name": "latent", "channels": channels, "factor": _FACTOR, "multiple": patch},
    }
    published = f"DiT-{size}/{patch}" if size and channels == 4 else ""
    notes = ("betas and noise as DiT has them; SiT's weights have the same names and are not these",)
    return Report("a diffusion transformer (dit)", published, table, described, card, notes, to_ours)


def to_ours(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names: the same, without the positions, which are computed here.

    Raises:
        InvalidInput: positions that are not the fixed sinusoids.
    """
    table = theirs.get(_POSITIONS)
    if table is not None and not table.is_meta:
        side = math.isqrt(table.shape[-2])
        fixed = positions(side, side, table.shape[-1])
        if table.numel() != fixed.numel() or (table.view_as(fixed).float() - fixed).abs().max() > 2e-3:
            raise InvalidInput("positions that are not the fixed sinusoids of DiT", where=_POSITIONS)
    return {f"network.{name}": tensor for name, tensor in theirs.items() if name != _POSITIONS}


def to_theirs(ours: Mapping[str, Tensor], side: int) -> dict[str, Tensor]:
    """The inverse of `to_ours`: tensors under DiT's names, with the positions of side · side patches."""
    theirs = {name.removeprefix("network."): tensor for name, tensor in ours.items()}
    width = theirs["x_embedder.proj.weight"].shape[0]
    return {_POSITIONS: positions(side, side, width)[None].clone(), **theirs}


def _settings(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Any], int]:
    """Settings of our network for their shapes, without heads; and how many patches positions are for."""
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    out, rest = divmod(shapes["final_layer.linear.weight"][0], patch**2)
    places = shapes.get(_POSITIONS, (1, 0, width))[1]
    if rest or out not in (channels, 2 * channels) or math.isqrt(places) ** 2 != places:
        raise ValueError(f"{out} channels from {channels}, {places} patches")
    return {
        "in_channels": channels,
        "out_channels": out,
        "patch": patch,
        "width": width,
        "depth": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        "classes": shapes["y_embedder.embedding_table.weight"][0],
    }, places
