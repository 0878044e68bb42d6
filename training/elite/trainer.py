"""One stage of training an encoder: the loop, and when it logs, saves and stops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...models.backbone.backbone import Backbone
from ...models.methods.elite.encoder import Encoder
from ...models.methods.elite.files import save_encoder
from ...utils.errors import UserError
from ..coach.logs import MetricsLog, Watcher
from ..coach.optimizer import Diverged, Losses
from ..coach.state import TrainingState
from ..coach.stop import GracefulStop
from ..config.run import RunConfig
from ..data.batches import sample_generator
from .config import EncoderConfig
from .objective import EncoderObjective, Noised
from .run_folder import EncoderRun
from .samples import Collated, Samples, collate

LOG_EVERY = 10


class _Numbered(Dataset):
    """Samples with their numbers, as a DataLoader's workers want them."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, number: int) -> tuple[int, Any]:
        return number, self.samples[number]


class EncoderTrainer:
    """Trains the mapper of one stage. settings, facts: see `TrainingState`; state: where to go on from.

    `step` is always the number of optimizer steps done.
    """

    def __init__(
        self,
        config: EncoderConfig,
        backbone: Backbone,
        encoder: Encoder,
        samples: Samples,
        accelerator: Accelerator,
        run: EncoderRun,
        settings: dict[str, Any],
        facts: dict[str, Any],
        state: TrainingState | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.config, self.backbone, self.encoder, self.samples = config, backbone, encoder, samples
        self.accelerator, self.run, self.settings, self.facts = accelerator, run, settings, facts
        self.watcher = watcher or Watcher()
        self.step = self.skipped = 0
        optim = config.optim
        objective = EncoderObjective(
            encoder,
            backbone,
            config.stage,
            regularisation=optim.regularisation,
            noise_emphasis=optim.noise_emphasis,
            name_target=optim.name_target,
            name_states=optim.name_states,
            train_vision=optim.vision_lr > 0,
            gradient_checkpointing=optim.gradient_checkpointing,
        )
        groups: list[dict[str, Any]] = [{"params": list(objective.mapper.parameters()), "lr": optim.effective_lr}]
        if objective.vision is not None:
            groups.append({"params": objective.vision.unfreeze(), "lr": optim.vision_lr})
        optimizer = torch.optim.AdamW(groups, weight_decay=optim.adam_weight_decay)
        self.schedule = get_scheduler(
            optim.lr_scheduler.value,
            optimizer,
            num_warmup_steps=optim.lr_warmup_steps,
            num_training_steps=optim.max_train_steps,
        )
        self.num_timesteps = objective.num_train_timesteps
        self.trained = objective
        self.losses = Losses(accelerator, objective)
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        if state is not None:
            self._restore(state)

    def train(self) -> int | None:
        """Train to `optim.max_train_steps`. Returns None, or the number of the signal that stopped the run early."""
        last_step, log = self.config.optim.max_train_steps, self.config.log
        config = cast(RunConfig, self.config)  # which has the same keys for a log
        self.metrics = MetricsLog(self.run, config, self.accelerator, self.watcher.note, self.step)
        batches = self._batches()
        stopped_by = 0
        self.watcher.started(self.step, last_step)
        with GracefulStop(self.watcher.wants_stop) as stop:
            while self.step < last_step and not stopped_by:
                self.take_step(batches)
                loss = self._read_losses() if self.step % LOG_EVERY == 0 else None
                self.watcher.stepped(self.step, loss)
                if self.step < last_step:
                    stopped_by = self._agree_to_stop(stop)
                if self.step == last_step or self.step % log.save_steps == 0 or stopped_by:
                    self._save()
        self.metrics.close()
        return stopped_by or None

    def take_step(self, batches: Iterator[Collated]) -> None:
        """One optimizer step; its loss waits to be read."""
        losses = []
        for _ in range(self.config.optim.gradient_accumulation_steps):
            batch = next(batches)
            self.skipped += batch.skipped
            with self.accelerator.accumulate(self.objective):
                loss = self.objective(self._noised(batch))
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        learning_rate = float(self.schedule.get_last_lr()[0])
        self.accelerator.clip_grad_norm_(self.trained.parameters(), self.config.optim.max_grad_norm)
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:
            self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.losses.add(self.step, losses, learning_rate)

    def _batches(self) -> Iterator[Collated]:
        """This process's micro-batches from the current step on."""
        optim, data = self.config.optim, self.config.data
        processes, rank, size = self.accelerator.num_processes, self.accelerator.process_index, optim.train_batch_size

        def numbers() -> Iterator[list[int]]:
            first = self.step * optim.gradient_accumulation_steps
            for micro_batch in range(first, optim.max_train_steps * optim.gradient_accumulation_steps):
                start = (micro_batch * processes + rank) * size
                yield list(range(start, start + size))

        loader: Any = DataLoader(
            _Numbered(self.samples), batch_sampler=numbers(), num_workers=data.workers, collate_fn=collate
        )
        return iter(loader)

    def _noised(self, batch: Collated) -> Noised:
        """Latents of the targets and the random numbers of each sample, drawn on the CPU from its own generator."""
        device, vae = self.accelerator.device, self.backbone.vae
        generators = [sample_generator(self.config.optim.seed, number) for number in batch.numbers]
        with torch.no_grad():
            posterior = vae.encode(batch.target.to(device, vae.dtype)).latent_dist
        mean, deviation = posterior.mean.float(), posterior.std.float()
        shape = mean.shape[1:]

        def normal() -> Tensor:
            return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)

        timesteps = torch.cat([torch.randint(self.num_timesteps, (1,), generator=g) for g in generators])
        latents = (mean + deviation * normal()) * vae.config.scaling_factor
        moved = {name: getattr(batch, name).to(device) for name in ("valid", "image", "object", "mask")}
        return Noised(replace(batch, **moved), latents, normal(), timesteps.to(device))

    def _read_losses(self) -> float | None:
        """Record the losses since the last reading; gives their mean."""
        try:
            read = self.losses.read()
        except Diverged as error:
            raise UserError(
                f"training diverged {error}; start again with a lower optim.effective_lr than "
                f"{self.config.optim.effective_lr:g} or another optim.mixed_precision than "
                f"{self.config.optim.mixed_precision}"
            ) from error
        for step, loss, learning_rate in read:
            self.metrics.scalars(step, {"loss": loss, "learning_rate": learning_rate, "skipped": self.skipped})
        return sum(loss for _, loss, _ in read) / len(read) if read else None

    def _save(self) -> None:
        """Write the encoder, then the state: where there is a state, its encoder is complete."""
        self._read_losses()
        if self.accelerator.is_main_process:
            encoder, state = self.run.concept(self.step), self.run.state(self.step)
            self.metrics.sync()
            self.run.expect(encoder, state)
            save_encoder(self.encoder, encoder, base_model=self.backbone.name)
            scaler = self.accelerator.scaler
            TrainingState(
                step=self.step,
                seed=self.config.optim.seed,
                method=self.trained.state_dict(),
                optimizer=self.optimizer.state_dict(),
                schedule=self.schedule.state_dict(),
                scaler=scaler.state_dict() if scaler is not None else None,
                config=self.settings,
                facts=self.facts,
            ).save(state)
            self.run.rotate_states(self.config.log.checkpoints_total_limit)
            self.watcher.saved(self.step, encoder)
        self.accelerator.wait_for_everyone()

    def _agree_to_stop(self, stop: GracefulStop) -> int:
        """0, or the number of the signal to stop for; several processes ask one another only when they meet anyway."""
        number = (stop.received or 0) if stop.asked() else 0
        if self.accelerator.num_processes == 1:
            return number
        if self.step % LOG_EVERY:
            return 0
        return int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).max())

    def _restore(self, state: TrainingState) -> None:
        self.trained.load_state_dict(state.method)
        self.optimizer.load_state_dict(state.optimizer)
        self.schedule.load_state_dict(state.schedule)
        if state.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.step = state.step
