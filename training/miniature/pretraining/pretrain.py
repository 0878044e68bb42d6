"""Pretraining of the miniature from nothing: one config, five stages in order, each resumable."""

# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from ....utils.config.choices import Choice
from ....utils.config.parsing import Config
from ....utils.config.values import setting
from ..world import captions
from ..world.world import World
from . import clip, data, loop, parallel, tokenizer, unet, vae
from .clip import CLIPSettings
from .unet import UNetConfig
from .vae import VAEConfig

SHARD = "9MB"  # of a weight file: small files are kinder to version control
LATENTS = 16  # side of a latent, at every scale


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
    # Go on from an exported model (a folder with sd/ and judge/): U-Net and text tower learn further, the rest is kept
    start_from: Optional[Path] = None
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

    Several processes (``parallel``) share the U-Net's training; the first one runs all else while the others wait.
    """
    ready = _prepare(config) if parallel.start() == 0 else None
    if not parallel.first_says(ready is not None):
        return False
    ready = ready or _prepare(config)  # finished by the first process: only read here
    assert ready is not None
    folder, models = config.work_dir, ready.models
    part = loop.Slice(folder, "unet", config.minutes, save_every=100, shared=True)
    scaling = models.autoencoder.config["scaling_factor"]
    trained = unet.train(
        config.unet,
        ready.moments,
        scaling,
        models.denoiser,
        models.text,
        models.words,
        ready.captions,
        part,
        config.device,
    )
    if trained is None or parallel.rank() > 0:
        return trained is not None
    part = loop.Slice(folder, "vae_decoder", config.minutes)
    refined = vae.refine_decoder(models.autoencoder, config.vae, ready.images, part, config.device)
    if refined is None:
        return False
    export(config.output_dir, Models(models.words, refined, models.judge, *trained))
    (config.output_dir / "training.json").write_text(json.dumps(_plain(asdict(config)), indent=1) + "\n")
    return True


def _prepare(config: MiniatureConfig) -> Prepared | None:
    """The data, and all models as they are when the U-Net's training begins; None when time ran out."""
    folder = config.work_dir
    world = World.create(config.scale.value, str(config.font) if config.font else None)
    scenes = data.scenes(world, config.scenes)
    images = data.render_split(world, scenes, config.pixels, folder / "train.npy", config.workers)

    def told(chosen: np.ndarray, step: int) -> list[str]:
        return [captions.caption(scenes[k], np.random.default_rng((7, step, int(k)))) for k in chosen]

    alike = data.alike(scenes)
    models = read_export(config.start_from) if config.start_from else _first_stages(config, images, told, alike)
    if models is None:
        return None
    moments = vae.encode_all(models.autoencoder, images, folder / "moments.pt", config.device)
    if config.start_from is None:
        models.autoencoder.register_to_config(scaling_factor=vae.scaling_factor(moments))
    drawn = np.flatnonzero([s.look.category in (config.unet.categories or world.categories) for s in scenes])
    return Prepared(models, images, moments[drawn], lambda chosen, step: told(drawn[chosen], step))


def _first_stages(
    config: MiniatureConfig, images: np.ndarray, told: clip.Captions, alike: tuple[data.Grouping, data.Grouping]
) -> Models | None:
    """Tokenizer, autoencoder and both CLIPs, trained, and a new U-Net; None when time ran out."""
    folder = config.work_dir
    if not (folder / "tokenizer" / "vocab.json").exists():
        spoken = [text for step in range(3) for text in told(np.arange(min(config.scenes, 4000)), step)]
        tokenizer.train(spoken, config.vocabulary, folder / "tokenizer")
    words = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    part = loop.Slice(folder, "vae", config.minutes)
    autoencoder = vae.train(config.vae, images, part, config.device)
    if autoencoder is None:
        return None
    part = loop.Slice(folder, "clip_text", config.minutes, save_every=200, log_every=25)
    conditioner = clip.train(config.text, words, images, told, alike, part, config.device)
    if conditioner is None:
        return None
    part = loop.Slice(folder, "clip_judge", config.minutes, save_every=200, log_every=25)
    judge = clip.train(config.judge, words, images, told, alike, part, config.device)
    if judge is None:
        return None
    text = unet.text_tower(conditioner)
    return Models(words, autoencoder, judge, unet.build(config.unet, LATENTS, text.config.hidden_size), text)


def read_export(folder: Path) -> Models:
    """What ``export`` wrote, in float32, to go on from."""
    return Models(
        words=CLIPTokenizer.from_pretrained(folder / "sd" / "tokenizer"),
        autoencoder=AutoencoderKL.from_pretrained(folder / "sd" / "vae", torch_dtype=torch.float32),
        judge=CLIPModel.from_pretrained(folder / "judge", dtype=torch.float32),
        denoiser=UNet2DConditionModel.from_pretrained(folder / "sd" / "unet", torch_dtype=torch.float32),
        text=CLIPTextModel.from_pretrained(
            folder / "sd" / "text_encoder", dtype=torch.float32, attn_implementation="eager"
        ),
    )


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
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(temporary / "sd", max_shard_size=SHARD)
    _forget_origins(temporary)
    _settings_as_published(temporary / "sd")
    models.judge.half().save_pretrained(temporary / "judge")
    models.words.save_pretrained(temporary / "judge")
    for place in ("sd/tokenizer", "judge"):
        tokenizer.write_classic_files(temporary / place)
    (temporary / "judge" / "preprocessor_config.json").write_text(
        json.dumps(clip.preprocessing(models.judge), indent=1)
    )
    for name in ("sd", "judge"):
        shutil.rmtree(folder / name, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        (temporary / name).rename(folder / name)
    shutil.rmtree(temporary)


def _forget_origins(folder: Path) -> None:
    """Take out of the parts' configs where on this machine, and how, they were loaded."""
    for path in [*folder.glob("sd/*/config.json"), *folder.glob("**/tokenizer_config.json")]:
        config = json.loads(path.read_text())
        for key in ("_name_or_path", "local_files_only"):
            config.pop(key, None)
        path.write_text(json.dumps(config, indent=2) + "\n")


def _settings_as_published(folder: Path) -> None:
    """Leave in the settings what Stable Diffusion v1.4's say, of which loaders make other things than of their saver's.

    Without a timestep_spacing every sampler has its own; clip_sample, left out, would clip latents; a text encoder said
    to be in half precision would be loaded so beside a U-Net in float32.
    """
    scheduler, text_encoder = folder / "scheduler" / "scheduler_config.json", folder / "text_encoder" / "config.json"
    saved = json.loads(scheduler.read_text()) | {"clip_sample": False}
    kept = {key: value for key, value in sorted(saved.items()) if key not in ("prediction_type", "timestep_spacing")}
    scheduler.write_text(json.dumps(kept, indent=2) + "\n")
    text_encoder.write_text(json.dumps({**json.loads(text_encoder.read_text()), "dtype": "float32"}, indent=2) + "\n")


def _plain(tree: Any) -> Any:
    """A config as JSON; paths and the machine's own settings are left out."""
    if isinstance(tree, dict):
        return {
            key: _plain(value)
            for key, value in tree.items()
            if key not in ("work_dir", "output_dir", "start_from", "font", "workers")
        }
    return list(tree) if isinstance(tree, tuple) else getattr(tree, "value", tree)
