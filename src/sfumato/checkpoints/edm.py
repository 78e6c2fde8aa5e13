"""Weights of EDM: its DDPM++, NCSN++ and ADM networks, with the preconditioning they were trained with.

EDM publishes pickles, which hold code and are refused. Read are their tensors saved by who trusts them, under
the names they have in EDM (model.enc.32x32_conv.weight, ..); as safetensors they stand beside the name of the
class that preconditions them, as metadata `precond`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.checkpoints.report import Report
from sfumato.checkpoints.safe import read_header
from sfumato.checkpoints.translation import SQUEEZED, TRANSPOSED, Layout, Row, both, to_ours, translated
from sfumato.checkpoints.weights import find
from sfumato.conditioners.class_label import ClassLabel
from sfumato.conditioners.nothing import Nothing
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput, SfumatoError, nearest
from sfumato.core.meta import without_numbers
from sfumato.core.prediction import EDM as F
from sfumato.core.prediction import Noise, Prediction, Score
from sfumato.core.process import Process
from sfumato.model import Model
from sfumato.networks.adm import ADM
from sfumato.networks.layers.attention import SpatialAttention
from sfumato.networks.layers.fir import kernel
from sfumato.networks.layers.residual import ResidualBlock
from sfumato.networks.layers.scaled_residual import ScaledResidualBlock
from sfumato.networks.ncsnpp import HALF_SIGMA, NCSNpp
from sfumato.processes.edm import EDM
from sfumato.processes.ve import VE
from sfumato.processes.vp import VP
from sfumato.spaces.pixel import Pixel

_TRAINED: dict[str, tuple[Process, Prediction, str]] = {
    "EDMPrecond": (EDM(), F(), "quarter_log_sigma"),
    "VPPrecond": (VP(), Noise(), "continuous_index"),
    "VEPrecond": (VE(0.02, 100.0), Score(), "log_half_sigma"),
}
_NAMES = ("model.map_layer0.weight", "model.map_layer1.weight")
_TAPS = {2: (1, 1), 4: (1, 3, 3, 1)}
"""The filters of EDM's networks, by their lengths."""

_CONVERT = (
    "where you trust it, in EDM's own environment: net = pickle.load(f)['ema']; "
    "safetensors.torch.save_file({k: v.contiguous() for k, v in net.state_dict().items()}, "
    "'net.safetensors', metadata={'precond': type(net).__name__})"
)
_RESIDUAL = {
    "in_layers.0": "norm0",
    "in_layers.2": "conv0",
    "emb_layers.1": "affine",
    "out_layers.0": "norm1",
    "out_layers.3": "conv1",
    "skip_connection": "skip",
}


def matches(path: Path) -> bool:
    """Whether these are tensors under EDM's names, or one of its pickles (which `read` refuses)."""
    try:
        if not path.is_file():
            return False
        if _is_pickle(path):
            return True
        found = find(path, _NAMES)
    except (SfumatoError, OSError):
        return False
    return found is not None and any(name.startswith("model.enc.") for name in found.entries)


def read(path: str | Path, *, strict: bool = True, precond: str | None = None) -> Model:
    """The model of a file, on the CPU, ready to use.

    Args:
        path: a file of safetensors or torch.save, of a network's state dict.
        strict: refuse weights that do not fit exactly, or NaN among them; else warn and load what fits.
        precond: EDMPrecond, VPPrecond or VEPrecond; if neither said here nor in the file, EDMPrecond is
            assumed, with a warning.

    Raises:
        InvalidInput: a pickle, a network of another kind, or an unknown preconditioning.
        CheckpointCorrupt, KeyMismatch, NotFinite: the weights are damaged or do not fit.
    """
    found = report(path, precond=precond)
    for note in found.notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    return found.read(path, strict)


