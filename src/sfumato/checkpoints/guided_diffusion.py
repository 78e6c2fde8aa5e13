"""Weights of guided-diffusion and improved-diffusion: ADM's U-Nets, upsamplers and noisy classifiers.

Their names are ours. Shapes tell all settings of the network but its attention heads, and nothing of the
noise it was trained on: both are those of the published network of the same shapes, or are said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from sfumato.checkpoints.guided_shapes import goes_up, settings
from sfumato.checkpoints.report import Report
from sfumato.checkpoints.weights import Table, find
from sfumato.core.errors import InvalidInput, SfumatoError
from sfumato.model import Model
from sfumato.networks.adm import ADM
from sfumato.networks.adm import PUBLISHED as UNETS
from sfumato.networks.adm_classifier import PUBLISHED as CLASSIFIERS
from sfumato.networks.adm_classifier import ADMClassifier

_NAMES = ("time_embed.0.weight", "input_blocks.0.0.weight", "input_blocks.1.0.in_layers.2.weight")
_COSINE: dict[str, Any] = {"schedule": "cosine"}
_IMPROVED: dict[str, Any] = {"schedule": "cosine", "steps": 4000}
_ENLARGED = {
    "in_channels": 6,
    "out_channels": 6,
    "channels": 192,
    "multipliers": (1, 1, 2, 2, 4, 4),
    "blocks": 2,
    "attention": (16, 32),
    "heads": 4,
    "classes": 1000,
    "scale_shift": True,
}

TRAINED: dict[str, dict[str, Any]] = {
    "imagenet_64": {"size": 64, **_COSINE},
    "imagenet_128": {"size": 128},
    "imagenet_256": {"size": 256},
    "imagenet_256_unconditional": {"size": 256},
    "imagenet_512": {"size": 512},
    "imagenet_64_to_256": {"size": 256, "factor": 4},
    "imagenet_128_to_512": {"size": 512, "factor": 4},
    "improved_cifar": {"size": 32, **_IMPROVED, "rescaled": True},
    "improved_imagenet_64": {"size": 64, **_IMPROVED, "rescaled": True},
    "improved_imagenet_64_classes": {"size": 64, **_IMPROVED},
    "improved_lsun_256": {"size": 256},
    "improved_64_to_256": {"size": 256, "factor": 4, "steps": 4000},
}
"""Size in pixels and noise of the published U-Nets; a linear schedule of 1000 steps if nothing else is said.

