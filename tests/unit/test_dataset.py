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
from neti.training.data.order import image_of
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


def test_what_is_not_used_is_named(folder: Path) -> None:
    Image.new("RGB", (160, 40)).save(folder / "d.png")
    Image.new("RGB", (4, 4)).save(folder / "e.gif", save_all=True, append_images=[Image.new("RGB", (4, 4), "red")])
    for name in ("f.png", "g.png", "h.png"):
        shutil.copy(folder / "a.png", folder / name)
    (folder / "a.txt").write_text("my {}")
    (folder / "notes.txt").write_text("my {}")
    (folder / "metadata.jsonl").write_text(
        '{"file_name": "b.JPG", "text": "a {}"}\n{"file_name": "z.png", "text": "z"}'
    )
    data = dataset(folder)
    assert data.notes == [
        "skipped notes.txt: not an image",
        "metadata.jsonl: 1 captions belong to no photo of the folder, such as 'z.png'",
    ]
    data.check_images()
    squashed = "stretch squashes it to a square; bucket, crop or pad would not"
    assert data.notes[2:] == [
        f"a.png, b.JPG, c.webp, f.png, g.png and 1 more: its sides are 2.0 : 1, and data.square_mode = {squashed}",
        f"d.png: its sides are 4.0 : 1, and data.square_mode = {squashed}",
        "e.gif: only its first frame is used",
    ]
    for mode, words in (
        (SquareMode.crop, "crop keeps the middle 25% of it"),
        (SquareMode.pad, "pad leaves 75% of the square white"),
        (SquareMode.bucket, "bucket keeps the middle 50% of it"),
    ):
        Image.new("RGB", (80 if mode is SquareMode.bucket else 40, 10)).save(folder / "d.png")
        other = dataset(folder, square_mode=mode)
        other.check_images()
        ratio = "8.0" if mode is SquareMode.bucket else "4.0"
        assert f"d.png: its sides are {ratio} : 1, and data.square_mode = {words}" in other.notes


def test_every_broken_image_is_named_at_once(folder: Path) -> None:
    (folder / "b.JPG").write_bytes(b"broken")
    (folder / "c.webp").write_bytes(b"")
    for workers in (0, 4):
        with pytest.raises(UserError) as caught:
            dataset(folder, dataloader_num_workers=workers).check_images()
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
    assert len(data) == 3
    epochs = [[data.sample(epoch * 12 + i).image_id for i in range(12)] for epoch in range(3)]
    assert all(Counter(epoch) == {0: 4, 1: 4, 2: 4} for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_with_buckets_every_step_shows_one_and_every_image_is_shown_equally_often() -> None:
    buckets = (0, 1, 0, 2, 0, 1)

    def images(seed: int, count: int = 4 * 6 * 10) -> list[int]:
        return [image_of(index, seed, repeats=2, buckets=buckets, group=4) for index in range(count)]

    shown = images(1)
    assert images(1, 50) == shown[:50]
    assert images(2) != shown
    steps = [shown[first : first + 4] for first in range(0, len(shown), 4)]
    assert all(len({buckets[image] for image in step}) == 1 for step in steps)
    assert Counter(shown) == dict.fromkeys(range(6), 40)
    rounds = [tuple(buckets[step[0]] for step in steps[first : first + 6]) for first in range(0, 60, 6)]
    assert {tuple(sorted(turns)) for turns in rounds} == {(0, 0, 0, 1, 1, 2)}
    assert len(set(rounds)) > 5
    assert [image_of(i, 1, 2, [0] * 6, group=4) for i in range(99)] == [
        image_of(i, 1, 2, [0] * 6, 1) for i in range(99)
    ]


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


def test_the_probability_of_a_flip(folder: Path) -> None:
    assert not any(dataset(folder, flip_probability=0.0).sample(number).flipped for number in range(200))
    assert all(dataset(folder, flip_probability=1.0).sample(number).flipped for number in range(200))
    seldom = [dataset(folder, flip_probability=0.1).sample(number) for number in range(1000)]
    assert 60 < sum(sample.flipped for sample in seldom) < 140
    assert [s.text for s in seldom[:50]] == [dataset(folder).sample(number).text for number in range(50)]


def test_what_is_learned_from_has_a_fingerprint(folder: Path, tmp_path: Path) -> None:
    """It does not depend on where the folder lies, only on images and captions."""
    before = dataset(folder).fingerprint()
    shutil.copytree(folder, tmp_path / "copy")
    assert dataset(tmp_path / "copy").fingerprint() == before
    (folder / "a.txt").write_text("my {}")
    captioned = dataset(folder).fingerprint()
    data = dataset(folder)
    Image.new("RGB", (40, 20), "white").save(folder / "a.png")
    assert len({before, captioned, dataset(folder).fingerprint()}) == 3
    (folder / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png cannot be read: No such file"):
        data.fingerprint()


def test_pixels_are_the_square_images_in_minus_one_to_one(folder: Path) -> None:
    pixels, mask = dataset(folder).read(0)
    assert (pixels.shape, pixels.dtype, mask) == ((3, 16, 16), torch.float32, None)
    np.testing.assert_allclose(pixels[:, 8, 8], [-1, -1, 1])
    assert dataset(folder).read(2)[0][:, 0, 0].max() < 1.01
    padded, _ = dataset(folder, square_mode=SquareMode.pad).read(0)
    np.testing.assert_allclose(padded[:, 0, 8], [1, 1, 1])
    assert dataset(folder, square_mode=SquareMode.bucket).read(0)[0].shape == (3, 8, 24)
