"""Reading the parts of a model, and saying in one line what went wrong when that fails."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers import DDPMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ...utils.errors import UserError, first_line
from .checks import number_problem, settings_problem
from .files.hub import HUB_NAME, is_in_cache
from .files.locate import BUNDLED, ModelFiles, find_model, model_folder, model_hash
from .files.quiet import without_progress_bars
from .files.single_file import ENDINGS, load_checkpoint
from .files.weights import INDEX, SECOND, WEIGHTS, check_files, find_weights, read_settings

__all__ = ["BUNDLED", "HUB_NAME", "WEIGHTS", "check_text_to_image", "load_parts", "model_folder", "model_hash"]

CLASSES: dict[str, Any] = {
    "text_encoder": CLIPTextModel,
    SECOND: CLIPTextModelWithProjection,
    "vae": AutoencoderKL,
    "unet": UNet2DConditionModel,
}


def load_parts(
    name_or_path: str, *, revision: str | None, dtype: torch.dtype, weights: Collection[str]
) -> dict[str, Any]:
    """tokenizer, scheduler, text_encoder, vae, unet of a model; of SDXL also tokenizer_2, text_encoder_2 and
    zeros_for_empty_prompt.

    Parts that are not in `weights` are built from their config on the "meta" device. Whatever scheduler class the model
    names, its noise schedule is returned as a DDPMScheduler, which has all that training needs.
    """
    if unknown := set(weights) - {*WEIGHTS}:
        raise ValueError(f"components {sorted(unknown)}: allowed are {', '.join(WEIGHTS)}")
    files = find_model(name_or_path, revision, weights)
    if {*weights} == {*WEIGHTS}:
        _check(name_or_path, files)
    parts: dict[str, Any] = {}
    wanted = [*weights, *(files.text_encoders[1:] if "text_encoder" in weights else [])]
    if files.checkpoint is not None and weights:
        with explained(name_or_path, "weights", files):
            parts |= load_checkpoint(files.checkpoint, wanted, dtype)
    for part in (*files.tokenizers, "scheduler", *files.text_encoders, "vae", "unet"):
        if part not in parts:
            with explained(name_or_path, part, files):
                parts[part] = _load_part(part, files, dtype, part in wanted)
    if len(files.text_encoders) > 1:
        with explained(name_or_path, INDEX, files):
            settings = read_settings(files.folder / INDEX) if (files.folder / INDEX).is_file() else {}
            parts["zeros_for_empty_prompt"] = bool(settings.get("force_zeros_for_empty_prompt", True))
        if dtype == torch.float16 and parts["vae"].config["force_upcast"]:
            parts["vae"].float()  # XL's own overflows in float16; stock pipelines do the same
    with explained(name_or_path, "unet", files):
        _correct_sample_size(parts["unet"])
    if files.checkpoint is not None and files.checkpoint.latent_side is not None:
        parts["unet"].register_to_config(sample_size=files.checkpoint.latent_side)
    return parts


def check_text_to_image(name_or_path: str, revision: str | None = None) -> list[str]:
    """Raise UserError unless the model turns noise and text, and nothing else, into a picture. Reads settings only.

    Returns what had to be assumed of it, in words.
    """
    files = find_model(name_or_path, revision, weights=())
    _check(name_or_path, files)
    return [files.checkpoint.note] if files.checkpoint is not None and files.checkpoint.note else []


def _check(name: str, files: ModelFiles) -> None:
    settings, encoders = {}, files.text_encoders
    if (files.folder / INDEX).is_file():  # it says whether there is a safety checker
        with explained(name, INDEX, files):
            check_files(files.folder, [INDEX])
    for part in ("unet", "vae", "scheduler", *encoders):
        with explained(name, part, files):
            settings[part] = read_settings(_settings_file(part, files))
            if problem := number_problem(settings[part]):
                raise ValueError(problem)
    text_width = sum(settings.pop(encoder).get("hidden_size", 512) for encoder in encoders)
    if problem := settings_problem(**settings, text_width=text_width, two_encoders=len(encoders) > 1):
        raise UserError(f"model {name!r}: {problem}")


def load_weights(part: str, folder: Path, model_class: Any, dtype: torch.dtype) -> Any:
    """A part of a folder, whatever form its weights have. Raises an error of some kind if any is missing or wrong."""
    found = find_weights(part, folder)
    check_files(folder, ["config.json", *found.names])
    with without_progress_bars():
        model, info = model_class.from_pretrained(folder, dtype=dtype, output_loading_info=True, **found.options)
    if missing := info["missing_keys"]:  # the libraries leave random numbers, or none, in their places and only warn
        raise ValueError(f"{len(missing)} of its weights are missing, such as {min(missing)}")
    return model


@contextmanager
def explained(name: str, part: str, files: ModelFiles, advice: str = "") -> Iterator[None]:
    """Turn any error of the block, which reads `part`, into a UserError: the files are anybody's, and so are errors."""
    try:
        yield
    except Exception as error:
        source = files.checkpoint.path if files.checkpoint else files.folder
        reason, fix = first_line(error), advice or _advice(part, files)
        raise UserError(f"model {name!r}: cannot load its {part} from {source} ({reason}); {fix}") from error


