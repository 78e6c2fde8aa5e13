"""Names of CLIP's weights in the files people have, as tables: transformers, OpenAI, OpenCLIP, CompVis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from sfumato.checkpoints.keys import KeyReport, check
from sfumato.checkpoints.translation import SAME, STACKED, TRANSPOSED, Row, both, to_ours, to_theirs
from sfumato.core.errors import InvalidInput
from sfumato.encoders.clip import Clip
from sfumato.encoders.clip_image import ClipImage
from sfumato.encoders.clip_text import ClipText

COMPVIS: dict[str, tuple[tuple[str, str], ...]] = {
    "stable diffusion 1": (("cond_stage_model.transformer.", "transformers"),),
    "stable diffusion 2": (("cond_stage_model.model.", "openclip"),),
    "stable diffusion xl": (
        ("conditioner.embedders.0.transformer.", "transformers"),
        ("conditioner.embedders.1.model.", "openclip"),
    ),
    "stable diffusion xl refiner": (("conditioner.embedders.0.model.", "openclip"),),
}
"""Where the text towers stand in a single file, and under whose names."""

IGNORED = (
    "position_ids",
    "attn_mask",
    "logit_scale",
    "input_resolution",
    "context_length",
    "vocab_size",
)
"""Last parts of names of what follows from the settings, or belongs to CLIP as a whole and to no tower."""

# Theirs stand on the left, where one is made of several: `to_ours` by these tables makes theirs of ours.
_BLOCK = (
    ("ln_1", "layer_norm1"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)
_TEXT = (
    ("token_embedding.weight", "text_model.embeddings.token_embedding.weight", SAME),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight", SAME),
    ("ln_final.weight", "text_model.final_layer_norm.weight", SAME),
    ("ln_final.bias", "text_model.final_layer_norm.bias", SAME),
)
_IMAGE = (
    ("class_embedding", "vision_model.embeddings.class_embedding", SAME),
    ("positional_embedding", "vision_model.embeddings.position_embedding.weight", SAME),
    ("conv1.weight", "vision_model.embeddings.patch_embedding.weight", SAME),
    ("ln_pre.weight", "vision_model.pre_layrnorm.weight", SAME),
    ("ln_pre.bias", "vision_model.pre_layrnorm.bias", SAME),
    ("ln_post.weight", "vision_model.post_layernorm.weight", SAME),
    ("ln_post.bias", "vision_model.post_layernorm.bias", SAME),
)


def _blocks(theirs: str, ours: str, depth: int) -> list[Row]:
    """Rows of the layers of a tower: q, k and v are three here and one there."""
    rows = []
    for number in range(depth):
        there, here = f"{theirs}.resblocks.{number}", f"{ours}.encoder.layers.{number}"
        for kind in ("weight", "bias"):
            parts = tuple(f"{here}.self_attn.{letter}_proj.{kind}" for letter in "qkv")
            rows.append(Row(f"{there}.attn.in_proj_{kind}", parts, STACKED))
        for his, mine in _BLOCK:
            rows += both(f"{there}.{his}", f"{here}.{mine}")
    return rows


def text_rows(tower: ClipText) -> list[Row]:
    """OpenAI's and OpenCLIP's names (on the left), each with those of ours it is made of."""
    rows = [Row(his, (mine,), layout) for his, mine, layout in _TEXT]
    if tower.projection:
        rows.append(Row("text_projection", ("text_projection.weight",), TRANSPOSED))
    return rows + _blocks("transformer", "text_model", tower.depth)


def image_rows(tower: ClipImage) -> list[Row]:
    """The same of an image tower, whose names begin with `visual.` there."""
    rows = [Row(f"visual.{his}", (mine,), layout) for his, mine, layout in _IMAGE]
    if tower.projection:
        rows.append(Row("visual.proj", ("visual_projection.weight",), TRANSPOSED))
    return rows + _blocks("visual.transformer", "vision_model", tower.depth)


def clip_rows(clip: Clip) -> list[Row]:
    """The same of both towers and their scale."""
    rows = [Row("logit_scale", ("logit_scale",), SAME)]
    for prefix, tower in (("text", text_rows(clip.text)), ("image", image_rows(clip.image))):
        rows += [Row(row.ours, tuple(f"{prefix}.{n}" for n in row.theirs), row.layout) for row in tower]
    return rows


def from_openclip(table: Iterable[Row], theirs: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Tensors under OpenAI's or OpenCLIP's names → under ours, by a table of this file.

    Raises:
        KeyMismatch: one is missing, or one is left over that is not of `IGNORED`.
    """
    rows = list(table)
    wanted = [row.ours for row in rows]
    rest = sorted(set(theirs) - set(wanted))
    # A tower without its projection does not ask for it, and files have it all the same.
    left = [name for name in rest if name != "text_projection" and not ignored(name)]
    report = KeyReport(
        matched=tuple(name for name in wanted if name in theirs),
        missing=tuple(name for name in wanted if name not in theirs),
        unexpected=tuple(left),
        misshapen=(),
    )
    check(report, where)
    return to_theirs(rows, theirs)


