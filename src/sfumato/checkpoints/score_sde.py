"""Checkpoints of score_sde_pytorch: NCSN++ and DDPM++ on VE, VP and sub-VP processes.

A checkpoint is a dictionary of optimizer, model, ema and step, written by torch.save. The averaged weights
are used; they stand in a list, in the order of those parameters that are trained. Settings of the network
are told by the shapes. Networks for data in [0, 1] (all VE ones) show themselves 2x - 1; here they are of
data in [-1, 1] and twice the noise, which is the same without a change of any weight.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sfumato.checkpoints.report import Report
from sfumato.checkpoints.score_shapes import settings
from sfumato.checkpoints.torch_file import is_torch, read_torch, verify
from sfumato.checkpoints.translation import SAME, STACKED, Layout, Row, both, to_ours, translated
from sfumato.checkpoints.weights import Table, find
from sfumato.conditioners.nothing import Nothing
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import CheckpointCorrupt, InvalidInput, SfumatoError, nearest
from sfumato.core.meta import without_numbers
from sfumato.core.prediction import Noise, Prediction, Score
from sfumato.core.process import Process
from sfumato.model import Model
from sfumato.networks.layers.fir import HalvingConv
from sfumato.networks.layers.resample import Downsample
from sfumato.networks.layers.scaled_residual import ScaledResidualBlock
from sfumato.networks.ncsnpp import HALF_SIGMA, NCSNpp
from sfumato.processes.betas import Betas
from sfumato.processes.ncsn import NCSN
from sfumato.processes.sub_vp import SubVP
from sfumato.processes.ve import VE
from sfumato.processes.vp import VP
from sfumato.spaces.pixel import Pixel

SDE = Literal["vp", "vp_discrete", "sub_vp", "ve", "ve_discrete"]
"""What a network was trained on; the discrete ones on the steps of DDPM and the ladder of NCSN."""

_NAMES = ("sigmas", "all_modules.1.bias")
_UNTOLD = (
    "these weights do not tell what they were trained on; taken for a continuous VP process, unless the "
    "folder is named as published (vp/cifar10_ddpmpp_continuous) or sde is given"
)
_NIN = Layout(lambda given: given[0].T[..., None], lambda mine: [mine[..., 0].T])
_NINS = Layout(
    lambda given: torch.cat([each.T for each in given])[..., None],
    lambda mine: [each.T for each in mine[..., 0].chunk(3)],
)
_SHORTCUT = Layout(lambda given: given[0].T[..., None, None], lambda mine: [mine[..., 0, 0].T])
_BLOCK = {
    "norm0": "GroupNorm_0",
    "conv0": "Conv_0",
    "affine": "Dense_0",
    "norm1": "GroupNorm_1",
    "conv1": "Conv_1",
}


def matches(path: Path) -> bool:
    """Whether this is such a checkpoint: a model with the noise levels of its training beside its modules."""
    try:
        return path.is_file() and is_torch(path) and find(path, _NAMES) is not None
    except (SfumatoError, OSError):
        return False


def read(path: str | Path, *, strict: bool = True, sde: SDE | None = None) -> Model:
    """The model of a checkpoint, on the CPU, ready to use.

    Args:
        path: the .pth file.
        strict: refuse weights that do not fit exactly, or NaN among them; else warn and load what fits.
        sde: what the network was trained on. Fourier features tell a VE process; for the others, the folder
            does when it is named as published (vp/cifar10_ddpmpp_continuous); else vp is assumed, with a
            warning.

    Raises:
        InvalidInput: a network of another kind, or an unknown sde.
        CheckpointCorrupt, KeyMismatch, NotFinite: the weights are damaged or do not fit.
    """
    found = report(path, sde=sde)
    for note in found.notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    return found.read(path, strict)


def report(path: str | Path, *, sde: SDE | None = None) -> Report:
    """What a file is found to be, with the settings of `read`; no weights are read. Raises as `read` does."""
    where = str(path)
    if sde is not None and sde not in get_args(SDE):
        raise InvalidInput(f"unknown sde {sde!r}", where="sde", do=nearest(str(sde), get_args(SDE)))
    checkpoint: Any = read_torch(path, mapped=True)
    theirs, ladder = averaged(checkpoint, where)
    found = settings({name: tuple(tensor.shape) for name, tensor in theirs.items()}, where)
    published = NCSNpp.shaped(found)
    notes: tuple[str, ...] = ()
    if sde is None and (sde := _told(Path(path), found)) is None:
        sde, notes = "vp", (_UNTOLD,)
    process, prediction, time_input, extra = _trained_on(sde, ladder, found)
    space = Pixel(found["in_channels"], multiple=2 ** (len(found["multipliers"]) - 1))
    card: dict[str, Any] = {"name": Path(path).stem}
    if isinstance(step := checkpoint.get("step"), int):
        card["trained_steps"] = step
    if found["attention"]:
        # All published networks attend at 16 x 16.
        card["size"] = [16 * found["attention"][0]] * 2
    with without_numbers():
        network = NCSNpp(**found, **extra)
        denoiser = NetworkDenoiser(network, process, prediction, time_input)
        described = Model(denoiser, Nothing(), space).describe()
    rows = [replace(row, ours=f"network.{row.ours}") for row in table(network)]
    entries = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in theirs.items()}
    held = Table("ema", entries, "", "torch.save", Path(path).stat().st_size)
    what = f"a network of score_sde (ncsnpp), trained on {sde}"
    return Report(what, published, held, described, card, notes, partial(translated, rows), _taken)


def _taken(path: str | Path, held: Table) -> dict[str, Tensor]:
    """The averaged weights, copied out of the file once it is intact."""
    verify(path)
    theirs, _ = averaged(read_torch(path, mapped=True), str(path))
    if theirs.keys() != held.entries.keys():
        raise CheckpointCorrupt("changed while it was read", where=str(path))
    return {name: tensor.detach().clone() for name, tensor in theirs.items()}


def averaged(checkpoint: Any, where: str) -> tuple[dict[str, Tensor], tuple[float, float, int]]:
    """The averaged weights by name, and the ladder of noise (least, most, levels) kept beside them.

    Raises:
        CheckpointCorrupt: the average does not fit the model.
    """
    try:
        held = {name.removeprefix("module."): tensor for name, tensor in checkpoint["model"].items()}
        shadow = list(checkpoint["ema"]["shadow_params"])
        ladder = held.pop("sigmas").double()
        sigmas = (float(ladder[-1]), float(ladder[0]), len(ladder))
        # Fourier features are a parameter that is not trained, and averages skip it.
        names = [name for name in held if not (name == "all_modules.0.W" and held[name].ndim == 1)]
        fits = [tuple(held[name].shape) for name in names] == [tuple(tensor.shape) for tensor in shadow]
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise CheckpointCorrupt(f"no model and ema of score_sde: {error}", where=where) from None
    if not fits:
        raise CheckpointCorrupt(
            f"an average of {len(shadow)} tensors beside a model of {len(names)} of other shapes", where=where
        )
    if len(ladder) < 2 or not 0 < sigmas[0] < sigmas[1] < math.inf:
        raise CheckpointCorrupt(f"noise from {sigmas[1]:g} to {sigmas[0]:g} is no ladder", where=where)
    return held | dict(zip(names, shadow, strict=True)), sigmas


def weights(theirs: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Their tensors under our names.

    Raises:
        InvalidInput, KeyMismatch: of another network.
    """
    found = settings({name: tuple(tensor.shape) for name, tensor in theirs.items()}, where)
    with without_numbers():
        network = NCSNpp(**found)
    return to_ours(table(network), theirs, where)


