"""A concept of one photo, in a second (ELITE): the photo and a mask, painted or uploaded, to a concept file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ....models.methods.elite.config import EncodeConfig
from ....models.methods.elite.files import find_encoder
from ....utils.errors import UserError
from ....utils.images import load_image
from ...config.run import RunConfig
from ...data.masks import mask_file
from ..config import AppConfig
from ..learning.request import Lesson, run_config
from ..places import Places
from .request import Request

CANVAS = 512  # pixels of the longer side that a person paints on
Painted = dict[str, Any] | None  # what Gradio's editor gives: "layers" of RGBA on the canvas


class OnePhoto(NamedTuple):
    """An uploaded photo, and its mask if it has one; both in a folder that a training can read."""

    photo: Path
    mask: Path | None


def missing_encoder(app: AppConfig) -> list[str]:
    """Why there can be no concept of one photo, in one line; none if there can."""
    try:
        find_encoder(app.encoder)
    except UserError as error:
        return [str(error)]
    return []


def canvas(upload: str) -> Image.Image:
    """The photo as large as one can paint on it. UserError if it is none, as for any photo."""
    photo = _read(upload)
    scale = CANVAS / max(photo.size)
    return photo.resize((max(round(photo.width * scale), 1), max(round(photo.height * scale), 1)))


def receive(upload: str | None, painted: Painted, mask: str | None, places: Places) -> OnePhoto:
    """Keep the photo, and the mask that was uploaded, else the one that was painted on it: where any layer is not
    clear, the object is. UserError for files that are no pictures."""
    if not upload:
        raise UserError("drop a photo first")
    image, inside = _read(upload), _read(mask).convert("L") if mask else _painted(painted)
    folder = places.fresh(places.photos)
    folder.mkdir(parents=True)
    photo = folder / "photo.png"
    image.save(photo)
    if inside is None:
        return OnePhoto(photo, None)
    path = mask_file(photo, folder, beside=True)
    inside.resize(image.size, Image.Resampling.NEAREST).point(lambda value: 255 * (value > 127)).save(path)
    return OnePhoto(photo, path)


def encoded(
    photo: str | None, painted: Painted, mask: str | None, name: str, word: str, prompt: str,
    *, app: AppConfig, places: Places,
) -> Request:  # fmt: skip
    """Make the concept, put it into the library, and ask for images of it. UserError as `encode_picture`."""
    one, name = receive(photo, painted, mask, places), places.new_name(name)
    path = places.concepts / f"{name}.safetensors"
    config = EncodeConfig(
        one.photo,
        one.mask,
        encoder=app.encoder,
        output=path,
        placeholder=f"<{name}>",
        super_category=word.strip() or "object",
        pretrained_model_name_or_path=app.base_model,
    )
    config.validate()
    from ....models.methods.elite.encode import encode_picture  # late: it is needed by few

    encode_picture(config).save(path)
    load_image(one.photo).save(path.with_suffix(".png"))  # its picture in the library
    return Request(prompt, name, steps=app.num_denoising_steps, guidance_scale=app.guidance_scale)


def refined(
    photo: str | None, painted: Painted, mask: str | None, name: str, word: str, *, app: AppConfig, places: Places
) -> RunConfig:
    """A training of the same photo, within its mask, as {name}-neti, from the encoder's word if there is an encoder."""
    one = receive(photo, painted, mask, places)
    masks = "folder" if one.mask else "none"
    encoder = None if missing_encoder(app) else app.encoder
    lesson = Lesson.of(str(one.photo.parent), f"{name}-neti", word, masks=masks, encoder=encoder)
    return run_config(lesson, app, places)


def _read(upload: str) -> Image.Image:
    try:
        return load_image(upload)
    except UserError as error:
        raise UserError(str(error).replace(upload, Path(upload).name).partition("; ")[0]) from None


def _painted(painted: Painted) -> Image.Image | None:
    layers = [np.asarray(layer.convert("RGBA"))[..., 3] for layer in (painted or {}).get("layers", []) if layer]
    covered = np.max(layers, axis=0) if layers else np.zeros((1, 1))
    return Image.fromarray(covered.astype(np.uint8)) if covered.any() else None
