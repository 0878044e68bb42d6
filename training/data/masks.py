"""Masks: where the concept is on each photo, so that the loss need not teach the place around it.

Soft masks, 0 ground to 255 object, lie beside the photos or in a folder of their own, or are the photos' transparency.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from PIL import Image

from ...utils.errors import UserError
from ...utils.files import list_folder
from ...utils.images import load_alpha, load_image
from ..config.options import MaskSource
from ..config.run import DataConfig

TRAINER_ENDING, MATTING_ENDING = "-masklabel", "_bg"  # OneTrainer's way of naming, and ELITE's (always .png)


def is_mask(path: Path, stems: Collection[str]) -> bool:
    """Whether an image is a mask by its name: `cat-masklabel.png`, or `cat_bg.png` beside a photo named cat.

    stems: the names, without suffix, of all images of the folder.
    """
    if path.stem.endswith(TRAINER_ENDING):
        return True
    matting = path.suffix.lower() == ".png" and path.stem.endswith(MATTING_ENDING)
    return matting and path.stem.removesuffix(MATTING_ENDING) in stems


def find_masks(photos: Sequence[Path], config: DataConfig) -> list[Path]:
    """The mask file of each photo, in order; none at all unless `data.masks` is `folder`.

    They lie beside the photos, or in `data.masks_dir`, where a mask may also have the photo's own name. UserError names
    every photo that has no mask, or several.
    """
    if config.masks is not MaskSource.folder:
        return []
    folder, beside = config.masks_dir or config.train_data_dir, config.masks_dir is None
    masks, problems = [], []
    for photo in photos:
        fitting = masks_of(photo, folder, beside=beside)
        if len(fitting) == 1:
            masks += fitting
        elif fitting:
            problems.append(f"{photo} has several masks: {', '.join(mask.name for mask in fitting)}; keep one")
        else:
            names = " or ".join(f"{stem}.png" for stem in _stems(photo, beside=beside))
            problems.append(
                f"{photo} has no mask {names} in {folder}; scripts/make_masks.py makes them, data.masks = none trains "
                "without"
            )
    if problems:
        raise UserError("\n".join(problems))
    return masks


def unused_masks(masks: Sequence[Path], config: DataConfig) -> list[Path]:
    """The files of `data.masks_dir` that are none of `masks`, where these come from a folder of their own."""
    if not masks or config.masks_dir is None or config.masks_dir == config.train_data_dir:
        return []
    return [path for path in list_folder(config.masks_dir, "folder of masks") if path not in masks and path.is_file()]


def masks_of(photo: Path, folder: Path, *, beside: bool) -> list[Path]:
    """The files of a folder that are named as this photo's masks; `beside` it, none has the photo's own name."""
    stems = _stems(photo, beside=beside)
    try:
        return sorted(path for path in folder.iterdir() if path.stem in stems and path != photo and path.is_file())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"the folder of masks {folder} cannot be read: {error.strerror}") from None


def mask_file(photo: Path, folder: Path, *, beside: bool) -> Path:
    """Where a mask is written that is made for this photo."""
    return folder / f"{photo.stem}{TRAINER_ENDING if beside else ''}.png"


def _stems(photo: Path, *, beside: bool) -> list[str]:
    stems = [photo.stem + TRAINER_ENDING, photo.stem + MATTING_ENDING]
    return stems if beside else [*stems, photo.stem]


def read_mask(path: Path, photo: Path, size: tuple[int, int]) -> Image.Image:
    """A mask file as mode L, in its photo's size (width, height). UserError if its shape is another."""
    mask = load_image(path, background="black").convert("L")  # what is transparent is not the object
    width, height = size
    if min(abs(mask.width - mask.height * width / height), abs(mask.height - mask.width * height / width)) > 1:
        # a smaller copy of the photo differs by the rounding of one side alone
        raise UserError(
            f"the mask {path} is {mask.width} x {mask.height} pixels, its photo {photo.name} {width} x {height} "
            "(width x height, upright); make it anew from the photo"
        )
    return mask.resize(size, Image.Resampling.BILINEAR)


def transparency_mask(photo: Path) -> Image.Image:
    """A photo's transparency as its mask, mode L. UserError if it has none."""
    mask = load_alpha(photo)
    if mask is None:
        raise UserError(
            f"the image {photo} has no transparency, which data.masks = alpha takes for its mask; cut the concept out, "
            "or use mask files: data.masks = folder"
        )
    return mask
