"""Which files of a folder are photos: content decides, and everything else is named."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from neti.training.data.photos import find_images
from neti.utils.errors import UserError
from neti.utils.images import formats as image_formats

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for number, name in enumerate(["a.png", "b.JPG", "c.webp"]):
        Image.new("RGB", (40, 20), (80 * number, 0, 255)).save(images / name)
    return images


def test_stray_files_are_named(folder: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "._a.png", "._b.heic"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    (folder / "P1.txt").write_text("P1 8 8 was the score")  # begins as a PBM image does
    (folder / "sub").mkdir()
    (folder / "empty").mkdir()
    (folder / "lost").symlink_to("nowhere")
    shutil.copy(folder / "a.png", folder / "sub" / "hidden.png")
    paths, others = find_images(folder)
    assert [path.name for path in paths] == ["a.png", "b.JPG", "c.webp"]
    assert {path.name: words for path, words in others.items()} == {
        ".DS_Store": "not an image",
        "._a.png": "not an image",
        "._b.heic": "not an image",
        "P1.txt": "not an image",
        "Thumbs.db": "not an image",
        "empty": "a folder",
        "lost": "a link that leads nowhere",
        "notes.txt": "not an image",
        "sub": "a folder, whose 1 images are not used",
    }


@pytest.mark.parametrize("name", ["download", "photo.HEIC", "photo.txt", "photo.dng", "photo.psd", "photo.jxl"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "JPEG2000"])
def test_content_decides_and_not_the_suffix(folder: Path, name: str, kind: str) -> None:
    Image.new("RGB", (40, 20)).save(folder / name, kind)
    assert folder / name in find_images(folder)[0]


def test_what_was_meant_as_a_photo_counts_as_one_until_it_is_read(folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"nothing")
    (folder / "pointer.heic").write_text(POINTER)
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    header = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (folder / "bomb").write_bytes(b"\x89PNG\r\n\x1a\n" + header + bytes(4) + b"IDAT" + bytes(4))
    names = {path.name for path in find_images(folder)[0]}
    assert names == {"a.png", "b.JPG", "c.webp", "broken.jpg", "pointer.heic", "bomb"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("IMG_1.HEIC", b"", "cannot be read here; convert it to JPEG or PNG"),
        ("raw.cr2", b"II*\0\x10\0\0\0CR\2\0" + bytes(40), "its format is camera raw"),
        ("raw.jpg", b"FUJIFILMCCD-RAW " + bytes(40), "its format is camera raw"),
        ("late.jxl", b"\xff\x0a" + bytes(40), "its format is JPEG XL"),
        ("late.png", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "its format is JPEG XL"),
        ("late", b"\xff\x0a" + bytes(40), "its format is JPEG XL"),
        ("layers.psd", b"8BPS\0\1" + bytes(40), "its format is layers of an image editor"),
        ("layers.png", b"gimp xcf v011" + bytes(40), "its format is layers of an image editor"),
        ("apple.jpg", b"\0\0\0\x18ftypheic" + bytes(40), "its format is HEIC (`pip install pillow-heif` reads it)"),
        ("layers.xcf", b"nothing", "cannot be read here; convert it to JPEG or PNG"),
    ],
)
def test_formats_of_photos_that_are_not_read_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, words: str
) -> None:
    monkeypatch.setattr(image_formats, "readable_formats", lambda: image_formats._FORMATS)  # as without pillow-heif
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        find_images(folder)
    assert str(caught.value).startswith(f"{folder / name} cannot be read here")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_raw_photo_is_no_tiff(folder: Path) -> None:
    Image.new("RGB", (4, 4)).save(folder / "raw.NEF", "TIFF")  # such a file holds a thumbnail that Pillow reads
    with pytest.raises(UserError, match=r"raw\.NEF cannot be read here; convert it"):
        find_images(folder)


def test_every_photo_that_is_refused_is_named_at_once(folder: Path) -> None:
    (folder / "linked.jpg").symlink_to("/nowhere/photo.jpg")
    (folder / "late.jxl").write_bytes(b"\xff\x0a" + bytes(40))
    with pytest.raises(UserError) as caught:
        find_images(folder)
    late, linked = str(caught.value).splitlines()
    assert "late.jxl cannot be read here" in late
    assert (
        linked
        == f"{folder}/linked.jpg is a link to /nowhere/photo.jpg, which does not exist; copy the photo itself there"
    )


def test_masks_are_no_photos(folder: Path) -> None:
    for name in ("a-masklabel.png", "b_bg.png", "lost-masklabel.png", "forest_bg.png"):
        Image.new("L", (40, 20)).save(folder / name)
    paths, others = find_images(folder)
    assert [path.name for path in paths] == ["a.png", "b.JPG", "c.webp", "forest_bg.png"]  # a photo of that name
    assert {path.name for path, words in others.items() if words.startswith("a mask")} == {
        "a-masklabel.png",
        "b_bg.png",
        "lost-masklabel.png",
    }


def test_folders_without_images_are_named(tmp_path: Path, folder: Path) -> None:
    empty, stray, parent = tmp_path / "empty", tmp_path / "stray", tmp_path / "parent"
    for made in (empty, stray, parent):
        made.mkdir()
    (stray / "notes.txt").touch()
    shutil.copytree(folder, parent / "10_my toy")
    for path, words in [
        (tmp_path / "none", "does not exist; check data.train_data_dir"),
        (stray / "notes.txt", "is a file; data.train_data_dir must be the folder"),
        (empty, "holds no image (it is empty)"),
        (stray, "holds no image (only notes.txt)"),
        (parent, "holds no image itself, but its folder '10_my toy' holds 3; give the folder that holds the images"),
    ]:
        with pytest.raises(UserError) as caught:
            find_images(path)
        assert words in str(caught.value)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
