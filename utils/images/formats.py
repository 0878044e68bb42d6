"""What is an image: content decides, not the suffix; and how a file is opened without trusting its metadata."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from pathlib import Path

from PIL import Image

from ..files import LFS_POINTER

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")  # no EPS: it would run Ghostscript
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_ORIENTED_TEXTS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # metadata that may turn the picture
_MAX_TEXT, _MAX_PROFILE = 2**20, 2**24  # bytes
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """The formats that are read, by Pillow's names: HEIF too where pillow-heif is installed."""
    try:
        import pillow_heif
    except ImportError:
        return _FORMATS
    pillow_heif.register_heif_opener()
    return (*_FORMATS, "HEIF")


def open_image(path: Path | str) -> Image.Image:
    """The image in a file, its pixels still to be loaded. Raises what Pillow and the file system raise.

    A PNG is opened without its texts, however long: Pillow refuses long ones, and node editors write such.
    """
    if not _head(path).startswith(_PNG):
        return Image.open(path, formats=readable_formats())
    data, profile = _split_png(Path(path).read_bytes())
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    if profile is not None:
        image.info["icc_profile"] = profile
    return image


def foreign_format(path: Path | str) -> str | None:
    """The name of a format that is made for photos and that is not read here; None for anything else."""
    head = _head(path)
    if head[4:8] == b"ftyp":
        if head[8:12] in _HEIF_BRANDS and "HEIF" not in readable_formats():
            return "HEIC (`pip install pillow-heif` reads it)"
        return "camera raw" if head[8:12] == b"crx " else None
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "JPEG XL"
    if head.startswith((b"8BPS", b"gimp xcf")):
        return "layers of an image editor"
    raw = head.startswith((b"FUJIFILM", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb")) or head[8:10] == b"CR"
    return "camera raw" if raw else None


def is_lfs_pointer(path: Path | str) -> bool:
    """Whether the file is not the thing itself but Git LFS's note on where to fetch it."""
    return _head(path).startswith(LFS_POINTER[:32])


def _head(path: Path | str) -> bytes:
    with open(path, "rb") as file:
        return file.read(32)


def _split_png(data: bytes) -> tuple[bytes, bytes | None]:
    """A PNG's bytes without texts and colour profile, and that profile: empty if it cannot be unpacked."""
    kept, profile, at = [_PNG], None, len(_PNG)
    while at + 8 <= len(data):
        end = at + 12 + int(struct.unpack_from(">I", data, at)[0])  # length, kind, body, checksum
        kind, body = data[at + 4 : at + 8], data[at + 8 : end - 4]
        if kind == b"iCCP":
            profile = _inflate(body.partition(b"\0")[2][1:], _MAX_PROFILE) or b""
        elif kind not in _TEXTS or _is_short_and_oriented(kind, body):
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]]), profile


def _is_short_and_oriented(kind: bytes, body: bytes) -> bool:
    if not body.startswith(_ORIENTED_TEXTS) or len(body) > _MAX_TEXT:
        return False
    value = body.partition(b"\0")[2]
    packed = value[1:] if kind == b"zTXt" else value[4:] if kind == b"iTXt" and value[:1] == b"\1" else None
    return packed is None or _inflate(packed, _MAX_TEXT) is not None


def _inflate(data: bytes, limit: int) -> bytes | None:
    """The unpacked bytes; None if they are damaged or more than `limit`."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, limit)
    except zlib.error:
        return None
    return None if stream.unconsumed_tail else plain
