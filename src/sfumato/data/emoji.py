"""The embedded set: emoji by two hands, Noto's drawings and Fluent's renderings, with names and classes."""

from __future__ import annotations

import functools
import io
import json
import os
import random
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image
from torch import Tensor

from sfumato.core.errors import CheckpointCorrupt, InvalidInput, NotFound, nearest
from sfumato.data.item import Item, distinct, hash_of, position
from sfumato.data.picture import Color, fit, over, to_bytes, to_image
from sfumato.data.wording import asked

ASSETS = Path(__file__).parent / "assets"
STYLES = ("noto", "fluent 3d")
SPLITS = ("train", "held_out", "skin_tones", "skin_tones_held_out", "all")


class Drawing(NamedTuple):
    """One picture of the set and what is known of it."""

    file: str
    code: str
    style: str
    concept: str
    article: str
    category: str
    subcategory: str
    keywords: tuple[str, ...]
    skin_tone: str
    held_out: bool

    @property
    def thing(self) -> tuple[str, str]:
        """What is drawn, whoever drew it: variants of a skin tone share their concept's code."""
        return self.code, self.skin_tone

    @property
    def split(self) -> str:
        """ "train", "held_out", "skin_tones" or "skin_tones_held_out"."""
        if self.skin_tone:
            return "skin_tones_held_out" if self.held_out else "skin_tones"
        return "held_out" if self.held_out else "train"

    @property
    def caption(self) -> str:
        """The concept, and the skin tone where there is one."""
        if not self.skin_tone:
            return self.concept
        return f"{self.concept}, {self._skin}"

    @property
    def _skin(self) -> str:
        return f"{self.skin_tone} skin tone" + "s" * (" and " in self.skin_tone)

    def asked(self, chance: random.Random) -> str:
        """One of the many ways to ask for it."""
        also = self._skin if self.skin_tone else ""
        return asked(self.concept, self.article, self.style, self.keywords, self.subcategory, chance, also)


@dataclass
class Emoji:
    """The embedded emoji set: 3,786 Noto drawings of 64 px and 1,607 Fluent 3D renderings of 128 px, named.

    1,911 concepts, a tenth of them held out in both styles, chosen by the hash of their code point; concepts
    drawn with the very same picture are held out together. The skin-tone variants stand apart. Inputs are
    caption, concept, style, category, subcategory, keywords, skin_tone ("" for none), and with `source` the
    same thing as another hand drew it, in `image`: pairs for translation from one style to the other.

    Noto Emoji (Google, Apache-2.0), Fluent Emoji (Microsoft, MIT), names by emoji-data (Cal Henderson, MIT).

    Args:
        styles: "noto" and "fluent 3d".
        size: height and width of the images; above 64 (noto) or 128 (fluent 3d) pictures are enlarged.
        split: "train", "held_out", "skin_tones" (of the concepts of train), "skin_tones_held_out", or "all".
        concepts: only these, e.g. ("red apple", "lemon"); None is all.
        categories: only these, e.g. ("Food & Drink",); None is all.
        background: colour behind the drawings, 0..255.
        flip: mirror half of the pictures, by seed.
        source: the style of `image`; of what that hand did not draw nothing is taken.
        wording: "name", the caption is the concept, with its skin tone; or "varied", by seed: with and
            without article and style, by other names, with words for its kind, as people ask for things.

    Raises:
        NotFound: an unknown style, split, concept or category, with the nearest named.
        InvalidInput: a size below 8, or a choice that leaves no picture.
    """

    styles: tuple[str, ...] = STYLES
    size: int = 64
    split: Literal["train", "held_out", "skin_tones", "skin_tones_held_out", "all"] = "train"
    concepts: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None
    background: Color = (255, 255, 255)
    flip: bool = False
    source: str | None = None
    wording: Literal["name", "varied"] = "name"

    def __post_init__(self) -> None:
        drawings = _drawings()
        _known("source", [] if self.source is None else [self.source], STYLES)
        self._partners = {d.thing: d for d in drawings if d.style == self.source}
        _known("split", [self.split], SPLITS)
        _known("wording", [self.wording], ("name", "varied"))
        _known("styles", self.styles, STYLES)
        _known("concepts", self.concepts or (), {d.concept for d in drawings})
        _known("categories", self.categories or (), {d.category for d in drawings})
        if self.size < 8:
            raise InvalidInput(f"{self.size} pixels are too few", where="emoji.size", do="use 8 or more")
        self.drawings = [
            d
            for d in drawings
            if d.style in self.styles
            and self.split in (d.split, "all")
            and (self.concepts is None or d.concept in self.concepts)
            and (self.categories is None or d.category in self.categories)
            and (self.source is None or (d.style != self.source and d.thing in self._partners))
        ]
        if not self.drawings:
            raise InvalidInput("no picture is left by this choice", where="emoji", do="choose another split")
        self._decoded: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.drawings)

    def __getitem__(self, index: int) -> Item:
        return self.load(index, seed=0)

    def load(self, index: int, seed: int) -> Item:
        """The item of an index; the seed decides whether it is mirrored."""
        index = position(index, len(self), "emoji")
        drawing = self.drawings[index]
        mirrored = self._mirrored(index, seed)
        inputs = _inputs(drawing)
        if self.wording == "varied":
            inputs["caption"] = drawing.asked(random.Random(f"asked:{seed}:{index}"))
        if self.source is not None:
            inputs["image"] = self._shown(self._partners[drawing.thing], mirrored)
        return Item(self._shown(drawing, mirrored), inputs)

    def picture(self, index: int) -> Image.Image:
        """A drawing with its transparency, RGBA, of its own size: 64 (noto) or 128 (fluent 3d)."""
        return drawn(self.drawings[index])

    def transparent(self, index: int, seed: int = 0) -> Tensor:
        """The picture of an item with its transparency: (4, size, size) float32 in [-1, 1]."""
        index = position(index, len(self), "emoji")
        own = self.picture(index)
        own = own if own.width == self.size else fit(own, (self.size, self.size))[0]
        image = to_image(to_bytes(own))
        return image.flip(2) if self._mirrored(index, seed) else image

    def _mirrored(self, index: int, seed: int) -> bool:
        return self.flip and random.Random(f"{seed}:{index}").random() < 0.5

    def _shown(self, drawing: Drawing, mirrored: bool) -> Tensor:
        if drawing.file not in self._decoded:
            plain = over(drawn(drawing), self.background)
            plain = plain if plain.width == self.size else fit(plain, (self.size, self.size))[0]
            self._decoded[drawing.file] = to_bytes(plain)
        image = to_image(self._decoded[drawing.file])
        return image.flip(2) if mirrored else image

    def labels(self, key: str) -> list[str]:
        """The distinct values of an input ("concept", "style", ...), in order: what a class label can say."""
        if key == "caption" and self.wording == "varied":
            words = ((d.caption, d.article, d.style, *d.keywords, "emoji", "style") for d in self.drawings)
            return distinct(word for each in words for word in each)
        return distinct(_inputs(drawing).get(key) for drawing in self.drawings)

    def fingerprint(self) -> str:
        """SHA-256 of the chosen drawings and the settings."""
        archive = _archive()
        return hash_of(self, [[d, archive.getinfo(d.file).CRC] for d in self.drawings])


