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
from neti.utils.images import SquareMode, load_alpha, load_image, read_image, to_square
from neti.utils.images.png import read_metadata

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


def exif_data(*entries: tuple[int, int, bytes]) -> bytes:
    """EXIF data of one directory: tag, type and value; a value of more than four bytes stands behind it."""
    directory, behind, at = b"", b"", 8 + 2 + 12 * len(entries) + 4
    for tag, kind, value in entries:
        field = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", at + len(behind))
        behind += value if len(value) > 4 else b""
        directory += struct.pack("<HHI", tag, kind, 1) + field
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + bytes(4) + behind


SIX = (0x0112, 3, b"\6\0")  # the orientation of a phone held upright


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    ("data", "size"),
    [
        (exif_data(SIX, (0x9204, 10, struct.pack("<ii", -1, 0))), (32, 64)),  # exposure bias -1/0
        (exif_data(SIX, (0x9204, 5, struct.pack("<ii", -1, 0))), (32, 64)),
        (exif_data(SIX, (0x010F, 2, b"\xff\xfe\xfd\0")), (32, 64)),  # a maker's name in no encoding
        (exif_data(SIX, (0x8769, 4, struct.pack("<I", 99_999))), (32, 64)),  # a directory beyond the end
        (exif_data((0x0112, 2, b"six\0")), (64, 32)),
        (exif_data((0x0112, 3, b"\x63\0")), (64, 32)),
        (exif_data((0x0112, 5, struct.pack("<ii", 6, 0))), (64, 32)),
    ],
)
def test_nonsense_in_exif_data_does_not_cost_the_photo(
    tmp_path: Path, suffix: str, data: bytes, size: tuple[int, int]
) -> None:
    image, remarks = read_image(save(tmp_path, half_and_half((64, 32)), f"photo.{suffix}", exif=data))
    assert (image.size, remarks) == (size, [])


def test_exif_data_that_cannot_be_read_are_remarked(tmp_path: Path) -> None:
    path = save(tmp_path, half_and_half(), "photo.png", exif=b"Exif\0\0neither II nor MM")
    image, remarks = read_image(path)
    assert image.getpixel((0, 0)) == RED
    assert remarks == ["its EXIF data cannot be read, so it is taken to be upright"]


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(path: Path, kind: bytes, data: bytes, *, last: bool = False) -> Path:
    """Put a chunk into a PNG, behind its header or before its end."""
    png = path.read_bytes()
    at = len(png) - 12 if last else 33
    path.write_bytes(png[:at] + chunk(kind, data) + png[at:])
    return path


LONG = zlib.compress(b"x" * 2**21)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"zTXt", b"workflow\0\0" + LONG),
        (b"iTXt", b"workflow\0\1\0\0\0" + LONG),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
        (b"zTXt", b"Raw profile type exif\0\0" + LONG),
    ],
)
def test_long_texts_in_a_png_are_not_read(tmp_path: Path, kind: bytes, data: bytes, last: bool) -> None:
    """Node editors write their graphs into pictures; the bounds that Pillow has for texts would refuse the picture."""
    path = with_chunk(save(tmp_path, half_and_half(), "graph.png"), kind, data, last=last)
    assert load_image(path).tobytes() == half_and_half().tobytes()


def test_short_texts_that_turn_a_png_are_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n".encode()
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    for kind, data in [
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    ]:
        path = with_chunk(save(tmp_path, half_and_half(), "turned.png"), kind, data)
        assert load_image(path).size == (4, 8)


def profile(space: str, curves: dict[str, bytes]) -> bytes:
    """A display profile of RGB or GRAY with these tags, each a whole ICC element."""
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(90)}
    tags |= {b"wtpt": xyz(0.9642, 1.0, 0.8249), **{name.encode(): data for name, data in curves.items()}}
    at, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    size = struct.pack(">I", 128 + len(table) + len(body))
    head = size + bytes(4) + b"\2\x40\0\0mntr" + space.ljust(4).encode() + b"XYZ " + bytes(12) + b"acsp"
    return head.ljust(68, b"\0") + xyz(0.9642, 1.0, 0.8249)[8:] + bytes(48) + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256)) + bytes(2)


