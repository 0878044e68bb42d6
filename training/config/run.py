# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""Every setting of a training run: the public code's keys with its defaults and meaning, and a few of our own.

Differs from the reference: `model.target_norm` is used when it is given; there it is overwritten.

Frozen: what is derived from the settings (the scaled learning rate, the norm, ...) is never written back into them.
The comment above a field is its documentation and what `--help` prints.
"""

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Optional

from ...models.conditioning.prompts import SLOT, VALIDATION_PROMPTS, placeholder_problem
from ...models.generation.mixtures import combinations, parse_settings
from ...models.methods.perfusion.config import PerfusionOptions
from ...utils.config.parsing import Config
from ...utils.config.values import name_or_path, setting
from ...utils.devices import device_problems
from ...utils.errors import UserError, shown
from ...utils.files import LONGEST_NAME, user_path
from ...utils.images import SquareMode
from ...utils.seeds import parse_seeds
from .options import (
    ConceptDtype,
    LearnableProperty,
    LRSchedule,
    MaskSource,
    MethodName,
    MixedPrecision,
    NormRule,
    OutsideMask,
    StartFrom,
    SuperCategoryRule,
    Templates,
    Tracker,
)

STEPS: dict[str, Any] = {"at_most": 10**9, "why": "more would take years"}
MAX_SAMPLES = 1_000_000  # of one optimizer step
COMMON_MODEL_KEYS = (
    "pretrained_model_name_or_path",
    "revision",
    "mapper_checkpoint_path",
    "method",
    "num_vectors",
    "start_from",
    "encoder",
    "key_lock",
)
METHOD_GROUPS = ("perfusion",)  # methods whose keys are a group of their name; the other keys are neti's


@dataclass(frozen=True)
class LogConfig(Config):
    """What is written, where and how often."""

    # Name of the run; its folder is exp_dir/exp_name
    exp_name: str
    # Folder that holds the runs
    exp_dir: Path = Path("./outputs")
    # Save the concept and the resumable state every this many optimiser steps
    save_steps: int = setting(250, at_least=1, **STEPS)
    # Folder for TensorBoard, inside the run folder unless absolute
    logging_dir: Path = Path("logs")
    # Name of the project under which the trackers file the run
    project: str = "neti"
    # tensorboard, wandb, comet_ml, all or none; metrics.jsonl is written in any case
    report_to: Tracker = Tracker.tensorboard
    # Keep only this many resumable states, the newest ones (concepts are never deleted); unset keeps all
    checkpoints_total_limit: Optional[int] = setting(None, at_least=1)
    # Precision of saved concept files: fp32 (about 2.15 MiB on SD v1.4) or fp16 (half of it)
    concept_dtype: ConceptDtype = ConceptDtype.fp32

    @property
    def run_dir(self) -> Path:
        """The run's own folder."""
        return self.exp_dir / self.exp_name

    @property
    def tracker_dir(self) -> Path:
        """Where the trackers write."""
        return self.run_dir / self.logging_dir

    def problems(self) -> list[str]:
        lines = []
        run, trackers = (
            os.path.relpath(path, self.exp_dir).split(os.sep)[0] for path in (self.run_dir, self.tracker_dir)
        )
        if not self.exp_name.strip():
            lines.append("log.exp_name is empty; give the run a name")
        elif run in (os.curdir, os.pardir):
            lines.append(f"log.exp_name = {self.exp_name!r} must be a folder in log.exp_dir; change that instead")
        elif max(len(os.fsencode(part)) for part in Path(self.exp_name).parts) > LONGEST_NAME:
            lines.append(
                f"log.exp_name = {shown(self.exp_name)} is longer than a folder's name can be; take a shorter one"
            )
        elif trackers == os.pardir and not self.logging_dir.is_absolute():
            lines.append(
                f"log.logging_dir = {str(self.logging_dir)!r} leads out of log.exp_dir; if that is meant, write the "
                "absolute path"
            )
        if not self.project.strip(". ") or {"/", "\\"} & {*self.project} or len(self.project) > 100:
            lines.append(f"log.project = {self.project!r} must be a short name without slashes, such as neti")
        return lines