def unpack(out: str | Path, observe: Callable[[int, int], None] | None = None) -> int:
    """Write the whole set as ordinary files with a metadata.jsonl, which `Images` reads back.

    All is written beside the folder first and moved there at the end, so the folder is whole or absent.

    Args:
        out: folder to make; it may exist if it is empty.
        observe: called with (written, total) after each picture.

    Returns:
        The number of pictures.

    Raises:
        InvalidInput: the folder holds something, or is a file.
    """
    target = Path(out).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidInput("is not empty", where=str(target), do="name a new folder")
    drawings = _drawings()
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for number, drawing in enumerate(drawings, 1):
            path = draft / drawing.file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(_archive().read(drawing.file))
            if observe is not None:
                observe(number, len(drawings))
        for notice in ASSETS.glob("*.txt"):
            shutil.copyfile(notice, draft / notice.name)
        with (draft / "metadata.jsonl").open("w", encoding="utf-8") as lines:
            for drawing in drawings:
                row = {"file_name": drawing.file, **_inputs(drawing), "split": drawing.split}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        draft.chmod(0o755)
        draft.replace(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return len(drawings)


def drawn(drawing: Drawing) -> Image.Image:
    """A drawing with its transparency, RGBA, of its own size."""
    with Image.open(io.BytesIO(_archive().read(drawing.file)), formats=("WEBP",)) as opened:
        return opened.convert("RGBA")


def _inputs(drawing: Drawing) -> dict[str, Any]:
    return {
        "caption": drawing.caption,
        "concept": drawing.concept,
        "style": drawing.style,
        "category": drawing.category,
        "subcategory": drawing.subcategory,
        "keywords": list(drawing.keywords),
        "skin_tone": drawing.skin_tone,
    }


@functools.cache
def _archive_of(process: int) -> zipfile.ZipFile:
    # One open file a process: a forked data worker that shared its parent's would share its file position.
    try:
        return zipfile.ZipFile(ASSETS / "emoji.zip")
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointCorrupt(
            f"the embedded emoji cannot be read: {error}",
            where=str(ASSETS / "emoji.zip"),
            do="reinstall sfumato",
        ) from error


def _archive() -> zipfile.ZipFile:
    return _archive_of(os.getpid())


@functools.cache
def _drawings() -> tuple[Drawing, ...]:
    index = json.loads(_archive().read("index.json"))
    found = []
    for file, number, style, skin_tone in index["images"]:
        about = index["concepts"][number]
        found.append(
            Drawing(
                file,
                about["code"],
                style,
                about["concept"],
                about["article"],
                about["category"],
                about["subcategory"],
                tuple(about["keywords"]),
                skin_tone,
                about["held_out"],
            )
        )
    return tuple(found)


def _known(field: str, given: Any, known: Any) -> None:
    for name in given:
        if name not in known:
            raise NotFound(f"unknown name {name!r}", where=f"emoji.{field}", do=nearest(str(name), known))
