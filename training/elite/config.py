# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""Every setting of training an ELITE encoder; defaults are the official recipe of the stage on Stable Diffusion 1.4."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from ...utils.config.choices import Choice
from ...utils.config.parsing import Config
from ...utils.config.values import setting
from ...utils.devices import device_problems
from ..config.options import LRSchedule, MixedPrecision, Tracker


class Stage(Choice):
    """global: the words and their keys and values; local: the patches and theirs, on a finished global mapper."""

    vars()["global"] = "global"  # a keyword of Python, which cannot be written as a name
    local = "local"


GLOBAL, LOCAL = Stage


@dataclass(frozen=True)
class LogConfig(Config):
    """What is written, where and how often."""

    # Name of the run; its folder is exp_dir/exp_name
    exp_name: str
    # Folder that holds the runs
    exp_dir: Path = Path("./outputs")
    # Save the mapper and the resumable state every this many optimiser steps
    save_steps: int = setting(200, at_least=1)
    # tensorboard, wandb, comet_ml, all or none; metrics.jsonl is written in any case
    report_to: Tracker = Tracker.none
    # Project under which wandb and comet_ml list the run
    project: str = "neti"
    # Keep only this many resumable states, the newest ones
    checkpoints_total_limit: int = setting(2, at_least=1)

    @property
    def run_dir(self) -> Path:
        """The run's own folder."""
        return self.exp_dir / self.exp_name

    @property
    def tracker_dir(self) -> Path:
        """Where the trackers write."""
        return self.run_dir / "logs"


@dataclass(frozen=True)
class ModelConfig(Config):
    """The frozen models, and what the stage starts from."""

    # Hugging Face name or local diffusers folder of the model; "miniature" is the one bundled here
    pretrained_model_name_or_path: str = "CompVis/stable-diffusion-v1-4"
    # Revision of the Hugging Face model: a branch, a tag or a commit
    revision: Optional[str] = None
    # The CLIP vision tower of a new encoder: Hugging Face name or local folder
    vision: str = "openai/clip-vit-large-patch14"
    # Encoder to go on from, with its vision tower, or official files. Stage local needs the one of stage global
    encoder: Optional[Path] = None


@dataclass(frozen=True)
class DataConfig(Config):
    """Pictures of objects with their masks: a folder, or the miniature's world."""

    # Folder of images; unset: the miniature's world is drawn instead
    images: Optional[Path] = None
    # Folder of their instance masks, `<name of the image>*.png`, white where the object is
    masks: Optional[Path] = None
    # Boxes of objects, a CSV file of Open Images (ImageID, XMin, XMax, YMin, YMax as shares); stage global only
    boxes: Optional[Path] = None
    # Side in pixels of what the model draws
    resolution: int = setting(512, at_least=8)
    # Processes that read or draw pictures ahead; 0 does it in the training process
    workers: int = setting(2, at_least=0)
    # World only: kinds of things that `favourites_share` of the samples show; the rest shows any
    favourites: tuple[str, ...] = ()
    favourites_share: float = setting(0.0, at_least=0, at_most=1)
    # World only: share of the batches that show the object in another scene, named by its caption, to w0 alone
    other_scene: float = setting(0.0, at_least=0, at_most=1)
    # World only: path of NotoColorEmoji.ttf; unset: where Debian's fonts-noto-color-emoji puts it
    font: Optional[Path] = None

    def problems(self) -> list[str]:
        lines = []
        if self.images is None and (self.masks or self.boxes):
            lines.append("data.masks and data.boxes belong to data.images, which is not set; give the images' folder")
        if self.images is not None and (self.favourites or self.favourites_share or self.other_scene or self.font):
            lines.append(
                "data.favourites, favourites_share, other_scene and font belong to the miniature's world; leave them "
                "out, or leave out data.images"
            )
        if self.favourites_share and not self.favourites:
            lines.append("data.favourites_share needs data.favourites, the kinds of things")
        return lines


