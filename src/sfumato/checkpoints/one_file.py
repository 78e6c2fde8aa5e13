"""A single file of a whole latent model taken apart: its parts by prefix, and the numbers beside them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints import clip_keys
from sfumato.checkpoints.assembly import Convert, Entries, Piece
from sfumato.checkpoints.safe import read_header
from sfumato.checkpoints.weights import Table, copy_out, find
from sfumato.core.errors import CheckpointCorrupt
from sfumato.processes.betas import Betas

UNET, VAE = "model.diffusion_model.", "first_stage_model."
"""What the names of the two begin with."""

TEXT, CLASSES = "cond_stage_model.transformer.", "cond_stage_model.embedding."
"""And those of latent diffusion's text encoder and table of classes."""

_ATTENDS = tuple(f"{UNET}{name}" for name in ("time_embed.0.weight", "middle_block.1.proj_in.weight"))
_PLAIN = tuple(f"{UNET}{name}" for name in ("time_embed.0.weight", "middle_block.1.qkv.weight"))
_IDLE = re.compile(
    r"model_ema\.|(first_stage_model\.)?loss\.|depth_model\.|low_scale_model\.|denoiser\.sigmas$|global_step$"
    r"|(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_\w+|posterior_\w+|logvar|lvlb_weights"
    r"|scale_factor|v_pred|ztsnr)$"
)
"""What follows from the settings, averaged copies of the weights, and estimators that nobody asks here."""


@dataclass(frozen=True)
class OneFile:
    """A file with the state dict in it that is a latent U-Net's.

    Args:
        path: of the file.
        table: where its tensors lie.
    """

    path: Path
    table: Table

    @staticmethod
    def of_clip(path: Path) -> OneFile | None:
        """A file whose U-Net attends to the text of CLIP, or to what is not in it; None for any other."""
        if (table := find(path, _ATTENDS)) is None or _first(table.entries):
            return None
        return OneFile(path, table)

    @staticmethod
    def of_the_first(path: Path) -> OneFile | None:
        """A file of latent diffusion's first models: of captions, layouts, classes, or of nothing."""
        if (table := find(path, _PLAIN)) is None:
            table = find(path, _ATTENDS)
            if table is None or not _first(table.entries):
                return None
        return OneFile(path, table)

    def begun(self, prefix: str) -> dict[str, Any]:
        """Entries whose names begin so, without that; none that nobody reads."""
        entries = self.table.entries
        return {n.removeprefix(prefix): entries[n] for n in entries if n.startswith(prefix) and not idle(n)}

    def piece(
        self,
        name: str,
        prefix: str,
        entries: Entries,
        convert: Convert,
        names: Mapping[str, str] | None = None,
    ) -> Piece:
        """Entries of a prefix as a piece; `names` are those in the file, where they are others."""
        there = {each: (names or {}).get(each, prefix + each) for each in entries}
        stored = {each: (self.path, self.table.prefix + whole) for each, whole in there.items()}
        return Piece(name, entries, stored, convert, self.table.place)

    def rest(
        self, pieces: Iterable[Piece], replaced: Collection[str] = ()
    ) -> tuple[tuple[Piece, ...], tuple[str, ...]]:
        """(What belongs to no piece and is not known, as a piece; a note on what is left out).

        Args:
            pieces: what is read.
            replaced: names in whose place others are read.
        """
        taken = {name for piece in pieces for _, name in piece.stored.values()}
        left = {n: e for n, e in self.table.entries.items() if self.table.prefix + n not in taken}
        odd = {name: entry for name, entry in left.items() if not idle(name) and name not in replaced}
        count = len(left) - len(odd)
        note = (f"{count} tensors left out: averages, tables and estimators",) if count else ()
        return (self.piece("others", "", odd, lambda theirs: dict(theirs)),) if odd else (), note

    @property
    def averages(self) -> dict[str, str]:
        """The names in the file of the U-Net's averaged weights, by their names; none unless it has all."""
        names = [name for name in self.table.entries if name.startswith(UNET)]
        # They stand there without their dots.
        found = {n: f"model_ema.{n.removeprefix('model.').replace('.', '')}" for n in names}
        entries = self.table.entries
        whole = all(entries.get(there) == entries[here] for here, there in found.items())
        return {here.removeprefix(UNET): there for here, there in found.items()} if whole else {}

    @property
    def metadata(self) -> dict[str, str]:
        """What a safetensors file says of itself."""
        return read_header(self.path).metadata if self.table.form == "safetensors" else {}

    @property
    def licence(self) -> dict[str, str]:
        """For a card."""
        told = self.metadata.get("modelspec.license")
        return {"licence": told[:200]} if told else {}

    @property
    def scale(self) -> float | None:
        """The scale of the latents where the file tells it, measured in training."""
        if self.table.entries.get("scale_factor", ((1,), None))[0] != ():
            return None
        return float(self._numbers("scale_factor"))

    def process(self, start: float, end: float) -> dict[str, Any]:
        """Description of the process: by the file's own betas if it has them, else scaled linear ones."""
        entry = self.table.entries.get("betas")
        zero = {"zero_terminal_snr": True} if "ztsnr" in self.table.entries else {}
        if entry is None or len(entry[0]) != 1 or not 2 <= entry[0][0] <= 10**5:
            return {**_betas("scaled_linear", start, end), **zero}
        values = self._numbers("betas").double()
        if not bool(((values > 0) & (values <= 1)).all()):
            raise CheckpointCorrupt("its betas are no shares of noise", where=str(self.path))
        for schedule in ("scaled_linear", "linear"):
            ends = (float(f"{float(value):.6g}") for value in (values[0], values[-1]))
            described = {**_betas(schedule, *ends), "steps": len(values)}
            told = {name: value for name, value in described.items() if name != "name"}
            if torch.allclose(Betas(**told).betas, values, rtol=1e-5, atol=0):
                return {**described, **zero}
        return {"name": "betas", "values": values.tolist()}

    def _numbers(self, name: str) -> Tensor:
        whole = self.table.prefix + name
        return copy_out(self.path, self.table.place, {whole})[whole]


def idle(name: str) -> bool:
    """Whether a tensor of a file is one that nobody reads."""
    return _IDLE.match(name) is not None or clip_keys.ignored(name)


def hollow(entries: Entries) -> dict[str, Tensor]:
    """Tensors without numbers."""
    return {n: torch.empty(s, dtype=d, device="meta") for n, (s, d) in entries.items()}


def four_ways(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder's tensors, attention's matrices as convolutions of one place where they are flat."""
    flat = re.compile(r".*\.attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight")
    return {n: t[..., None, None] if t.ndim == 2 and flat.fullmatch(n) else t for n, t in theirs.items()}


def _first(names: Iterable[str]) -> bool:
    return any(name in (f"{TEXT}token_emb.weight", f"{CLASSES}weight") for name in names)


def _betas(schedule: str, start: float, end: float) -> dict[str, Any]:
    return {"name": "betas", "schedule": schedule, "start": start, "end": end}
