"""One picture in, one concept out: what `scripts/encode.py` does with its settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....utils.errors import UserError
from ....utils.images import load_alpha, load_image
from ...backbone.backbone import Backbone
from ...backbone.frame import Frame
from ...concepts.concept import Concept
from ...conditioning.tokens import check_placeholder
from .config import EncodeConfig
from .files import find_encoder, load_encoder, read_about
from .method import ELITE, ELITEConfig

DEFAULT_BASE_MODEL = "CompVis/stable-diffusion-v1-4"  # of the official encoder, whose files do not say


def encode_picture(config: EncodeConfig) -> Concept:
    """The concept that `config` asks for. UserError for every file that is missing, broken or does not fit."""
    picture, mask = read_picture(config.image, config.mask)
    if config.patches is True and mask is None:
        raise UserError(
            f"patches = true needs to know where the object is, and {config.image} has no transparency; give --mask"
        )
    about = read_about(find_encoder(config.encoder))
    base_model = config.pretrained_model_name_or_path or about.get("base_model", DEFAULT_BASE_MODEL)
    sketch = Backbone.from_pretrained(base_model, components=())  # sizes and layers only
    encoder = load_encoder(config.encoder, sketch.frame, config.vision)
    if config.patches is None and encoder.of_patches is None and config.mask is None:
        mask = None  # the picture's own transparency, which nobody asked to use
    method = ELITE.encode(
        encoder,
        sketch.frame,
        picture,
        None if config.patches is False else mask,
        word=config.word,
        strength=ELITEConfig.strength if config.strength is None else config.strength,
    )
    if config.strength is not None and not method.config.patches:
        raise UserError(
            f"strength = {config.strength:g} is that of the patches, and none are read: they need a mask, patches not "
            "false, and an encoder with a local mapper; leave it out"
        )
    placeholder = config.placeholder or f"<{config.image.stem.replace(' ', '-')}>"
    check_placeholder(sketch.tokenizer, placeholder)
    return Concept(method, placeholder, config.super_category, {"base_model": base_model, "step": 0})


def mean_word(paths: Sequence[Path], encoder: str, frame: Frame) -> Tensor:
    """w0 [D] of photos that show one thing: the mean over them. UserError as `load_encoder` and `load_image`."""
    loaded = load_encoder(encoder, frame)
    return torch.stack([loaded.words(_to_tensor(load_image(path))[None])[0, 0] for path in paths]).mean(0)


def read_picture(image: Path, mask: Path | None = None) -> tuple[Tensor, Tensor | None]:
    """The picture [3,H,W] in 0..1 and its mask [1,H,W], 0 or 1: that of a file, else the picture's own transparency.

    None for the mask where there is neither. Raises UserError for files that cannot be read, and for a mask that is
    empty, covers everything, is coloured or has another size than the picture.
    """
    picture = load_image(image)
    if mask is not None:
        shape = _grey(mask)
        if shape.size != picture.size:
            raise UserError(
                f"the mask {mask} has {shape.width} x {shape.height} pixels, the image {picture.width} x "
                f"{picture.height}; save it at the image's size"
            )
        source = f"the mask {mask}"
    else:
        transparency = load_alpha(image)
        if transparency is None or np.asarray(transparency).min() > 127:
            return _to_tensor(picture), None
        shape, source = transparency, f"the transparency of {image}"
    inside = _to_tensor(shape) > 0.5
    if not inside.any():
        raise UserError(f"{source} is empty: nowhere brighter than half; white is the object")
    if inside.all():
        raise UserError(f"{source} covers everything: nothing is left out; give none for the word alone")
    return _to_tensor(picture), inside.float()


def _grey(path: Path) -> Image.Image:
    """A mask file as "L"; one that was saved with three equal channels counts as grey."""
    mask = load_image(path)
    red, green, blue = mask.split()
    if red.tobytes() != green.tobytes() or red.tobytes() != blue.tobytes():
        raise UserError(f"the mask {path} has several channels that differ; save it in grey, white where the object is")
    return red


def _to_tensor(image: Image.Image) -> Tensor:
    pixels = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)