def table(network: NCSNpp) -> list[Row]:
    """Our names and theirs, which are numbered in the order in which they are called."""
    rows: list[Row] = []
    for number, (name, module) in enumerate(_in_order(network)):
        theirs = f"all_modules.{number}"
        if name == "map_noise":
            rows.append(Row("map_noise.W", (f"{theirs}.W",)))
        elif isinstance(module, ScaledResidualBlock):
            for mine, his in _BLOCK.items():
                rows += both(f"{name}.{mine}", f"{theirs}.{his}")
            if isinstance(module.skip, nn.Conv2d) and network.resblock_updown:
                rows += both(f"{name}.skip", f"{theirs}.Conv_2")
            elif isinstance(module.skip, nn.Conv2d):
                rows.append(Row(f"{name}.skip.weight", (f"{theirs}.NIN_0.W",), _SHORTCUT))
                rows.append(Row(f"{name}.skip.bias", (f"{theirs}.NIN_0.b",)))
        elif name.endswith(".attention"):
            rows += both(f"{name}.norm", f"{theirs}.GroupNorm_0")
            matrices, biases = (tuple(f"{theirs}.NIN_{i}.{part}" for i in range(3)) for part in ("W", "b"))
            rows.append(Row(f"{name}.qkv.weight", matrices, _NINS))
            rows.append(Row(f"{name}.qkv.bias", biases, STACKED))
            rows.append(Row(f"{name}.proj_out.weight", (f"{theirs}.NIN_3.W",), _NIN))
            rows.append(Row(f"{name}.proj_out.bias", (f"{theirs}.NIN_3.b",), SAME))
        elif isinstance(module, HalvingConv):
            rows += both(name, f"{theirs}.Conv2d_0")
        elif isinstance(module, Downsample | nn.Sequential):
            rows += both(f"{name}.{'op' if isinstance(module, Downsample) else '1'}", f"{theirs}.Conv_0")
        elif name.endswith("aux_skip"):
            rows += both(name, f"{theirs}.Conv_0")
        else:
            rows += both(name, theirs)
    return rows


