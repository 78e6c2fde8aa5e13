"""Pictures of a folder tree, with labels by folder and captions from the files beside them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sfumato.core.errors import InvalidInput, NotFound
from sfumato.data.captions import CaptionFiles
from sfumato.data.files import list_pictures
from sfumato.data.item import Item, distinct, hash_of, position
from sfumato.data.layout import is_layout, mirrored, mirrored_box
from sfumato.data.picture import (
    Color,
    Mode,
    fit,
    open_picture,
    read_picture,
    to_bytes,
    to_image,
    upright_size,
)

MOST_BAD = 0.05
"""The largest share of unreadable pictures that is passed over rather than refused."""


class Entry(NamedTuple):
    """One readable picture: path from the root, bytes, size as displayed (H, W), what is known, bucket."""

    name: str
    length: int
    size: tuple[int, int]
    inputs: dict[str, Any]
    bucket: int


class View(NamedTuple):
    """What is seen of a picture: where the cut lies (0 left, top .. 1 right, bottom), and how large it is."""

    across: float
    down: float
    mirrored: bool
    size: tuple[int, int]


@dataclass
class Images:
    """All PNG, JPEG and WEBP pictures under a folder, recognised by content, in natural order of paths.

    All is read as one sees it: 16-bit, palette, CMYK, grey, animated (first frame), rotated by EXIF, with an
    ICC profile; transparency lies on the background. Pictures are scaled to cover the size (antialiased
    bicubic) and cropped. Inputs: label (the folder below the root, where there are any), caption (from the
    `.txt` or `.json` of the same name or a `metadata.jsonl`; None where missing), every other field of those,
    original_size, crop (top, left, in pixels of the scaled picture, mirrored with it) and size, as SDXL is
    told them, each pair height before width. Boxes among the fields, {"label": NAME, "box": [x0, y0, width,
    height]} as parts of the whole picture, are mirrored with it, and boxes_crop tells which part is seen.

    Building it reads the header of every picture. What cannot be read is listed in `bad` with the reason, and
    passed over; a picture found damaged only when it is decoded joins that list and the next readable one
    takes its place. More than 5 % of bad pictures are refused.

    Args:
        root: the folder.
        size: height and width, or (height, width).
        mode: "RGB", "L" (grey) or "RGBA".
        background: colour behind transparent pixels, 0..255.
        crop: "center", or "random" by seed.
        flip: mirror half of the pictures, by seed.
        buckets: sizes (height, width) among which each picture takes the nearest in shape; True derives them
            from the size: multiples of 8 or of what a model takes (`align`), of 64 too from 512 on, shapes
            up to 2 : 1, no larger in area. Batches then come from one bucket each (`bucket_of`).
        caption: "optional", "required" (pictures without one are bad), or "none" (no captions are read).

    Raises:
        NotFound: no such folder.
        InvalidInput: no pictures, more than 5 % bad, or settings that cannot be.
    """

    root: str
    size: int | tuple[int, int] = 64
    mode: Mode = "RGB"
    background: Color = (255, 255, 255)
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    buckets: bool | tuple[tuple[int, int], ...] = False
    caption: Literal["optional", "required", "none"] = "optional"

    def __post_init__(self) -> None:
        self.sizes = _sizes(self.size, self.buckets)
        for field, known in (
            ("mode", ("RGB", "L", "RGBA")),
            ("crop", ("center", "random")),
            ("caption", ("optional", "required", "none")),
        ):
            if (value := getattr(self, field)) not in known:
                raise InvalidInput(f"{value!r} is not one of {', '.join(known)}", where=f"images.{field}")
        self.folder = Path(self.root).expanduser()
        if not self.folder.is_dir():
            raise NotFound("no such folder of pictures", where=str(self.folder))
        self.bad: list[tuple[str, str]] = []
        self.entries: list[Entry] = []
        self._scan()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Item:
        return self.load(index, seed=0)

    def load(self, index: int, seed: int) -> Item:
        """The item of an index; the seed decides the random crop and whether it is mirrored.

        Raises:
            InvalidInput: with this one, more than 5 % of the pictures proved bad.
        """
        index = position(index, len(self), "images")
        return self.first_good(index, lambda entry: self.read(entry, self.view(entry, index, seed)))

    def first_good(self, index: int, read: Callable[[Entry], Item]) -> Item:
        """What is read of an index's entry, or, where that is damaged, of the next one of its bucket."""
        bucket = self.entries[index].bucket
        for step in range(len(self)):
            entry = self.entries[(index + step) % len(self)]
            if entry.bucket != bucket:
                continue
            try:
                return read(entry)
            except InvalidInput as error:
                self.mark_bad(entry.name, error.what)
        raise InvalidInput("no readable picture is left", where=self.root, do=_first(self.bad))

    def view(self, entry: Entry, index: int, seed: int) -> View:
        """What is seen of an entry that is asked for as this index under this seed."""
        chance = random.Random(f"{seed}:{index}")
        across, down, side = chance.random(), chance.random(), chance.random()
        if self.crop == "center":
            across = down = 0.5
        return View(across, down, self.flip and side < 0.5, self.sizes[entry.bucket])

    def read(self, entry: Entry, view: View) -> Item:
        """An entry's picture, seen so."""
        picture = read_picture(self.folder / entry.name, self.mode, self.background)
        cut, (top, left) = fit(picture, view.size, view.across, view.down)
        image = to_image(to_bytes(cut))
        inputs = dict(entry.inputs)
        layout = inputs.get("boxes")
        if is_layout(layout):
            shown = _shown(entry.size, view)
            inputs["boxes_crop"] = mirrored_box(shown) if view.mirrored else shown
        if view.mirrored:
            width = round(view.size[1] / _shown(entry.size, view)[2])
            image, left = image.flip(2), width - view.size[1] - left
            if is_layout(layout):
                inputs["boxes"] = mirrored(layout)
        return Item(image, {**inputs, "crop": (top, left), "size": view.size})

    def bucket_of(self, index: int) -> int:
        """Which of `sizes` the picture of an index takes; a batch holds indices of one bucket."""
        return self.entries[position(index, len(self), "images")].bucket

    def align(self, step: int) -> None:
        """Derive the buckets anew, if they are derived, with sides that divide by a step.

        Raises:
            InvalidInput: no such size is small enough.
        """
        if self.buckets is True:
            self.sizes = _sizes(self.size, True, step)
            self.entries = [entry._replace(bucket=_bucket(entry.size, self.sizes)) for entry in self.entries]

    def labels(self, key: str = "label") -> list[str]:
        """The distinct values of an input, in order: what a class label can say."""
        return distinct(entry.inputs.get(key) for entry in self.entries)

    def fingerprint(self) -> str:
        """SHA-256 of the pictures' names, lengths, sizes and inputs, and the settings; not of the root."""
        aligned = self.sizes != _sizes(self.size, self.buckets)
        return hash_of(self, [self.entries, self.sizes] if aligned else self.entries, ignore=("root",))

    def _scan(self) -> None:
        names = list_pictures(self.folder)
        if not names:
            raise InvalidInput("holds no PNG, JPEG or WEBP pictures", where=str(self.folder))
        captions = CaptionFiles(self.folder, read=self.caption != "none")
        self.bad.extend(captions.problems)
        labelled = any("/" in name for name in names)
        found = []
        for name in names:
            path = self.folder / name
            try:
                with open_picture(path) as picture:
                    size = upright_size(picture)
                inputs = captions.of(name)
                if self.caption == "required" and not inputs.get("caption"):
                    raise InvalidInput("has no caption", where=str(path))
            except InvalidInput as error:
                self.bad.append((name, error.what))
                continue
            if labelled:
                inputs.setdefault("label", name.rpartition("/")[0] or None)
            inputs["original_size"] = size
            found.append(Entry(name, path.stat().st_size, size, inputs, _bucket(size, self.sizes)))
        if any("caption" in entry.inputs for entry in found):
            for entry in found:
                entry.inputs.setdefault("caption", None)
        self._total = len(names)
        self.entries = found
        self._refuse_too_many_bad()

    def mark_bad(self, name: str, reason: str) -> None:
        """Note a picture that cannot be used; InvalidInput once these are more than 5 %."""
        if name not in (known for known, _ in self.bad):
            self.bad.append((name, reason))
            self._refuse_too_many_bad()

    def _refuse_too_many_bad(self) -> None:
        if not self.entries or len(self.bad) > MOST_BAD * self._total:
            raise InvalidInput(
                f"{len(self.bad)} of {self._total} pictures are bad", where=self.root, do=_first(self.bad)
            )


