"""The command that writes a model in another format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sfumato.checkpoints import compvis_writing, diffusers, native
from sfumato.checkpoints.load import load
from sfumato.core.errors import InvalidInput, NotFinite, NotFound, nearest
from sfumato.model import Model

FORMATS: dict[str, Callable[[Model, Path], Any]] = {
    "native": native.save,
    "diffusers": diffusers.write,
    "compvis": compvis_writing.write,
}
"""What writes a model, by the format's name."""


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Element types that weights are written in."""


def convert(
    source: Path, target: Path, form: str, dtype: str | None, strict: bool, settings: dict[str, Any]
) -> dict[str, Any]:
    """Load a model of any format and write it in one of `FORMATS`; tells what was written.

    Args:
        source: of any format that is read, or an identifier of the hub.
        target: a folder, or a .safetensors file for compvis; it must not be there yet.
        form: the format's name.
        dtype: element type to write, by name; None is as it is read.
        strict: refuse weights that do not fit exactly.
        settings: what the weights do not tell of themselves, such as prediction.

    Raises:
        NotFound: no such format or element type.
        NotFinite: a weight is beyond what the element type can hold.
        InvalidInput: the target is there; a format that cannot say the model.
    """
    if form not in FORMATS:
        raise NotFound(f"no format {form!r} is written", where="--format", do=nearest(form, FORMATS))
    if dtype is not None and dtype not in DTYPES:
        raise NotFound(f"no element type {dtype!r}", where="--dtype", do=nearest(dtype, DTYPES))
    if target.exists():
        raise InvalidInput("is there already", where=str(target), do="name another place")
    if form == "compvis" and target.suffix != ".safetensors":
        raise InvalidInput("a single file ends in .safetensors", where=str(target))
    model = load(source, strict=strict, **settings)
    if dtype is not None:
        _cast(model, DTYPES[dtype])
    FORMATS[form](model, target)
    weights = [tensor for part in model.modules().values() for tensor in part.state_dict().values()]
    return {
        "from": str(source),
        "to": str(target),
        "format": form,
        "tensors": len(weights),
        "parameters": sum(tensor.numel() for tensor in weights),
    }


def _cast(model: Model, dtype: torch.dtype) -> None:
    """Bring all weights to an element type; those it cannot hold are refused."""
    limit = torch.finfo(dtype).max
    for part in model.modules().values():
        for name, tensor in part.state_dict().items():
            if tensor.is_floating_point() and bool((tensor.abs() > limit).any()):
                do = "take bfloat16, which reaches as far as float32"
                raise NotFinite(f"a weight is beyond the {limit:g} of {dtype}", where=name, do=do)
    model.to(dtype=dtype)
