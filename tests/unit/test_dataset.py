"""The images of a folder, and samples as a pure function of seed and number."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from neti.models.conditioning.prompts import OBJECT_TEMPLATES, STYLE_TEMPLATES
from neti.training.config.options import LearnableProperty
from neti.training.config.run import DataConfig
from neti.training.data.dataset import ConceptDataset, Sample
from neti.training.data.photos import find_images
from neti.utils.errors import UserError
from neti.utils.images import SquareMode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for number, name in enumerate(["a.png", "b.JPG", "c.webp"]):
        Image.new("RGB", (40, 20), (80 * number, 0, 255)).save(images / name)
    return images


def dataset(folder: Path, *, seed: int = 3, repeats: int = 2, **settings: Any) -> ConceptDataset:
    return ConceptDataset(DataConfig(folder, "<toy>", repeats=repeats, resolution=16, **settings), seed)


def test_stray_files_are_skipped_with_a_note(folder: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "._a.png", "._b.heic"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    (folder / "sub").mkdir()
    shutil.copy(folder / "a.png", folder / "sub" / "hidden.png")
    (folder / "a.txt").write_text("my {}")
    shutil.copy(folder / "a.png", folder / "download")  # an image without a suffix
    paths, notes = find_images(folder)
    assert [path.name for path in paths] == ["a.png", "b.JPG", "c.webp", "download"]
    assert notes == [
        "skipped .DS_Store: not an image",
        "skipped ._a.png: not an image",
        "skipped ._b.heic: not an image",
        "skipped Thumbs.db: not an image",
        "skipped notes.txt: not an image",
        "skipped sub: a folder",
    ]


def test_folders_without_images_are_told(tmp_path: Path) -> None:
    empty, stray, phone = tmp_path / "empty", tmp_path / "stray", tmp_path / "phone"
    for made in (empty, stray, phone):
        made.mkdir()
    (stray / "notes.txt").touch()
    (phone / "IMG_1.HEIC").touch()
    Image.new("RGB", (4, 4)).save(phone / "b.png")
    for path, told in [
        (tmp_path / "none", "does not exist; check data.train_data_dir"),
        (stray / "notes.txt", "is a file; data.train_data_dir must be the folder"),
        (empty, "holds no image (it is empty)"),
        (stray, "holds no image (only notes.txt)"),
        (phone, "IMG_1.HEIC cannot be read here; convert to JPEG or PNG"),
    ]:
        with pytest.raises(UserError) as caught:
            find_images(path)
        assert told in str(caught.value)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_every_broken_image_is_named_at_once(folder: Path) -> None:
    (folder / "b.JPG").write_bytes(b"broken")
    (folder / "c.webp").write_bytes(b"")
    for workers in (0, 4):
        with pytest.raises(UserError) as caught:
            dataset(folder, dataloader_num_workers=workers).check_images(chunk=2)
        lines = str(caught.value).splitlines()
        assert [name in line for name, line in zip(["b.JPG", "c.webp"], lines, strict=True)] == [True, True]


def test_a_sample_is_a_pure_function_of_seed_and_number(folder: Path) -> None:
    numbers = range(50)
    once = [dataset(folder).sample(number) for number in numbers]
    data = dataset(folder)
    backwards = [data.sample(number) for number in reversed(numbers)][::-1]
    assert once == backwards
    assert [dataset(folder, seed=4).sample(number) for number in numbers] != once
    # recorded: a change here breaks the resuming of runs that were begun before it
    assert once[:3] == [
        Sample(2, True, "a close-up photo of the {}"),
        Sample(2, False, "a rendition of a {}"),
        Sample(1, True, "a photo of a {}"),
    ]


def test_every_epoch_shows_every_image_repeats_times_in_a_new_order(folder: Path) -> None:
    data = dataset(folder, repeats=4)
    assert (len(data), data.epoch_length) == (3, 12)
    epochs = [[data.sample(epoch * 12 + i).image_id for i in range(12)] for epoch in range(3)]
    assert all(Counter(epoch) == {0: 4, 1: 4, 2: 4} for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_flips_are_fair_and_every_template_is_drawn(folder: Path) -> None:
    for kind, templates in ((LearnableProperty.object, OBJECT_TEMPLATES), (LearnableProperty.style, STYLE_TEMPLATES)):
        data = dataset(folder, learnable_property=kind)
        samples = [data.sample(number) for number in range(2000)]
        assert 900 < sum(sample.flipped for sample in samples) < 1100
        counts = Counter(sample.text for sample in samples)
        assert set(counts) == set(templates) == set(data.texts)


def test_a_caption_replaces_the_templates_of_its_image(folder: Path) -> None:
    (folder / "b.txt").write_text("\ufeffa {} on\n my desk\n", encoding="utf-8")
    data = dataset(folder)
    assert data.captions == [None, "a {} on my desk", None]
    texts = {(s.image_id, s.text) for s in map(data.sample, range(200))}
    assert {text for image_id, text in texts if image_id == 1} == {"a {} on my desk"}
    assert len(data.texts) == 28
    for name in "ac":
        (folder / f"{name}.txt").write_text(f"{name} {{}}")
    assert dataset(folder).texts == ["a {}", "a {} on my desk", "c {}"]


def test_a_caption_that_cannot_be_used_is_named(folder: Path) -> None:
    (folder / "a.txt").write_text("my toy")
    with pytest.raises(UserError, match=r"a\.txt \('my toy'\) has no \{\}"):
        dataset(folder)
    (folder / "a.txt").write_bytes(b"caf\xe9 {}")
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8 text"):
        dataset(folder)


def test_pixels_are_the_square_images_in_minus_one_to_one(folder: Path) -> None:
    pixels = dataset(folder).pixels([2, 0])
    assert pixels.shape == (2, 3, 16, 16)
    assert pixels.dtype == torch.float32
    np.testing.assert_allclose(pixels[1, :, 8, 8], [-1, -1, 1])
    assert pixels[:, :, 0, 0].max() < 1.01
    padded = dataset(folder, square_mode=SquareMode.pad).pixels([0])
    np.testing.assert_allclose(padded[0, :, 0, 8], [1, 1, 1])
    assert torch.equal(dataset(folder, dataloader_num_workers=0).pixels([2, 0]), pixels)
