"""Released weights: files of known networks that others trained, read without running anything they hold."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from sfumato.core.errors import CheckpointCorrupt, KeyMismatch, NotFound

Net = TypeVar("Net", bound=nn.Module)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path, digest: str = "") -> dict[str, Tensor]:
    """Named tensors of a .safetensors or .pth file; nothing in it is run.

    Args:
        path: the file.
        digest: how its SHA-256 begins, if it is to be that very file.

    Raises:
        NotFound, CheckpointCorrupt: no such file, another one, or none of named tensors.
    """
    if not path.is_file():
        raise NotFound("no such weights file", where=str(path))
    if digest and not digest_of(path).startswith(digest):
        raise CheckpointCorrupt("the file is damaged", where=str(path), do="install the package again")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:  # both may fail in any way on what is damaged
        raise CheckpointCorrupt(
            f"cannot be read as weights: {type(fault).__name__}", where=str(path)
        ) from fault
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointCorrupt("holds something other than named tensors", where=str(path))
    return state


def fitted(network: Net, state: dict[str, Tensor], where: str) -> Net:
    """The network with these weights, every name and shape accounted for, frozen for evaluation.

    Raises:
        KeyMismatch: the first five faults.
    """
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    # Counts of training steps: old files leave them out, and evaluation never reads them.
    counts = {key for key in wanted if key.endswith("num_batches_tracked")}
    faults = sorted(f"missing {key}" for key in wanted.keys() - state.keys() - counts)
    faults += sorted(f"unknown {key}" for key in state.keys() - wanted.keys())
    faults += sorted(
        f"{key} has shape {tuple(state[key].shape)}"
        for key in wanted.keys() & state.keys()
        if state[key].shape != wanted[key]
    )
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise KeyMismatch("; ".join(faults[:5]) + more, where=where)
    network.load_state_dict(state, strict=False)
    return network.requires_grad_(False).eval()
