"""Pictures and labels in the idx files of MNIST, Fashion-MNIST and their kin."""

from __future__ import annotations

import ctypes
import gzip
import math
import random
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sfumato.core.errors import InvalidInput, NotFound
from sfumato.data.item import Item, distinct, hash_of, position
from sfumato.data.picture import to_image

FASHION = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
"""The ten classes of Fashion-MNIST, in the order of their numbers."""

_MAX_BYTES = 2**31


@dataclass
class Idx:
    """Grey pictures and class numbers from MNIST-format idx files, plain or gzipped.

    An idx file is two zero bytes, a type byte (8: unsigned bytes), the number of dimensions, each of them
    as a big-endian 32-bit number, then the values. Inputs are {"label": class name}; images are (1, H, W).

    LeCun, Cortes & Burges, "The MNIST database of handwritten digits"; Xiao, Rasul & Vollgraf 2017,
    "Fashion-MNIST", arXiv:1708.07747.

    Args:
        root: folder of the four files; the default is where the Debian package dataset-fashion-mnist puts
            them.
        split: "train" or "test" (the t10k files).
        size: height and width; larger than the pictures pads them evenly with the darkest value.
        classes: names by class number; empty names them "0", "1", ...
        flip: mirror half of the pictures, by seed.

    Raises:
        NotFound: no such file.
        InvalidInput: damaged or mismatching files, a size below that of the pictures.
    """

    root: str = "/usr/share/datasets/fashion-mnist"
    split: Literal["train", "test"] = "train"
    size: int = 28
    classes: tuple[str, ...] = FASHION
    flip: bool = False

    def __post_init__(self) -> None:
        if self.split not in ("train", "test"):
            raise InvalidInput(f"{self.split!r} is no split", where="idx.split", do="train or test")
        part = "train" if self.split == "train" else "t10k"
        self.images = read_idx(find_idx(self.root, f"{part}-images", 3))
        self.numbers = read_idx(find_idx(self.root, f"{part}-labels", 1))
        if self.images.ndim != 3 or self.numbers.ndim != 1 or len(self.images) != len(self.numbers):
            shapes = f"{tuple(self.images.shape)} and {tuple(self.numbers.shape)}"
            raise InvalidInput(f"pictures and labels do not belong together: {shapes}", where=self.root)
        if len(self.images) == 0:
            raise InvalidInput("holds no pictures", where=self.root)
        if self.size < max(self.images.shape[1:]):
            raise InvalidInput(f"smaller than the pictures, {tuple(self.images.shape[1:])}", where="idx.size")
        highest = int(self.numbers.max())
        if self.classes and highest >= len(self.classes):
            raise InvalidInput(
                f"class {highest} has no name among {len(self.classes)}",
                where="idx.classes",
                do="name every class, or give an empty list",
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        return self.load(index, seed=0)

    def load(self, index: int, seed: int) -> Item:
        """The item of an index; the seed decides whether it is mirrored."""
        index = position(index, len(self), "idx")
        image = to_image(self.images[index][None])
        height, width = image.shape[1:]
        top, left = (self.size - height) // 2, (self.size - width) // 2
        margins = (left, self.size - width - left, top, self.size - height - top)
        image = functional.pad(image, margins, value=-1.0)
        if self.flip and random.Random(f"{seed}:{index}").random() < 0.5:
            image = image.flip(2)
        return Item(image, {"label": self._name(int(self.numbers[index]))})

    def labels(self, key: str = "label") -> list[str]:
        """The class names that occur, by class number."""
        return distinct(map(self._name, sorted(set(self.numbers.tolist())))) if key == "label" else []

    def fingerprint(self) -> str:
        """SHA-256 of the files' contents (as CRC-32) and the settings."""
        crcs = [zlib.crc32(_memory(part)) for part in (self.images, self.numbers)]
        return hash_of(self, [list(self.images.shape), crcs], ignore=("root",))

    def _name(self, number: int) -> str:
        return self.classes[number] if self.classes else str(number)


def _memory(values: Tensor) -> ctypes.Array[ctypes.c_char]:
    """The bytes of a contiguous tensor, without a copy."""
    return (ctypes.c_char * values.nbytes).from_address(values.data_ptr())


def find_idx(root: str | Path, name: str, dimensions: int) -> Path:
    """The idx file of a name in a folder: train-images-idx3-ubyte or train-images.idx3-ubyte, perhaps .gz."""
    folder = Path(root).expanduser()
    for joint in ("-", "."):
        for suffix in ("", ".gz"):
            path = folder / f"{name}{joint}idx{dimensions}-ubyte{suffix}"
            if path.is_file():
                return path
    raise NotFound(
        f"no {name}-idx{dimensions}-ubyte (.gz)",
        where=str(folder),
        do="install the Debian package dataset-fashion-mnist, or give the folder of the files",
    )


def read_idx(path: str | Path) -> Tensor:
    """An idx file of unsigned bytes as a uint8 tensor of its dimensions.

    Raises:
        InvalidInput: a damaged header, or fewer or more values than it announces.
    """
    where = str(path)
    try:
        with gzip.open(path, "rb") if where.endswith(".gz") else open(path, "rb") as stream:
            head = stream.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 4:
                raise InvalidInput("not an idx file of unsigned bytes", where=where)
            sizes = stream.read(4 * head[3])
            shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4)]
            count = math.prod(shape)
            if len(sizes) < 4 * head[3] or count > _MAX_BYTES:
                raise InvalidInput(f"damaged header: {shape}", where=where)
            # One byte more than announced: enough to notice a longer file, however far it would inflate.
            values = stream.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInput(f"damaged file: {error}", where=where) from error
    if len(values) != count:
        found = "more" if len(values) > count else len(values)
        raise InvalidInput(f"announces {count} values and holds {found}", where=where)
    if count == 0:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(bytearray(values), dtype=torch.uint8).view(shape)