@dataclass(frozen=True)
class DataConfig(Config):
    """The images of the concept and the words around it."""

    # Folder with the concept's images, each with an optional caption: name.txt, name.caption or in metadata.jsonl
    train_data_dir: Path
    # The new word for the concept, such as <toy>; must not be in the tokenizer's vocabulary
    placeholder_token: str
    # A word for the kind of thing the concept is; gives the starting embedding and the norm
    super_category_token: str = "object"
    # Threads that read images while the latents are computed; 0 reads them one after another
    dataloader_num_workers: int = setting(8, at_least=0, at_most=1024, why="one process has no more threads")
    # object or style: which templates are trained with
    learnable_property: LearnableProperty = LearnableProperty.object
    # full: all templates of learnable_property; short: nine that say only "a photo of a {}" in other words
    templates: Templates = Templates.full
    # An epoch, the unit of shuffling, shows every image this many times
    repeats: int = setting(100, at_least=1, at_most=100_000, why="the order of an epoch is kept in memory")
    # Images are made squares of this many pixels
    resolution: int = setting(512, at_least=8, at_most=8192, why="a step at that size fills every GPU")
    # The same as square_mode: crop
    center_crop: bool = False
    # How an image becomes a square: stretch, crop its centre, or pad with white; or bucket: it keeps about its shape
    square_mode: SquareMode = SquareMode.stretch
    # single: super_category_token must be one token; mean: the mean over its tokens is taken
    super_category_rule: SuperCategoryRule = SuperCategoryRule.single
    # Share of the samples that show their image mirrored; 0 for things whose left and right differ, such as writing
    flip_probability: float = setting(0.5, at_least=0, at_most=1)
    # Put in front of captions that do not name the concept, such as "a photo of {}, "
    caption_prefix: str = ""
    # none; folder: files name-masklabel.png or name_bg.png (or masks_dir); alpha: the images' transparency
    masks: MaskSource = MaskSource.none
    # Folder of the masks, which may have the images' own names; unset: they lie beside the images
    masks_dir: Optional[Path] = None
    # Weight of the loss outside the mask; unset: 0, or 1 with outside_mask: frozen
    mask_weight: Optional[float] = setting(None, at_least=0, at_most=1)
    # ignore: nothing is learned outside the mask; frozen: to predict there what the frozen model predicts
    outside_mask: OutsideMask = OutsideMask.ignore

    @property
    def effective_square_mode(self) -> SquareMode:
        """`square_mode`, with `center_crop` taken into account."""
        return SquareMode.crop if self.center_crop else self.square_mode

    @property
    def effective_mask_weight(self) -> float:
        """`mask_weight`, or what it is when unset."""
        if self.mask_weight is not None:
            return self.mask_weight
        return float(self.outside_mask is OutsideMask.frozen)

    def problems(self) -> list[str]:
        lines = []
        if problem := placeholder_problem(self.placeholder_token):
            lines.append(f"data.placeholder_token = {shown(self.placeholder_token)} {problem}")
        if not self.super_category_token.strip():
            lines.append("data.super_category_token is empty; give a word such as toy, cat or painting")
        if self.templates is Templates.short and self.learnable_property is LearnableProperty.style:
            lines.append("data.templates = short: there are none for styles; leave it out")
        if self.center_crop and self.square_mode in (SquareMode.pad, SquareMode.bucket):
            lines.append(
                f"data.center_crop = true contradicts data.square_mode = {self.square_mode}; leave one of them out"
            )
        if self.caption_prefix and SLOT not in self.caption_prefix.replace(self.placeholder_token or SLOT, SLOT):
            lines.append(
                f"data.caption_prefix = {self.caption_prefix!r} has no {SLOT}; write it where the concept belongs"
            )
        return lines + self._mask_problems()

    def _mask_problems(self) -> list[str]:
        lines = []
        given = {
            "masks_dir": self.masks_dir is not None,
            "mask_weight": self.mask_weight is not None,
            "outside_mask": self.outside_mask is not OutsideMask.ignore,
        }
        unused = [f"data.{name}" for name, is_given in given.items() if is_given]
        if self.masks is MaskSource.none and unused:
            lines.append(f"data.masks = none uses no {', '.join(unused)}; write data.masks = folder or alpha")
        if self.masks is MaskSource.alpha and self.masks_dir is not None:
            lines.append("data.masks = alpha uses no data.masks_dir; write data.masks = folder")
        if self.outside_mask is OutsideMask.frozen and self.mask_weight == 0:
            lines.append("data.outside_mask = frozen needs a data.mask_weight above 0; leave it out for 1")
        return lines


