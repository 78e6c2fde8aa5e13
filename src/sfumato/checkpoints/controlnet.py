"""Controls alone (ControlNet): the released files, and diffusers' folders and files, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sfumato.checkpoints import controlnet_keys, sd_unet_config
from sfumato.checkpoints.assembly import Assembly, Convert, lenient, under
from sfumato.checkpoints.diffusers_config import refuse_others
from sfumato.checkpoints.diffusers_files import licence_of, lone_folder, piece_in, read_json, write_part
from sfumato.checkpoints.inside import refuse_strays, sensible
from sfumato.checkpoints.one_file import OneFile, hollow
from sfumato.checkpoints.translation import to_theirs
from sfumato.checkpoints.weights import find
from sfumato.control.controlnet import ControlNet
from sfumato.core.alone import Guide
from sfumato.core.atomic import write_tensors
from sfumato.core.errors import InvalidInput, SfumatoError
from sfumato.model import Model

CONTROL = "control_model."
"""What the names begin with in released files, where anything stands before them."""

_NAMES = ("input_hint_block.0.weight", "zero_convs.0.0.weight")
_THEIRS = ("controlnet_cond_embedding.conv_in.weight", "controlnet_mid_block.weight")
_CLASS = "ControlNetModel"
_OTHERS = {
    "lora_controlnet": "thin matrices beside a base's weights (control-lora)",
    "difference": "the difference to a base's weights",
}
"""Marks of files that hold something else under these names."""

_CONFIG: dict[str, Any] = {"controlnet_conditioning_channel_order": "rgb"}
_READ = ("conditioning_channels", "conditioning_embedding_out_channels", "global_pool_conditions")


def matches(path: Path) -> bool:
    """Whether a file holds a control and no network, or a folder is one of diffusers' controls."""
    try:
        return lone_folder(path, _CLASS) is not None or (path.is_file() and _file(path) is not None)
    except (SfumatoError, OSError, ValueError):
        return False


def read(
    path: str | Path,
    *,
    strict: bool = True,
    variant: str = "",
    heads: int | None = None,
    pooled: bool | None = None,
) -> Model:
    """The control, on the CPU, as a part alone: `controlled` joins it with a model.

    Args:
        path: a file of safetensors or torch.save, or a folder of diffusers.
        strict: refuse weights that do not fit exactly, or NaN among them; else warn and load what fits.
        variant: which of several files a folder has is read, such as fp16.
        heads: of attention, which no file tells of a network of unusual shapes; a folder does.
        pooled: residuals are averaged over the map, as shuffle's are, which no file tells; a folder does.

    Raises:
        NotFound: a folder's weights are missing.
        InvalidInput: no control, or a setting that is not done here, by name.
        CheckpointCorrupt, KeyMismatch, NotFinite: the weights are damaged or do not fit.
    """
    return report(path, variant=variant, heads=heads, pooled=pooled).read(strict)


@sensible
def report(
    path: str | Path, variant: str = "", heads: int | None = None, pooled: bool | None = None
) -> Assembly:
    """What it is found to be, with the settings of `read`; no weights are read. Raises as it does."""
    place = Path(path)
    said: dict[str, Any] = {} if heads is None else {"heads": heads, "head_channels": 0}
    if pooled is not None:
        said["pooled"] = pooled
    what = "a control alone (ControlNet)"
    if (folder := lone_folder(place, _CLASS)) is not None:
        refuse_strays(folder)
        settings = {**from_config(read_json(folder / "config.json")), **said}
        convert = under("network.", lenient(controlnet_keys.from_diffusers))
        piece = piece_in(folder, "control", convert, variant)
        card = {"name": folder.name, **licence_of(folder)}
        return Assembly(what, folder, {"control": settings}, (piece,), card)
    if (found := _file(place)) is None:
        raise InvalidInput("it holds no control", where=str(path))
    whole, prefix, convert = found
    for mark, other in _OTHERS.items():
        if mark in whole.table.entries:
            raise InvalidInput(
                f"it holds {other}, not a control's own weights",
                where=str(path),
                do="give the full control",
            )
    entries = whole.begun(prefix)
    shapes = {name: tuple(tensor.shape) for name, tensor in convert(hollow(entries)).items()}
    settings = {**controlnet_keys.settings(shapes), **said}
    piece = whole.piece("control", prefix, entries, under("network.", convert))
    others, idle = whole.rest([piece])
    card = {"name": place.stem, **whole.licence}
    return Assembly(f"{what}, one file", place, {"control": settings}, (piece, *others), card, idle)


