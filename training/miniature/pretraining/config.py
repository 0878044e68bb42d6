# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""Every setting of `scripts/pretrain_miniature.py`, and what must hold between them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from ....utils.config.choices import Choice
from ....utils.config.parsing import Config
from ....utils.config.values import setting
from ....utils.devices import device_problems
from ..world.objects import world_objects

LATENTS = 16  # side of a latent, at every scale
HEAD_WIDTH = 32  # of both CLIPs
NORM_GROUPS = 16  # of the U-Net's norms
VAE_NORM_GROUPS = 8


class Scale(Choice):
    """How much of the world is drawn: `cpu` has 13 categories, `gpu` 24."""

    cpu = "cpu"
    gpu = "gpu"


@dataclass(frozen=True)
class VAEConfig(Config):
    """Widths per level (one level more than there are halvings), and how long to train."""

    channels: tuple[int, ...] = setting((32, 48, 64), at_least=VAE_NORM_GROUPS)
    steps: int = setting(2800, at_least=1)
    decoder_steps: int = setting(600, at_least=1)
    batch: int = setting(8, at_least=1)
    learning_rate: float = setting(1.5e-3, above=0)
    kl_weight: float = setting(1e-4, at_least=0)
    seed: int = setting(11, at_least=0, at_most=2**32)

    def problems(self) -> list[str]:
        if any(width % VAE_NORM_GROUPS for width in self.channels):
            return [f"vae.channels = {list(self.channels)}: each must be a multiple of {VAE_NORM_GROUPS}"]
        return []


@dataclass(frozen=True)
class CLIPSettings(Config):
    """Sizes of both towers, and how long to train."""

    text_width: int = setting(128, at_least=HEAD_WIDTH)
    text_layers: int = setting(4, at_least=1)
    image_width: int = setting(128, at_least=HEAD_WIDTH)
    image_layers: int = setting(4, at_least=1)
    patch: int = setting(8, at_least=1)
    steps: int = setting(1200, at_least=1)
    batch: int = setting(128, at_least=2)
    learning_rate: float = setting(1e-3, above=0)
    # Shares of the batches with hard negatives: scenes of one place and style, only the object tells their captions
    # apart; scenes of one style, the place does too (a place is drawn from few colours in manga or watercolour)
    alike: tuple[float, ...] = setting((0.4, 0.3), at_least=0)
    seed: int = setting(21, at_least=0, at_most=2**32)

    def problems(self) -> list[str]:
        lines = []
        if len(self.alike) != 2 or sum(self.alike) > 1:
            lines.append(f"alike = {list(self.alike)}: two shares of the batches, together at most 1")
        if self.text_width % HEAD_WIDTH or self.image_width % HEAD_WIDTH:
            lines.append(f"text_width and image_width must be multiples of {HEAD_WIDTH}, the width of a head")
        return lines


@dataclass(frozen=True)
class VisionSettings(Config):
    """Size of the vision tower of ELITE's encoder, and how long to train it."""

    width: int = setting(128, at_least=HEAD_WIDTH)
    layers: int = setting(6, at_least=1)
    patch: int = setting(8, at_least=1)
    steps: int = setting(1300, at_least=1)
    batch: int = setting(128, at_least=2)
    learning_rate: float = setting(1e-3, above=0)
    # Share of the batches whose scenes have one place and style, so that only the object tells their captions apart
    alike: float = setting(0.5, at_least=0, at_most=1)
    # Share of the pictures that show the object on black: what ELITE's local mapper looks at
    masked: float = setting(0.2, at_least=0, at_most=1)
    seed: int = setting(23, at_least=0, at_most=2**32)

    def problems(self) -> list[str]:
        wrong = self.width % HEAD_WIDTH
        return [f"vision.width = {self.width} must be a multiple of {HEAD_WIDTH}, the width of a head"] if wrong else []