@dataclass(frozen=True)
class PESigmas(Config):
    """Bandwidths of the positional encoding, for the timestep and for the U-Net layer."""

    # Larger: timesteps are told apart more finely
    sigma_t: float = setting(0.03, above=0)
    # Larger: layers are told apart more finely
    sigma_l: float = setting(2.0, above=0)


@dataclass(frozen=True)
class ModelConfig(Config):
    """The frozen model and the mapper that learns the concept."""

    # Hugging Face name or local diffusers folder of the model; "miniature" is the one bundled here
    pretrained_model_name_or_path: str = setting("CompVis/stable-diffusion-v1-4", parse=name_or_path)
    # Order the mapper's hidden units by importance, so that a concept can be truncated
    use_nested_dropout: bool = True
    # Probability of a random cut per mapper call during training
    nested_dropout_prob: float = setting(0.5, at_least=0, at_most=1)
    # Rescale the mapper's output to the target norm
    normalize_mapper_output: bool = True
    # The norm to rescale to; unset: the norm of the super category's embedding
    target_norm: Optional[float] = setting(None, above=0)
    # Feed the mapper Fourier features of timestep and layer instead of the two plain numbers
    use_positional_encoding: bool = True
    # Bandwidths of the positional encoding: {sigma_t: 0.03, sigma_l: 2.0}
    pe_sigmas: PESigmas = field(default_factory=PESigmas)
    # Random frequencies of the positional encoding, which has a sine and a cosine of each
    num_pe_frequencies: int = setting(1024, at_least=1, at_most=65_536, why="the concept file would take gigabytes")
    # Timesteps whose encodings, at every layer, start the mapper's input layer
    num_pe_time_anchors: int = setting(10, at_least=1, at_most=1000, why="there are 1000 timesteps")
    # Also learn the textual bypass vector
    output_bypass: bool = True
    # Revision of the Hugging Face model: a branch, a tag or a commit
    revision: Optional[str] = None
    # Start from this concept (.safetensors, or mapper-steps-N.pt of the public code) and go on counting from its step
    mapper_checkpoint_path: Optional[Path] = None
    # word: start at the super category; elite: at the word that ELITE's encoder gives for the photos
    start_from: StartFrom = StartFrom.word
    # The encoder of start_from: elite, as scripts/encode.py takes it; unset: miniature
    encoder: Optional[str] = None
    # neti, textual_inversion (one vector), xti (one vector per cross-attention layer) or perfusion (a rank-one edit)
    method: MethodName = MethodName.neti
    # joint: the public code's rescaling; base: the paper's, of the word half alone
    norm_rule: NormRule = NormRule.joint
    # Length of the textual bypass, as a fraction of the norm of the state it is added to
    bypass_alpha: float = setting(0.2, at_least=0)
    # Hidden units of the mapper, which are also the units a concept can be truncated to
    mapper_hidden_dim: int = setting(128, at_least=1, at_most=16_384, why="the concept file would take gigabytes")
    # Let the concept depend on the timestep; false is the ablation "space only"
    use_time: bool = True
    # Let the concept depend on the U-Net's layer; false is the ablation "time only"
    use_layer: bool = True
    # Vectors of the concept, each a token of the prompt: textual_inversion and xti
    num_vectors: int = setting(1, at_least=1, at_most=75, why="a prompt has no room for more")
    # Learn with attention keys of the super-category word, values of the concept: neti, textual_inversion and xti
    key_lock: bool = False
    # What method perfusion has to set
    perfusion: PerfusionOptions = field(default_factory=PerfusionOptions)

    def problems(self) -> list[str]:
        lines = []
        if not (self.use_time or self.use_layer):
            lines.append("model.use_time and model.use_layer are both false; write model.method: textual_inversion")
        if self.num_vectors > 1 and self.method not in (MethodName.textual_inversion, MethodName.xti):
            lines.append(
                f"model.method = {self.method} has no model.num_vectors; leave it out, or write model.method: "
                "textual_inversion or xti"
            )
        if self.start_from is StartFrom.elite:
            if self.method is MethodName.perfusion:
                lines.append("model.start_from = elite: perfusion starts at the super category; leave it out")
            if self.mapper_checkpoint_path is not None:
                lines.append("model.start_from and model.mapper_checkpoint_path are both given; a run has one start")
        elif self.encoder is not None:
            lines.append("model.encoder belongs to model.start_from: elite, which is not set; leave it out")
        if self.key_lock and self.method.value in METHOD_GROUPS:
            lines.append(
                f"model.method = {self.method} locks keys as model.{self.method}.lock says; leave out model.key_lock"
            )
        defaults = ModelConfig()
        names = [f.name for f in fields(self) if f.name not in COMMON_MODEL_KEYS]
        changed = [name for name in names if getattr(self, name) != getattr(defaults, name)]
        for owner in ("neti", *METHOD_GROUPS):
            foreign = [f"model.{name}" for name in changed if (name if name in METHOD_GROUPS else "neti") == owner]
            if foreign and self.method != owner:
                lines.append(
                    f"model.method = {self.method} has no {', '.join(foreign)}; leave out what belongs to {owner}, or "
                    f"write model.method: {owner}"
                )
        return lines


