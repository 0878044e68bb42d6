"""Any photo to upright 8-bit RGB, checked pixel by pixel, and RGB to a square."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_files import BLUE, GREEN, RED, WHITE, chunk, half_and_half, save
from PIL import Image

from neti.utils.errors import UserError
from neti.utils.images import load_alpha, load_image, read_image
from neti.utils.images.png import read_metadata


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
    (tmp_path / "linked.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "late.jpg").write_bytes(b"\xff\x0a" + bytes(40))
    (tmp_path / "big.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    Image.new("RGB", (2, 2)).save(tmp_path / "shown.eps")  # PostScript is a program
    (tmp_path / "shown.eps").rename(tmp_path / "shown.png")
    for name, words in [
        ("none.png", "does not exist"),
        ("linked.jpg", "is a link to nowhere.jpg, which does not exist"),
        ("cut.jpg", "truncated"),
        ("text.png", "it is no image"),
        ("empty.png", "it is empty"),
        ("float.tiff", "32-bit float"),
        ("late.jpg", "its format, JPEG XL, is not read here"),
        ("big.jpg", "is a Git LFS pointer, not the image itself; run `git lfs pull`"),
        ("shown.png", "it is no image"),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            load_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_further_frames_are_remarked(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (GREEN, RED)]
    for name in ("loop.gif", "loop.png", "loop.webp", "pages.tif"):
        path = save(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
        assert read_image(path).remarks == ["only its first frame is used"]
    assert read_image(save(tmp_path, frames[0], "still.gif")).remarks == []


@pytest.mark.parametrize("name", ["photo.heic", "photo.jpg"])
def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path, name: str) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(half_and_half((64, 32))).save(tmp_path / "written.heic")
    (tmp_path / "written.heic").rename(tmp_path / name)
    image = load_image(tmp_path / name)
    assert image.size == (64, 32)
    assert image.getpixel((8, 8))[0] > 240  # type: ignore[index]


def test_transparency_alone(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = load_alpha(save(tmp_path, image, "logo.png", exif=exif))
    assert alpha is not None
    assert (alpha.mode, alpha.size, alpha.getpixel((1, 1)), alpha.getpixel((0, 0))) == ("L", (2, 4), 40, 255)
    assert load_alpha(save(tmp_path, image.convert("RGB"), "photo.png")) is None


def test_a_decompression_bomb_is_named_and_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"  # 100 bytes that claim to be 100,000 x 100,000 grey pixels
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))
    with pytest.raises(UserError, match=r"bomb\.png has more than 178 million pixels; scale it down first"):
        load_image(path)
    assert read_metadata(path) is None
