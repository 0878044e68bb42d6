"""Pretraining of the miniature from nothing: one config, five stages in order, each resumable."""

# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPModel, CLIPTokenizer

from ...utils.choices import Choice
from ...utils.config_io import Config
from ...utils.config_values import setting
from . import captions, clip, data, loop, tokenizer, unet, vae
from .clip import CLIPSettings
from .unet import UNetConfig
from .vae import VAEConfig
from .world import World


class Scale(Choice):
    """How much of the world is drawn: `cpu` has 13 categories, `gpu` 24."""

    cpu = "cpu"
    gpu = "gpu"


@dataclass(frozen=True)
class MiniatureConfig(Config):
    """One pretraining run. A stage that is finished is read from ``work_dir`` instead of run again."""

    # Which objects the world has: cpu or gpu
    scale: Scale = Scale.cpu
    # Where data, checkpoints and logs live (outside the repository; some 600 MB)
    work_dir: Path = Path("outputs/miniature")
    # Where the finished models go: sd/ and judge/ inside it
    output_dir: Path = Path("outputs/miniature/export")
    # Path of NotoColorEmoji.ttf; unset: where Debian's fonts-noto-color-emoji puts it
    font: Optional[Path] = None
    # Width of an image in pixels; latents are always 16 x 16
    pixels: int = setting(64, at_least=64)
    # Rendered training scenes
    scenes: int = setting(40000, at_least=100)
    # Rendered held-out scenes
    held_out_scenes: int = setting(1200, at_least=32)
    # Wanted entries of the tokenizer, the 512 single bytes included
    vocabulary: int = setting(1000, at_least=600)
    # Processes that render
    workers: int = setting(2, at_least=1)
    # cpu or cuda
    device: str = "cpu"
    # Stop cleanly after this many minutes (resume by the same command); unset: run to the end
    minutes: Optional[float] = setting(None, above=0)
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: CLIPSettings = field(default_factory=CLIPSettings)
    judge: CLIPSettings = field(default_factory=lambda: CLIPSettings(text_width=96, text_layers=3, seed=22))
    unet: UNetConfig = field(default_factory=UNetConfig)


def pretrain(config: MiniatureConfig) -> bool:
    """Run all stages that are not finished. True when the models stand in ``output_dir``, False when time ran out."""
    folder = config.work_dir
    world = World.create(config.scale.value, str(config.font) if config.font else None)
    train_scenes = data.scenes(world, config.scenes)
    images = data.render_split(world, train_scenes, config.pixels, folder / "train.npy", config.workers)

    def told(chosen: np.ndarray, step: int) -> list[str]:
        return [captions.caption(train_scenes[k], np.random.default_rng((7, step, int(k)))) for k in chosen]

    if not (folder / "tokenizer" / "vocab.json").exists():
        spoken = [text for step in range(3) for text in told(np.arange(min(config.scenes, 4000)), step)]
        tokenizer.train(spoken, config.vocabulary, folder / "tokenizer")
    words = CLIPTokenizer.from_pretrained(folder / "tokenizer")

    def part(name: str, **intervals: int) -> loop.Slice:
        return loop.Slice(folder, name, config.minutes, **intervals)

    autoencoder = vae.train(config.vae, images, part("vae"), config.device)
    if autoencoder is None:
        return False
    clip_slice = {"log_every": 25, "save_every": 200}
    text = clip.train(config.text, words, images, told, part("clip_text", **clip_slice), config.device)
    judge = text and clip.train(config.judge, words, images, told, part("clip_judge", **clip_slice), config.device)
    if text is None or judge is None:
        return False
    moments = vae.encode_all(autoencoder, images, folder / "moments.pt", config.device)
    scaling = vae.scaling_factor(moments)
    autoencoder.register_to_config(scaling_factor=scaling)
    drawn = [k for k, s in enumerate(train_scenes) if s.look.category in (config.unet.categories or world.categories)]

    def told_of_drawn(chosen: np.ndarray, step: int) -> list[str]:
        return told(np.asarray(drawn)[chosen], step)

    trained = unet.train(config.unet, moments[drawn], scaling, text, words, told_of_drawn, part("unet"), config.device)
    if trained is None:
        return False
    autoencoder = vae.refine_decoder(autoencoder, config.vae, images, part("vae_decoder"), config.device)
    if autoencoder is None:
        return False
    export(config.output_dir, words, autoencoder, judge, *trained)
    (config.output_dir / "training.json").write_text(json.dumps(_plain(asdict(config)), indent=1) + "\n")
    return True


def export(
    folder: Path,
    words: CLIPTokenizer,
    autoencoder: AutoencoderKL,
    judge: CLIPModel,
    denoiser: Any,
    text: Any,
) -> None:
    """Write sd/ (diffusers layout) and judge/ (transformers layout) in half precision, replacing what is there."""
    from diffusers import StableDiffusionPipeline  # slow to import, and needed only here

    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text,
        tokenizer=words,
        unet=denoiser,
        scheduler=unet.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(temporary / "sd")
    judge.half().save_pretrained(temporary / "judge")
    words.save_pretrained(temporary / "judge")
    for name in ("sd", "judge"):
        shutil.rmtree(folder / name, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        (temporary / name).rename(folder / name)
    shutil.rmtree(temporary)


def _plain(tree: Any) -> Any:
    """A config as JSON; paths and the machine's own settings are left out."""
    if isinstance(tree, dict):
        return {
            key: _plain(value)
            for key, value in tree.items()
            if key not in ("work_dir", "output_dir", "font", "workers")
        }
    return list(tree) if isinstance(tree, tuple) else getattr(tree, "value", tree)
