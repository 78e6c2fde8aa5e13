"""Pictures from files and bytes: decode safely, crop and resize well, and become tensors."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sfumato.core.errors import InvalidInput

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64 * 2**20
"""Most pixels a picture may have; checked before any is decoded."""

Color = tuple[int, int, int]
Mode = Literal["RGB", "L", "RGBA"]


def open_picture(source: str | Path | bytes) -> Image.Image:
    """Open a PNG, JPEG or WEBP, recognised by content alone, without decoding it; the caller closes it.

    Args:
        source: a path, or the bytes of a file.

    Raises:
        InvalidInput: another format, a damaged header, or more than 64 Mi pixels.
    """
    where = "picture" if isinstance(source, bytes) else str(source)
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(stream, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(where) from error
    except UnidentifiedImageError as error:
        raise InvalidInput("not a PNG, JPEG or WEBP picture", where=where) from error
    except Exception as error:
        # Damaged headers surface as almost any exception: struct, zlib, Value-, Syntax- and MemoryError.
        raise InvalidInput(f"damaged picture: {error}", where=where) from error
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        raise _too_large(where)
    return picture


def read_picture(
    source: str | Path | bytes, mode: Mode = "RGB", background: Color = (255, 255, 255)
) -> Image.Image:
    """Decode a picture as one would see it: first frame, upright, sRGB, transparency over the background.

    Args:
        source: a path, or the bytes of a file.
        mode: "RGB", "L" (grey), or "RGBA", which keeps the transparency.
        background: colour behind transparent pixels, 0..255.

    Raises:
        InvalidInput: not a readable PNG, JPEG or WEBP of at most 64 Mi pixels.
    """
    where = "picture" if isinstance(source, bytes) else str(source)
    with open_picture(source) as picture:
        try:
            picture.load()
            color = _srgb(_eight_bit(_upright(picture)), picture.info.get("icc_profile"))
        except Exception as error:
            # The decoders' errors are as varied as those of headers; all mean the file is damaged.
            raise InvalidInput(f"damaged picture: {error}", where=where) from error
    if mode == "RGBA":
        return color.convert("RGBA")
    return over(color, background).convert(mode)


def over(picture: Image.Image, background: Color) -> Image.Image:
    """A picture laid on a plain ground, RGB."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    ground = Image.new("RGBA", picture.size, (*background, 255))
    return Image.alpha_composite(ground, picture).convert("RGB")


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Height and width as displayed, from the header: EXIF orientations 5 to 8 lie on their side."""
    turned = _orientation(picture) in (5, 6, 7, 8)
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def fit(
    picture: Image.Image,
    size: tuple[int, int],
    across: float = 0.5,
    down: float = 0.5,
    nearest: bool = False,
) -> tuple[Image.Image, tuple[int, int]]:
    """Scale a picture to cover a size and cut the rest away, in one antialiased (bicubic) step.

    Args:
        picture: any 8-bit picture; transparency is weighted in, so edges take no colour from unseen pixels.
        size: height and width wanted.
        across, down: where the cut lies, 0 (left, top) .. 1 (right, bottom); 0.5 is the centre.
        nearest: take the nearest pixel, for pictures whose numbers mean something: class numbers.

    Returns:
        The picture, and (top, left) of the cut in pixels of the scaled picture.
    """
    height, width = size
    scale = min(picture.width / width, picture.height / height)
    spare_x, spare_y = max(0.0, picture.width - width * scale), max(0.0, picture.height - height * scale)
    left, top = across * spare_x, down * spare_y
    box = (left, top, min(left + width * scale, picture.width), min(top + height * scale, picture.height))
    kernel = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    out = picture.resize((width, height), kernel, box=box, reducing_gap=3.0)
    return out, (math.floor(top / scale), math.floor(left / scale))


def to_bytes(picture: Image.Image) -> Tensor:
    """An 8-bit picture as a uint8 tensor (C, H, W)."""
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, -1).permute(2, 0, 1).contiguous()


def to_image(levels: Tensor) -> Tensor:
    """uint8 of 0..255 to float32 in [-1, 1], any shape."""
    return levels.float() / 127.5 - 1


def picture_of(given: object, channels: int, where: str) -> Tensor:
    """A picture that a user gives, (channels, H, W) float32 in [-1, 1] on the CPU.

    Args:
        given: a path, the bytes of a file, a PIL image (transparency over white), or a tensor of that shape
            and range.
        channels: 3 for colour, 1 for grey, 4 for colour with its transparency.
        where: what errors call it.

    Raises:
        InvalidInput: it is none of these.
    """
    if isinstance(given, Tensor):
        if given.ndim != 3 or given.shape[0] != channels or not given.is_floating_point():
            raise InvalidInput(
                f"a tensor {tuple(given.shape)} of {given.dtype}",
                where=where,
                do=f"give ({channels}, height, width) in [-1, 1]",
            )
        picture = given.detach().float().cpu()
        # Rounding may leave a picture that a model made a little outside; NaN compares as outside.
        if not picture.numel() or not bool((picture.abs() <= 1.001).all()):
            raise InvalidInput(
                "its numbers are not all from -1 to 1", where=where, do="scale it: picture / 127.5 - 1"
            )
        return picture
    mode: Mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]  # type: ignore[assignment]
    if isinstance(given, str | Path | bytes):
        return to_image(to_bytes(read_picture(given, mode)))
    if isinstance(given, Image.Image):
        plain = given.convert("RGBA") if "A" in given.getbands() or mode == "RGBA" else given
        return to_image(to_bytes(plain if mode == "RGBA" else over(plain, (255, 255, 255)).convert(mode)))
    raise InvalidInput(
        "none was given" if given is None else f"{type(given).__name__} is no picture",
        where=where,
        do="give a path, an image or a tensor",
    )


def pictures(given: object, channels: int, where: str, size: tuple[int, int] | None = None) -> Tensor:
    """One picture that a user gives, or a list of them, as `picture_of` takes each: (R, channels, H, W).

    Args:
        given: a picture or a list of pictures, as large as the first unless a size is said.
        channels: as for `picture_of`.
        where: what errors call it.
        size: (height, width) that all are scaled to cover, and cut to about their middle.
    """
    rows = [
        picture_of(each, channels, where) for each in (given if isinstance(given, list | tuple) else [given])
    ]
    if size is not None:
        rows = [_covering(row, size) for row in rows]
    if not rows or any(row.shape != rows[0].shape for row in rows):
        raise InvalidInput("pictures of one size are wanted", where=where, do="say a size, or cut them")
    return torch.stack(rows)


def masks(given: object, where: str, size: tuple[int, int] | None = None) -> Tensor:
    """Like `pictures`, of ones where they are lighter than half and zeros elsewhere: (R, 1, H, W)."""
    return (pictures(given, 1, where, size) > 0).float()


def _covering(picture: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = picture.shape[1:]
    if (height, width) == size:
        return picture
    scale = max(size[0] / height, size[1] / width)
    wide = (max(round(height * scale), size[0]), max(round(width * scale), size[1]))
    scaled = F.interpolate(picture[None], wide, mode="bicubic", antialias=True)[0].clamp(-1, 1)
    top, left = (wide[0] - size[0]) // 2, (wide[1] - size[1]) // 2
    return scaled[:, top : top + size[0], left : left + size[1]]


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:
        return 1  # EXIF is a free-form appendix: damaged, it says nothing, and the picture is still good


def _upright(picture: Image.Image) -> Image.Image:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    turn = turns.get(_orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Any mode as L, RGB, RGBA or CMYK of 8 bits."""
    if picture.mode.startswith("I"):  # 16-bit grey, which PIL would clip at 255 rather than scale
        return picture.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    if picture.mode in ("L", "RGB", "CMYK") and "transparency" not in picture.info:
        return picture
    if picture.mode in ("L", "1", "RGB", "P", "PA", "LA", "La", "RGBa", "RGBA"):
        transparent = "transparency" in picture.info or picture.mode not in ("L", "1", "RGB", "P")
        return picture.convert("RGBA" if transparent else "L" if picture.mode == "1" else "RGB")
    return picture.convert("RGB")


def _srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours in sRGB by the picture's own ICC profile; a profile that cannot be used is passed over."""
    if not profile:
        return picture
    from PIL import ImageCms

    alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
    plain = picture.convert("RGB") if alpha is not None else picture
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        shown = ImageCms.profileToProfile(plain, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return picture
    assert shown is not None
    if alpha is not None:
        shown.putalpha(alpha)
    return shown


def _too_large(where: str) -> InvalidInput:
    return InvalidInput(f"more than {MAX_PIXELS} pixels", where=where, do="make the picture smaller")
