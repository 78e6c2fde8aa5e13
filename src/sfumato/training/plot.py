"""The loss of a run as a picture, drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.core.errors import NotFound
from sfumato.training.progress import LossLog

_INK, _GRID, _PALE, _LINE = (40, 40, 48), (226, 226, 230), (190, 205, 230), (30, 90, 190)
_BANDS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (220, 190, 30))


def plot_run(directory: Path, path: Path) -> None:
    """Draw the losses of a run directory: training loss (and its running mean) and validation by noise band.

    Raises:
        NotFound: the run has logged nothing yet.
    """
    lines = LossLog.read(directory)
    losses = [(line["step"], line["loss"]) for line in lines if math.isfinite(line.get("loss", math.nan))]
    bands = [(line["step"], line["bands"]) for line in lines if "bands" in line]
    if not losses:
        raise NotFound("no losses logged", where=str(directory))
    series: list[tuple[str, tuple[int, int, int], Sequence[tuple[float, float]]]] = [
        ("each step", _PALE, losses),
        ("running mean", _LINE, running_mean(losses)),
    ]
    panels = [("training loss", series)]
    if bands:
        count = len(bands[0][1])
        panels.append(
            (
                "validation loss by noise band",
                [
                    (_band_name(i, count), _shade(i, count), [(step, values[i]) for step, values in bands])
                    for i in range(count)
                ],
            )
        )
    draw_panels(panels, path)


def running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means over a window that grows with the run, to a fiftieth of it."""
    width = max(len(points) // 50, 1)
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    out = []
    for i, (step, _) in enumerate(points):
        start = max(0, i + 1 - width)
        out.append((step, (sums[i + 1] - sums[start]) / (i + 1 - start)))
    return out


def draw_panels(
    panels: Sequence[tuple[str, Sequence[Any]]], path: Path, width: int = 900, height: int = 420
) -> None:
    """Draw titled panels of (name, colour, points) one above another: linear steps, logarithmic losses."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, height * len(panels)), "white")
    draw = ImageDraw.Draw(image)
    for number, (title, series) in enumerate(panels):
        _panel(draw, (70, 44 + number * height, width - 24, (number + 1) * height - 48), title, series)
    image.save(path)


def _panel(draw: Any, box: tuple[int, int, int, int], title: str, series: Sequence[Any]) -> None:
    from PIL import ImageFont

    font, big = ImageFont.load_default(13), ImageFont.load_default(16)
    left, top, right, bottom = box
    points = [point for _, _, line in series for point in line if point[1] > 0]
    if not points:
        return
    x_low, x_high = min(p[0] for p in points), max(p[0] for p in points)
    values = sorted(p[1] for p in points)
    # Single outliers must not press the curve flat.
    y_low, y_high = math.log10(values[len(values) // 500]), math.log10(values[-1 - len(values) // 500])
    margin = max(0.04 * (y_high - y_low), 0.02)
    y_low, y_high = y_low - margin, y_high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / max(x_high - x_low, 1e-9)
        up = (min(max(math.log10(y), y_low), y_high) - y_low) / (y_high - y_low)
        return left + across * (right - left), bottom - up * (bottom - top)

    for value in _log_ticks(10**y_low, 10**y_high):
        y = place(x_low, value)[1]
        draw.line((left, y, right, y), fill=_GRID)
        draw.text((left - 8, y), f"{value:.3g}", fill=_INK, font=font, anchor="rm")
    for value in _even_ticks(x_low, x_high):
        x = place(value, 10**y_low)[0]
        draw.line((x, top, x, bottom), fill=_GRID)
        draw.text((x, bottom + 6), f"{value:g}", fill=_INK, font=font, anchor="mt")
    draw.rectangle(box, outline=_INK)
    draw.text((left, top - 12), title, fill=_INK, font=big, anchor="lb")
    draw.text(((left + right) / 2, bottom + 40), "step", fill=_INK, font=font, anchor="mb")
    across = right
    for name, colour, line in reversed(series):
        drawn = [place(x, y) for x, y in line if y > 0]
        across -= draw.textlength(name, font=font) + 34
        draw.line((across, top - 18, across + 18, top - 18), fill=colour, width=3)
        draw.text((across + 23, top - 18), name, fill=_INK, font=font, anchor="lm")
        if len(drawn) == 1:
            draw.ellipse([c + d for d in (-3, 3) for c in drawn[0]], fill=colour)
    for _, colour, line in series:
        drawn = [place(x, y) for x, y in line if y > 0]
        if len(drawn) > 1:
            draw.line(drawn, fill=colour, width=1 if colour == _PALE else 2, joint="curve")


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis, at least two."""
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(1 + i / 10 for i in range(90))):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
        if len(ticks) >= 3:
            return ticks[:: max(len(ticks) // 6, 1)]
    return [low, high]


def _even_ticks(low: float, high: float) -> list[float]:
    """Round numbers on a linear axis."""
    if high <= low:
        return [low]
    raw = (high - low) / 6
    size = 10 ** math.floor(math.log10(raw))
    unit = next(m * size for m in (1, 2, 5, 10) if m * size >= raw)
    first = math.ceil(low / unit)
    return [i * unit for i in range(first, math.floor(high / unit) + 1)]


def _band_name(number: int, count: int) -> str:
    return "cleanest" if number == 0 else "noisiest" if number == count - 1 else str(number + 1)


def _shade(number: int, count: int) -> tuple[int, int, int]:
    """A colour between those of _BANDS, dark for clean."""
    place = number * (len(_BANDS) - 1) / max(count - 1, 1)
    low = min(int(place), len(_BANDS) - 2)
    mixed = (a + (b - a) * (place - low) for a, b in zip(_BANDS[low], _BANDS[low + 1], strict=True))
    red, green, blue = (round(c) for c in mixed)
    return red, green, blue
