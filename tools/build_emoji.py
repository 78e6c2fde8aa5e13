"""Build the embedded emoji set from the two npm packages that hold the art.

    npm pack emoji-datasource-google@16.0.0
    npm pack @lobehub/fluent-emoji-3d@1.1.0
    python tools/build_emoji.py emoji-datasource-google-16.0.0.tgz lobehub-fluent-emoji-3d-1.1.0.tgz

It writes src/sfumato/data/assets/emoji.zip: RGBA WebP pictures (quality 90) and index.json, sorted, dated
1980 and stored uncompressed, so the same inputs and the same libwebp give the same bytes.

Noto pictures keep their 64 px; Fluent 3D pictures go from 256 to 128 px. The two sets are joined by code
point (lower case, "_" to "-", "-fe0f" dropped). Country and region flags of the Fluent package are left
out: Fluent has none, and the package fills the gap with flags drawn in Noto's manner, not of this style.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import tarfile
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from emoji_names import SKIN_TONES, article, concept_name
from PIL import Image

TARGET = Path(__file__).resolve().parent.parent / "src/sfumato/data/assets/emoji.zip"
NOTO_SIZE, FLUENT_SIZE = 64, 128
QUALITY = 90
HELD_OUT = 0.1
FOREIGN_TO_FLUENT = ("country-flag", "subdivision-flag")


def main(noto_package: str, fluent_package: str) -> None:
    """Read both packages, write the archive, say what is in it."""
    noto = _read(noto_package)
    fluent: dict[str, bytes] = {}
    for name, content in _read(fluent_package).items():
        if name.endswith(".webp"):
            fluent.setdefault(code_of(Path(name).stem), content)
    table = sorted(json.loads(noto["emoji.json"]), key=lambda row: row["sort_order"])

    concepts: list[dict[str, Any]] = []
    pictures: dict[str, bytes] = {}
    images: list[list[Any]] = []
    same_picture: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(table):
        code = code_of(row["unified"])
        concepts.append(_concept(row, code))
        found = {"noto": noto["img/google/64/" + row["image"]]}
        if code in fluent and row["subcategory"] not in FOREIGN_TO_FLUENT:
            found["fluent 3d"] = fluent[code]
        for style, content in found.items():
            image = _square(Image.open(io.BytesIO(content)).convert("RGBA"))
            same_picture[_visible_hash(image)].append(number)
            name = f"{'noto' if style == 'noto' else 'fluent'}/{code}.webp"
            pictures[name] = _encode(image, NOTO_SIZE if style == "noto" else FLUENT_SIZE)
            images.append([name, number, style, ""])
        for key, variant in row.get("skin_variations", {}).items():
            image = Image.open(io.BytesIO(noto["img/google/64/" + variant["image"]])).convert("RGBA")
            name = f"skin_tones/{code_of(variant['unified'])}.webp"
            pictures[name] = _encode(_square(image), NOTO_SIZE)
            images.append([name, number, "noto", " and ".join(SKIN_TONES[tone] for tone in key.split("-"))])
    _hold_out(concepts, same_picture.values())
    names = [concept["concept"] for concept in concepts]
    if len(set(names)) != len(names):
        raise SystemExit(f"concepts share a name: {sorted({n for n in names if names.count(n) > 1})}")

    index = {"concepts": concepts, "images": images}
    _write({"index.json": json.dumps(index, ensure_ascii=False, separators=(",", ":")).encode()} | pictures)
    held = sum(concept["held_out"] for concept in concepts)
    print(f"{len(images)} pictures of {len(concepts)} concepts ({held} held out)", end=", ")
    print(f"{TARGET.stat().st_size} bytes in {TARGET}")


def code_of(name: str) -> str:
    """The common key of both sets: 1F636_200D_1F32B_FE0F → 1f636-200d-1f32b."""
    return name.lower().replace("_", "-").replace("-fe0f", "")


def _concept(row: dict[str, Any], code: str) -> dict[str, Any]:
    name = concept_name(row["name"], row["short_name"])
    words = [*row["short_names"], row["name"].lower(), *re.split("-| & ", row["subcategory"])]
    return {
        "code": code,
        "concept": name,
        "article": article(name),
        "category": row["category"],
        "subcategory": row["subcategory"],
        "keywords": sorted({word.lower().replace("_", " ") for word in words} - {name.lower()}),
    }


def _hold_out(concepts: list[dict[str, Any]], same: Any) -> None:
    """Mark a tenth of the concepts, chosen by the hash of the code point.

    Concepts drawn with the very same picture (the flags of Norway and Bouvet Island) go together, or the held
    out one would have been seen.
    """
    group = list(range(len(concepts)))
    for numbers in same:
        roots = {group[number] for number in numbers}
        group = [min(roots) if g in roots else g for g in group]
    for number, concept in enumerate(concepts):
        digest = hashlib.sha256(concepts[group[number]]["code"].encode()).digest()
        concept["held_out"] = int.from_bytes(digest[:8], "big") < HELD_OUT * 2**64


def _read(package: str) -> dict[str, bytes]:
    with tarfile.open(package) as archive:
        content = {}
        for member in archive:
            if (handle := archive.extractfile(member)) is not None:
                content[member.name.removeprefix("package/").removeprefix("assets/")] = handle.read()
    return dict(sorted(content.items()))


def _square(image: Image.Image) -> Image.Image:
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _visible_hash(image: Image.Image) -> str:
    """Equal for pictures that look the same, whatever stands under their transparent pixels."""
    premultiplied = image.convert("RGBa")
    return hashlib.sha256(repr(image.size).encode() + premultiplied.tobytes()).hexdigest()


def _encode(image: Image.Image, size: int) -> bytes:
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=QUALITY, method=4, alpha_quality=100)
    return stream.getvalue()


def _write(files: dict[str, bytes]) -> None:
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    temporary = TARGET.with_suffix(".tmp")
    with temporary.open("wb") as handle:
        with zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(files):
                entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                entry.external_attr = 0o644 << 16
                entry.create_system = 3
                archive.writestr(entry, files[name])
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(TARGET)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2])
