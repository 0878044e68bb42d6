"""What a worker does: train a concept by the trainer of scripts/train.py, or draw images of one and score them."""

from __future__ import annotations

import gc
import math
import shutil
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from ....models.backbone.backbone import Backbone
from ....models.concepts.concept import Concept
from ....models.conditioning.composition import AnyConcept
from ....models.conditioning.prompts import SLOT
from ....models.generation.draw import draw
from ....models.generation.gallery import Gallery
from ....models.generation.recipes import ImageRecipe, made_with
from ....models.generation.run import DTYPES
from ....models.judging.metric_model import CLIPMetricModel
from ....models.methods import NeTI
from ....utils.devices import pick_device
from ....utils.errors import UserError
from ....utils.hashing import file_hash
from ...coach.launch import launch
from ...coach.optimizer import Diverged
from ...coach.plan import DTYPES as TRAINING_DTYPES
from ...coach.run_folder import RunFolder
from ...config.run import RunConfig
from ...evaluation.scorer import Scorer
from ...evaluation.scores import Scores, joined
from ...jobs.worker import Stopped, output_to
from .check import pictures
from .config import ReproductionConfig
from .plan import SEARCH, Contents, Drawing, Plan, Task, Training

DIVERGED = "diverged"  # the one entry of the result of a training that did, and of all that was to be drawn from it
Numbers = dict[str, list[float]]  # metric -> one number per image, prompt by prompt (diversity: one per prompt)