`rescaled` ones are told the time as if they had 1000 steps. lsun_256 has the shapes, the heads and the noise
of imagenet_256_unconditional.
"""

_SHAPED = {name: UNETS.get(name, _ENLARGED) for name in TRAINED}
_UNTOLD = ("heads", "head_channels", "dropout", "new_attention_order")
"""Settings of a network that its shapes do not tell."""


def matches(path: Path) -> bool:
    """Whether a file holds a U-Net or a noisy classifier under the names of guided-diffusion."""
    try:
        return path.is_file() and find(path, _NAMES) is not None
    except SfumatoError:
        return False


def read(
    path: str | Path,
    *,
    strict: bool = True,
    heads: int | None = None,
    head_channels: int | None = None,
    new_attention_order: bool | None = None,
    schedule: Literal["linear", "cosine"] | None = None,
    steps: int | None = None,
    rescaled: bool | None = None,
    size: int | None = None,
    factor: int | None = None,
    blocks: int | None = None,
    labels: Sequence[str] | None = None,
) -> Model:
    """The model of a file, on the CPU, ready to use; what is not said is as in the published network.

    Args:
        path: a file of torch.save or safetensors.
        strict: refuse weights that do not fit exactly, or NaN among them; else warn and load what fits.
        heads: of attention.
        head_channels: channels a head, in place of heads.
        new_attention_order: layout of the attention's weights (`use_new_attention_order`).
        schedule: of the betas.
        steps: of the process.
        rescaled: the network is told the time as if there were 1000 steps (`rescale_timesteps`).
        size: of the pictures, in pixels.
        factor: of an upsampler, how many times smaller the picture is that it enlarges.
        blocks: of a classifier that halves by residual blocks, how many a level has.
        labels: names of the classes; their numbers if not said.

    Raises:
        InvalidInput: shapes of another network, or heads that nobody tells.
        CheckpointCorrupt, KeyMismatch, NotFinite: the weights are damaged or do not fit.
    """
    told = {
        "heads": heads,
        "head_channels": head_channels,
        "new_attention_order": new_attention_order,
        "schedule": schedule,
        "steps": steps,
        "rescaled": rescaled,
        "size": size,
        "factor": factor,
        "blocks": blocks,
        "labels": labels,
    }
    return report(path, **told).read(path, strict)


def report(path: str | Path, **told: Any) -> Report:
    """What a file is found to be, with the settings of `read`; no weights are read. Raises as `read` does."""
    where = str(path)
    table = find(path, _NAMES)
    if table is None:
        raise InvalidInput("it holds no network under the names of guided-diffusion", where=where)
    said = {name: value for name, value in told.items() if value is not None}
    return (_unet if "out.2.bias" in table.entries and goes_up(table.shapes) else _classifier)(
        table, said, where
    )


def _unet(table: Table, said: dict[str, Any], where: str) -> Report:
    shapes = table.shapes
    found = settings(shapes, where)
    found["out_channels"] = shapes["out.2.bias"][0]
    found["classes"] = shapes.get("label_emb.weight", (0, 0))[0]
    name = _same(found, _SHAPED, ADM)
    found |= _heads(said, _SHAPED.get(name, {}), where)
    trained = {"schedule": "linear", "steps": 1000, **TRAINED.get(name, {}), **said}
    plain = _picture(found, where)
    enlarges, learned = found["in_channels"] > plain, found["out_channels"] > plain
    size = trained.get("size")
    if enlarges and (size is None or "factor" not in trained):
        raise InvalidInput(
            "an upsampler does not tell its size",
            where=where,
            do="say size=256, factor=4 for one of 64 to 256",
        )
    parts = [_labels(found["classes"], said, where)] if found["classes"] else []
    if enlarges:
        parts.append(
            {"name": "low_res", "size": [size, size], "factor": trained["factor"], "channels": plain}
        )
    conditioner: Any = parts[0] if parts else "nothing"
    if len(parts) > 1:
        conditioner = {"name": "together", "parts": parts}
    kind = "an upsampler" if enlarges else "a U-Net"
    card: dict[str, Any] = {
        "name": name or Path(where).stem,
        "sampler": {"name": "ancestral", "variance": "learned" if learned else "large"},
        "times": "linspace",
        "steps": min(250, trained["steps"]),
        "guidance": [{"name": "threshold"}],
        **({"size": [size, size]} if size else {}),
    }
    described = {
        "network": {"name": "adm", **_plain(found)},
        "process": _process(trained),
        "prediction": "noise",
        "time_input": "rescaled_index" if trained.get("rescaled") else "index",
        "learned_range": learned,
        "conditioner": conditioner,
        "space": {"name": "pixel", "channels": plain, "multiple": 2 ** (len(found["multipliers"]) - 1)},
    }
    what = f"{kind} of {'guided' if found['resblock_updown'] else 'improved'}-diffusion (adm)"
    return Report(what, name, table, described, card, _notes(name, said, trained))


def _classifier(table: Table, said: dict[str, Any], where: str) -> Report:
    shapes = table.shapes
    found = settings(shapes, where, said.get("blocks"))
    if (positions := shapes.get("out.2.positional_embedding")) is not None:
        side = round((positions[1] - 1) ** 0.5)
        found |= {"pool": "attention", "classes": shapes["out.2.c_proj.bias"][0]}
        found["size"] = side * 2 ** (len(found["multipliers"]) - 1)
    elif "out.3.bias" in shapes:
        found |= {"pool": "adaptive", "classes": shapes["out.3.bias"][0]}
        if "size" not in said:
            raise InvalidInput("a classifier of any size does not tell it", where=where, do="say size=64")
        found["size"] = said["size"]
    else:
        raise InvalidInput("a classifier of another pool than attention or adaptive", where=where)
    published = {
        name: {"channels": 128, "blocks": 2, "classes": 1000, **each} for name, each in CLASSIFIERS.items()
    }
    name = _same(found, published, ADMClassifier)
    usual = {"head_channels": 64} if name else {}
    found |= {key: value for key, value in _heads(said, usual, where).items() if key != "heads"}
    # The schedule is that of the U-Net a classifier was trained to steer.
    trained = {"schedule": "linear", "steps": 1000, **(_COSINE if name == "imagenet_64" else {}), **said}
    described = {
        "network": {"name": "adm_classifier", **_plain(found)},
        "process": _process(trained),
        "classifies": "label",
        "time_input": "rescaled_index" if trained.get("rescaled") else "index",
        "conditioner": _labels(found["classes"], said, where),
        "space": {
            "name": "pixel",
            "channels": found["in_channels"],
            "multiple": 2 ** (len(found["multipliers"]) - 1),
        },
    }
    card = {"name": (name and f"classifier_{name}") or Path(where).stem, "size": [found["size"]] * 2}
    what = "a noisy classifier of guided-diffusion (adm_classifier)"
    return Report(what, name, table, described, card, _notes(name, said, trained))


def _same(
    found: Mapping[str, Any], published: Mapping[str, Mapping[str, Any]], network: type[ADM | ADMClassifier]
) -> str:
    """The published network of the same shapes; "" if there is none."""
    usual = {each.name: each.default for each in fields(network)}
    for name, its in published.items():
        whole = {**usual, **its}
        if all(whole[key] == value for key, value in found.items()):
            return name
    return ""


def _heads(said: Mapping[str, Any], usual: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the shapes do not tell, said or as published."""
    told = {key: said[key] for key in ("heads", "head_channels") if key in said}
    if not told and not usual:
        raise InvalidInput(
            "how many heads attend is not told by the weights, and no published network has these shapes",
            where=where,
            do="say heads=4, or head_channels=64, as it was trained",
        )
    kept = {key: usual[key] for key in _UNTOLD if key in usual and not (told and key.startswith("head"))}
    order = {key: said[key] for key in ("new_attention_order",) if key in said}
    return {**kept, **told, **order}


def _picture(found: Mapping[str, Any], where: str) -> int:
    """Channels of the pictures: x may come with another picture, what comes out with a variance."""
    given, out = found["in_channels"], found["out_channels"]
    for channels in (3, 1, 4):
        if given in (channels, 2 * channels) and out in (channels, 2 * channels):
            return channels
    raise InvalidInput(f"{given} channels in and {out} out belong to no kind of picture", where=where)


def _labels(count: int, said: Mapping[str, Any], where: str) -> dict[str, Any]:
    names = list(said.get("labels", map(str, range(count))))
    if len(names) != count:
        raise InvalidInput(f"{len(names)} labels for {count} classes", where="labels")
    return {"name": "class_label", "labels": {"label": names}}


def _process(trained: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "betas", "schedule": trained["schedule"], "steps": trained["steps"]}


def _notes(name: str, said: Mapping[str, Any], trained: Mapping[str, Any]) -> tuple[str, ...]:
    left = [key for key in ("schedule", "steps") if key not in said]
    if not left:
        return ()
    source = (
        f"as in {name}, which has these shapes" if name else "the code's default; say what it was trained on"
    )
    return (f"{', '.join(f'{key} {trained[key]}' for key in left)}: {source}",)


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}
