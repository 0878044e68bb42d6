"""Doing a cell: train a concept by the trainer of scripts/train.py, or draw images of one and measure them."""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
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
from ....models.methods import NeTI
from ....utils.errors import UserError
from ....utils.hashing import file_hash
from ...coach.launch import launch
from ...coach.optimizer import Diverged
from ...coach.run_folder import RunFolder
from ...config.run import RunConfig
from .board import Board
from .cells import SEARCH, Cell, Drawing, Training
from .measuring import Bench

DIVERGED = "diverged"  # the one entry of the result of a training that did, and of all that was to be drawn from it


class Stopped(Exception):
    """A signal stopped a training, which is saved; `code` is the exit code that tells it."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Workshop:
    """Where cells are done. base: the plan's training configuration, which names the model. device: by name."""

    def __init__(self, board: Board, bench: Bench, base: RunConfig, device: str) -> None:
        self.config, self.board, self.bench = board.config, board, bench
        self.base_model, self.revision = base.model.pretrained_model_name_or_path, base.model.revision
        self.device = device
        self._backbone: Backbone | None = None

    def do(self, cell: Cell) -> dict[str, Any]:
        """The cell's result, ready for JSON.

        A training of the search that diverges has a result of its own, see DIVERGED; of the main part it is an error.
        Raises UserError for what a user can fix, and Stopped.
        """
        if isinstance(cell, Training):
            return self._train(cell)
        if cell.training is not None and DIVERGED in (trained := self.board.result(cell.training)):
            return trained
        return self._draw(cell)

    def forget(self, cell: Cell) -> None:
        """Remove what doing the cell left behind."""
        folder = self.run_folder(cell).path if isinstance(cell, Training) else self.gallery(cell).root
        shutil.rmtree(folder, ignore_errors=True)

    def run_folder(self, cell: Training) -> RunFolder:
        """Where the training keeps its files."""
        log = self._run_config(cell).log
        return RunFolder(log.run_dir, log.tracker_dir)

    def gallery(self, cell: Drawing) -> Gallery:
        """Where the images are, as scripts/inference.py would have written them."""
        name = cell.name.removesuffix(f".{cell.images.name}")
        return Gallery(self.config.work_dir / "images" / f"{name}-{self.board.images_key(cell)}")

    def recipes(self, cell: Drawing) -> dict[str, list[ImageRecipe]]:
        """Prompt -> the recipes of its images; those of the rails show the super-category word."""
        config, concept = self.config, ""
        if cell.training is not None:
            concept = file_hash(self._concept_file(cell)) + ("" if cell.bypass else ", bypass off")
        common = ImageRecipe(
            prompt="",
            negative_prompt="",
            seed=0,
            truncation=cell.truncation,
            steps=config.num_denoising_steps,
            guidance_scale=config.guidance_scale,
            scheduler=config.scheduler,
            base_model=self.base_model,
            base_revision=self.revision,
            concept=concept,
            placeholder=f"<{cell.concept.name}>" if concept else "",
            torch_dtype=config.torch_dtype.value,
            safety_checker=False,
            word=None if concept else cell.concept.super_category,
        )
        return {p: [replace(common, prompt=p, seed=s) for s in cell.images.seeds] for p in cell.images.prompts}

    def _run_config(self, cell: Training) -> RunConfig:
        config = cell.config
        log = replace(
            config.log,
            exp_name=f"{cell.name}-{self.board.key(cell)}",
            exp_dir=self.config.work_dir / "trained",
            save_steps=math.gcd(*cell.checkpoints),
            checkpoints_total_limit=1,
        )
        return replace(config, log=log, optim=replace(config.optim, device=self.device), resume="latest")

    def _train(self, cell: Training) -> dict[str, Any]:
        run = self.run_folder(cell)
        wanted = [run.concept(step) for step in cell.checkpoints]
        if not all(path.exists() for path in wanted):
            self._release()
            try:
                with _output_to(self.config.work_dir / "logs" / f"{cell.name}.log"):
                    code = launch(self._run_config(cell))
            except UserError as error:
                if cell.stage == SEARCH and isinstance(error.__cause__, Diverged):
                    return {DIVERGED: str(error.__cause__)}
                raise UserError(f"{cell.name}: {error}") from error
            if code:
                raise Stopped(code)
        for path in set(run.concepts()) - set(wanted):  # saved on the way to a checkpoint
            path.unlink()
        shutil.rmtree(run.states_folder, ignore_errors=True)  # a finished run resumes from nothing
        numbers = sum(parameter.numel() for parameter in Concept.load(wanted[-1]).method.parameters())
        return {"parameters": numbers, "bytes": wanted[-1].stat().st_size}

    def _draw(self, cell: Drawing) -> dict[str, Any]:
        gallery, recipes = self.gallery(cell), self.recipes(cell)
        missing = gallery.unfinished([recipe for group in recipes.values() for recipe in group])
        if missing:
            gallery.require_writable()
            concept = self._concept(cell)
            files = [] if cell.training is None else [self._concept_file(cell)]
            about = {"made_with": made_with(files, self.device)}
            concepts: dict[str, AnyConcept] = {SLOT: concept.method} if concept else {}
            for made in draw(self._base(), missing, concepts, batch_size=self.config.batch_size):
                gallery.add(made.image, made.recipe, about)
        paths = {prompt: [gallery.path(recipe) for recipe in group] for prompt, group in recipes.items()}
        measured = self.bench.generated(cell.concept, paths)
        if cell.training is not None:
            return measured
        return {"word": measured, "photos": self.bench.photos(cell.concept, cell.images.prompts)}

    def _concept_file(self, cell: Drawing) -> Path:
        assert cell.training is not None
        return self.run_folder(cell.training).concept(cell.step)

    def _concept(self, cell: Drawing) -> Concept | None:
        """The concept as it is drawn; None for the super-category word."""
        if cell.training is None:
            return None
        concept = Concept.load(self._concept_file(cell), backbone=self._base())
        if not cell.bypass:
            assert isinstance(concept.method, NeTI)
            concept.method.config = replace(concept.method.config, bypass_alpha=0.0)
        return concept

    def _base(self) -> Backbone:
        """The base model, loaded when it is needed."""
        if self._backbone is None:
            dtype = DTYPES[self.config.torch_dtype.value]
            self._backbone = Backbone.from_pretrained(
                self.base_model, revision=self.revision, dtype=dtype, device=self.device
            )
        return self._backbone

    def _release(self) -> None:
        """Make room on a GPU for the trainer's own copy of the model."""
        if torch.cuda.is_available():
            self._backbone = None
            gc.collect()
            torch.cuda.empty_cache()


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """What is printed goes to the end of a file: the plans and bars of hundreds of trainings help nobody on screen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        yield
