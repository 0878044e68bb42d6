"""The coach: the training loop, and when it logs, saves, shows and stops."""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ...models.concepts.concept import Concept
from ...models.generation.sampling import NaNImageError
from ...utils.config.parsing import to_plain_dict
from ...utils.errors import UserError
from ...utils.files import write_png
from ..config.run import ConceptDtype, RunConfig
from ..data.batches import Batches
from ..data.latents import LatentCache
from ..evaluation.validation import validation_grids
from .logs import MetricsLog
from .losses import Diverged, Losses
from .objective import Objective
from .optimizer import make_optimizer
from .plan import RunPlan
from .run_folder import RunFolder
from .setup import Setup
from .state import TrainingState
from .stop import GracefulStop

LOG_EVERY = 10  # steps between two readings of the loss, the only moments when the loop itself waits for the device


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
    ) -> None:
        self.config, self.setup, self.plan, self.run, self.facts = config, setup, plan, run, facts
        self.accelerator = accelerator
        self.step = plan.first_step
        self.losses = Losses(accelerator, setup.method)
        optim, backbone = config.optim, setup.backbone

        objective = Objective(
            setup.method.train(),
            backbone,
            gradient_checkpointing=optim.gradient_checkpointing,
            compile_backend="inductor" if optim.compile_unet else None,
        )
        optimizer, self.schedule = make_optimizer(setup.method, optim, plan.learning_rate)
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        if state is not None:
            self._restore(state)
        latents = LatentCache.build(backbone.vae, setup.dataset)
        backbone.vae.to("cpu")  # needed again for validation grids only
        # batches are drawn on the CPU: the same numbers for every device
        latents.mean, latents.log_variance = latents.mean.cpu(), latents.log_variance.cpu()
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
        log, optim = self.config.log, self.config.optim
        self.metrics = MetricsLog(self.run.metrics, self.accelerator, log.exp_name, self.step)
        with GracefulStop() as stop, self._progress_bar() as self.bar:
            self._show_if_due()
            while self.step < optim.max_train_steps:
                self.take_step()
                self.bar.update()
                at_end = self.step == optim.max_train_steps
                if self.step % LOG_EVERY == 0:
                    self._read_losses()
                stopping = self._agree_to_stop(stop)
                if at_end or stopping or self.step % log.save_steps == 0:
                    self._save()
                if stopping and not at_end:
                    break
                self._show_if_due()
        self.metrics.close()
        return stop.received if self.step < optim.max_train_steps else None

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
        self.losses.add(self.step, losses, learning_rate)

    def _read_losses(self) -> None:
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
        if read:
            self.bar.set_postfix(loss=f"{sum(loss for _, loss, _ in read) / len(read):.4f}")

    def _save(self) -> None:
        """Write the concept, then the state: where there is a state, its concept is complete."""
        self._read_losses()  # never replaces a good file by a broken one
        if self.accelerator.is_main_process:
            dtype = torch.float16 if self.config.log.concept_dtype is ConceptDtype.fp16 else torch.float32
            config = to_plain_dict(self.config)
            metadata = {"base_model": self.setup.backbone.name, "step": self.step, "training_config": config}
            data = self.config.data
            concept = Concept(self.setup.method, data.placeholder_token, data.super_category_token, metadata)
            concept.save(self.run.concept(self.step), dtype)
            scaler = self.accelerator.scaler
            TrainingState(
                step=self.step,
                seed=self.plan.seed,
                method=self.setup.method.state_dict(),
                optimizer=self.optimizer.state_dict(),
                schedule=self.schedule.state_dict(),
                scaler=scaler.state_dict() if scaler is not None else None,
                config=config,
                facts=self.facts,
            ).save(self.run.state(self.step))
            self.run.rotate_states(self.config.log.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()

    def _restore(self, state: TrainingState) -> None:
        self.setup.method.load_state_dict(state.method)
        self.optimizer.load_state_dict(state.optimizer)
        self.schedule.load_state_dict(state.schedule)
        if state.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.step = state.step

    def _show_if_due(self) -> None:
        """Make the validation grids of this step, if it has any and they are not there yet (after a resume)."""
        evaluation = self.config.eval
        due = self.step % evaluation.validation_steps == 0 if self.step else evaluation.validation_at_start
        paths = {
            truncation: self.run.validation(self.step, truncation) for truncation in evaluation.validation_truncations
        }
        if due and self.accelerator.is_main_process and not all(path.exists() for path in paths.values()):
            backbone, placeholder = self.setup.backbone, self.config.data.placeholder_token
            backbone.vae.to(self.accelerator.device)
            try:
                for truncation, grid in validation_grids(
                    backbone, self.setup.method, placeholder, evaluation, self.step
                ):
                    write_png(grid, paths[truncation], {"step": self.step, "truncation": truncation})
                    self.metrics.image(
                        self.step, paths[truncation].stem.replace(f"step-{self.step}", "validation"), grid
                    )
            except NaNImageError as error:  # sampling may overflow in half precision where training does not
                self.bar.write(f"warning: no validation grid at step {self.step}: {error}", file=sys.stderr)
            finally:
                backbone.vae.to("cpu")
        self.accelerator.wait_for_everyone()

    def _agree_to_stop(self, stop: GracefulStop) -> bool:
        """Whether to stop after this step; several processes ask one another only when they meet anyway."""
        if self.accelerator.num_processes == 1:
            return stop.received is not None
        if self.step % LOG_EVERY:
            return False
        asked = torch.tensor(float(stop.received is not None), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, reduction="sum").item() > 0)

    def _progress_bar(self) -> tqdm:
        seconds = 0.1 if sys.stderr.isatty() else 10.0  # a log file needs no animation
        return tqdm(
            desc="training",
            initial=self.step,
            total=self.config.optim.max_train_steps,
            unit="step",
            mininterval=seconds,
            disable=not self.accelerator.is_local_main_process,
        )
