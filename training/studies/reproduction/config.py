# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""Every setting of `scripts/reproduce_paper.py`: what is trained, drawn and measured, and under which protocol."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Optional

import yaml

from ....models.conditioning.prompts import PAPER_PROMPTS, SLOT
from ....models.generation.config import Dtype
from ....models.judging.resizing import Resizing
from ....utils.config.parsing import Config
from ....utils.config.values import name_or_path, setting
from ....utils.devices import device_problems
from ....utils.errors import UserError
from ....utils.seeds import parse_seeds
from ...evaluation.config import COLUMNS, ConceptSource, columns_problems, folders_by_concept, repeated_problems
from ...evaluation.scores import PlaceholderRule
from ...jobs.config import JobsConfig

METHOD_COLUMNS = "name | learning rates | steps | arguments of scripts/train.py, which may be left out"
DRAWN_COLUMNS = "name | method | settings of it when drawing, such as key_lock=true, truncation=8 or step=100"
CONCEPT = "{concept}"  # in a method's arguments: the name of the concept that is learned
NAME = re.compile(r"[a-z0-9_]+")  # of methods and concepts: they become file names and parts of jobs' names
PLANNED = (  # what the plan itself decides about a training, so no method may
    "log.exp_name",
    "log.exp_dir",
    "log.save_steps",
    "log.report_to",
    "log.checkpoints_total_limit",
    "data.placeholder_token",
    "data.super_category_token",
    "eval.validation_prompts",
    "optim.max_train_steps",
    "optim.learning_rate",
    "optim.seed",
    "optim.device",
    "resume",
    "overwrite",
    "dry_run",
)


class MethodPlan(NamedTuple):
    """A method: the learning rates that are tried, the steps after which it is measured, and its own settings."""

    name: str
    rates: tuple[float, ...]
    steps: tuple[int, ...]
    arguments: tuple[str, ...]


class DrawnPlan(NamedTuple):
    """A trained method once more, drawn otherwise: with settings of the method, fewer units, or after fewer steps."""

    name: str
    method: str
    settings: tuple[tuple[str, Any], ...]
    truncation: int | None
    step: int | None