def to_openclip(table: Iterable[Row], ours: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The inverse: our tensors under OpenAI's and OpenCLIP's names."""
    return to_ours(table, ours, where)


def from_transformers(theirs: Mapping[str, Tensor], tower: str = "text") -> dict[str, Tensor]:
    """Tensors under transformers' names → under ours: the same, whether or not the tower's name is in front.

    Args:
        theirs: of CLIPTextModel or CLIPVisionModel, with or without projection; newer ones leave the prefix
            out where there is none.
        tower: "text" or "image".
    """
    prefix, projection = (
        ("text_model.", "text_projection.") if tower == "text" else ("vision_model.", "visual_projection.")
    )
    return {
        name if name.startswith((prefix, projection)) else prefix + name: tensor
        for name, tensor in theirs.items()
        if not ignored(name)
    }


def clip_from_transformers(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of transformers' CLIPModel → of Clip."""
    found = {}
    for name, tensor in theirs.items():
        if name == "logit_scale":
            found[name] = tensor
        elif not ignored(name):
            found[f"{'text' if name.startswith('text_') else 'image'}.{name}"] = tensor
    return found


def clip_to_transformers(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `clip_from_transformers`."""
    return {name.removeprefix("text.").removeprefix("image."): tensor for name, tensor in ours.items()}


def ignored(name: str) -> bool:
    """Whether a tensor is one of `IGNORED`."""
    return name.rpartition(".")[2] in IGNORED


def text_settings(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Any]:
    """Settings of ClipText by the shapes of its weights under our names.

    Heads are of 64 numbers, as in every published tower, and the activation is OpenCLIP's for those wider
    than any of OpenAI's: say otherwise where a config.json does.

    Raises:
        InvalidInput: shapes of something else.
    """

    def settings() -> dict[str, Any]:
        vocabulary, width = shapes["text_model.embeddings.token_embedding.weight"]
        hidden = shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0]
        return {
            "width": width,
            "depth": _depth(shapes, "text_model"),
            "heads": max(1, width // 64),
            "hidden": 0 if hidden == 4 * width else hidden,
            "vocabulary": vocabulary,
            "length": shapes["text_model.embeddings.position_embedding.weight"][0],
            "activation": "quick_gelu" if width <= 768 else "gelu",
            "projection": shapes.get("text_projection.weight", (0,))[0],
        }

    return _found(settings, where)


def image_settings(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Any]:
    """Settings of ClipImage by the shapes of its weights under our names; see `text_settings`."""

    def settings() -> dict[str, Any]:
        width, _, patch, _ = shapes["vision_model.embeddings.patch_embedding.weight"]
        hidden = shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0]
        places = shapes["vision_model.embeddings.position_embedding.weight"][0] - 1
        return {
            "size": round(places**0.5) * patch,
            "patch": patch,
            "width": width,
            "depth": _depth(shapes, "vision_model"),
            "heads": 16 if width > 1024 else max(1, width // 64),
            "hidden": 0 if hidden == 4 * width else hidden,
            "activation": "quick_gelu" if width <= 1024 else "gelu",
            "projection": shapes.get("visual_projection.weight", (0,))[0],
        }

    return _found(settings, where)


def _depth(shapes: Mapping[str, tuple[int, ...]], tower: str) -> int:
    start = f"{tower}.encoder.layers."
    return 1 + max(int(name.removeprefix(start).split(".")[0]) for name in shapes if name.startswith(start))


def _found(settings: Callable[[], dict[str, Any]], where: str) -> dict[str, Any]:
    try:
        return settings()
    except (KeyError, ValueError, IndexError) as error:
        raise InvalidInput(f"the weights are not those of a tower of CLIP ({error!r})", where=where) from None
