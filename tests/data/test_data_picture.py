import io
import random
import struct
import warnings
import zlib

import pytest
import torch
from PIL import Image, ImageCms

from sfumato.core.errors import InvalidInput
from sfumato.data.picture import fit, open_picture, over, read_picture, to_bytes, to_image, upright_size


def saved(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def png(width, height, depth, color, rows):
    """A PNG written by hand, for modes Pillow does not write."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


RED = (200, 40, 30)


@pytest.mark.parametrize(
    "picture, kind, expected",
    [
        (Image.new("RGB", (5, 4), RED), "PNG", RED),
        (Image.new("L", (5, 4), 77), "PNG", (77, 77, 77)),
        (Image.new("1", (5, 4), 1), "PNG", (255, 255, 255)),
        (Image.new("I;16", (5, 4), 32896), "PNG", (128, 128, 128)),
        (Image.new("RGBA", (5, 4), (*RED, 0)), "PNG", (10, 20, 30)),
        (Image.new("RGBA", (5, 4), (*RED, 255)), "WEBP", RED),
        (Image.new("LA", (5, 4), (0, 51)), "PNG", (8, 16, 24)),
        (Image.new("RGB", (5, 4), RED).quantize(4), "PNG", RED),
        (Image.new("CMYK", (5, 4), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.new("L", (5, 4), 77), "JPEG", (77, 77, 77)),
        (Image.new("RGB", (1, 1), RED), "PNG", RED),
    ],
    ids=["rgb", "grey", "bilevel", "grey16", "clear", "webp", "grey-alpha", "palette", "cmyk", "jpeg", "1x1"],
)
def test_every_mode_is_read_as_one_sees_it(picture, kind, expected):
    options = {"lossless": True} if kind == "WEBP" else {}
    seen = read_picture(saved(picture, kind, **options), background=(10, 20, 30))
    assert seen.mode == "RGB"
    assert seen.size == picture.size
    for found, wanted in zip(seen.getpixel((0, 0)), expected, strict=True):
        assert abs(found - wanted) <= (3 if kind in ("WEBP", "JPEG") else 1)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = [0, 257, 1000, 32768, 65278, 65535]
    data = png(len(values), 1, 16, 0, [struct.pack(f">{len(values)}H", *values)])
    seen = list(read_picture(data, "L").tobytes())
    assert seen == [round(value / 257) for value in values]


def test_sixteen_bit_color():
    data = png(1, 1, 16, 2, [struct.pack(">3H", 65535, 32896, 0)])
    assert read_picture(data).getpixel((0, 0)) == (255, 128, 0)


def test_palette_with_transparency_lies_on_the_background():
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putpixel((1, 0), 1)
    seen = read_picture(saved(picture, transparency=0), background=(1, 2, 3))
    assert [seen.getpixel((x, 0)) for x in (0, 1)] == [(1, 2, 3), (0, 255, 0)]


def test_rgba_mode_keeps_the_transparency():
    picture = Image.new("RGBA", (2, 2), (10, 20, 30, 40))
    assert read_picture(saved(picture), "RGBA").getpixel((0, 0)) == (10, 20, 30, 40)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert read_picture(data).getpixel((0, 0)) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_stands_the_picture_up(orientation, kind):
    """The stored picture is the inverse turn of an upright one whose top left corner alone is white."""
    upright = Image.new("RGB", (32, 16))
    upright.paste((255, 255, 255), (0, 0, 16, 8))
    store = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    stored = upright
    for turn in store:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(stored, kind, exif=exif)
    with open_picture(data) as opened:
        assert upright_size(opened) == (16, 32)
    seen = read_picture(data, "L")
    assert seen.size == (32, 16)
    corners = [seen.getpixel(at) > 128 for at in ((4, 3), (27, 3), (4, 12), (27, 12))]
    assert corners == [True, False, False, False]


def test_damaged_exif_is_passed_over():
    data = saved(Image.new("RGB", (4, 4), RED), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_picture(data).getpixel((0, 0)) == RED


def test_icc_profile_is_applied_and_a_broken_one_passed_over():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = Image.new("RGB", (2, 2), RED)
    same = read_picture(saved(picture, icc_profile=lab)).getpixel((0, 0))
    assert max(abs(a - b) for a, b in zip(same, RED, strict=True)) <= 1
    swapped = lab.replace(b"rXYZ", b"tmpX").replace(b"bXYZ", b"rXYZ").replace(b"tmpX", b"bXYZ")
    r, _, b = read_picture(saved(picture, icc_profile=swapped)).getpixel((0, 0))
    assert b > r, "a profile whose red and blue primaries are swapped swaps red and blue"
    assert read_picture(saved(picture, icc_profile=b"nonsense")).getpixel((0, 0)) == RED


def test_bombs_are_refused_before_they_are_decoded():
    data = png(20000, 20000, 1, 0, [b"\0" * 2500] * 20000)
    assert len(data) < 60000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidInput, match="pixels"):
            open_picture(data)
        for side, refused in ((8193, True), (8192, False)):
            head = png(side, 8192, 1, 0, [b"\0"])
            if refused:
                with pytest.raises(InvalidInput, match="pixels"):
                    open_picture(head)
            else:
                open_picture(head).close()


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "PDF", "EPS"])
def test_other_formats_are_refused(kind):
    with pytest.raises(InvalidInput, match="not a PNG"):
        open_picture(saved(Image.new("RGB", (4, 4)), kind))


@pytest.mark.parametrize(
    "data", [b"", b"<svg xmlns='x'></svg>", b"8BPS" + b"\0" * 40, b"SIMPLE  = T", b"\x89PNG"]
)
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(InvalidInput):
        open_picture(data)


def test_trailing_data_is_passed_over():
    data = saved(Image.new("RGB", (4, 4), RED)) + b"<script>alert(1)</script>" * 100
    assert read_picture(data).getpixel((0, 0)) == RED


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_and_mutated_files_never_crash(kind):
    chance = random.Random(kind)
    noise = bytes(chance.randrange(256) for _ in range(24 * 20 * 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.frombytes("RGB", (24, 20), noise), kind, exif=exif)
    refused = 0
    for trial in range(400):
        mutant = bytearray(data)
        if trial % 2:
            del mutant[chance.randrange(len(mutant)) :]
        else:
            for _ in range(1 + trial % 5):
                mutant[chance.randrange(len(mutant))] = chance.randrange(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert read_picture(bytes(mutant)).mode == "RGB"
            except InvalidInput:
                refused += 1
    assert refused > 150, "truncated files are noticed"


def test_fit_cuts_where_it_is_told_and_says_where():
    picture = Image.new("RGB", (30, 10))
    for k, color in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))):
        picture.paste(color, (10 * k, 0, 10 * k + 10, 10))
    for across, color, left in ((0.0, (255, 0, 0), 0), (0.5, (0, 255, 0), 5), (1.0, (0, 0, 255), 10)):
        cut, crop = fit(picture, (5, 5), across)
        assert cut.size == (5, 5)
        assert cut.getpixel((2, 2)) == color
        assert crop == (0, left)


def test_fit_is_antialiased():
    """Reducing a one-pixel checkerboard gives its mean, not one of its colours."""
    board = Image.frombytes("L", (64, 64), bytes(255 * ((x + y) % 2) for y in range(64) for x in range(64)))
    small, _ = fit(board, (8, 8))
    assert all(abs(value - 127) <= 3 for value in small.tobytes())


def test_no_dark_rim_around_transparent_edges():
    """White on black-but-transparent, scaled and laid on white, is white all over."""
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    picture.paste((255, 255, 255, 255), (13, 13, 50, 50))
    small, _ = fit(picture, (20, 20))
    assert min(over(small, (255, 255, 255)).tobytes()) >= 254


def test_bytes_and_levels():
    picture = Image.frombytes("RGB", (3, 2), bytes(range(18)))
    levels = to_bytes(picture)
    assert levels.shape == (3, 2, 3)
    assert levels[:, 1, 2].tolist() == list(picture.getpixel((2, 1)))
    assert to_image(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
