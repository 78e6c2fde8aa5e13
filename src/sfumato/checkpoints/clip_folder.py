"""Folders of transformers with CLIP's image tower, as they stand beside adapters for image prompts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sfumato.checkpoints import clip_keys
from sfumato.checkpoints.assembly import Assembly, under
from sfumato.checkpoints.diffusers_config import image_from_config
from sfumato.checkpoints.diffusers_files import licence_of, piece_in, read_json
from sfumato.checkpoints.inside import refuse_strays, sensible
from sfumato.core.errors import InvalidInput, SfumatoError
from sfumato.model import Model

_KIND = "clip_vision_model"


def matches(path: Path) -> bool:
    """Whether this is a folder of CLIPVisionModel, with projection or without."""
    try:
        config = path / "config.json"
        return config.is_file() and read_json(config).get("model_type") == _KIND
    except (SfumatoError, OSError, ValueError):
        return False


def read(path: str | Path, *, strict: bool = True, variant: str = "") -> Model:
    """The tower, on the CPU, as a part alone.

    Args:
        path: the folder.
        strict: refuse weights that do not fit exactly, or NaN among them; else warn and load what fits.
        variant: which of several files it has is read, such as fp16.

    Raises:
        NotFound: its weights are missing.
        InvalidInput: a setting that is not done here, by name.
        CheckpointCorrupt, KeyMismatch, NotFinite: the weights are damaged or do not fit.
    """
    return report(path, variant).read(strict)


@sensible
def report(path: str | Path, variant: str = "") -> Assembly:
    """What a folder is found to be, with the settings of `read`; no weights are read. Raises as it does."""
    folder = Path(path)
    refuse_strays(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") != _KIND:
        raise InvalidInput("it holds no image tower of CLIP", where=str(path))
    projected = any("WithProjection" in str(each) for each in config.get("architectures") or ())
    convert = under("network.", partial(clip_keys.from_transformers, tower="image"))
    piece = piece_in(folder, "image tower", convert, variant)
    described = {"encoder": image_from_config(config, projected)}
    card = {"name": folder.name, **licence_of(folder)}
    return Assembly("an image tower alone (CLIP)", folder, described, (piece,), card)