@dataclass(frozen=True)
class EvalConfig(Config):
    """The grids of images made during training."""

    # Prompts of the grid, each with {} for the concept; null makes no grids
    validation_prompts: Optional[tuple[str, ...]] = VALIDATION_PROMPTS
    # Images per prompt; must equal the number of validation_seeds
    num_validation_images: int = setting(4, at_least=1, at_most=100, why="no viewer opens a wider grid")
    # Seeds of the images, such as [42, 420] or "0-3"; null takes 0, 1, ... num_validation_images - 1
    validation_seeds: Optional[tuple[int, ...]] = setting((42, 420, 501, 5456), at_least=0, parse=parse_seeds)
    # Make a grid every this many optimiser steps
    validation_steps: int = setting(100, at_least=1, **STEPS)
    # Denoising steps per image
    num_denoising_steps: int = setting(50, at_least=1, at_most=1000)
    # Hidden units kept, one grid each; null keeps all, so [null, 16] makes a full and a truncated grid
    validation_truncations: tuple[Optional[int], ...] = setting((None,), at_least=0)
    # Settings of the concept's method, one grid for each combination: {beta: [0.6, 0.75]} (perfusion),
    # {key_lock: [false, true]} (neti, xti, textual_inversion)
    validation_settings: Optional[dict[str, tuple[Any, ...]]] = setting(None, parse=parse_settings)  # noqa: RUF009
    # Make a grid before the first step too
    validation_at_start: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        """The validation seeds, spelled out."""
        if self.validation_seeds is None:
            return tuple(range(self.num_validation_images))
        return self.validation_seeds

    @property
    def variants(self) -> list[dict[str, Any] | None]:
        """Every combination of `validation_settings`; [None] where there are none."""
        return combinations(self.validation_settings)

    def problems(self) -> list[str]:
        lines = [
            f"eval.validation_prompts: {prompt!r} has no {SLOT}; write {SLOT} where the concept belongs"
            for prompt in self.validation_prompts or ()
            if SLOT not in prompt
        ]
        if len(self.seeds) != self.num_validation_images:
            lines.append(
                f"eval.num_validation_images = {self.num_validation_images}, but eval.validation_seeds lists "
                f"{len(self.seeds)}; give as many seeds, or null for 0 to {self.num_validation_images - 1}"
            )
        if not self.validation_truncations:
            lines.append("eval.validation_truncations is empty; write [null] for grids with all hidden units")
        return lines