LINEAR_GREY = profile("GRAY", {"kTRC": gamma(1.0)})
SWAPPED = profile(  # sRGB with its red and blue exchanged
    "RGB",
    {
        "rXYZ": xyz(0.1431, 0.0606, 0.7141),
        "gXYZ": xyz(0.3851, 0.7169, 0.0971),
        "bXYZ": xyz(0.4360, 0.2225, 0.0139),
        **{f"{colour}TRC": gamma(2.2) for colour in "rgb"},
    },
)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_colours_are_those_that_the_profile_means(tmp_path: Path, mode: str, suffix: str) -> None:
    if (suffix == "jpg" and mode != "RGB") or (suffix == "webp" and mode == "P"):
        pytest.skip("there is no such file")
    image = half_and_half((64, 32)).convert(mode)
    options = {"lossless": True} if suffix == "webp" else {}
    loaded, remarks = read_image(save(tmp_path, image, f"photo.{suffix}", icc_profile=SWAPPED, **options))
    assert remarks == []
    for x, colour in ((8, BLUE), (56, RED)):
        assert max(abs(a - b) for a, b in zip(loaded.getpixel((x, 8)), colour, strict=True)) < 12  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_greys_are_those_that_the_profile_means(tmp_path: Path, mode: str) -> None:
    """Linear light of a quarter is a grey of 137 in sRGB."""
    image = Image.new(mode, (8, 8), {"L": 64, "LA": (64, 255), "I;16": 64 * 257}[mode])
    loaded, remarks = read_image(save(tmp_path, image, "grey.png", icc_profile=LINEAR_GREY))
    assert remarks == []
    assert all(abs(value - 137) < 3 for value in loaded.getpixel((4, 4)))  # type: ignore[union-attr]


def test_inks_are_those_that_the_profile_means(tmp_path: Path) -> None:
    """Of all inks only magenta with yellow prints anything here, and that is green."""
    table = bytearray(bytes([255, 128, 128]) * 16)  # L, a, b of every mix of 0 and 100% of the four inks: white
    table[3 * 0b0110 : 3 * 0b0110 + 3] = [224, 42, 211]  # the magenta and yellow one
    ramp = bytes(range(256))
    head = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    identity = struct.pack(">9i", *(65536 * (row == column) for row in range(3) for column in range(3)))
    lookup = {"A2B0": head + identity + ramp * 4 + bytes(table) + ramp * 3}
    inks = profile("CMYK", lookup)
    inks = inks[:12] + b"prtr" + inks[16:20] + b"Lab " + inks[24:]
    loaded, remarks = read_image(
        save(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "print.tif", icc_profile=inks)
    )
    assert remarks == []
    red, green, blue = loaded.getpixel((8, 8))  # type: ignore[misc]
    assert green > 200 > 90 > max(red, blue)


def test_a_grey_image_may_have_the_profile_of_colours(tmp_path: Path) -> None:
    loaded, remarks = read_image(save(tmp_path, Image.new("L", (4, 4), 100), "grey.png", icc_profile=SWAPPED))
    assert remarks == []
    assert len(set(loaded.getpixel((0, 0)))) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("icc", [b"nonsense", b"", LINEAR_GREY, SWAPPED[:200]])
def test_a_profile_that_cannot_be_used_is_remarked(tmp_path: Path, icc: bytes) -> None:
    path = with_chunk(save(tmp_path, half_and_half(), "photo.png"), b"iCCP", b"x\0\0" + zlib.compress(icc))
    loaded, remarks = read_image(path)
    assert loaded.getpixel((0, 0)) == RED
    assert remarks == ["its colour profile cannot be used, so its colours are taken to be sRGB"]


def test_a_long_profile_is_used_and_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    for extra, colour, count in ((2**21, BLUE, 0), (2**25, RED, 1)):
        packed = b"x\0\0" + zlib.compress(SWAPPED + bytes(extra))
        loaded, remarks = read_image(with_chunk(save(tmp_path, half_and_half(), "photo.png"), b"iCCP", packed))
        assert max(abs(a - b) for a, b in zip(loaded.getpixel((0, 0)), colour, strict=True)) < 12  # type: ignore[arg-type]
        assert len(remarks) == count


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


@pytest.mark.parametrize(
    ("shape", "resolution", "expected"),
    [
        ((1000, 1000), 512, (512, 512)),
        ((4000, 3000), 512, (576, 448)),
        ((3000, 4000), 512, (448, 576)),
        ((1920, 1080), 512, (640, 384)),
        ((9000, 100), 512, (1024, 256)),
        ((4000, 3000), 1024, (1152, 896)),
        ((500, 500), 504, (504, 504)),
        ((80, 40), 64, (88, 40)),
        ((10, 10), 8, (8, 8)),
    ],
)
def test_a_bucket_has_the_shape_and_the_size(
    shape: tuple[int, int], resolution: int, expected: tuple[int, int]
) -> None:
    assert to_square(Image.new("RGB", shape), resolution, SquareMode.bucket).size == expected


def test_a_bucket_keeps_the_centre_unstretched() -> None:
    image = Image.new("RGB", (2000, 100), RED)
    image.paste(GREEN, (800, 0, 1200, 100))
    fitted = to_square(image, 64, SquareMode.bucket)
    assert fitted.size == (128, 32)
    assert {fitted.getpixel((x, 16)) for x in range(2, 126)} == {GREEN}
