"""Reading the parts of a diffusers-format model, and saying in one line what went wrong when that fails."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers import DDPMScheduler
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from ...utils.errors import UserError

BUNDLED = {
    "miniature": Path(__file__).parents[1] / "miniature" / "sd",
    "miniature-judge": Path(__file__).parents[1] / "miniature" / "judge",
}
WEIGHTS = {  # part -> its weight file, as hub repositories name it
    "text_encoder": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
}
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


def model_folder(name_or_path: str, revision: str | None = None, weights: Collection[str] = tuple(WEIGHTS)) -> Path:
    """The local folder of a model: bundled, a path, or a hub repository fetched into (or found in) the hub's cache.

    Of a repository only the configs, the tokenizer and the safetensors files of the parts in `weights` are fetched.
    Raises UserError naming what was tried if there is no such folder, or neither a network nor a cached copy.
    """
    folder = BUNDLED.get(name_or_path, Path(name_or_path).expanduser())
    if name_or_path and folder.is_dir():
        return folder
    if name_or_path in BUNDLED:
        raise UserError(f"model {name_or_path!r}: the bundled weights are missing from {folder}; reinstall the project")
    if not HUB_NAME.fullmatch(name_or_path):
        raise UserError(
            f"model {name_or_path!r}: no such folder; give a folder in diffusers format, a hub name such as "
            "'CompVis/stable-diffusion-v1-4', or 'miniature'"
        )
    patterns = ["*.json", "tokenizer/*", *(f"{part}/{WEIGHTS[part]}" for part in weights)]
    try:
        return Path(snapshot_download(name_or_path, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        version = f" (revision {revision})" if revision else ""
        raise UserError(
            f"model {name_or_path!r}{version}: no such folder here, and the hub repository could not be fetched and is "
            f"not cached ({_first_line(error)}); check the name and the network, or pass the path of a local folder"
        ) from error


def load_parts(
    name_or_path: str, *, revision: str | None, dtype: torch.dtype, weights: Collection[str]
) -> dict[str, Any]:
    """tokenizer, text_encoder, vae, unet, scheduler of a model.

    Parts that are not in `weights` are built from their config on the "meta" device. Whatever scheduler class the model
    names, its noise schedule is returned as a DDPMScheduler, which has all that training needs.
    """
    if unknown := set(weights) - WEIGHTS.keys():
        raise ValueError(f"components {sorted(unknown)}: allowed are {', '.join(WEIGHTS)}")
    folder = model_folder(name_or_path, revision, weights)
    parts: dict[str, Any] = {}
    for part in ("tokenizer", "scheduler", *WEIGHTS):
        try:
            if not (folder / part).is_dir():
                raise FileNotFoundError(f"there is no {part} folder")
            parts[part] = _load_part(part, folder / part, dtype, part in weights)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise UserError(
                f"model {name_or_path!r}: cannot load its {part} from {folder} ({_first_line(error)}); a complete "
                "Stable Diffusion 1.x/2.x folder in diffusers format, with safetensors weights, is needed"
            ) from error
    return parts


def _load_part(part: str, path: Path, dtype: torch.dtype, with_weights: bool) -> Any:
    if part == "tokenizer":
        return CLIPTokenizer.from_pretrained(path)
    if part == "scheduler":
        return DDPMScheduler.from_pretrained(path)
    if part == "text_encoder":
        if with_weights:
            return _text_encoder(path, dtype)
        with torch.device("meta"):
            return CLIPTextModel(CLIPTextConfig.from_pretrained(path))
    model_class: Any = {"vae": AutoencoderKL, "unet": UNet2DConditionModel}[part]
    if with_weights:
        with _without_progress_bars():
            return model_class.from_pretrained(path, torch_dtype=dtype)  # raises by itself if weights are missing
    with torch.device("meta"):
        return model_class.from_config(model_class.load_config(path))


def _text_encoder(path: Path, dtype: torch.dtype) -> CLIPTextModel:
    with _without_progress_bars():
        loaded: Any = CLIPTextModel.from_pretrained(path, dtype=dtype, output_loading_info=True)
    model, info = loaded
    if info["missing_keys"]:  # transformers fills them with random numbers and only warns
        raise ValueError(f"weights are missing, such as {min(info['missing_keys'])}")
    return model


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """A bar over a second's work is noise in a script's output."""
    libraries = [lib for lib in (diffusers_logging, transformers_logging) if lib.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
