"""Masks: found by name, brought to the photo's geometry, and refused where they cannot be meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from neti.training.config.options import MaskSource, OutsideMask
from neti.training.config.run import DataConfig
from neti.training.data.dataset import ConceptDataset
from neti.utils.errors import UserError
from neti.utils.images import SquareMode

LEFT = np.pad(np.full((20, 20), 255, np.uint8), ((0, 0), (0, 20)))  # of 40 x 20 pixels the left half is the object


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos of 40 x 20 pixels with their masks beside them, named in the two ways."""
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (40, 20), "red").save(images / name)
    Image.fromarray(LEFT).save(images / "a-masklabel.png")
    Image.fromarray(LEFT).convert("RGB").save(images / "b_bg.png")
    return images


def dataset(folder: Path, masks: MaskSource = MaskSource.folder, **settings: Any) -> ConceptDataset:
    return ConceptDataset(DataConfig(folder, "<toy>", resolution=16, masks=masks, **settings), seed=0)


def masks_of(data: ConceptDataset, *image_ids: int) -> np.ndarray:
    """Masks [B,16,16]."""
    masks = [mask for image_id in image_ids if (mask := data.read(image_id)[1]) is not None]
    assert masks[0].dtype == torch.float32
    return torch.cat(masks).numpy()


def test_masks_lie_beside_the_photos(folder: Path) -> None:
    data = dataset(folder)
    assert [path.name for path in data.mask_paths] == ["a-masklabel.png", "b_bg.png"]
    assert data.notes == []
    masks = masks_of(data, 1, 0)
    assert masks.shape == (2, 16, 16)
    np.testing.assert_array_equal(masks[:, :, :7], 1)
    np.testing.assert_array_equal(masks[:, :, 9:], 0)


def test_masks_that_are_not_asked_for_are_named(folder: Path) -> None:
    data = dataset(folder, MaskSource.none)
    assert [path.name for path in data.paths] == ["a.png", "b.jpg"]
    assert data.mask_paths == []
    assert data.read(0)[1] is data.read(1)[1] is None
    assert data.notes == ["skipped a-masklabel.png, b_bg.png: a mask, which data.masks = folder uses"]


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a-masklabel.png", "a_bg.png"])
def test_masks_lie_in_a_folder_of_their_own(folder: Path, name: str) -> None:
    masks = folder / "masks"
    masks.mkdir()
    Image.fromarray(LEFT[:, ::-1]).save(masks / name, lossless=True)
    Image.fromarray(LEFT).save(masks / "b.png")
    Image.fromarray(LEFT).save(masks / "c.png")
    data = dataset(folder, masks_dir=masks)
    assert data.mask_paths == [masks / name, masks / "b.png"]
    assert data.notes == [
        "skipped a-masklabel.png, b_bg.png: a mask, which data.masks = folder uses",
        "skipped masks/c.png: a mask of no photo",
    ]
    np.testing.assert_array_equal(masks_of(data, 0)[0, :, 9:], 1)


def test_transparency_is_a_mask(folder: Path) -> None:
    image = Image.new("RGBA", (40, 20), "blue")
    image.putalpha(Image.fromarray(LEFT // 3))
    (folder / "b.jpg").unlink()
    image.save(folder / "a.png")
    data = dataset(folder, MaskSource.alpha)
    masks = masks_of(data, 0)
    np.testing.assert_allclose(masks[0, :, :7], 1 / 3, atol=0.005)
    np.testing.assert_array_equal(masks[0, :, 9:], 0)
    np.testing.assert_array_equal(data.read(0)[0][:, 0, 15], [1, 1, 1])  # the picture lies on white


def test_masks_follow_the_square(folder: Path) -> None:
    cropped = masks_of(dataset(folder, square_mode=SquareMode.crop), 0)[0]
    np.testing.assert_array_equal([cropped[:, :7].min(), cropped[:, 9:].max()], [1, 0])
    padded = masks_of(dataset(folder, square_mode=SquareMode.pad), 0)[0]  # what is added is not the object
    assert padded[:4].max() == padded[12:].max() == 0
    np.testing.assert_array_equal(padded[5:11, :7], 1)
    in_a_bucket = masks_of(dataset(folder, square_mode=SquareMode.bucket), 0)[0]
    assert in_a_bucket.shape == (8, 24)
    np.testing.assert_array_equal(in_a_bucket[:, :11], 1)


def test_a_mask_may_be_a_smaller_or_turned_copy(folder: Path) -> None:
    Image.fromarray(LEFT).resize((13, 7)).save(folder / "a-masklabel.png")  # 20 / 3 is rounded
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 40)).save(folder / "b.jpg", exif=exif)  # upright, 40 x 20: the mask fits what is seen
    assert masks_of(dataset(folder), 0, 1)[:, :, :6].min() > 0.9