@dataclass(frozen=True)
class ReproductionConfig(Config):
    """One plan. Entries of `concepts`, `tuning_concepts` and `methods` are columns with | between them."""

    # The training that all methods share: a YAML file of scripts/train.py
    train_config: Path
    # What the claims are tested on, each "name | super-category word | folder of its images"
    concepts: tuple[str, ...] = ()
    # What learning rates and step budgets are chosen on; other concepts than the above. None: nothing is chosen, and
    # every method has one learning rate, and as its budget its last number of steps
    tuning_concepts: tuple[str, ...] = ()
    # Image similarity to other pictures too, each "concept | folder of pictures of it that it was not trained on"
    references: tuple[str, ...] = ()
    # Image similarity to what masks leave of the photos too, each "concept | folder of the masks of its images"
    masks: tuple[str, ...] = ()
    # Each "name | learning rates | steps | arguments of scripts/train.py": of all pairs of a rate and a number of steps
    # the best one is chosen on the tuning concepts. {concept} in the arguments is the name of the concept, as in
    # --data.train_data_dir other_photos/{concept}
    methods: tuple[str, ...] = ()
    # Methods drawn otherwise too, each "name | method | key_lock=true truncation=8 step=100": with settings of it, with
    # fewer units, after fewer steps (of those of its curve)
    drawn: tuple[str, ...] = ()
    # Prompts of the images that methods are compared by, each with {} for the concept
    prompts: tuple[str, ...] = PAPER_PROMPTS
    # Those of the prompts that name a place: the claims are computed by them alone too
    place_prompts: tuple[str, ...] = ()
    # One image per prompt and seed: [42, 420], "0-3" or "1,5,7-9"
    seeds: tuple[int, ...] = setting((0, 1, 2, 3), at_least=0, parse=parse_seeds)
    # The smaller set of prompts, for the search and for the curves over training steps
    short_prompts: tuple[str, ...] = (PAPER_PROMPTS[0], PAPER_PROMPTS[2], PAPER_PROMPTS[5], PAPER_PROMPTS[11])
    # The seeds of the smaller set
    short_seeds: tuple[int, ...] = setting((0, 1), at_least=0, parse=parse_seeds)
    # Hidden units kept, for the claims about truncation
    truncations: tuple[int, ...] = setting((64, 32, 16, 8, 4), at_least=0)
    # Every method learns every concept once per training seed
    train_seeds: tuple[int, ...] = setting((0,), at_least=0, parse=parse_seeds)
    # Denoising steps per image
    num_denoising_steps: int = setting(50, at_least=1, at_most=1000)
    # Strength of the prompt; 1 or less switches guidance off
    guidance_scale: float = setting(7.5, at_least=0)
    # Sampler by name, such as dpmsolver++
    scheduler: str = "dpmsolver++"
    # fp16, fp32 or bf16: precision of the frozen models while drawing
    torch_dtype: Dtype = Dtype.fp32
    # Images denoised or looked at together
    batch_size: int = setting(8, at_least=1)
    # The metric model: a CLIP by Hugging Face name or local folder; "miniature-judge" is the one bundled here
    judge: str = setting("openai/clip-vit-base-patch32", parse=name_or_path)
    # Revision of the metric model: a branch, a tag or a commit
    judge_revision: Optional[str] = None
    # In the text an image is compared with, the placeholder is removed or replaced by the super-category word
    placeholder: PlaceholderRule = PlaceholderRule.removed
    # How images are made as small as the metric model's input: pil (antialiased) or tensor (bicubic, not antialiased)
    resizing: Resizing = Resizing.pil
    # Resamples behind each interval
    bootstrap_samples: int = setting(1000, at_least=100, at_most=100_000)
    # Seed of the resampling
    bootstrap_seed: int = setting(0, at_least=0)
    # auto (CUDA, else MPS, else CPU; with several workers each takes a GPU of its own), cpu, mps, cuda or cuda:N
    device: str = "auto"
    # What a training step is expected to take, for the estimate as long as none was timed
    seconds_per_step: float = setting(0.35, above=0)
    # What an image is expected to take, likewise
    seconds_per_image: float = setting(0.5, above=0)
    # Trained concepts, images and results; safe to delete when the page is written
    work_dir: Path = Path("./outputs/reproduction")
    # The page that is written in the end; its pictures go into the folder images beside it
    page: Path = Path("docs/reproduction.md")
    # What a person makes of the results, as Markdown; stands on the page below the verdicts
    remarks: str = ""
    # Do the jobs whose names match this pattern alone, such as "main.neti.tiger*", and what they need
    only: Optional[str] = None
    # Forget the jobs whose names match this pattern, and do them again
    redo: Optional[str] = None
    # Do no more jobs: write the page from those that are finished
    report: bool = False
    # Print the plan, its size and the time it will take; do nothing
    dry_run: bool = False
    # Where the jobs run: processes on this machine, or a Ray cluster
    jobs: JobsConfig = field(default_factory=JobsConfig)

    @property
    def concept_sources(self) -> list[ConceptSource]:
        """`concepts`, column by column."""
        return [_concept(entry) for entry in self.concepts]

    @property
    def tuning_sources(self) -> list[ConceptSource]:
        """`tuning_concepts`, column by column."""
        return [_concept(entry) for entry in self.tuning_concepts]

    @property
    def sources(self) -> list[ConceptSource]:
        """All concepts."""
        return [*self.concept_sources, *self.tuning_sources]

    @property
    def method_plans(self) -> list[MethodPlan]:
        """`methods`, column by column."""
        return [_method(entry) for entry in self.methods]

    @property
    def drawn_plans(self) -> list[DrawnPlan]:
        """`drawn`, column by column."""
        return [_drawn(entry) for entry in self.drawn]

    def problems(self) -> list[str]:
        lines = device_problems("device", self.device)
        for key in ("concepts", "methods", "prompts", "short_prompts", "train_seeds"):
            if not getattr(self, key):
                lines.append(f"{key} is empty; see input_configs/reproduction_miniature.yaml for an example")
        for key, read in _READ.items():
            for entry in getattr(self, key):
                try:
                    read(entry)
                except UserError as error:
                    lines.append(f"{key}: {entry!r} {error}")
        for key in ("prompts", "short_prompts"):
            lines += [f"{key}: {prompt!r} has no {SLOT}" for prompt in getattr(self, key) if SLOT not in prompt]
            lines += repeated_problems(key, getattr(self, key))
        lines += [
            f"place_prompts: {one!r} is not among the prompts" for one in self.place_prompts if one not in self.prompts
        ]
        for key in ("seeds", "short_seeds", "train_seeds", "truncations"):
            lines += repeated_problems(key, getattr(self, key))
        for key in ("references", "masks"):
            lines += columns_problems(key, getattr(self, key), COLUMNS[key])
        if lines:
            return lines
        concepts = [source.name for source in self.sources]
        lines += repeated_problems("concepts and tuning_concepts", concepts)
        methods = [method.name for method in self.method_plans]
        lines += repeated_problems("methods and drawn", [*methods, *(drawn.name for drawn in self.drawn_plans)])
        lines += [f"drawn: {d.method!r} is not among the methods" for d in self.drawn_plans if d.method not in methods]
        steps = {method.name: method.steps for method in self.method_plans}
        for drawn in self.drawn_plans:
            if drawn.step and drawn.step not in steps.get(drawn.method, (drawn.step,)):
                lines.append(f"drawn: {drawn.name}: {drawn.step} is not among the steps of {drawn.method}")
        if not self.tuning_concepts and (several := [m.name for m in self.method_plans if len(m.rates) > 1]):
            lines.append(f"methods: {several[0]} has several learning rates; tuning_concepts, to choose on, is empty")
        for key in ("references", "masks"):
            named = folders_by_concept(getattr(self, key))
            lines += [f"{key}: {name!r} is not among the concepts" for name in named if name not in concepts]
        return lines


