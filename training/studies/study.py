"""What studies on a miniature share: the models, the learned concepts, and images and results that are made once.

Whatever was measured or drawn stands in `work_dir` under a hash of all that it depends on. So the same command goes on
after an interruption, and makes again only what changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...models.backbone.backbone import Backbone
from ...models.backbone.loading import BUNDLED, model_hash
from ...models.concepts.concept import Concept
from ...models.conditioning.composition import AnyConcept
from ...models.conditioning.prompts import SLOT
from ...models.generation.draw import draw
from ...models.generation.recipes import ImageRecipe
from ...models.judging.metric_model import CLIPMetricModel
from ...utils.config.parsing import parse_config
from ...utils.errors import UserError
from ...utils.files import require_writable, write_json
from ...utils.hashing import SHORT, folder_hash, json_hash
from ...utils.images import load_image
from ...utils.images.png import write_png
from ..coach.launch import launch
from ..coach.run_folder import RunFolder
from ..config.run import RunConfig
from ..miniature.world.concepts import ConceptPhotos, read_concepts
from ..miniature.world.world import World
from .config import StudyConfig

BATCH = 8  # images that are drawn at once


@dataclass(frozen=True)
class LearnedConcept:
    """A held-out concept with what was learned of it; `digest` tells two trainings apart."""

    photos: ConceptPhotos
    concept: Concept
    digest: str


class Study:
    """`model`: digest of the model's files; `photos`: the held-out concepts by name."""

    def __init__(self, config: StudyConfig) -> None:
        """Raises UserError for a font, concept folder, model or metric model that is not there, and for folders that
        cannot be written to."""
        self.config = config
        require_writable(config.work_dir, "work_dir")
        require_writable(config.docs_dir / "images", "docs_dir")  # the pictures come last
        self.world = World.create(config.scale.value, config.font)
        self.photos = {one.name: one for one in read_concepts(config.concepts_dir)}
        self.backbone = Backbone.from_pretrained(config.sd)
        self.model = _short(model_hash(config.sd))
        self.metric_model = CLIPMetricModel.from_pretrained(config.judge, key="judge")

    @property
    def categories(self) -> Sequence[str]:
        """The kinds of things that the model learned."""
        return self.config.categories or tuple(self.world.categories)

    def given(self, name: str) -> Path | None:
        """The file of a concept that was learned elsewhere."""
        file = self.config.concept_files and self.config.concept_files / f"{name}.safetensors"
        return file if file and file.exists() else None

    def check(self, names: Iterable[str]) -> None:
        """UserError for a concept that is not there, or that could not be learned."""
        for name in names:
            if name not in self.photos:
                raise UserError(f"there is no concept {name}; {self.config.concepts_dir} has {', '.join(self.photos)}")
            if self.given(name) is None:
                self._run(self.photos[name])

    def learned(self, name: str, train_config: Path | None = None) -> LearnedConcept:
        """A concept: given, learned in an earlier call, or learned now; a training that was cut off goes on.

        train_config: how, if not as the study's own concepts, which alone may be given.
        """
        photos, file = self.photos[name], None if train_config else self.given(name)
        if file is None:
            run = self._run(photos, train_config)
            file = RunFolder(run.log.run_dir, run.log.tracker_dir).concept(run.optim.max_train_steps)
            if not file.exists():
                print(f"learning {name}: {file}", flush=True)
                if code := launch(run):
                    raise SystemExit(code)  # stopped by a signal; all is saved
        return LearnedConcept(photos, Concept.load(file, backbone=self.backbone), folder_hash(file))

    def _run(self, photos: ConceptPhotos, train_config: Path | None = None) -> RunConfig:
        """The training of a concept, in a folder whose name hashes model, photos and recipe."""
        config = self.config
        train_config = train_config or config.train_config
        if not train_config.is_file():
            raise UserError(f"{photos.name} has no file in concept_files, and there is no train_config {train_config}")
        recipe = json_hash([self.model, folder_hash(photos.folder), folder_hash(train_config)])
        options = {
            "config_path": train_config,
            "log.exp_dir": config.work_dir / "training",
            "log.exp_name": f"{photos.name}-{recipe}",
            "log.report_to": "none",
            "data.train_data_dir": photos.folder,
            "data.super_category_token": photos.super_category,
            "data.placeholder_token": f"<{photos.name}>",
            "model.pretrained_model_name_or_path": config.sd,
            "eval.validation_prompts": "null",
            "resume": "latest",
        }
        return parse_config(RunConfig, [f"--{key}={value}" for key, value in options.items()])

    def recipe(self, prompt: str, seed: int = 0) -> ImageRecipe:
        """A picture with the study's sampler."""
        return ImageRecipe(prompt, seed=seed, steps=self.config.steps, guidance_scale=self.config.guidance_scale)

    def draw(
        self, recipes: Sequence[ImageRecipe], concepts: Mapping[str, AnyConcept], about: Sequence[Any]
    ) -> list[Image.Image]:
        """The pictures of recipes, drawn unless they are there. about: a JSON value that tells these concepts from
        others of the same names."""
        folder = self.config.work_dir / "images"
        paths = {one: folder / f"{json_hash([self.model, asdict(one), list(about)])}.png" for one in recipes}
        missing = [recipe for recipe, path in paths.items() if not path.exists()]
        for drawn in draw(self.backbone, missing, concepts, batch_size=BATCH):
            write_png(drawn.image, paths[drawn.recipe], {"recipe": asdict(drawn.recipe), "concepts": list(about)})
        return [load_image(paths[recipe]) for recipe in recipes]

    def draw_words(self, prompt: str, seeds: Iterable[int]) -> list[Image.Image]:
        """One image per seed of a prompt without a concept."""
        return self.draw([self.recipe(prompt, seed) for seed in seeds], {}, [])

    def draw_concept(self, one: LearnedConcept, prompt: str, seeds: Iterable[int]) -> list[Image.Image]:
        """One image per seed of a prompt with `{}` for the concept."""
        return self.draw([self.recipe(prompt, seed) for seed in seeds], {SLOT: one.concept.method}, [one.digest])

    def result(self, name: str, inputs: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `measure` gives, a JSON value, for these inputs: now or in an earlier call."""
        path = self.config.work_dir / "results" / f"{name}-{json_hash(dict(inputs))}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))["result"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            print(f"measuring: {name}", flush=True)
            result = measure()
            write_json({"inputs": dict(inputs), "result": result}, path)
            return json.loads(json.dumps(result))

    def inputs(self, **others: Any) -> dict[str, Any]:
        """What a measurement of drawn images depends on."""
        sampling = asdict(self.recipe(""))
        return {"model": self.model, "metric model": self.metric_model.digest, "sampling": sampling, **others}

    def settings(self) -> dict[str, str]:
        """The models and the sampler, as a page may print them: not where they lie on this machine."""
        names = {"model": (self.config.sd, self.model), "metric model": (self.config.judge, self.metric_model.digest)}
        return {
            **{
                what: f"`{name if name in BUNDLED else Path(name).name}` (digest {_short(digest)})"
                for what, (name, digest) in names.items()
            },
            "sampler": f"DPM-Solver++, {self.config.steps} steps, guidance {self.config.guidance_scale:g}",
        }


def steps_of(learned: Iterable[LearnedConcept]) -> str:
    """After which training steps the concepts were saved."""
    return ", ".join(sorted({str(one.concept.metadata.get("step", "?")) for one in learned})) or "none"


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:SHORT]