def test_what_is_transparent_in_a_mask_is_not_the_object(folder: Path) -> None:
    mask = Image.new("LA", (40, 20), (255, 0))
    mask.paste((255, 255), (0, 0, 20, 20))
    mask.save(folder / "a-masklabel.png")
    np.testing.assert_array_equal(masks_of(dataset(folder), 0)[0, :, 9:], 0)


def test_photos_without_a_mask_are_named_at_once(folder: Path) -> None:
    (folder / "a-masklabel.png").unlink()
    (folder / "b-masklabel.png").write_bytes((folder / "b_bg.png").read_bytes())
    with pytest.raises(UserError) as caught:
        dataset(folder)
    a, b = str(caught.value).splitlines()
    assert a.startswith(f"{folder}/a.png has no mask a-masklabel.png or a_bg.png in {folder}; scripts/make_masks.py")
    assert b == f"{folder}/b.jpg has several masks: b-masklabel.png, b_bg.png; keep one"
    with pytest.raises(UserError, match=r"has no mask a-masklabel\.png or a_bg\.png or a\.png in .*empty"):
        (folder / "empty").mkdir()
        dataset(folder, masks_dir=folder / "empty")
    with pytest.raises(UserError, match=r"has no mask .* in .*nowhere"):
        dataset(folder, masks_dir=folder / "nowhere")
    with pytest.raises(UserError, match=r"the folder of masks .*a\.png cannot be read: Not a directory"):
        dataset(folder, masks_dir=folder / "a.png")


def test_masks_that_cannot_be_meant_are_named_at_once(folder: Path) -> None:
    Image.new("L", (40, 20)).save(folder / "a-masklabel.png")
    Image.new("L", (20, 40), 255).save(folder / "b_bg.png")
    with pytest.raises(UserError) as caught:
        dataset(folder).check_images()
    a, b = str(caught.value).splitlines()
    assert a == f"the mask of {folder}/a.png is empty: it is 0 everywhere; make it anew, or take both out"
    assert b.startswith(f"the mask {folder}/b_bg.png is 20 x 40 pixels, its photo b.jpg 40 x 20")
    with pytest.raises(UserError, match=r"b\.jpg has no transparency, which data\.masks = alpha takes"):
        dataset(folder, MaskSource.alpha).check_images()
    (folder / "a-masklabel.png").write_text("broken")
    with pytest.raises(UserError, match=r"the image .*a-masklabel\.png cannot be read"):
        dataset(folder).check_images()


def test_masks_are_part_of_what_is_learned_from(folder: Path) -> None:
    before, without = dataset(folder).fingerprint(), dataset(folder, MaskSource.none).fingerprint()
    Image.fromarray(LEFT // 2).save(folder / "a-masklabel.png")
    assert len({before, without, dataset(folder).fingerprint()}) == 3
    assert dataset(folder, MaskSource.none).fingerprint() == without


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mask_weight": 0.1}, "data.masks = none uses no data.mask_weight; write data.masks = folder or alpha"),
        ({"masks_dir": Path("x"), "outside_mask": OutsideMask.frozen}, "uses no data.masks_dir, data.outside_mask"),
        ({"masks": MaskSource.alpha, "masks_dir": Path("x")}, "data.masks = alpha uses no data.masks_dir"),
        (
            {"masks": MaskSource.folder, "outside_mask": OutsideMask.frozen, "mask_weight": 0.0},
            "data.outside_mask = frozen needs a data.mask_weight above 0",
        ),
        ({"caption_prefix": "a photo of "}, "data.caption_prefix = 'a photo of ' has no {}"),
    ],
)
def test_settings_that_would_do_nothing_are_named(settings: dict[str, Any], words: str) -> None:
    (problem,) = DataConfig(Path("photos"), "<toy>", **settings).problems()
    assert words in problem


def test_the_weight_outside_the_mask_depends_on_what_is_learned_there() -> None:
    def weight(**settings: Any) -> float:
        return DataConfig(Path("photos"), "<toy>", masks=MaskSource.alpha, **settings).effective_mask_weight

    assert weight() == 0
    assert weight(outside_mask=OutsideMask.frozen) == 1
    assert weight(mask_weight=0.25) == weight(mask_weight=0.25, outside_mask=OutsideMask.frozen) == 0.25