def write_file(model: Model, path: str | Path) -> None:
    """Write a control alone as one safetensors file under the names of the released ones.

    Raises:
        InvalidInput: it is no ControlNet, or cannot be written.
    """
    held = {CONTROL + name: tensor for name, tensor in _control(model).state_dict().items()}
    write_tensors(path, held, {"format": "pt"})


def write_folder(model: Model, path: str | Path) -> None:
    """Write a control alone as a folder of diffusers. Raises as `write_file`."""
    write_part_of(_control(model), Path(path))


def write_part_of(control: ControlNet, folder: Path) -> None:
    """Write a control's settings and weights into a folder of its own."""
    ours = control.state_dict()
    write_part(folder, to_config(control), to_theirs(controlnet_keys.table(ours), ours))


def from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the control that a configuration of diffusers' ControlNetModel is of.

    Raises:
        InvalidInput: it wants what this control does not do; `where` names the setting.
    """
    own = {key: value for key, value in config.items() if key in (*_CONFIG, *_READ)}
    refuse_others(own, "controlnet.config", _CONFIG, _READ)
    whole = {key: value for key, value in config.items() if key not in own}
    # A control has no way up, and nothing comes out: what is said of them is that they are the mirror's.
    whole["out_channels"] = config.get("in_channels", 4)
    if "down_block_types" in config:
        downs = config["down_block_types"]
        whole["up_block_types"] = [str(kind).replace("Down", "Up") for kind in reversed(downs)]
    try:
        found = sd_unet_config.from_config(whole)
    except InvalidInput as error:
        where = error.where.replace("unet.", "controlnet.", 1)
        raise InvalidInput(error.what, where=where, do=error.do) from None
    del found["out_channels"]
    return {
        **found,
        "name": "controlnet",
        "hint_channels": own.get("conditioning_channels", 3),
        "hint_widths": tuple(own.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)),
        "pooled": bool(own.get("global_pool_conditions", False)),
    }


def to_config(control: ControlNet) -> dict[str, Any]:
    """The configuration with which diffusers' ControlNetModel is the same.

    Raises:
        InvalidInput: diffusers has no such control.
    """
    if control.dropout:
        raise InvalidInput("diffusers' control has no dropout", where="controlnet.dropout")
    return {
        **sd_unet_config.encoder_to_config(control),
        "_class_name": _CLASS,
        "conditioning_channels": control.hint_channels,
        "conditioning_embedding_out_channels": list(control.hint_widths),
        "global_pool_conditions": control.pooled,
    }


def _control(model: Model) -> ControlNet:
    control = model.denoiser.network
    if not isinstance(model.denoiser, Guide) or not isinstance(control, ControlNet):
        raise InvalidInput("this is no ControlNet alone", where="model", do="save it in the native format")
    return control


def _file(path: Path) -> tuple[OneFile, str, Convert] | None:
    """A file with a control in it, what its names begin with, and how they become ours; None for others."""
    for prefix in (CONTROL, ""):
        if (table := find(path, [prefix + name for name in _NAMES])) is not None:
            return OneFile(path, table), prefix, partial(dict)
    if (table := find(path, _THEIRS)) is not None:
        return OneFile(path, table), "", lenient(controlnet_keys.from_diffusers)
    return None
