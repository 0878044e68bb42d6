"""Pretraining of the miniature from nothing: one config, five stages in order, each resumable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from ....utils.config.parsing import to_plain_dict
from ....utils.errors import UserError
from ....utils.files import read_json_object, require_writable, write_json
from ..world import captions
from ..world.world import World
from . import clip, data, loop, tokenizer, unet, vae, vision
from .config import LATENTS, MiniatureConfig

SHARD = "9MB"  # of a weight file: small files are kinder to version control
OWN_KEYS = ("work_dir", "output_dir", "start_from", "font", "workers", "minutes")  # of the machine, not of the model


class Models(NamedTuple):
    """The parts of one miniature."""

    words: CLIPTokenizer
    autoencoder: AutoencoderKL
    judge: CLIPModel
    denoiser: UNet2DConditionModel
    text: CLIPTextModel


class Prepared(NamedTuple):
    """What the U-Net's training needs: all images [count,H,W,3], and moments and captions of the drawn categories."""

    models: Models
    images: np.ndarray
    moments: torch.Tensor
    captions: clip.Captions


def pretrain(config: MiniatureConfig) -> bool:
    """Run all stages that are not finished. True when the models stand in ``output_dir``, False when time ran out.

    Several processes (see ``loop``) share the U-Net's training; the first one runs all else while the others wait.
    UserError for a font, device or model that is not there, and for files in ``work_dir`` made with other settings.
    """
    require_writable(config.work_dir, "work_dir")
    require_writable(config.output_dir, "output_dir")  # which is filled hours later
    device = loop.join_processes(config.device)
    if config.vision_only:
        return loop.rank() > 0 or _pretrain_vision(config, device)
    loop.own_share(config.unet.batch)  # a batch that cannot be shared is refused before hours of work
    ready = _prepare(config, device) if loop.rank() == 0 else None
    if not loop.first_says(ready is not None):
        return False
    ready = ready or _prepare(config, device)  # finished by the first process: only read here
    assert ready is not None
    models = ready.models
    trained = unet.train(
        config.unet,
        ready.moments,
        models.autoencoder.config["scaling_factor"],
        models.denoiser,
        models.text,
        models.words,
        ready.captions,
        loop.Slice(config.work_dir, "unet", config.minutes, shared=True),
        device,
    )
    if trained is None or loop.rank() > 0:
        return trained is not None
    part = loop.Slice(config.work_dir, "vae_decoder", config.minutes)
    refined = vae.refine_decoder(models.autoencoder, config.vae, ready.images, part, device)
    if refined is None:
        return False
    export(config.output_dir, Models(models.words, refined, models.judge, *trained))
    settings = {key: value for key, value in to_plain_dict(config).items() if key not in OWN_KEYS}
    write_json(settings, config.output_dir / "training.json")
    return True


def _prepare(config: MiniatureConfig, device: torch.device) -> Prepared | None:
    """The data, and all models as they are when the U-Net's training begins; None when time ran out."""
    folder = config.work_dir
    world = World.create(config.scale.value, config.font)
    start = read_export(config.start_from) if config.start_from else None
    _claim(config)
    scenes = data.scenes(world, config.scenes)
    images = data.render_split(world, scenes, config.pixels, folder / "train.npy", config.workers)

    def words(chosen: np.ndarray, step: int) -> list[str]:
        return [captions.caption(scenes[k], np.random.default_rng((7, step, int(k)))) for k in chosen]

    models = start or _first_stages(config, images, words, data.alike(scenes), device)
    if models is None:
        return None
    moments = vae.encode_all(models.autoencoder, images, folder / "moments.pt", device)
    if start is None:
        models.autoencoder.register_to_config(scaling_factor=vae.scaling_factor(moments))
    drawn = np.flatnonzero([s.look.category in (config.unet.categories or world.categories) for s in scenes])
    return Prepared(models, images, moments[drawn], lambda chosen, step: words(drawn[chosen], step))


def _claim(config: MiniatureConfig) -> None:
    """Note in ``work_dir`` what its data are made of. UserError if they were made of something else."""
    path = config.work_dir / "data.json"
    wanted = {key: to_plain_dict(config)[key] for key in ("scale", "pixels", "scenes", "vocabulary")}
    if not path.exists():
        return write_json(wanted, path)
    found = read_json_object(path, "what work_dir is for,")
    if found != wanted:
        raise UserError(f"work_dir = {config.work_dir} holds data of {found}, not of {wanted}; choose another")


