"""Single files of latent diffusion's first models: captions, layouts, classes, holes, or nothing said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.checkpoints import guided_shapes, sd_unet_keys, vae_keys
from sfumato.checkpoints.assembly import Assembly, Piece, under
from sfumato.checkpoints.inside import sensible
from sfumato.checkpoints.one_file import CLASSES, TEXT, UNET, VAE, OneFile, four_ways
from sfumato.core.errors import InvalidInput, SfumatoError
from sfumato.encoders.word_piece import WordPiece
from sfumato.model import Model

_Shapes = Mapping[str, tuple[int, ...]]
_USUAL, _LARGE_TEXT = (0.0015, 0.0195), (0.00085, 0.012)
"""Ends of the betas, which are linear in their square roots, where a file does not hold them."""
_LAYOUT = 92
"""Words of a layout, which is a sentence of no language."""

_PLAIN: dict[str, dict[str, Any]] = {
    "faces and bedrooms": {
        "in_channels": 3,
        "channels": 224,
        "multipliers": (1, 2, 3, 4),
        "blocks": 2,
        "attention": (2, 4, 8),
        "head_channels": 32,
        "scale_shift": False,
        "resblock_updown": False,
    },
    "churches": {
        "in_channels": 4,
        "channels": 192,
        "multipliers": (1, 2, 2, 4, 4),
        "blocks": 2,
        "attention": (1, 2, 4, 8),
        "heads": 8,
        "scale_shift": True,
        "resblock_updown": True,
    },
    "inpainting": {
        "in_channels": 7,
        "channels": 256,
        "multipliers": (1, 2, 3, 4),
        "blocks": 2,
        "attention": (2, 4, 8),
        "heads": 8,
        "scale_shift": False,
        "resblock_updown": True,
    },
}
"""The published U-Nets that attend to nothing but themselves; their shapes do not tell their heads."""

_ENDS = {"churches": 0.0155, "inpainting": 0.0205, "layouts": 0.0205}
"""Where the last beta is another."""


@dataclass(frozen=True)
class _Said:
    """What the weights do not tell, as `read` takes it."""

    vocabulary: str | Path | None = None
    labels: Sequence[str] | None = None
    heads: int | None = None
    head_channels: int | None = None


def matches(path: Path) -> bool:
    """Whether a file holds a latent U-Net that is told captions, layouts, classes or nothing."""
    try:
        return path.is_file() and OneFile.of_the_first(path) is not None
    except SfumatoError:
        return False


def read(
    path: str | Path,
    *,
    strict: bool = True,
    vocabulary: str | Path | None = None,
    labels: Sequence[str] | None = None,
    heads: int | None = None,
    head_channels: int | None = None,
) -> Model:
    """The model of a file, on the CPU; averaged weights of the U-Net where it has them.

    Args:
        path: a file of safetensors or torch.save.
        strict: refuse weights that do not fit exactly, or NaN among them; else warn and load what fits.
        vocabulary: of captions, the folder of BERT's vocab.txt, which no such file holds.
        labels: names of the classes, or of the things in layouts; the numbers of classes if not said.
        heads: of attention, where no published U-Net has these shapes.
        head_channels: channels a head, in place of heads.

    Raises:
        InvalidInput: no such file, channels that nothing tells, or what the weights do not tell is not said.
        CheckpointCorrupt, KeyMismatch, NotFinite: the weights are damaged or do not fit.
    """
    told = {"vocabulary": vocabulary, "labels": labels, "heads": heads, "head_channels": head_channels}
    return report(path, **told).read(strict)


@sensible
def report(path: str | Path, **told: Any) -> Assembly:
    """What a file is found to be, with the settings of `read`; no weights are read. Raises as it does."""
    said, file = _Said(**told), Path(path)
    whole = OneFile.of_the_first(file)
    if whole is None:
        raise InvalidInput("it holds no U-Net of latent diffusion's first models", where=str(file))
    unet, vae = whole.begun(UNET), whole.begun(VAE)
    shapes = {name: shape for name, (shape, _) in unet.items()}
    network, kind = _network(shapes, said, str(file))
    if not vae:
        raise InvalidInput("the file holds no autoencoder", where=str(file), do="give the whole model")
    autoencoder = vae_keys.settings({name: shape for name, (shape, _) in vae.items()})
    text, classes = whole.begun(TEXT), whole.begun(CLASSES)
    conditioner: dict[str, Any] = {"name": "nothing"}
    pieces: list[Piece] = []
    if text:
        kind, conditioner = _text({name: shape for name, (shape, _) in text.items()}, said, str(file))
        pieces.append(whole.piece("text", TEXT, text, under("conditioner.encoder.", dict)))
    elif classes:
        kind, conditioner = "classes", _classes(classes["weight"][0], said)
        pieces.append(whole.piece("classes", CLASSES, classes, under("conditioner.embedding.", dict)))
    channels = network["out_channels"]
    if (extra := network["in_channels"] - channels) == channels + 1:
        conditioner = {"name": "masked_image", "style": "ldm"}
    elif extra:
        raise InvalidInput(f"{extra} channels beside x that nothing tells", where=str(file))
    large = kind == "captions" and autoencoder["name"] == "kl"
    start, end = _LARGE_TEXT if large else (_USUAL[0], _ENDS.get(kind, _USUAL[1]))
    factor = 2 ** (len(autoencoder["multipliers"]) - 1)
    description = {
        "network": network,
        "process": whole.process(start, end),
        "prediction": "noise",
        "time_input": "index",
        "conditioner": conditioner,
        "space": {
            "name": "latent",
            "channels": channels,
            "multiple": 2 ** (len(network["multipliers"]) - 1),
            "scale": whole.scale or (0.18215 if large else 1.0),
            "autoencoder": autoencoder,
        },
    }
    averages = whole.averages
    pieces.append(whole.piece("unet", UNET, unet, under("network.", dict), averages))
    pieces.append(whole.piece("vae", VAE, vae, under("space.autoencoder.", four_ways)))
    others, idle = whole.rest(pieces, {UNET + name for name in averages})
    side = (32 if factor == 8 else 64) * factor
    card = {"name": file.stem, **_walk(kind), "size": [side, side], **whole.licence}
    notes = (*(["the U-Net's averaged weights (EMA)"] if averages else []), *idle)
    what = f"latent diffusion, {kind}, one file"
    return Assembly(what, file, description, (*pieces, *others), card, notes)


def _network(shapes: _Shapes, said: _Said, where: str) -> tuple[dict[str, Any], str]:
    """(Description of the U-Net, the published one of these shapes that attends to nothing else)."""
    asked = {key: getattr(said, key) for key in ("heads", "head_channels")}
    asked = {key: value for key, value in asked.items() if value is not None}
    if "middle_block.1.proj_in.weight" in shapes:
        found = sd_unet_keys.settings(shapes)
        return ({**found, "heads": 1, "head_channels": 0, **asked} if asked else found), ""
    settings = guided_shapes.settings(shapes, where)
    name = next((n for n, each in _PLAIN.items() if settings.items() <= each.items()), "")
    if not name and not asked:
        raise InvalidInput(
            "how many heads attend is not told by the weights, and no published network has these shapes",
            where=where,
            do="say heads=8, or head_channels=32, as it was trained",
        )
    if not asked:
        asked = {key: _PLAIN[name][key] for key in ("heads", "head_channels") if key in _PLAIN[name]}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    out = shapes["out.2.bias"][0]
    return {"name": "adm", **plain, "out_channels": out, **asked}, name or "nothing said"


def _text(shapes: _Shapes, said: _Said, where: str) -> tuple[str, dict[str, Any]]:
    """(Captions or layouts, description of what reads them)."""
    words, width = shapes["token_emb.weight"]
    length, inner = shapes["pos_emb.emb.weight"][0], shapes["attn_layers.layers.0.1.to_q.weight"][0]
    layers = {int(name.split(".")[2]) for name in shapes if name.startswith("attn_layers.layers.")}
    heads = math.gcd(8, inner)
    sizes = {"width": width, "depth": len(layers) // 2, "heads": heads, "dim_head": inner // heads}
    sizes |= {"vocabulary": words, "logits": "to_logits.weight" in shapes}
    if length == _LAYOUT:
        if said.labels is None:
            raise InvalidInput(
                "what its numbers of things stand for is not in the file",
                where=where,
                do="say labels, the names of the things in their order",
            )
        return "layouts", {"name": "boxes", "names": list(said.labels), **sizes}
    if said.vocabulary is None:
        raise InvalidInput(
            "the words its text encoder knows are not in the file",
            where=where,
            do="say vocabulary, the folder of bert-base-uncased's vocab.txt",
        )
    pieces = WordPiece.read(said.vocabulary).vocabulary
    encoder = {
        "name": "text_small",
        "tokenizer": {"name": "word_piece", "vocabulary": list(pieces)},
        "length": length,
        "masked": False,
        **sizes,
    }
    return "captions", {"name": "text_small", "encoder": encoder}


def _classes(shape: tuple[int, ...], said: _Said) -> dict[str, Any]:
    rows, width = shape
    # ImageNet's thousand, and then a row for none; who trained otherwise says the names.
    count = len(said.labels) if said.labels is not None else 1000 if rows == 1001 else rows
    names = list(map(str, range(count))) if said.labels is None else list(said.labels)
    if count not in (rows, rows - 1):
        raise InvalidInput(f"{count} labels for {rows} classes", where="labels")
    return {"name": "class_token", "labels": {"label": names}, "width": width, "null_row": count < rows}


def _walk(kind: str) -> dict[str, Any]:
    """Default settings, those of the published examples."""
    scale = {"captions": 5.0, "classes": 1.5}.get(kind)
    guidance = [{"name": "classifier_free", "scale": scale}] if scale else []
    return {"sampler": "ddim", "times": "leading", "steps": 50, "guidance": guidance}
