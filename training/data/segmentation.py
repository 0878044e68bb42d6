"""Masks made by a text-prompted segmentation model, CLIPSeg (Lüddecke and Ecker, CVPR 2022), from a word alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, CLIPSegForImageSegmentation, CLIPTokenizer

from ...utils.errors import UserError, first_line
from ...utils.hashing import pixels_hash
from ...utils.images import load_image
from ...utils.images.png import read_metadata, write_png
from .masks import mask_file, masks_of

TEMPLATES = (
    "a photo of a {}",
    "a photo of the {}",
    "a photo of one {}",
    "an image of a {}",
    "a close-up photo of a {}",
    "a good photo of the {}",
    "the {}",
)
KEY = "mask"  # of the record that a mask made here carries in its PNG


class MadeMask(NamedTuple):
    """A mask that was written, how sure its surest point is (0..1), and the share of the photo that is the object."""

    path: Path
    surest: float
    share: float


class Segmenter:
    """A frozen CLIPSeg, loaded from a local folder or by hub name."""

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, name: str) -> None:
        self.model, self.tokenizer, self.image_processor, self.name = model, tokenizer, image_processor, name

    @classmethod
    def from_pretrained(cls, name_or_path: str, device: str | torch.device = "cpu") -> Segmenter:
        """UserError if there is no such model, if it is of another kind, or if a part of it is missing."""
        try:
            loaded: Any = CLIPSegForImageSegmentation.from_pretrained(name_or_path, output_loading_info=True)
            model, info = loaded
            if info["missing_keys"]:  # transformers fills them with random numbers and only warns
                raise ValueError(f"weights are missing, such as {min(info['missing_keys'])}")
            tokenizer = CLIPTokenizer.from_pretrained(name_or_path)
            if len(tokenizer) < model.config.text_config.vocab_size:  # without its files it would know no word
                raise ValueError("its tokenizer has fewer words than its text encoder")
            processor = AutoImageProcessor.from_pretrained(name_or_path, backend="pil", trust_remote_code=False)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise UserError(
                f"--model {name_or_path}: cannot be loaded ({first_line(error)}); a CLIPSeg model is needed, by its "
                "hub name or as a complete local folder: config, weights, tokenizer and preprocessor_config.json"
            ) from error
        return cls(model.float().eval().to(device), tokenizer, processor, name_or_path)

    @torch.inference_mode()
    def probabilities(self, image: Image.Image, word: str) -> np.ndarray:
        """How likely each point of an RGB image shows the word's thing, [h, w] in 0..1: the mean over the templates."""
        pixels = self.image_processor([image], return_tensors="pt").pixel_values
        texts = self.tokenizer([text.format(word) for text in TEMPLATES], padding=True, return_tensors="pt")
        logits = self.model(
            pixel_values=pixels.float().expand(len(TEMPLATES), -1, -1, -1).to(self.model.device),
            input_ids=texts.input_ids.to(self.model.device),
            attention_mask=texts.attention_mask.to(self.model.device),
        ).logits
        return logits.float().sigmoid().mean(dim=0).cpu().numpy()


def make_masks(
    segmenter: Segmenter, photos: Sequence[Path], word: str, folder: Path, *, beside: bool
) -> Iterator[MadeMask]:
    """Write the mask of every photo that has none but those made here: soft, the surest point 255, as large as it.

    folder: where they go, under the photos' own names, or, `beside` the photos, as `name-masklabel.png`.
    """
    for photo in photos:
        image = load_image(photo)
        found = segmenter.probabilities(image, word)
        surest = float(found.max())
        soft = Image.fromarray((found / max(surest, 1e-6) * 255).round().astype(np.uint8))
        mask = soft.resize(image.size, Image.Resampling.BILINEAR)
        path = mask_file(photo, folder, beside=beside)
        write_png(mask, path, {KEY: {"model": segmenter.name, "word": word, "pixels": pixels_hash([mask])}})
        yield MadeMask(path, surest, float(np.asarray(mask).mean() / 255))


def foreign_masks(photo: Path, folder: Path, *, beside: bool) -> list[Path]:
    """The masks of a photo that were not made here, or were changed by hand since."""
    return [mask for mask in masks_of(photo, folder, beside=beside) if not _was_made_here(mask)]


def _was_made_here(mask: Path) -> bool:
    record = (read_metadata(mask) or {}).get(KEY)
    if not isinstance(record, dict):
        return False
    try:
        with Image.open(mask) as image:
            return record.get("pixels") == pixels_hash([image.convert("L")])
    except OSError:
        return False