def _pretrain_vision(config: MiniatureConfig, device: torch.device) -> bool:
    """The vision tower of ELITE's encoder, in half precision; it is one process's work."""
    assert config.start_from is not None
    models = read_export(config.start_from)
    world = World.create(config.scale.value, config.font)
    part = loop.Slice(config.work_dir, "vision", config.minutes)
    tower = vision.train(config.vision, world, config.pixels, models.text, models.words, part, device)
    if tower is not None:
        tower.cpu().half().save_pretrained(config.output_dir / "vision")
        write_json(clip.preprocessing(tower), config.output_dir / "vision" / "preprocessor_config.json")
    return tower is not None


def _first_stages(
    config: MiniatureConfig,
    images: np.ndarray,
    words: clip.Captions,
    alike: tuple[data.Grouping, data.Grouping],
    device: torch.device,
) -> Models | None:
    """Tokenizer, autoencoder and both CLIPs, trained, and a new U-Net; None when time ran out."""
    folder = config.work_dir
    if not (folder / "tokenizer" / "vocab.json").exists():
        texts = [text for step in range(3) for text in words(np.arange(min(config.scenes, 4000)), step)]
        tokenizer.train(texts, config.vocabulary, folder / "tokenizer")
    read = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    autoencoder = vae.train(config.vae, images, loop.Slice(folder, "vae", config.minutes), device)
    if autoencoder is None:
        return None
    part = loop.Slice(folder, "clip_text", config.minutes)
    conditioner = clip.train(config.text, read, images, words, alike, part, device)
    part = loop.Slice(folder, "clip_judge", config.minutes)
    judge = conditioner and clip.train(config.judge, read, images, words, alike, part, device)
    if conditioner is None or judge is None:
        return None
    text = unet.text_tower(conditioner)
    return Models(read, autoencoder, judge, unet.build(config.unet, LATENTS, text.config.hidden_size), text)


def read_export(folder: Path) -> Models:
    """What ``export`` wrote, in float32, to go on from. UserError if it is not whole."""
    text: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    try:
        return Models(
            words=CLIPTokenizer.from_pretrained(folder / "sd" / "tokenizer"),
            autoencoder=AutoencoderKL.from_pretrained(folder / "sd" / "vae", torch_dtype=torch.float32),
            judge=CLIPModel.from_pretrained(folder / "judge", dtype=torch.float32),
            denoiser=UNet2DConditionModel.from_pretrained(folder / "sd" / "unet", torch_dtype=torch.float32),
            text=CLIPTextModel.from_pretrained(folder / "sd" / "text_encoder", **text),
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"start_from = {folder}: not a whole export, with sd/ and judge/ ({str(error).splitlines()[0][:200]})"
        ) from error


def export(folder: Path, models: Models) -> None:
    """Write sd/ (diffusers layout) and judge/ (transformers layout) in half precision, replacing what is there."""
    from diffusers import StableDiffusionPipeline  # slow to import, and needed only here

    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline = StableDiffusionPipeline(
        vae=models.autoencoder,
        text_encoder=models.text,
        tokenizer=models.words,
        unet=models.denoiser,
        scheduler=unet.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(temporary / "sd", max_shard_size=SHARD)
    write_json(unet.SCHEDULER, temporary / "sd" / "scheduler" / "scheduler_config.json")
    models.judge.half().save_pretrained(temporary / "judge")
    models.words.save_pretrained(temporary / "judge")
    write_json(clip.preprocessing(models.judge), temporary / "judge" / "preprocessor_config.json")
    for place in ("sd/tokenizer", "judge"):
        tokenizer.write_classic_files(temporary / place)
    _clean_configs(temporary)
    for name in ("sd", "judge"):
        shutil.rmtree(folder / name, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        (temporary / name).rename(folder / name)
    shutil.rmtree(temporary)


def _clean_configs(folder: Path) -> None:
    """Take out of the parts' configs where on this machine, and how, they were loaded; ask for float32 when loading."""
    for path in [*folder.glob("**/config.json"), *folder.glob("**/tokenizer_config.json")]:
        config = json.loads(path.read_text())
        for key in ("_name_or_path", "local_files_only"):
            config.pop(key, None)
        if "dtype" in config:  # transformers loads in the dtype it finds here, and half precision is slow on a CPU
            config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2) + "\n")