def _concept(entry: str) -> ConceptSource:
    columns = _columns(entry)
    if len(columns) != 3 or not all(columns):
        raise UserError(f'must read "{COLUMNS["concepts"]}"')
    _check_name(columns[0])
    return ConceptSource(columns[0], columns[1], Path(columns[2]))


def _method(entry: str) -> MethodPlan:
    name, rates, steps, arguments = (*_columns(entry), "", "", "", "")[:4]
    if len(_columns(entry)) > 4 or not (rates and steps):
        raise UserError(f'must read "{METHOD_COLUMNS}"')
    _check_name(name)
    try:
        plan = MethodPlan(
            name, tuple(map(float, rates.split())), tuple(map(int, steps.split())), tuple(shlex.split(arguments))
        )
    except ValueError as error:
        raise UserError(f"has a learning rate or a number of steps that is no number ({error})") from None
    if min(plan.rates) <= 0 or min(plan.steps) <= 0:
        raise UserError("must have learning rates and steps above 0")
    if list(plan.steps) != sorted(set(plan.steps)) or len(set(plan.rates)) < len(plan.rates):
        raise UserError("must have rising steps, and each learning rate once")
    for word in plan.arguments:
        if word in ("-h", "--help"):
            raise UserError(f"asks for {word}; its arguments must be settings of a training")
        key = word.partition("=")[0].removeprefix("--").replace("-", "_")  # as scripts/train.py reads it
        if word.startswith("--") and key in PLANNED:
            raise UserError(f"sets {key}, which the plan decides; leave it out")
    return plan


def _drawn(entry: str) -> DrawnPlan:
    columns = _columns(entry)
    if len(columns) != 3 or not all(columns):
        raise UserError(f'must read "{DRAWN_COLUMNS}"')
    _check_name(columns[0])
    settings = {}
    for word in shlex.split(columns[2]):
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"has {word!r}, which must read key=value")
        settings[key] = yaml.safe_load(value)
    truncation, step = (settings.pop(key, None) for key in ("truncation", "step"))
    return DrawnPlan(columns[0], columns[1], tuple(settings.items()), truncation, step)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise UserError(f"must begin with a name of small letters, digits and _, not {name!r}")


def _columns(entry: str) -> list[str]:
    return [column.strip() for column in entry.split("|")]


_READ: dict[str, Callable[[str], object]] = {
    "concepts": _concept,
    "tuning_concepts": _concept,
    "methods": _method,
    "drawn": _drawn,
}
