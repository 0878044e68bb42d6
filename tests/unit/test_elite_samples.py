"""Training pictures: the world's, a folder's, and what is done to them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neti.training.elite.augment import augment_object, warp
from neti.training.elite.config import GLOBAL, LOCAL, DataConfig
from neti.training.elite.folder import FolderSamples, find_items
from neti.training.elite.samples import collate
from neti.training.elite.world import WorldSamples
from neti.training.miniature.world.objects import CONCEPTS, find_font
from neti.training.miniature.world.world import World
from neti.utils.errors import UserError

try:
    FONT: Path | None = find_font()
except UserError:
    FONT = None
needs_font = pytest.mark.skipif(FONT is None, reason="drawing the world needs the font Noto Color Emoji")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Pictures of 300 x 200 pixels: `a` with two masks, `b` with one of another size, `broken` with one, `lone`."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for name in ("a", "b", "lone"):
        pixels = rng.integers(0, 256, (200, 300, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"no picture")
    for name, size, box in (
        ("a_cat_1", (300, 200), (20, 30, 150, 150)),
        ("a_cat_2", (300, 200), (100, 50, 260, 170)),
        ("b_dog_1", (150, 100), (10, 10, 100, 80)),
        ("broken_1", (300, 200), (20, 30, 150, 150)),
    ):
        mask = Image.new("1", size)
        mask.paste(1, box)
        mask.save(tmp_path / "masks" / f"{name}.png")
    return tmp_path


def config(folder: Path, **more: object) -> DataConfig:
    return DataConfig(images=folder / "images", resolution=64, **{"masks": folder / "masks", **more})  # type: ignore


def test_masks_find_their_pictures(folder):
    items = find_items(config(folder))
    assert [(item.image.stem, item.mask.stem) for item in items] == [
        ("a", "a_cat_1"),
        ("a", "a_cat_2"),
        ("b", "b_dog_1"),
        ("broken", "broken_1"),
    ]
    with pytest.raises(UserError, match="none of its 4 images has a mask"):
        find_items(config(folder, masks=folder))


def test_broken_files_are_skipped_and_counted(folder):
    samples = FolderSamples(config(folder), GLOBAL, seed=3, side=32)
    drawn = [samples[number] for number in range(4)]
    assert sum(sample.skipped for sample in drawn) == 1
    assert all(torch.isfinite(sample.target).all() for sample in drawn)


def test_a_folder_without_one_usable_object_is_an_error(folder):
    for path in (folder / "masks").iterdir():
        Image.new("1", (300, 200)).save(path)
    with pytest.raises(UserError, match="none of the 4 objects can be used"):
        FolderSamples(config(folder), LOCAL, seed=0, side=32)[0]


def test_every_object_comes_once_in_an_epoch(folder):
    samples = FolderSamples(config(folder), GLOBAL, seed=1, side=32)
    samples.items = samples.items[:3]
    seen = [samples[number].object.sum().item() for number in range(6)]
    assert len(set(seen)) == 3 and sorted(seen[:3]) == sorted(seen[3:])


def test_stage_global_shows_the_object_in_its_padded_box(folder):
    samples = FolderSamples(config(folder), GLOBAL, seed=0, side=32)
    samples.items = samples.items[:1]
    sample = samples[0]
    crop = Image.open(folder / "images" / "a.png").crop((10, 20, 160, 160)).resize((64, 64), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.asarray(crop, np.float32) / 127.5 - 1).permute(2, 0, 1)
    torch.testing.assert_close(sample.target, expected, atol=1e-5, rtol=0)
    assert sample.words == 5 and sample.image.shape == (3, 32, 32)


def test_boxes_of_open_images_serve_stage_global(folder):
    with (folder / "boxes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["ImageID", "Source", "LabelName", "XMin", "XMax", "YMin", "YMax"])
        table.writerow(["lone", "x", "/m/1", 0.1, 0.5, 0.2, 0.9])
        table.writerow(["lone", "x", "/m/1", 0.1, 0.11, 0.2, 0.21])  # too small
        table.writerow(["elsewhere", "x", "/m/1", 0.1, 0.5, 0.2, 0.9])
    samples = FolderSamples(config(folder, masks=None, boxes=folder / "boxes.csv"), GLOBAL, seed=0, side=32)
    assert len(samples.items) == 2
    assert torch.equal(samples[0].target, samples[1].target)
    assert samples[0].skipped + samples[1].skipped == 1
    (folder / "boxes.csv").write_text("ImageID,XMin\nlone,0.1\n")
    with pytest.raises(UserError, match="columns ImageID, XMin, XMax, YMin, YMax"):
        find_items(config(folder, masks=None, boxes=folder / "boxes.csv"))


def test_stage_local_shows_the_whole_picture_to_w0_and_the_object_on_black(folder):
    samples = FolderSamples(config(folder), LOCAL, seed=0, side=32)
    samples.items = samples.items[:2]
    for number in range(12):
        sample = samples[number]
        assert sample.words == 1 and set(sample.mask.unique().tolist()) <= {0.0, 1.0}
        assert not (sample.object * (1 - sample.mask)).any()
        shown = sample.valid[0].bool()
        assert (sample.target[:, ~shown] == -1).all()
        small = any(words in sample.text for words in ("far away", "very small"))
        assert small == (not shown.all())
        assert sample.text.count("{}") == 1


def test_a_long_or_small_object_is_no_use_to_stage_local(folder):
    samples = FolderSamples(config(folder), LOCAL, seed=0, side=32)
    for box in ((0, 0, 300, 60), (0, 0, 99, 99)):
        mask = Image.new("1", (300, 200))
        mask.paste(1, box)
        mask.save(folder / "masks" / "a_cat_1.png")
        samples.items = samples.items[:1]
        with pytest.raises(UserError, match="none of the 1 objects"):
            samples[0]


def test_object_and_mask_move_together():
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:24, 10:20] = 1
    for seed in range(8):
        thing, moved = augment_object(mask.expand(3, -1, -1).clone(), mask, np.random.default_rng(seed))
        torch.testing.assert_close(thing[0] > 0.5, moved[0] > 0.5)


def test_warp_without_strength_changes_nothing():
    image = torch.rand(3, 16, 16)
    torch.testing.assert_close(warp(image), image, atol=1e-6, rtol=0)


@needs_font
@pytest.mark.parametrize("stage", [GLOBAL, LOCAL])
def test_the_world_shows_a_thing_as_it_is_or_elsewhere(stage):
    settings = DataConfig(resolution=64, favourites=("car",), favourites_share=1.0, other_scene=0.5)
    samples = WorldSamples(World.create("cpu"), settings, stage, seed=0, side=64, batch_size=4)
    kinds = set()
    for start in range(0, 48, 4):
        batch = collate([(number, samples[number]) for number in range(start, start + 4)])  # one kind per batch
        kinds.add(batch.words)
        assert all(text.count("{}") == 1 for text in batch.texts)
        names = [*World.create("cpu").categories["car"], "car"]
        assert all(noun.endswith(tuple(names)) for noun in batch.nouns)
        assert batch.mask.mean((1, 2, 3)).min() > 0.02
        if stage is GLOBAL:  # there the object is shown as it was drawn
            assert torch.equal(batch.target, batch.object * 2 - 1) == (batch.words == 5)
    assert kinds == ({1, 5} if stage is GLOBAL else {1})
    assert torch.equal(samples[7].image, samples[7].image)


@needs_font
def test_the_world_never_shows_a_held_out_concept():
    samples = WorldSamples(World.create("cpu"), DataConfig(resolution=64), GLOBAL, seed=0, side=64, batch_size=4)
    held_out = {glyph for _, glyph in CONCEPTS.values()}
    glyphs = {glyph for things in samples.world.categories.values() for glyph in things.values()}
    assert len(held_out) == 10 and not held_out & glyphs
