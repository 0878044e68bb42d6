"""What comes along with a photo's pixels: EXIF data, texts and colour profiles, used where they mean something."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from image_files import BLUE, RED, chunk, half_and_half, save
from PIL import Image

from neti.utils.images import load_image, read_image


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