def _advice(part: str, files: ModelFiles) -> str:
    if files.checkpoint is not None:
        return f"it is incomplete, or not of the sizes that the settings in {files.folder} give"
    if is_in_cache(files.folder):
        return "the hub's cache may hold it only in part: connect to the network to complete the download"
    lying = sorted(path for path in files.folder.glob("*") if path.suffix in ENDINGS)
    if lying and not (files.folder / part).is_dir():
        return f"to use the checkpoint in this folder, give its path: {lying[0]}"
    return "a complete Stable Diffusion folder (1.x, 2.x or XL) in diffusers format is needed"


def _load_part(part: str, files: ModelFiles, dtype: torch.dtype, with_weights: bool) -> Any:
    if part in files.tokenizers:
        return _tokenizer(*files.tokenizer(part))
    path = _settings_file(part, files).parent
    if part == "scheduler":
        return DDPMScheduler.from_pretrained(path, **(files.checkpoint.schedule if files.checkpoint else {}))
    if with_weights:
        return load_weights(part, path, CLASSES[part], dtype)
    with torch.device("meta"):
        if part in files.text_encoders:
            return CLASSES[part](CLIPTextConfig.from_pretrained(path))
        return CLASSES[part].from_config(CLASSES[part].load_config(path))


def _settings_file(part: str, files: ModelFiles) -> Path:
    """The JSON file of a part, after checking that it is one."""
    folder, name = files.folder / part, "scheduler_config.json" if part == "scheduler" else "config.json"
    _require_folder(folder)
    check_files(folder, [name])
    return folder / name


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no {folder.name} folder")


def _tokenizer(path: Path, pad_token: str | None) -> CLIPTokenizer:
    """transformers makes an empty one, which knows no words, of a folder without the files it wants: not so here."""
    _require_folder(path)
    lying = {file.name for file in path.glob("*")}
    check_files(path, sorted(lying))
    if "tokenizer.json" not in lying:
        check_files(path, ["vocab.json", "merges.txt"])
    changes: dict[str, Any] = {"pad_token": pad_token} if pad_token else {}
    return CLIPTokenizer.from_pretrained(path, **changes)


def _correct_sample_size(unet: UNet2DConditionModel) -> None:
    """As stock pipelines do: U-Nets of before diffusers 0.9 say 32 (64 is meant), some of today's say [64, 64]."""
    size: Any = unet.config["sample_size"]
    if isinstance(size, (list, tuple)) and len({*size}) == 1:
        size = size[0]
    major, minor = unet.config.get("_diffusers_version", "1.0").split(".")[:2]
    if isinstance(size, int) and size < 64 and (int(major), int(minor)) < (0, 9):
        size = 64
    unet.register_to_config(sample_size=size)