@dataclass(frozen=True)
class OptimConfig(Config):
    """The optimisation: AdamW on the stage's mapper."""

    # The learning rate AdamW gets, not scaled by anything: official 6.4e-5 for the global stage, 3.2e-4 for the local
    effective_lr: float = setting(6.4e-5, above=0)
    # Optimiser steps in all: official 70000 and 65000
    max_train_steps: int = setting(70_000, at_least=1)
    # Samples per micro-batch and process; batch x accumulation x processes is officially 64 and 32
    train_batch_size: int = setting(4, at_least=1)
    # Micro-batches whose gradients are added up before an optimiser step
    gradient_accumulation_steps: int = setting(16, at_least=1)
    # Weight of the mean absolute word (global, official 0.01) or patch value (local, official 0.0001)
    regularisation: float = setting(0.01, at_least=0)
    # A sample's loss weighs snr ** -noise_emphasis: 0 is the plain loss, 0.5 gives all noise levels about equal weight
    noise_emphasis: float = setting(0.0, at_least=0, at_most=1)
    # Learning rate of the vision tower in stage global, as effective_lr; 0 keeps it frozen, as officially
    vision_lr: float = setting(0.0, at_least=0)
    # World, stage global: share of the target that is the frozen model's own prediction for the thing's name, not noise
    name_target: float = setting(0.0, at_least=0, at_most=1)
    # World, stage global: weight of the distance between the text encoder's states for w0 and for the thing's name
    name_states: float = setting(0.0, at_least=0)
    # constant, constant_with_warmup, linear, cosine, cosine_with_restarts or polynomial
    lr_scheduler: LRSchedule = LRSchedule.constant
    # Optimiser steps over which the learning rate rises from 0 (not for constant)
    lr_warmup_steps: int = setting(0, at_least=0)
    # AdamW's weight decay
    adam_weight_decay: float = setting(1e-2, at_least=0)
    # Largest norm of the gradient
    max_grad_norm: float = setting(1.0, above=0)
    # no, fp16 or bf16: precision of the frozen models; what is trained stays float32
    mixed_precision: MixedPrecision = MixedPrecision.no
    # Allow TF32 matrix products on recent NVIDIA GPUs: faster, slightly less exact
    allow_tf32: bool = False
    # Recompute activations in the backward pass: less memory, slower
    gradient_checkpointing: bool = False
    # Seed of all randomness in training
    seed: int = setting(0, at_least=0, at_most=2**63 - 1)
    # auto (CUDA, else MPS, else CPU), cpu, mps, cuda or cuda:N
    device: str = "auto"

    def problems(self) -> list[str]:
        return device_problems("optim.device", self.device)


@dataclass(frozen=True)
class EncoderConfig(Config):
    """One stage of training an encoder."""

    # global, then local
    stage: Stage
    log: LogConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    # Go on with a run: "latest" of this run's folder, or the path of a saved state
    resume: Optional[str] = None
    # Empty the run folder and start again
    overwrite: bool = False
    # Check everything, print the plan of the run, train nothing
    dry_run: bool = False

    def problems(self) -> list[str]:
        lines = []
        if self.stage is LOCAL and self.model.encoder is None:
            lines.append("model.encoder is needed by stage local: the file that stage global wrote")
        if self.stage is LOCAL and self.optim.vision_lr:
            lines.append("optim.vision_lr belongs to stage global; in stage local the vision tower is frozen")
        if self.stage is LOCAL and self.data.images is not None and self.data.masks is None:
            lines.append("data.masks is needed by stage local: the object's own shape, not its box")
        named = self.optim.name_target or self.optim.name_states
        if named and (self.stage is LOCAL or self.data.images is not None):
            lines.append("optim.name_target and name_states need stage global and the miniature's world")
        if self.resume is not None and self.overwrite:
            lines.append("resume and overwrite exclude each other: one goes on with the run, the other deletes it")
        return lines