class Work:
    """A worker's models, loaded when needed. base: a training of the plan, which names the model. device: by name."""

    def __init__(self, config: ReproductionConfig, contents: Contents, base: RunConfig, device: str) -> None:
        self.config, self.plan = config, Plan(config, contents)
        self.device, self.place = device, pick_device(device)
        self.base_model, self.revision = base.model.pretrained_model_name_or_path, base.model.revision
        self._backbone: Backbone | None = None

    def __call__(self, task: Task, needed: dict[str, Any] | None) -> dict[str, Any]:
        """The task's result, ready for JSON. needed: that of the training whose concept is drawn.

        A training of the search that diverges has a result of its own, see DIVERGED; of the main part it is an error.
        Raises UserError for what a user can fix, and Stopped.
        """
        if isinstance(task, Training):
            return self._train(task)
        return needed if needed is not None and DIVERGED in needed else self._draw(task)

    def forget(self, task: Task) -> None:
        """Remove what doing the task left behind."""
        folder = self.run_folder(task).path if isinstance(task, Training) else self.gallery(task).root
        shutil.rmtree(folder, ignore_errors=True)

    def run_folder(self, task: Training) -> RunFolder:
        """Where the training keeps its files."""
        log = self._run_config(task).log
        return RunFolder(log.run_dir, log.tracker_dir)

    def gallery(self, task: Drawing) -> Gallery:
        """Where the images are, as scripts/inference.py would have written them."""
        return Gallery(self.config.work_dir / "images" / f"{task.images_name}-{self.plan.images_key(task)}")

    def recipes(self, task: Drawing) -> dict[str, list[ImageRecipe]]:
        """Prompt -> the recipes of its images; without a training they show the super-category word."""
        config, concept = self.config, ""
        if task.training is not None:
            concept = file_hash(self._concept_file(task)) + ("" if task.bypass else ", bypass off")
        common = ImageRecipe(
            prompt="",
            truncation=task.truncation,
            steps=config.num_denoising_steps,
            guidance_scale=config.guidance_scale,
            scheduler=config.scheduler,
            base_model=self.base_model,
            base_revision=self.revision,
            concept=concept,
            placeholder=f"<{task.concept.name}>" if concept else "",
            torch_dtype=config.torch_dtype.value,
            settings=dict(task.settings) or None,
            word=None if concept else task.concept.super_category,
        )
        return {p: [replace(common, prompt=p, seed=s) for s in task.images.seeds] for p in task.images.prompts}

    @cached_property
    def scorer(self) -> Scorer:
        """The metric model and all concepts."""
        config = self.config
        return Scorer(
            pictures(config),
            metric_model(config, self.device),
            placeholder=config.placeholder,
            cache_dir=config.work_dir / "features",
            batch_size=config.batch_size,
        )

    def _run_config(self, task: Training) -> RunConfig:
        config = task.config
        log = replace(
            config.log,
            exp_name=f"{task.name}-{self.plan.key(task)}",
            exp_dir=self.config.work_dir / "trained",
            save_steps=math.gcd(*task.checkpoints),
            checkpoints_total_limit=1,
        )
        return replace(config, log=log, optim=replace(config.optim, device=self.device), resume="latest")

    def _train(self, task: Training) -> dict[str, Any]:
        run = self.run_folder(task)
        wanted = [run.concept(step) for step in task.checkpoints]
        if not all(path.exists() for path in wanted):
            config = self._run_config(task)
            try:
                with output_to(self.config.work_dir / "logs" / f"{task.name}.log"):
                    code = launch(config, backbone=self._base(TRAINING_DTYPES[config.optim.mixed_precision]))
            except UserError as error:
                if task.stage == SEARCH and isinstance(error.__cause__, Diverged):
                    return {DIVERGED: str(error.__cause__)}
                raise
            if code:
                raise Stopped(code)
        for path in set(run.concepts()) - set(wanted):  # saved on the way to a checkpoint
            path.unlink()
        shutil.rmtree(run.states_folder, ignore_errors=True)  # a finished run resumes from nothing
        numbers = sum(parameter.numel() for parameter in Concept.load(wanted[-1]).method.parameters())
        return {"parameters": numbers, "bytes": wanted[-1].stat().st_size}

    def _draw(self, task: Drawing) -> dict[str, Any]:
        gallery, recipes = self.gallery(task), self.recipes(task)
        missing = gallery.unfinished([recipe for group in recipes.values() for recipe in group])
        if missing:
            gallery.require_writable()
            base = self._base(DTYPES[self.config.torch_dtype.value])
            concept = self._concept(task, base)
            files = [] if task.training is None else [self._concept_file(task)]
            about = {"made_with": made_with(files, self.device)}
            concepts: dict[str, AnyConcept] = {SLOT: concept.method} if concept else {}
            for made in draw(base, missing, concepts, batch_size=self.config.batch_size):
                gallery.add(made.image, made.recipe, about)
        paths = {prompt: [gallery.path(recipe) for recipe in group] for prompt, group in recipes.items()}
        scores = _numbers(joined(list(self.scorer.generated(task.concept.name, paths).values())))
        if task.training is not None:
            return scores
        return {"word": scores, "photos": _numbers(self.scorer.photos(task.concept.name, task.images.prompts))}

    def _concept_file(self, task: Drawing) -> Any:
        assert task.training is not None
        return self.run_folder(task.training).concept(task.step)

    def _concept(self, task: Drawing, base: Backbone) -> Concept | None:
        """The concept as it is drawn; None for the super-category word."""
        if task.training is None:
            return None
        concept = Concept.load(self._concept_file(task), backbone=base)
        if not task.bypass:
            assert isinstance(concept.method, NeTI)
            concept.method.config = replace(concept.method.config, bypass_alpha=0.0)
        return concept

    def _base(self, dtype: torch.dtype) -> Backbone:
        """The base model at a precision; the one at another is given up for it."""
        if self._backbone is None or self._backbone.unet.dtype != dtype:
            self._backbone = None
            if torch.cuda.is_available():
                gc.collect()
                torch.cuda.empty_cache()
            self._backbone = Backbone.from_pretrained(
                self.base_model, revision=self.revision, dtype=dtype, device=self.place
            )
        return self._backbone.to(self.place)


def metric_model(config: ReproductionConfig, device: str) -> CLIPMetricModel:
    """The plan's metric model. UserError if there is none."""
    place: dict[str, Any] = {"device": pick_device(device), "resizing": config.resizing}
    return CLIPMetricModel.from_pretrained(config.judge, revision=config.judge_revision, key="judge", **place)


def _numbers(scores: Scores) -> Numbers:
    return {metric: values.tolist() for metric, values in scores.items()}