@dataclass(frozen=True)
class OptimConfig(Config):
    """The optimisation: AdamW on the mapper alone."""

    # Optimiser steps in all
    max_train_steps: int = setting(1_000, at_least=1, **STEPS)
    # Learning rate, before scale_lr
    learning_rate: float = setting(1e-3, above=0)
    # Multiply the learning rate by batch size, accumulation steps and processes
    scale_lr: bool = True
    # Images per step and process
    train_batch_size: int = setting(2, at_least=1, at_most=4096, why="no GPU holds more at once")
    # Recompute activations in the backward pass: less memory, slower
    gradient_checkpointing: bool = False
    # Compile the U-Net (torch.compile): minutes at the start, faster steps on a GPU
    compile_unet: bool = False
    # Batches whose gradients are added up before an optimiser step
    gradient_accumulation_steps: int = setting(4, at_least=1, at_most=MAX_SAMPLES, why="a step would take hours")
    # Seed of all randomness in training; unset draws one and saves it with the run
    seed: Optional[int] = setting(None, at_least=0, at_most=2**63 - 1)
    # constant, constant_with_warmup, linear, cosine, cosine_with_restarts or polynomial
    lr_scheduler: LRSchedule = LRSchedule.constant
    # Optimiser steps over which the learning rate rises from 0 (not for constant)
    lr_warmup_steps: int = setting(0, at_least=0, **STEPS)
    # AdamW's beta 1
    adam_beta1: float = setting(0.9, at_least=0, at_most=0.999999)
    # AdamW's beta 2
    adam_beta2: float = setting(0.999, at_least=0, at_most=0.999999)
    # AdamW's weight decay
    adam_weight_decay: float = setting(1e-2, at_least=0)
    # AdamW's epsilon
    adam_epsilon: float = setting(1e-8, above=0)
    # no, fp16 or bf16: precision of the frozen models
    mixed_precision: MixedPrecision = MixedPrecision.no
    # Allow TF32 matrix products on recent NVIDIA GPUs: faster, slightly less exact
    allow_tf32: bool = False
    # auto (CUDA, else MPS, else CPU), cpu, mps, cuda or cuda:N
    device: str = "auto"

    def problems(self) -> list[str]:
        lines = device_problems("optim.device", self.device)
        if (samples := self.train_batch_size * self.gradient_accumulation_steps) > MAX_SAMPLES:
            lines.append(
                f"optim.train_batch_size x optim.gradient_accumulation_steps = {samples}: must be at most "
                f"{MAX_SAMPLES}, or a step would take hours"
            )
        if self.lr_warmup_steps and self.lr_scheduler is LRSchedule.constant:
            lines.append(
                f"optim.lr_warmup_steps = {self.lr_warmup_steps} does nothing under optim.lr_scheduler = constant; "
                "write constant_with_warmup, or 0 steps"
            )
        return lines


def steps_of_epochs(epochs: Any, written: Mapping[str, Any]) -> str:
    """What to write in the place of epochs: the number of steps, where the keys that were written tell it."""
    from ..data.photos import find_images  # late: it needs the config itself

    rule = "epochs x images x data.repeats / (train_batch_size x gradient_accumulation_steps x processes)"
    steps = ""
    with suppress(UserError, LookupError, ValueError, TypeError, ArithmeticError):
        photos, _ = find_images(user_path(written["data.train_data_dir"]))
        samples = float(epochs) * len(photos) * int(written.get("data.repeats", DataConfig.repeats))
        keys = ("train_batch_size", "gradient_accumulation_steps")
        factors = [int(written.get(f"optim.{key}", getattr(OptimConfig, key))) for key in keys]
        steps = f"{math.ceil(samples / (math.prod(factors) * int(os.environ.get('WORLD_SIZE', '1'))))}, which is "
    return f"there are no epochs here; write optim.max_train_steps: {steps}{rule}"


@dataclass(frozen=True)
class RunConfig(Config):
    """One training run."""

    absent: ClassVar[Mapping[str, Callable[[Any, Mapping[str, Any]], str]]] = {"num_train_epochs": steps_of_epochs}

    log: LogConfig
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    # Go on with a run: "latest" of this run's folder, or the path of a saved state
    resume: Optional[str] = setting(None, parse=name_or_path)
    # Empty the run folder and start again
    overwrite: bool = False
    # Check everything, print the plan of the run, train nothing
    dry_run: bool = False

    def problems(self) -> list[str]:
        lines = []
        if self.resume is not None and self.overwrite:
            lines.append("resume and overwrite exclude each other: one goes on with the run, the other deletes it")
        if self.resume is not None and self.model.mapper_checkpoint_path is not None:
            lines.append("resume and model.mapper_checkpoint_path exclude each other: a resumed run has its own mapper")
        return lines