@dataclass(frozen=True)
class UNetConfig(Config):
    """Widths and heads of the four levels, how long to train, and on which kinds of things (empty: all of the world's).

    Fewer kinds, learned well, are worth more than many blobs: a small network that a CPU trains draws some, not all.
    """

    categories: tuple[str, ...] = ()
    channels: tuple[int, ...] = setting((32, 64, 128, 128), at_least=NORM_GROUPS)
    heads: tuple[int, ...] = setting((1, 2, 4, 4), at_least=1)
    steps: int = setting(6000, at_least=1)
    batch: int = setting(32, at_least=1)
    learning_rate: float = setting(1e-3, above=0)
    text_learning_rate: float = setting(3e-4, at_least=0)
    caption_dropout: float = setting(0.1, at_least=0, at_most=1)
    # A sample's loss weighs snr ** -noise_emphasis: 0 is the plain loss, 1 the error of the image instead of the noise
    noise_emphasis: float = setting(0.5, at_least=0)
    ema: float = setting(0.9995, at_least=0, at_most=1)
    seed: int = setting(31, at_least=0, at_most=2**32)

    def problems(self) -> list[str]:
        if len(self.channels) != 4 or len(self.heads) != 4:
            return ["unet.channels and unet.heads: one for each of the four levels"]
        lines = []
        if any(width % NORM_GROUPS for width in self.channels):
            lines.append(f"unet.channels = {list(self.channels)}: each must be a multiple of {NORM_GROUPS}")
        if any(width % heads for width, heads in zip(self.channels, self.heads, strict=True)):
            lines.append(f"unet.heads = {list(self.heads)} must divide unet.channels = {list(self.channels)}")
        return lines


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
    # Train nothing but the vision tower of ELITE's encoder, on the text encoder of start_from; it goes to vision/
    vision_only: bool = False
    # Path of NotoColorEmoji.ttf; unset: where Debian's fonts-noto-color-emoji puts it
    font: Optional[Path] = None
    # Width of an image in pixels; latents are always 16 x 16
    pixels: int = setting(64, at_least=64, at_most=512)
    # Rendered training scenes
    scenes: int = setting(40000, at_least=100, at_most=10_000_000)
    # Wanted entries of the tokenizer, the 512 single bytes included
    vocabulary: int = setting(1000, at_least=600, at_most=49408)
    # Processes that render
    workers: int = setting(2, at_least=1, at_most=256)
    # auto (CUDA, else the CPU), cpu, cuda or cuda:N
    device: str = "cpu"
    # Stop cleanly after this many minutes (resume by the same command); unset: run to the end
    minutes: Optional[float] = setting(None, above=0)
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: CLIPSettings = field(default_factory=CLIPSettings)
    judge: CLIPSettings = field(default_factory=lambda: CLIPSettings(text_width=96, text_layers=3, seed=22))
    unet: UNetConfig = field(default_factory=UNetConfig)
    vision: VisionSettings = field(default_factory=VisionSettings)

    def problems(self) -> list[str]:
        lines = device_problems("device", self.device)
        halvings = len(self.vae.channels) - 1
        if self.pixels != LATENTS * 2**halvings:
            lines.append(
                f"pixels = {self.pixels} and {halvings + 1} vae.channels: latents must come out {LATENTS} x {LATENTS}, "
                f"so pixels must be {LATENTS * 2**halvings} or vae.channels longer or shorter"
            )
        if self.vision_only and self.start_from is None:
            lines.append("vision_only needs start_from, the folder of the finished models: models/miniature")
        for name, clip in (("text", self.text), ("judge", self.judge), ("vision", self.vision)):
            if self.pixels % clip.patch:
                lines.append(f"{name}.patch = {clip.patch} must divide pixels = {self.pixels}")
        known = world_objects(self.scale.value)
        if unknown := [name for name in self.unet.categories if name not in known]:
            lines.append(f"unet.categories = {unknown}: a world of scale {self.scale} has {', '.join(known)}")
        return lines
