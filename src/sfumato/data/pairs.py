"""Pairs: two folders of pictures matched by name, for models that turn one into the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from sfumato.core.errors import InvalidInput, NotFound
from sfumato.data.class_map import class_numbers
from sfumato.data.files import list_pictures
from sfumato.data.images import Entry, Images, View
from sfumato.data.item import Item, hash_of, position
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


@dataclass
class Pairs:
    """The pictures of a folder, each told beside the one of the same name in another folder.

    "a/7.png" among the targets belongs to "a/7.jpg" among the sources: paths from the folders are the same
    but for their endings. Both are cut and mirrored alike, so they may differ in size only by a scale. All
    else (captions, labels, buckets, what is unreadable) is as in `images`, of the targets.

    Args:
        source: the folder of what a model is told.
        target: the folder of what it is to make.
        size: height and width, or (height, width).
        mode: of the targets, "RGB", "L" (grey: depth, thermal pictures) or "RGBA".
        source_mode: likewise; the conditioner `image` wants `colors: 1` for grey beside colour.
        told: the input that the source is: "image", "low_res", or of maps "semantic_map" (PNG, numbers of a
            palette or of grey; nearest pixels are taken) or "depth" (8 or 16 bits, kept as they are).
        background: colour behind transparent pixels, 0..255.
        crop: "center", or "random" by seed.
        flip: mirror half of the pairs, by seed.
        buckets: as in `images`.
        caption: "optional", "required" or "none", of the targets.
        unmatched: "refuse" pictures without a partner, naming them, or "leave" them out.

    Raises:
        NotFound: no such folder.
        InvalidInput: pictures without partners, two of one name, or pairs of unlike shapes.
    """

    source: str
    target: str
    size: int | tuple[int, int] = 64
    mode: Mode = "RGB"
    source_mode: Mode = "RGB"
    told: Literal["image", "low_res", "semantic_map", "depth"] = "image"
    background: Color = (255, 255, 255)
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    buckets: bool | tuple[tuple[int, int], ...] = False
    caption: Literal["optional", "required", "none"] = "optional"
    unmatched: Literal["refuse", "leave"] = "refuse"

    def __post_init__(self) -> None:
        for field, known in (
            ("source_mode", ("RGB", "L", "RGBA")),
            ("told", ("image", "low_res", "semantic_map", "depth")),
            ("unmatched", ("refuse", "leave")),
        ):
            if (value := getattr(self, field)) not in known:
                raise InvalidInput(f"{value!r} is not one of {', '.join(known)}", where=f"pairs.{field}")
        self.folder = Path(self.source).expanduser()
        if not self.folder.is_dir():
            raise NotFound("no such folder of pictures", where=str(self.folder))
        cut = (self.crop, self.flip, self.buckets, self.caption)
        self.images = Images(self.target, self.size, self.mode, self.background, *cut)
        self._match()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        return self.load(index, seed=0)

    @property
    def bad(self) -> list[tuple[str, str]]:
        """Pairs that cannot be read, with the reason."""
        return self.images.bad

    def load(self, index: int, seed: int) -> Item:
        """The pair of an index; the seed decides the random crop and whether it is mirrored."""
        index = position(index, len(self), "pairs")

        def read(entry: Entry) -> Item:
            view = self.images.view(entry, index, seed)
            item = self.images.read(entry, view)
            return Item(item.image, {**item.inputs, self.told: self._source(entry, view)})

        return self.images.first_good(index, read)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each bucket."""
        return self.images.sizes

    def align(self, step: int) -> None:
        """Derive the buckets anew, if they are derived, with sides that divide by a step."""
        self.images.align(step)

    def bucket_of(self, index: int) -> int:
        """Which of the sizes the pair of an index takes; a batch holds indices of one bucket."""
        return self.images.bucket_of(index)

    def labels(self, key: str = "label") -> list[str]:
        """The distinct values of an input, in order: what a class label can say."""
        return self.images.labels(key)

    def fingerprint(self) -> str:
        """SHA-256 of both sides' names, lengths and sizes, and the settings; not of where they lie."""
        sources = [
            (name, (self.folder / name).stat().st_size)
            for name in (self._sources[_stem(entry.name)] for entry in self.images.entries)
        ]
        return hash_of(self, [self.images.fingerprint(), sources], ignore=("source", "target"))

    def _match(self) -> None:
        """Find each target's source; only targets that have one stay."""
        self._sources: dict[str, str] = {}
        for name in list_pictures(self.folder):
            if (other := self._sources.setdefault(_stem(name), name)) != name:
                raise InvalidInput(f"{other} and {name} have one name", where=self.source, do="remove one")
        found: dict[str, Entry] = {}
        for entry in self.images.entries:
            if (first := found.setdefault(_stem(entry.name), entry)) is not entry:
                raise InvalidInput(
                    f"{first.name} and {entry.name} have one name", where=self.target, do="remove one"
                )
        # A target that cannot be read is told of as such, not as a source without a partner.
        known = {*found, *(_stem(name) for name, _ in self.images.bad)}
        alone = [f"source {name}" for stem, name in self._sources.items() if stem not in known]
        alone += [f"target {entry.name}" for stem, entry in found.items() if stem not in self._sources]
        if alone and (self.unmatched == "refuse" or not found.keys() & self._sources.keys()):
            listed = ", ".join(alone[:5]) + (", …" if len(alone) > 5 else "")
            raise InvalidInput(
                f"{len(alone)} pictures have no partner of their name: {listed}",
                where=f"{self.source}, {self.target}",
                do="add or remove them, or set unmatched: leave",
            )
        paired = [entry for stem, entry in found.items() if stem in self._sources]
        self.images.entries = [entry for entry in paired if self._alike(entry)]
        if not self.images.entries:
            raise InvalidInput("holds no pair", where=f"{self.source}, {self.target}")

    def _alike(self, entry: Entry) -> bool:
        """Whether the source can be read and has the target's shape, within a pixel; else it is bad."""
        name = self._sources[_stem(entry.name)]
        try:
            with open_picture(self.folder / name) as picture:
                height, width = upright_size(picture)
        except InvalidInput as error:
            self.images.mark_bad(name, error.what)
            return False
        h, w = entry.size
        if abs(height * w - width * h) <= max(min(w, h), min(width, height)):
            return True
        reason = f"{width} x {height} pixels, of another shape than its partner's {w} x {h}"
        self.images.mark_bad(name, reason)
        return False

    def _source(self, entry: Entry, view: View) -> Tensor:
        """What is told: (C, H, W), or a map (H, W)."""
        path = self.folder / self._sources[_stem(entry.name)]
        if self.told not in ("semantic_map", "depth"):
            picture = read_picture(path, self.source_mode, self.background)
            told = to_image(to_bytes(fit(picture, view.size, view.across, view.down)[0]))
        else:
            drawn = read_map(path, self.told == "semantic_map")
            told = _tensor(fit(drawn, view.size, view.across, view.down, drawn.mode == "L")[0])
        return told.flip(-1) if view.mirrored else told


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def read_map(path: Path, classes: bool) -> Image.Image:
    """A map of a file as an image of mode L, of class numbers, or F, of depths."""
    if classes:
        return Image.fromarray(class_numbers(path, str(path)).to(torch.uint8).numpy(), "L")
    with open_picture(path) as picture:
        if not picture.mode.startswith("I"):
            return read_picture(path, "L").convert("F")
        try:
            picture.load()
        except Exception as error:
            # Decoders' errors are as varied as the damage.
            raise InvalidInput(f"damaged picture: {error}", where=str(path)) from error
        return picture.convert("I").convert("F")


def _tensor(drawn: Image.Image) -> Tensor:
    flat = bytearray(drawn.tobytes())
    if drawn.mode == "L":
        return torch.frombuffer(flat, dtype=torch.uint8).view(drawn.height, drawn.width).long()
    return torch.frombuffer(flat, dtype=torch.float32).view(drawn.height, drawn.width).clone()
