"""One picture in, one concept out: what `scripts/encode.py` does with its settings."""

from __future__ import annotations

from ....utils.errors import UserError
from ...backbone.backbone import Backbone
from ...concepts.concept import Concept
from ...conditioning.tokens import check_placeholder
from .config import EncodeConfig
from .files import encoder_folder, load_encoder, read_about
from .method import ELITE
from .picture import read_picture

DEFAULT_BASE_MODEL = "CompVis/stable-diffusion-v1-4"  # of the official encoder, whose files do not say


def encode_picture(config: EncodeConfig) -> Concept:
    """The concept that `config` asks for. UserError for every file that is missing, broken or does not fit."""
    picture, mask = read_picture(config.image, config.mask)
    if config.patches is True and mask is None:
        raise UserError(
            f"patches = true needs to know where the object is, and {config.image} has no transparency; give --mask"
        )
    about = read_about(encoder_folder(config.encoder))
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
        strength=config.strength,
    )
    placeholder = config.placeholder or f"<{config.image.stem.replace(' ', '-')}>"
    check_placeholder(sketch.tokenizer, placeholder)
    return Concept(method, placeholder, config.super_category, {"base_model": base_model, "step": 0})
