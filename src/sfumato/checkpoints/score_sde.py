"""Checkpoints of score_sde_pytorch: NCSN++ and DDPM++ on VE, VP and sub-VP processes.

A checkpoint is a dictionary of optimizer, model, ema and step, written by torch.save. The averaged weights are
used; they stand in a list, in the order of those parameters that are trained. Settings of the network are told
by the shapes. Networks for data in [0, 1] (all VE ones) show themselves 2x - 1; here they are networks for data
in [-1, 1] and twice the noise, which is the same without a change of any weight.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sfumato.checkpoints.keys import fit
from sfumato.checkpoints.safe import refuse_non_finite
from sfumato.checkpoints.torch_file import read_torch
from sfumato.checkpoints.translation import SAME, STACKED, Layout, Row, both, to_ours
from sfumato.conditioners.nothing import Nothing
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import CheckpointCorrupt, InvalidInput, nearest
from sfumato.core.prediction import Noise, Prediction, Score
from sfumato.core.process import Process
from sfumato.model import Model
from sfumato.networks.layers.fir import HalvingConv
from sfumato.networks.layers.resample import Downsample
from sfumato.networks.ncsnpp import HALF_SIGMA, Block, NCSNpp
from sfumato.processes.betas import Betas
from sfumato.processes.ncsn import NCSN
from sfumato.processes.sub_vp import SubVP
from sfumato.processes.ve import VE
from sfumato.processes.vp import VP
from sfumato.spaces.pixel import Pixel

SDE = Literal["vp", "vp_discrete", "sub_vp", "ve", "ve_discrete"]
"""What a network was trained on; the discrete ones on the steps of DDPM and the ladder of NCSN."""

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
    """Whether this is such a checkpoint; its pickle is looked through as text and not run."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(inside) != 1 or archive.getinfo(inside[0]).file_size > 16 * 2**20:
                return False
            text = archive.read(inside[0])
    except (OSError, zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError):
        return False
    return all(word in text for word in (b"all_modules.0.", b"shadow_params"))


def read(path: str | Path, *, strict: bool = True, sde: SDE | None = None) -> Model:
    """The model of a checkpoint, on the CPU, ready to use.

    Args:
        path: the .pth file.
        strict: refuse NaN among the weights; else warn.
        sde: what the network was trained on. Fourier features tell a VE process; for the others, the folder
            does when it is named as published (vp/cifar10_ddpmpp_continuous); else vp is assumed, with a
            warning.

    Raises:
        InvalidInput: a network of another kind, or an unknown sde.
        CheckpointCorrupt, KeyMismatch: the file is damaged, or does not hold what such checkpoints do.
    """
    where = str(path)
    if sde is not None and sde not in get_args(SDE):
        raise InvalidInput(f"unknown sde {sde!r}", where="sde", do=nearest(str(sde), get_args(SDE)))
    checkpoint: Any = read_torch(path)
    theirs, ladder = averaged(checkpoint, where)
    tensors = weights(theirs, where)
    refuse_non_finite(tensors, where, strict)
    found = settings({name: tuple(tensor.shape) for name, tensor in theirs.items()}, where)
    sde = sde or _told(Path(path), found)
    process, prediction, time_input, extra = _trained_on(sde, ladder, found)
    network = NCSNpp(**found, **extra)
    fit({"network": network}, {f"network.{name}": tensor for name, tensor in tensors.items()}, where, strict)
    denoiser = NetworkDenoiser(network, process, prediction, time_input).eval()
    space = Pixel(found["in_channels"], multiple=2 ** (len(found["multipliers"]) - 1))
    card: dict[str, Any] = {"source": where, "trained_steps": int(checkpoint.get("step", 0))}
    if found["attention"]:
        # All published networks attend at 16 x 16.
        card["size"] = [16 * found["attention"][0]] * 2
    return Model(denoiser, Nothing(), space, card)


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
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointCorrupt(f"no model and ema of score_sde: {error}", where=where) from None
    # Fourier features are a parameter that is not trained, and averages skip it.
    names = [name for name in held if not (name == "all_modules.0.W" and held[name].ndim == 1)]
    if [tuple(held[name].shape) for name in names] != [tuple(tensor.shape) for tensor in shadow]:
        raise CheckpointCorrupt(
            f"an average of {len(shadow)} tensors beside a model of {len(names)} of other shapes", where=where
        )
    return held | dict(zip(names, shadow, strict=True)), sigmas


