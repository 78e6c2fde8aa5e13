"""Checkpoints that survive a crash at any instant."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sfumato.checkpoints.safe import read_tensors
from sfumato.core.atomic import flush
from sfumato.core.errors import CheckpointCorrupt, NotFound, SfumatoError

Tensors = Mapping[str, Mapping[str, Tensor]]
"""Tensors by file ("model", "ema", "optimizer") and name."""


class SaveFailed(SfumatoError):
    """A checkpoint that could not be written; the ones before it are untouched."""

    code = "save_failed"
    exit_code = 1


@dataclass(frozen=True)
class Saved:
    """A checkpoint read back: its step, tensors by file and name, and the JSON state beside them."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


@dataclass(frozen=True)
class Keep:
    """Which checkpoints are kept when others are pruned.

    Args:
        last: so many of the newest.
        every: those whose step is a multiple of this, for ever; 0 keeps none for that reason.
        best: the one of the lowest score.
    """

    last: int = 2
    every: int = 0
    best: bool = True


class CheckpointStore:
    """Checkpoints of one run: a folder of folders `step_00000500`, safetensors and JSON only.

    A checkpoint is written to `.tmp-<pid>`, each file flushed to the disk, `manifest.json` with every file's
    size and SHA-256 last; then the folder is renamed, its parent flushed, and only then older ones pruned.
    A folder is complete if its manifest agrees with its files, so no instant of a crash loses more than the
    checkpoint being written.

    Args:
        directory: where they stand.
        keep: which are kept.
        fault: called with the name of each point of a save; tests raise or die in it.
    """

    def __init__(
        self, directory: Path, keep: Keep | None = None, fault: Callable[[str], None] | None = None
    ) -> None:
        self.directory = directory
        self.keep = keep or Keep()
        self._fault = fault or (lambda point: None)

    def steps(self) -> list[int]:
        """Steps of all checkpoints that look complete (manifest and sizes), rising."""
        found = []
        for path in self.directory.glob("step_*"):
            number = path.name.removeprefix("step_")
            if number.isdigit() and self._problem(path, hashes=False) is None:
                found.append(int(number))
        return sorted(found)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step stands."""
        return self.directory / f"step_{step:08d}"

    def save(self, step: int, tensors: Tensors, state: Mapping[str, Any], score: float | None = None) -> Path:
        """Write a checkpoint, then prune. `score` (lower is better) decides which is best.

        Raises:
            SaveFailed: the disk is full or refuses; nothing half-written is left.
        """
        final = self.path(step)
        if self._problem(final, hashes=True) is None:
            return final
        temporary = self.directory / f".tmp-{os.getpid()}"
        try:
            self._check_space(tensors)
            self._write(temporary, step, tensors, {**state, "score": score})
            if final.exists():
                os.rename(final, self.directory / f".old-{os.getpid()}-{final.name}")
            self._at("rename")
            os.rename(temporary, final)
            self._at("flush parent")
            flush(self.directory)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise SaveFailed(
                f"checkpoint not written: {error}", where=str(final), do="the last good checkpoint is kept"
            ) from error
        try:
            self.prune()
        except OSError as error:
            warnings.warn(f"{self.directory}: old checkpoints not pruned: {error}", stacklevel=2)
        return final

    def load(self, step: int | None = None) -> Saved:
        """A checkpoint: of a step, or the newest complete one, falling back with a warning from damaged ones.

        Raises:
            NotFound: there is none.
            CheckpointCorrupt: the one asked for, or all there are, are damaged.
        """
        if step is not None:
            return self._read(self.path(step))
        candidates = sorted(self.directory.glob("step_*"), reverse=True)
        if not candidates:
            raise NotFound("holds no checkpoint", where=str(self.directory))
        for path in candidates:
            try:
                return self._read(path)
            except CheckpointCorrupt as error:
                warnings.warn(f"{error}; falling back to the checkpoint before it", stacklevel=2)
        raise CheckpointCorrupt(
            f"all {len(candidates)} checkpoints are damaged",
            where=str(self.directory),
            do="start anew elsewhere",
        )

    def verify(self) -> dict[str, str]:
        """Every checkpoint folder and its state: "complete", or what is wrong with it."""
        return {
            path.name: self._problem(path, hashes=True) or "complete"
            for path in sorted(self.directory.glob("step_*"))
        }

    def clean(self) -> None:
        """Remove what crashed saves left; for the holder of the run's lock alone."""
        for pattern in (".tmp-*", ".old-*"):
            for path in self.directory.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def prune(self) -> None:
        """Delete what `keep` does not keep; never the newest complete checkpoint."""
        steps = self.steps()
        kept = set(steps[-max(self.keep.last, 1) :])
        if self.keep.every:
            kept |= {step for step in steps if step % self.keep.every == 0}
        if self.keep.best and (best := self.best()) is not None:
            kept.add(best)
        for step in steps:
            if step not in kept:
                # Renamed first: a half-deleted folder must never look like a checkpoint.
                old = self.directory / f".old-{os.getpid()}-{step}"
                self._at("prune")
                os.rename(self.path(step), old)
                self._at("delete")
                shutil.rmtree(old, ignore_errors=True)

    def best(self) -> int | None:
        """The step of the lowest score, the later of equals; None if no checkpoint has one."""
        scores = {}
        for step in self.steps():
            score = json.loads((self.path(step) / "manifest.json").read_text()).get("score")
            if score is not None:
                scores[step] = score
        return min(scores, key=lambda step: (scores[step], -step)) if scores else None

    def _write(self, folder: Path, step: int, tensors: Tensors, state: Mapping[str, Any]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._at("create")
        folder.mkdir(parents=True)
        for name, group in tensors.items():
            self._at(f"write {name}")
            save_file(_separate(group), folder / f"{name}.safetensors")
            self._at(f"flush {name}")
            flush(folder / f"{name}.safetensors")
        self._at("write state")
        _write_json(folder / "state.json", state)
        manifest = {
            "step": step,
            "score": state["score"],
            "files": {
                path.name: {"size": path.stat().st_size, "sha256": file_hash(path)}
                for path in sorted(folder.iterdir())
            },
        }
        self._at("write manifest")
        _write_json(folder / "manifest.json", manifest)
        self._at("flush folder")
        flush(folder)

    def _read(self, path: Path) -> Saved:
        problem = self._problem(path, hashes=True)
        if problem is not None:
            raise CheckpointCorrupt(problem, where=str(path))
        manifest = json.loads((path / "manifest.json").read_text())
        try:
            tensors = {
                name.removesuffix(".safetensors"): read_tensors(path / name)
                for name in manifest["files"]
                if name.endswith(".safetensors")
            }
            state = json.loads((path / "state.json").read_text())
        except (SafetensorError, ValueError, OSError) as error:
            raise CheckpointCorrupt(str(error), where=str(path)) from error
        return Saved(int(manifest["step"]), tensors, state)

    def _problem(self, path: Path, hashes: bool) -> str | None:
        """What is wrong with a checkpoint, or None if it is complete."""
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            files = {str(name): (int(f["size"]), str(f["sha256"])) for name, f in manifest["files"].items()}
            int(manifest["step"])
        except FileNotFoundError:
            return "has no manifest, so its save was never finished"
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return "has a damaged manifest"
        if "state.json" not in files:
            return "has a damaged manifest"
        for name, (size, digest) in files.items():
            file = path / name
            if Path(name).name != name or not file.is_file():
                return f"lacks {name}"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes where {size} were written"
            if hashes and file_hash(file) != digest:
                return f"{name} is not what was written (its SHA-256 differs)"
        return None

    def _check_space(self, tensors: Tensors) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        size = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
        free = shutil.disk_usage(self.directory).free
        if free < 2 * size:
            raise OSError(
                errno.ENOSPC,
                f"{free / 2**20:.0f} MiB are free, {2 * size / 2**20:.0f} MiB are wanted to be safe",
            )

    def _at(self, point: str) -> None:
        self._fault(point)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _separate(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU of which no two share memory, as the format wants them."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in group.items():
        tensor = tensor.detach().to("cpu").contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        out[name] = tensor
    return out