def _first(bad: list[tuple[str, str]]) -> str:
    listed = "; ".join(f"{name}: {reason}" for name, reason in bad[:3])
    return f"repair or remove {listed}" + ("; …" if len(bad) > 3 else "")


def _shown(size: tuple[int, int], view: View) -> list[float]:
    """Left, top, width and height of what is seen, as parts of the whole picture's."""
    scale = min(size[0] / view.size[0], size[1] / view.size[1])
    high, wide = (min(cut * scale / whole, 1.0) for cut, whole in zip(view.size, size, strict=True))
    return [view.across * (1 - wide), view.down * (1 - high), wide, high]


def _sizes(
    size: int | tuple[int, int], buckets: bool | tuple[tuple[int, int], ...], step: int = 8
) -> tuple[tuple[int, int], ...]:
    height, width = (size, size) if isinstance(size, int) else size
    if isinstance(buckets, tuple):
        sizes = tuple((int(h), int(w)) for h, w in buckets)
    elif buckets:
        sizes = _derived(height * width, max(height, width), step)
        if not sizes:
            raise InvalidInput(f"no size within {width} x {height} divides by {step}", where="images.size")
    else:
        sizes = ((height, width),)
    if not sizes or min(min(pair) for pair in sizes) < 1:
        raise InvalidInput("sizes are whole numbers of at least 1", where="images.size")
    return sizes


def _derived(area: int, longest: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """For each height a multiple (also of 64 from 512 on), the widest size within the area, up to 2 : 1."""
    step = math.lcm(multiple, 64 if longest >= 512 else 1)
    sizes = set()
    for height in range(step, 2 * longest + 1, step):
        width = area // height // step * step
        if width and max(height, width) <= 2 * min(height, width):
            sizes.add((height, width))
    return tuple(sorted(sizes))


def _bucket(size: tuple[int, int], sizes: tuple[tuple[int, int], ...]) -> int:
    """The size nearest in shape, by the logarithm of the ratio."""

    def mismatch(index: int) -> tuple[float, int]:
        height, width = sizes[index]
        return abs(math.log(height * size[1] / (width * size[0]))), -height * width

    return min(range(len(sizes)), key=mismatch)
