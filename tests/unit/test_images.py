"""Any photo to upright 8-bit RGB, checked pixel by pixel, and RGB to a square."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from neti.utils.errors import UserError
from neti.utils.images import SquareMode, load_image, to_square

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def save(folder: Path, image: Image.Image, name: str, **options: Any) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def half_and_half(size: tuple[int, int] = (8, 4)) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


@pytest.mark.parametrize(
    ("orientation", "size", "first", "last"),
    [
        (1, (8, 4), RED, BLUE),
        (2, (8, 4), BLUE, RED),  # mirrored
        (3, (8, 4), BLUE, RED),  # upside down
        (6, (4, 8), RED, BLUE),  # to be turned right: the left half comes to the top
        (8, (4, 8), BLUE, RED),  # to be turned left
    ],
)
def test_exif_rotation_is_applied(
    tmp_path: Path, orientation: int, size: tuple[int, int], first: tuple[int, ...], last: tuple[int, ...]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(save(tmp_path, half_and_half(), "photo.png", exif=exif))
    assert image.size == size
    assert image.getpixel((0, 0)) == first
    assert image.getpixel((size[0] - 1, size[1] - 1)) == last


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))  # black hides under it
    image.putpixel((2, 0), (0, 0, 0, 128))
    loaded = load_image(save(tmp_path, image, "logo.png"))
    assert loaded.mode == "RGB"
    assert [loaded.getpixel((x, 0)) for x in range(3)] == [RED, WHITE, (127, 127, 127)]


def test_grey_with_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("LA", (2, 1), (40, 255))
    image.putpixel((1, 0), (40, 0))
    loaded = load_image(save(tmp_path, image, "grey.png"))
    assert [loaded.getpixel((x, 0)) for x in range(2)] == [(40, 40, 40), WHITE]


@pytest.mark.parametrize("name", ["palette.png", "palette.gif"])
def test_a_transparent_palette_colour_is_laid_on_white(tmp_path: Path, name: str) -> None:
    image = Image.new("P", (3, 1), 0)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putpixel((1, 0), 1)
    image.putpixel((2, 0), 2)
    loaded = load_image(save(tmp_path, image, name, transparency=1))
    assert [loaded.getpixel((x, 0)) for x in range(3)] == [RED, WHITE, BLUE]


def test_a_transparent_rgb_colour_is_laid_on_white(tmp_path: Path) -> None:
    loaded = load_image(save(tmp_path, half_and_half(), "key.png", transparency=BLUE))
    assert (loaded.getpixel((0, 0)), loaded.getpixel((7, 0))) == (RED, WHITE)


@pytest.mark.parametrize(("mode", "value", "expected"), [("L", 77, (77, 77, 77)), ("1", 1, WHITE), ("1", 0, (0, 0, 0))])
def test_greyscale_and_black_and_white(tmp_path: Path, mode: str, value: int, expected: tuple[int, ...]) -> None:
    loaded = load_image(save(tmp_path, Image.new(mode, (2, 2), value), "grey.png"))
    assert (loaded.mode, loaded.getpixel((0, 0))) == ("RGB", expected)


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff"])
def test_16_bit_grey_is_scaled_and_not_saturated(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 256, 257 * 100, 32768, 65535]], dtype=np.uint16)
    loaded = load_image(save(tmp_path, Image.fromarray(values), name))
    assert np.asarray(loaded)[0].tolist() == [[v] * 3 for v in (0, 1, 100, 128, 255)]


def test_16_bit_grey_of_a_pgm_file(tmp_path: Path) -> None:
    path = tmp_path / "deep.pgm"
    path.write_bytes(b"P5 2 1 65535\n" + np.array([257 * 100, 65535], dtype=">u2").tobytes())
    assert np.asarray(load_image(path))[0].tolist() == [[100] * 3, [255] * 3]


def test_cmyk(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow ink make red
    for name in ("print.jpg", "print.tif"):
        red, green, blue = np.asarray(load_image(save(tmp_path, image, name)))[8, 8].tolist()
        assert red > 240
        assert max(green, blue) < 15


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (GREEN, RED)]
    loaded = load_image(save(tmp_path, frames[0], "loop.gif", save_all=True, append_images=frames[1:]))
    assert loaded.getpixel((0, 0)) == GREEN


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    Image.new("F", (2, 2)).save(tmp_path / "float.tiff")
    for name, told in [
        ("none.png", "does not exist"),
        ("cut.jpg", "truncated"),
        ("text.png", "cannot identify"),
        ("empty.png", "cannot identify"),
        ("float.tiff", "32-bit float"),
    ]:
        with pytest.raises(UserError, match=told) as caught:
            load_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_decompression_bomb_is_named_and_not_unpacked(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "bomb.png"  # 100 bytes that claim to be 100,000 x 100,000 grey pixels
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))
    with pytest.raises(UserError, match=r"bomb\.png has more than 178 million pixels; scale it down first"):
        load_image(path)


def test_stretch_uses_the_whole_image() -> None:
    image = to_square(half_and_half((64, 16)), 32)
    assert image.size == (32, 32)
    assert (image.getpixel((0, 16)), image.getpixel((31, 16))) == (RED, BLUE)


@pytest.mark.parametrize("size", [(65, 16), (16, 65)])
def test_crop_keeps_the_centre(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, RED)
    left, top = (size[0] - 16) // 2, (size[1] - 16) // 2
    image.paste(GREEN, (left, top, left + 16, top + 16))
    square = to_square(image, 8, SquareMode.crop)
    assert square.size == (8, 8)
    assert square.getcolors() == [(64, GREEN)]


def test_pad_keeps_all_and_adds_white() -> None:
    square = to_square(Image.new("RGB", (40, 20), RED), 32, SquareMode.pad)
    assert square.size == (32, 32)
    assert [square.getpixel((16, y)) for y in (0, 7, 8, 23, 24, 31)] == [WHITE, WHITE, RED, RED, WHITE, WHITE]
