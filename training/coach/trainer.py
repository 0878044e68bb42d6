"""The coach: the training loop, and when it logs, saves, shows and stops."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ...models.concepts.concept import Concept
from ...models.concepts.tensors import state_of
from ...models.generation.gallery import Variant
from ...models.generation.sampling import NaNImageError
from ...utils.config.parsing import to_plain_dict
from ...utils.errors import UserError, first_line
from ...utils.images.png import write_png
from ..config.run import ConceptDtype, RunConfig
from ..data.batches import Batches
from ..data.latents import LatentCache
from ..evaluation.validation import validation_grids, validation_recipes
from .logs import MetricsLog, Watcher
from .objective import Objective
from .optimizer import Diverged, Losses, check_saved, make_optimizer
from .plan import RunPlan, Setup
from .run_folder import RunFolder
from .state import TrainingState
from .stop import GracefulStop

LOG_EVERY = 10  # steps between two readings of the loss, the only moments when the loop itself waits for the device


class GridGivenUp(Exception):
    """The run is to stop, and a validation grid would keep it; a resume makes it."""


class Trainer:
    """Trains one concept. `facts`: see `TrainingState`; `state`: where to go on from, None for a new run.

    `step` is always the number of optimizer steps done. Methods are called by all processes alike.
    """

    def __init__(
        self,
        config: RunConfig,
        setup: Setup,
        plan: RunPlan,
        accelerator: Accelerator,
        run: RunFolder,
        facts: dict[str, Any],
        state: TrainingState | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.config, self.setup, self.plan, self.run, self.facts = config, setup, plan, run, facts
        self.accelerator, self.watcher = accelerator, watcher or Watcher()
        self.step = plan.first_step
        self.losses = Losses(accelerator, setup.method)
        optim, backbone = config.optim, setup.backbone

        objective = Objective(
            setup.method.train(),
            backbone,
            gradient_checkpointing=optim.gradient_checkpointing,
            compile_backend="inductor" if optim.compile_unet else None,
            allow_tf32=optim.allow_tf32,
            outside_weight=config.data.effective_mask_weight,
        )
        optimizer, self.schedule = make_optimizer(setup.method, optim, plan.learning_rate)
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        if state is not None:
            self._restore(state)
        self.is_saved = run.state(self.step).exists()  # looked up before any process writes
        latents = LatentCache.build(backbone.vae, setup.dataset)
        backbone.vae.to("cpu")  # needed again for validation grids only
        self.batches = Batches(
            setup.dataset,
            latents,
            backbone.tokenizer,
            positions=setup.method.positions,
            num_timesteps=objective.num_train_timesteps,
            batch_size=optim.train_batch_size,
            accumulation=optim.gradient_accumulation_steps,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
            device=accelerator.device,
        )

    def train(self) -> int | None:
        """Train to `optim.max_train_steps`. Returns None, or the number of the signal that stopped the run early.

        Raises UserError when the loss or the parameters are no longer finite; what was saved before is intact.
        """
        last_step = self.config.optim.max_train_steps
        self.metrics = MetricsLog(self.run, self.config, self.accelerator, self.watcher.note, self.step)
        if self.is_saved and self.accelerator.is_main_process:  # by a call that may have been killed within `_save`
            if not self.run.concept(self.step).exists():
                self._save_concept()
            self.run.rotate_states(self.config.log.checkpoints_total_limit)
        self.watcher.started(self.step, last_step)
        with GracefulStop(self.watcher.wants_stop) as stop:
            stopped_by = self._show_if_due(stop)
            while self.step < last_step and not stopped_by:
                self.take_step()
                loss = self._read_losses() if self.step % LOG_EVERY == 0 else None
                self.watcher.stepped(self.step, loss)
                if self.step == last_step or self.step % self.config.log.save_steps == 0:
                    self._save()
                stopped_by = self._show_if_due(stop)
                if self.step < last_step:
                    stopped_by = stopped_by or self._agree_to_stop(stop)
            if not self.is_saved:
                self._save()
        self.metrics.close()
        return stopped_by or None

    def take_step(self) -> None:
        """One optimizer step, with nothing around it; its loss waits to be read."""
        losses = []
        for micro_step in range(self.config.optim.gradient_accumulation_steps):
            with self.accelerator.accumulate(self.objective):  # gradients are exchanged on the last micro-step only
                loss = self.objective(self.batches.get(self.step, micro_step))
                self.accelerator.backward(loss)  # divides by the number of micro-steps
            losses.append(loss.detach())
        learning_rate = float(self.schedule.get_last_lr()[0])
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:  # by fp16's gradient scaler
            self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.is_saved = False
        self.losses.add(self.step, losses, learning_rate)

    def _read_losses(self) -> float | None:
        """Record the losses since the last reading; gives their mean."""
        try:
            read = self.losses.read()
        except Diverged as error:
            saved = self.run.states()
            raise UserError(
                f"training diverged {error}; {f'the last good state is {saved[-1]}' if saved else 'nothing is saved'}. "
                f"Start again with a lower optim.learning_rate (it was {self.plan.learning_rate:g} after scaling) or "
                f"another optim.mixed_precision than {self.config.optim.mixed_precision}"
            ) from error
        for step, loss, learning_rate in read:
            self.metrics.scalars(step, {"loss": loss, "learning_rate": learning_rate})
        return sum(loss for _, loss, _ in read) / len(read) if read else None

    def _save(self) -> None:
        """Write the state, then the concept, which the state can restore: a kill in between loses nothing."""
        self._read_losses()  # never replaces a good file by a broken one
        if self.accelerator.is_main_process:
            self.metrics.sync()
            self.run.expect(self.run.state(self.step), self.run.concept(self.step))
            scaler = self.accelerator.scaler
            TrainingState(
                step=self.step,
                seed=self.plan.seed,
                method=self.setup.method.state_dict(),
                optimizer=self.optimizer.state_dict(),
                schedule=self.schedule.state_dict(),
                scaler=scaler.state_dict() if scaler is not None else None,
                config=to_plain_dict(self.config),
                facts=self.facts,
            ).save(self.run.state(self.step))
            self._save_concept()
            self.run.rotate_states(self.config.log.checkpoints_total_limit)
        self.is_saved = True
        self.accelerator.wait_for_everyone()

    def _save_concept(self) -> None:
        data, settings = self.config.data, to_plain_dict(self.config)
        metadata = {"base_model": self.setup.backbone.name, "step": self.step, "training_config": settings}
        dtype = torch.float16 if self.config.log.concept_dtype is ConceptDtype.fp16 else torch.float32
        concept = Concept(self.setup.method, data.placeholder_token, data.super_category_token, metadata)
        concept.save(self.run.concept(self.step), dtype)
        self.watcher.saved(self.step, self.run.concept(self.step))

    def _restore(self, state: TrainingState) -> None:
        try:
            check_saved(state.optimizer, state.schedule, self.optimizer, self.schedule)
            self.setup.method.load_state_dict(state_of(self.setup.method, state.method))
            self.optimizer.load_state_dict(state.optimizer)
            self.schedule.load_state_dict(state.schedule)
            if state.scaler is not None and self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state.scaler)
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"resume: the state of step {state.step} does not fit this run ({first_line(error)}); name an older "
                "one by --resume PATH"
            ) from error
        self.step = state.step

    def _is_grid_due(self) -> bool:
        evaluation = self.config.eval
        return self.step % evaluation.validation_steps == 0 if self.step else evaluation.validation_at_start

    def _show_if_due(self, stop: GracefulStop) -> int:
        """Make the validation grids of this step, if it has any and they are not there yet (after a resume).

        Returns 0, or the number of the signal for which they were given up.
        """
        if not self._is_grid_due():
            return 0
        recipes = validation_recipes(self.config.eval, self.config.data.placeholder_token)
        paths = {variant: self.run.validation(self.step, variant) for variant in recipes}
        given_up = 0
        if self.accelerator.is_main_process and not all(path.exists() for path in paths.values()):
            try:
                self._make_grids(paths, stop)
            except NaNImageError as error:  # sampling may overflow in half precision where training does not
                self.watcher.note(f"warning: no validation grid at step {self.step}: {error}")
            except GridGivenUp:
                given_up = stop.received or 0
        return self._highest(given_up)

    def _make_grids(self, paths: Mapping[Variant, Path], stop: GracefulStop) -> None:
        def look_up(images: int = 0) -> None:
            if stop.asked():
                raise GridGivenUp

        backbone, placeholder = self.setup.backbone, self.config.data.placeholder_token
        look_up()
        self.run.expect(*paths.values())
        backbone.vae.to(self.accelerator.device)
        try:
            grids = validation_grids(
                backbone, self.setup.method, placeholder, self.config.eval, self.step, on_step=look_up
            )
            for variant, grid in grids:
                path = paths[variant]
                write_png(grid, path, {"step": self.step, **dict(variant)})
                self.metrics.image(self.step, path.stem.replace(f"step-{self.step}", "validation"), grid)
                self.watcher.grid(self.step, path, grid)
        finally:
            backbone.vae.to("cpu")

    def _agree_to_stop(self, stop: GracefulStop) -> int:
        """0, or the number of the signal to stop for; several processes ask one another only when they meet anyway."""
        number = (stop.received or 0) if stop.asked() else 0
        if self.step % LOG_EVERY == 0 or self._is_grid_due() or self.accelerator.num_processes == 1:
            return self._highest(number)
        return 0

    def _highest(self, number: int) -> int:
        """The highest number that any process comes with; all wait for one another."""
        if self.accelerator.num_processes == 1:
            return number
        return int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).max())
