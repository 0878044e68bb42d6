# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""Every setting of `scripts/compute_metrics.py`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional

from ...models.judging.resizing import Resizing
from ...utils.config.parsing import Config
from ...utils.config.values import name_or_path, setting
from ...utils.devices import device_problems
from ...utils.files import user_path
from .rows import PROMPT_ONLY, TRAINING_IMAGES
from .scores import PlaceholderRule

COLUMNS = {  # key -> what its entries read
    "concepts": "name | super-category word | folder of its training images",
    "runs": "method | concept | folder of generated images",
    "prompt_only": "concept | folder of images generated with the word alone",
    "references": "concept | folder of pictures of it that it was not trained on",
    "masks": "concept | folder of the masks of its training images",
}


class ConceptSource(NamedTuple):
    """A concept: what it is called in the results, the word for its kind, and its training images."""

    name: str
    super_category: str
    folder: Path


class RunSource(NamedTuple):
    """A folder of generated images: whose they are, and of which concept."""

    method: str
    concept: str
    folder: Path


@dataclass(frozen=True)
class MetricsConfig(Config):
    """One call of `scripts/compute_metrics.py`. Entries of the first five keys are columns with | between them."""

    # The concepts, each "name | super-category word | folder of its training images"
    concepts: tuple[str, ...] = ()
    # What is measured, each "method | concept | folder of generated images", of scripts/inference.py or another tool;
    # folders of the same method and concept are taken together, all truncations in them are told apart
    runs: tuple[str, ...] = ()
    # Upper bound of text similarity, each "concept | folder of images generated with the super-category word alone"
    prompt_only: tuple[str, ...] = ()
    # Image similarity to other pictures too, each "concept | folder of pictures of it that it was not trained on"
    references: tuple[str, ...] = ()
    # Image similarity to what the masks leave of the training images too, each "concept | folder of their masks", named
    # as for data.masks of a training; it may be the folder of the images
    masks: tuple[str, ...] = ()
    # Where metrics.json, metrics.csv and metrics.png go; earlier ones are replaced
    output_dir: Path = Path("./outputs/metrics")
    # The metric model: a CLIP by Hugging Face name or local folder; "miniature-judge" is the one bundled here
    judge: str = setting("openai/clip-vit-base-patch32", parse=name_or_path)
    # Revision of the metric model: a branch, a tag or a commit
    judge_revision: Optional[str] = None
    # Also measure image similarity with this DINO or ViT, such as facebook/dino-vits16; unset: do not
    dino: Optional[str] = setting(None, parse=name_or_path)
    # In the text an image is compared with, the placeholder is removed or replaced by the super-category word
    placeholder: PlaceholderRule = PlaceholderRule.removed
    # How images are made as small as the metric model's input: pil (antialiased) or tensor (bicubic, not antialiased)
    resizing: Resizing = Resizing.pil
    # Resamples behind each interval
    bootstrap_samples: int = setting(1000, at_least=100, at_most=100_000)
    # Seed of the resampling
    bootstrap_seed: int = setting(0, at_least=0)
    # Where features are kept for the next call, by the content of the images; null keeps none
    cache_dir: Optional[Path] = Path("./outputs/feature_cache")
    # Images looked at together
    batch_size: int = setting(32, at_least=1)
    # auto (CUDA, else MPS, else CPU), cpu, mps, cuda or cuda:N
    device: str = "auto"
    # Print a row per prompt too; the files hold them in any case
    print_prompts: bool = False

    @property
    def concept_sources(self) -> list[ConceptSource]:
        """`concepts`, column by column."""
        return [ConceptSource(name, word, user_path(folder)) for name, word, folder in map(_columns, self.concepts)]

    @property
    def run_sources(self) -> list[RunSource]:
        """`runs`, column by column."""
        return [RunSource(method, concept, user_path(folder)) for method, concept, folder in map(_columns, self.runs)]

    @property
    def prompt_only_sources(self) -> list[RunSource]:
        """`prompt_only`, column by column, as runs of the method "prompt only"."""
        return [
            RunSource(PROMPT_ONLY, concept, user_path(folder)) for concept, folder in map(_columns, self.prompt_only)
        ]

    @property
    def reference_folders(self) -> dict[str, Path]:
        """Concept -> the folder of its references."""
        return folders_by_concept(self.references)

    @property
    def mask_folders(self) -> dict[str, Path]:
        """Concept -> the folder of its masks."""
        return folders_by_concept(self.masks)

    def problems(self) -> list[str]:
        lines = device_problems("device", self.device)
        lines += [
            f'no {key} given; write {key}: ["{COLUMNS[key]}"]' for key in ("concepts", "runs") if not getattr(self, key)
        ]
        for key, columns in COLUMNS.items():
            lines += columns_problems(key, getattr(self, key), columns)
        if lines:
            return lines
        lines += repeated_problems("concepts", [concept.name for concept in self.concept_sources])
        for key in ("references", "masks"):
            lines += repeated_problems(key, [_columns(entry)[0] for entry in getattr(self, key)])
        names = [concept.name for concept in self.concept_sources]
        for key, place in (("runs", 1), ("prompt_only", 0), ("references", 0), ("masks", 0)):
            for entry in map(_columns, getattr(self, key)):
                if entry[place] not in names:
                    lines.append(f"{key}: {entry[place]!r} ({entry[-1]}) is not among concepts: {', '.join(names)}")
        for run in self.run_sources:
            if run.method in (TRAINING_IMAGES, PROMPT_ONLY):
                lines.append(f"runs: {run.method!r} is the name of an upper bound; call the method otherwise")
        return lines


def folders_by_concept(entries: Iterable[str]) -> dict[str, Path]:
    """The entries "concept | folder" as a mapping."""
    return {concept: user_path(folder) for concept, folder in map(_columns, entries)}


def columns_problems(key: str, entries: Iterable[str], columns: str) -> list[str]:
    """One line for each entry that does not have the columns, all of them filled."""
    count = columns.count("|") + 1
    return [
        f'{key}: {entry!r} must read "{columns}"'
        for entry in entries
        if len(_columns(entry)) != count or not all(_columns(entry))
    ]


def repeated_problems(key: str, names: Sequence[object]) -> list[str]:
    """One line for each name that is there twice."""
    return [f"{key}: {name!r} is there twice" for name in dict.fromkeys(names) if names.count(name) > 1]


def _columns(entry: str) -> list[str]:
    return [column.strip() for column in entry.split("|")]
