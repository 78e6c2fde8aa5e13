"""The demo's sheets: every picture at its place, enlarged, with its words below."""

from __future__ import annotations

import torch

from sfumato.interfaces.demo import captioned


def test_pictures_stand_in_order_and_words_below_each() -> None:
    colors = torch.tensor([[-1.0, -1, 1], [1.0, -1, -1], [-1.0, 1, -1]])
    pictures = [color[:, None, None].expand(3, 20, 30) for color in colors]
    sheet = captioned(pictures, ["blue", "red", "a green one, which is said at length"], columns=2)
    width, height, gap = 90, 60, 14
    assert sheet.width == 2 * (width + gap) + gap
    label = (sheet.height - gap) // 2 - height - gap
    for number, color in enumerate([(0, 0, 255), (255, 0, 0), (0, 255, 0)]):
        left, top = gap + number % 2 * (width + gap), gap + number // 2 * (height + label + gap)
        assert sheet.getpixel((left, top)) == color
        assert sheet.getpixel((left + width - 1, top + height - 1)) == color
        assert sheet.getpixel((left + width, top)) == (255, 255, 255)
        below = sheet.crop((left, top + height, left + width, top + height + label))
        assert below.convert("L").getextrema()[0] < 128
    # The last words take two lines.
    second = sheet.crop((gap, sheet.height - gap - 17, gap + width, sheet.height - gap))
    assert second.convert("L").getextrema()[0] < 128