def weights(theirs: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Their tensors under our names.

    Raises:
        InvalidInput, KeyMismatch: of another network.
    """
    found = settings({name: tuple(tensor.shape) for name, tensor in theirs.items()}, where)
    with torch.device("meta"):
        network = NCSNpp(**found)
    return to_ours(table(network), theirs, where)


def table(network: NCSNpp) -> list[Row]:
    """Our names and theirs, which are numbered in the order in which they are called."""
    rows: list[Row] = []
    for number, (name, module) in enumerate(_in_order(network)):
        theirs = f"all_modules.{number}"
        if name == "map_noise":
            rows.append(Row("map_noise.W", (f"{theirs}.W",)))
        elif isinstance(module, Block):
            for mine, his in _BLOCK.items():
                rows += both(f"{name}.{mine}", f"{theirs}.{his}")
            if isinstance(module.skip, nn.Conv2d) and network.resblock_updown:
                rows += both(f"{name}.skip", f"{theirs}.Conv_2")
            elif isinstance(module.skip, nn.Conv2d):
                rows.append(Row(f"{name}.skip.weight", (f"{theirs}.NIN_0.W",), _SHORTCUT))
                rows.append(Row(f"{name}.skip.bias", (f"{theirs}.NIN_0.b",)))
        elif name.endswith(".attention"):
            rows += both(f"{name}.norm", f"{theirs}.GroupNorm_0")
            for part, layout in (("weight", _NINS), ("bias", STACKED)):
                his = tuple(f"{theirs}.NIN_{i}.{'W' if part == 'weight' else 'b'}" for i in range(3))
                rows.append(Row(f"{name}.qkv.{part}", his, layout))
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
            if isinstance(module, Block) and module.attention is not None:
                yield f"{way}.{key}.attention", module.attention


def settings(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Any]:
    """Settings of NCSNpp for the shapes of their weights.

    All published networks smooth where they resample if the picture enters every level, and only there; no
    shape tells of it.

    Raises:
        InvalidInput: a network of another kind.
    """
    groups: dict[int, dict[str, tuple[int, ...]]] = {}
    try:
        for name, shape in shapes.items():
            _, number, rest = name.split(".", 2)
            groups.setdefault(int(number), {})[rest] = tuple(shape)
        return _settings([groups[number] for number in range(len(groups))])
    except (KeyError, ValueError, IndexError) as error:
        raise InvalidInput(
            f"the weights are not those of an NCSN++ or DDPM++ of two levels or more ({error!r})",
            where=where,
            do="the plain DDPM and NCSNv2 networks of score_sde are not read",
        ) from None


def _settings(modules: list[dict[str, tuple[int, ...]]]) -> dict[str, Any]:
    fourier = "W" in modules[0]
    channels, in_channels = modules[fourier + 2]["weight"][:2]
    place, blocks = fourier + 3, 0
    multipliers: list[int] = []
    attention: list[int] = []
    entering, combine, updown = "none", "sum", True
    while True:
        # The first level shows how many blocks each has; the last ends without a halving.
        count, attends, width = 0, False, modules[place]["Dense_0.weight"][0]
        while not (blocks and count == blocks) and not _halves(modules[place]):
            count, place = count + 1, place + 1
            if "NIN_3.W" in modules[place]:
                attends, place = True, place + 1
        blocks = count
        attention += [2 ** len(multipliers)] * attends
        multipliers.append(width // channels)
        if not _halves(modules[place]):
            break
        updown, place = "Dense_0.weight" in modules[place], place + 1
        if "Conv2d_0.weight" in modules[place]:
            entering, place = "residual", place + 1
        elif set(modules[place]) == {"Conv_0.weight", "Conv_0.bias"}:
            entering, width, place = "skip", modules[place]["Conv_0.weight"][0], place + 1
            combine = "sum" if modules[place]["Conv_0.weight"][1] == width else "cat"
    drawn = [module for module in modules if set(module) == {"weight", "bias"} and len(module["weight"]) == 1]
    return {
        "in_channels": in_channels,
        "out_channels": modules[-1]["weight"][0],
        "channels": channels,
        "multipliers": tuple(multipliers),
        "blocks": blocks,
        "attention": tuple(attention),
        "embedding": "fourier" if fourier else "positional",
        "taps": (1, 1) if entering == "none" else (1, 3, 3, 1),
        "input": entering,
        "combine": combine,
        "output": "skip" if len(drawn) > 1 else "none",
        "resblock_updown": updown,
    }


def _halves(module: Mapping[str, tuple[int, ...]]) -> bool:
    """A block that keeps its width and projects all the same, or a convolution alone."""
    out, into, *_ = module["Conv_0.weight"]
    return "Dense_0.weight" not in module or (out == into and "Conv_2.weight" in module)


def _told(path: Path, found: Mapping[str, Any]) -> SDE:
    """What the network was trained on, by its embedding and the folder it lies in."""
    if found["embedding"] == "fourier":
        return "ve"
    parts = [part.lower() for part in path.absolute().parts]
    folder = next((part for part in reversed(parts[:-1]) if part in ("vp", "subvp", "ve")), None)
    if folder is None:
        warnings.warn(
            f"{path}: these weights do not tell what they were trained on; taken for a continuous VP process, "
            "unless the folder is named as published (vp/cifar10_ddpmpp_continuous) or sde is given",
            stacklevel=3,
        )
        return "vp"
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