def report(path: str | Path, *, precond: str | None = None) -> Report:
    """What a file is found to be, with the settings of `read`; no weights are read. Raises as `read` does."""
    where = str(path)
    if _is_pickle(Path(path)):
        raise InvalidInput("an EDM pickle holds code, which is never run here", where=where, do=_CONVERT)
    held = find(path, _NAMES)
    if held is None:
        raise InvalidInput("it holds no network under the names of EDM", where=where)
    notes: tuple[str, ...] = ()
    if precond is None and held.form == "safetensors":
        precond = read_header(path).metadata.get("precond")
    if precond is None:
        precond = "EDMPrecond"
        notes = ("the file does not tell its preconditioning (metadata precond); taken for EDMPrecond",)
    if precond not in _TRAINED:
        raise InvalidInput(
            f"preconditioning {precond!r} is not read", where="precond", do=nearest(precond, _TRAINED)
        )
    found, size = settings(held.shapes, where)
    published = NCSNpp.shaped(found) if "taps" in found else ""
    if precond == "VEPrecond" and "taps" in found:
        found["scale_by_sigma"] = HALF_SIGMA
    classes = found["classes"]
    conditioner = ClassLabel({"label": [str(i) for i in range(classes)]}) if classes else Nothing()
    space = Pixel(found["in_channels"], multiple=2 ** (len(found["multipliers"]) - 1))
    card: dict[str, Any] = {
        "name": Path(path).stem,
        "sampler": "heun",
        "times": "karras",
        "steps": 18 if size < 64 else 40,
        "size": [size, size],
    }
    with without_numbers():
        network = _network(found)
        described = Model(NetworkDenoiser(network, *_TRAINED[precond]), conditioner, space).describe()
    rows = [replace(row, ours=f"network.{row.ours}") for row in table(network, size)]

    def ours(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return translated(rows, _learnt(theirs, found, where))

    what = f"{'DDPM++ or NCSN++' if 'taps' in found else 'ADM'} of EDM, preconditioned as {precond}"
    return Report(what, published, held, described, card, notes, ours)


def weights(theirs: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Their tensors under our names; the filters of resampling, which are settings here, left out.

    Raises:
        InvalidInput, KeyMismatch: of another network.
    """
    found, size = settings({name: tuple(tensor.shape) for name, tensor in theirs.items()}, where)
    with without_numbers():
        network = _network(found)
    return to_ours(table(network, size), _learnt(theirs, found, where), where)


def table(network: NCSNpp | ADM, size: int) -> list[Row]:
    """Our names and theirs, which hold the resolution, of a network for pictures of this size."""
    rows: list[Row] = []
    if isinstance(network, ADM):
        rows += both("time_embed.0", "model.map_layer0") + both("time_embed.2", "model.map_layer1")
        if network.label_emb is not None:
            rows.append(Row("label_emb.weight", ("model.map_label.weight",), TRANSPOSED))
        rows += both("out.0", "model.out_norm") + both("out.2", "model.out_conv")
        for ours, theirs, module in _places(network, size):
            if isinstance(module, ResidualBlock):
                for mine, his in _RESIDUAL.items():
                    if mine != "skip_connection" or isinstance(module.skip_connection, nn.Conv2d):
                        rows += both(f"{ours}.{mine}", f"{theirs}.{his}")
            elif isinstance(module, SpatialAttention):
                rows += _attention(ours, theirs, module)
            else:
                rows += both(ours, theirs)
        return rows
    rows += both("map_layer0", "model.map_layer0") + both("map_layer1", "model.map_layer1")
    if network.map_noise is not None:
        rows.append(Row("map_noise.W", ("model.map_noise.freqs",)))
    if network.map_label is not None:
        rows += both("map_label", "model.map_label")
    if network.map_augment is not None:
        rows.append(Row("map_augment.weight", ("model.map_augment.weight",)))
    for way, modules in (("enc", network.enc), ("dec", network.dec)):
        for name, module in modules.items():
            level, _, kind = name.partition("_")
            side = size >> int(level)
            ours, theirs = f"{way}.{name}", f"model.{way}.{side}x{side}_{kind}"
            if isinstance(module, ScaledResidualBlock):
                for part in ("norm0", "conv0", "affine", "norm1", "conv1", "skip"):
                    if next(module.get_submodule(part).parameters(), None) is not None:
                        rows += both(f"{ours}.{part}", f"{theirs}.{part}")
                if module.attention is not None:
                    rows += _attention(f"{ours}.attention", theirs, module.attention)
            elif next(module.parameters(), None) is not None:
                rows += both(ours, theirs)
    return rows


def _attention(ours: str, theirs: str, module: SpatialAttention) -> list[Row]:
    """q, k and v of a channel lie side by side in EDM; here those of a head do."""
    heads = module.heads

    def join(given: list[Tensor]) -> Tensor:
        stacked = given[0].flatten(1) if given[0].ndim > 1 else given[0][:, None]
        mine = stacked.view(heads, -1, 3, stacked.shape[1]).transpose(1, 2).flatten(0, 2)
        return mine[..., None] if given[0].ndim > 1 else mine[:, 0]

    def split(mine: Tensor) -> list[Tensor]:
        stacked = mine.flatten(1) if mine.ndim > 1 else mine[:, None]
        theirs = stacked.view(heads, 3, -1, stacked.shape[1]).transpose(1, 2).flatten(0, 2)
        return [theirs[..., None, None] if mine.ndim > 1 else theirs[:, 0]]

    layout = Layout(join, split)
    return [
        *both(f"{ours}.norm", f"{theirs}.norm2"),
        Row(f"{ours}.qkv.weight", (f"{theirs}.qkv.weight",), layout),
        Row(f"{ours}.qkv.bias", (f"{theirs}.qkv.bias",), layout),
        *both(f"{ours}.proj_out", f"{theirs}.proj", SQUEEZED),
    ]


def _places(network: ADM, size: int) -> Iterator[tuple[str, str, nn.Module]]:
    """(our module, theirs, module) of every block; theirs holds attention in the block before it."""
    count, side = network.blocks + 1, size
    for i, stage in enumerate(network.input_blocks):
        level, place = divmod(i - 1, count)
        if i and place == network.blocks:
            level, kind = level + 1, "down"
        else:
            kind = f"block{place}" if i else "conv"
        side = size >> max(level, 0)
        for j, module in enumerate(stage.children()):
            yield f"input_blocks.{i}.{j}", f"model.enc.{side}x{side}_{kind}", module
    for j, module in enumerate(network.middle_block):
        yield f"middle_block.{j}", f"model.dec.{side}x{side}_in{j // 2}", module
    for i, stage in enumerate(network.output_blocks):
        level, place = divmod(i, count)
        side = size >> (len(network.multipliers) - 1 - level)
        for j, module in enumerate(stage.children()):
            if j and isinstance(module, ResidualBlock):
                yield f"output_blocks.{i}.{j}", f"model.dec.{2 * side}x{2 * side}_up", module
            else:
                yield f"output_blocks.{i}.{j}", f"model.dec.{side}x{side}_block{place}", module


def settings(shapes: Mapping[str, tuple[int, ...]], where: str) -> tuple[dict[str, Any], int]:
    """Settings of our network for the shapes of their tensors, and the size of the pictures.

    Raises:
        InvalidInput: a network of another kind.
    """
    try:
        return _settings(shapes)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise InvalidInput(
            f"the weights are not those of a SongUNet or DhariwalUNet of EDM ({error!r})", where=where
        ) from None


def _settings(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Any], int]:
    sizes = {int(m[1]) for name in shapes if (m := re.match(r"model\.enc\.(\d+)x\1_", name))}
    size, levels = max(sizes), sorted(sizes, reverse=True)
    first = f"model.enc.{size}x{size}"
    adm = "model.out_conv.weight" in shapes
    noise = shapes["model.map_layer0.weight"][1]
    channels = noise if adm else shapes[f"{first}_conv.weight"][0]
    widths = [shapes[f"model.enc.{side}x{side}_block0.conv0.weight"][0] for side in levels]
    attention = [size // side for side in levels if f"model.enc.{side}x{side}_block0.qkv.weight" in shapes]
    found: dict[str, Any] = {
        "in_channels": shapes[f"{first}_conv.weight"][1],
        "channels": channels,
        "multipliers": tuple(width // channels for width in widths),
        "blocks": sum(re.fullmatch(rf"{first}_block\d+\.conv0\.weight", name) is not None for name in shapes),
        "attention": tuple(attention),
        "classes": shapes.get("model.map_label.weight", (0, 0))[1],
    }
    if adm:
        found["out_channels"] = shapes["model.out_conv.weight"][0]
        return {**found, "head_channels": 64, "scale_shift": True, "resblock_updown": True}, size
    drawn = [name for name in shapes if name.endswith("_aux_conv.weight")]
    picture = next((name for name in shapes if re.search(r"_aux_(skip|residual)\.weight$", name)), "")
    filters = [shape for name, shape in shapes.items() if name.endswith(".resample_filter")]
    found |= {
        "out_channels": shapes[drawn[0]][0],
        "augment": shapes.get("model.map_augment.weight", (0, 0))[1],
        "embedding": "fourier" if "model.map_noise.freqs" in shapes else "positional",
        "taps": _TAPS[filters[0][-1] if filters else 2],
        "input": picture.removesuffix(".weight").rpartition("_")[2] or "none",
        "output": "skip" if len(drawn) > 1 else "none",
    }
    return found, size


def _learnt(theirs: Mapping[str, Tensor], found: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Their tensors but the filters of resampling, which are settings here, once these are of such filters.

    Raises:
        InvalidInput: another filter.
    """
    learnt = dict(theirs)
    expected = kernel(found.get("taps", (1, 1)))
    for name in [name for name in theirs if name.endswith(".resample_filter")]:
        held = learnt.pop(name)
        same = held.shape == expected.shape
        if not same or not (held.is_meta or torch.allclose(held.float(), expected, rtol=1e-3, atol=0)):
            raise InvalidInput(
                f"{name} is none of the filters of EDM", where=where, do="[1, 1] and [1, 3, 3, 1] are read"
            )
    return learnt


def _is_pickle(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(2**16)
    return start[:1] == b"\x80" and b"torch_utils.persistence" in start


def _network(found: Mapping[str, Any]) -> NCSNpp | ADM:
    return NCSNpp(**found) if "taps" in found else ADM(**found)
