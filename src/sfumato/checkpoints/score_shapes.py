"""Settings of NCSN++ and DDPM++ told by the shapes of their weights, numbered as score_sde calls them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfumato.core.errors import InvalidInput


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