def _in_order(network: NCSNpp) -> Iterator[tuple[str, nn.Module]]:
    """Modules that have weights, as they are called; attention after the block it follows."""
    for name in ("map_noise", "map_layer0", "map_layer1"):
        if (first := getattr(network, name)) is not None:
            yield name, first
    for way, modules in (("enc", network.enc), ("dec", network.dec)):
        for key, module in modules.items():
            if next(module.parameters(), None) is None:
                continue
            yield f"{way}.{key}", module
            if isinstance(module, ScaledResidualBlock) and module.attention is not None:
                yield f"{way}.{key}.attention", module.attention


def _told(path: Path, found: Mapping[str, Any]) -> SDE | None:
    """What the network was trained on, by its embedding and the folder it lies in."""
    if found["embedding"] == "fourier":
        return "ve"
    parts = [part.lower() for part in path.absolute().parts]
    folder = next((part for part in reversed(parts[:-1]) if part in ("vp", "subvp", "ve")), None)
    if folder is None:
        return None
    if folder == "subvp":
        return "sub_vp"
    continuous = any("continuous" in part for part in parts)
    return ("vp" if continuous else "vp_discrete") if folder == "vp" else "ve_discrete"


def _trained_on(
    sde: SDE, ladder: tuple[float, float, int], found: Mapping[str, Any]
) -> tuple[Process, Prediction, str, dict[str, Any]]:
    """(process, prediction, time input, further settings of the network) for data in [-1, 1]."""
    if (sde == "ve") != (found["embedding"] == "fourier"):
        raise InvalidInput(
            f"a network with {found['embedding']} embedding is none of {sde}",
            where="sde",
            do="ve goes with fourier, all else with sinusoids",
        )
    least, most, steps = ladder
    if sde == "ve":
        return VE(2 * least, 2 * most), Score(), "log_half_sigma", {"scale_by_sigma": HALF_SIGMA}
    if sde == "ve_discrete":
        falling = (math.log(2 * most), math.log(least / most) / (steps - 1))
        return NCSN(2 * least, 2 * most, steps), Score(), "reverse_index", {"scale_by_sigma": falling}
    if sde == "vp_discrete":
        return Betas("linear"), Noise(), "index", {}
    return (VP() if sde == "vp" else SubVP()), Noise(), "continuous_index", {}
