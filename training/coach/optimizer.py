"""AdamW and its learning-rate schedule, and the losses of its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ...models.methods import Method
from ...utils.errors import shown
from ..config.run import OptimConfig


def make_optimizer(method: Method, config: OptimConfig, learning_rate: float) -> tuple[torch.optim.AdamW, LRScheduler]:
    """The optimizer over the method's parameters, each group at its own share of `learning_rate`, and the schedule.

    The schedule is stepped once per optimizer step; warm-up and length count those.
    """
    groups = [
        {"params": group["params"], "lr": learning_rate * group["lr_scale"]} for group in method.parameter_groups()
    ]
    optimizer = torch.optim.AdamW(
        groups,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.adam_weight_decay,
    )
    schedule = get_scheduler(
        config.lr_scheduler.value,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
    )
    return optimizer, schedule


def check_saved(
    saved: Mapping[str, Any], saved_schedule: Mapping[str, Any], optimizer: torch.optim.AdamW, schedule: LRScheduler
) -> None:
    """ValueError or KeyError, naming the entry, unless the state dicts are of such an optimizer and schedule.

    PyTorch takes what it is given, and fails or learns otherwise at the next step.
    """
    check_alike("groups", saved["param_groups"], optimizer.state_dict()["param_groups"])
    check_alike("schedule", saved_schedule, schedule.state_dict())
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = saved["state"]
    if saved_schedule["last_epoch"] > 0 and not moments:
        raise ValueError("the optimizer's moments are missing")
    for number, parameter in enumerate(parameters):
        if number in moments:
            wanted = {"step": torch.tensor(0.0), "exp_avg": parameter, "exp_avg_sq": parameter}
            check_alike(f"moments of {number}", {name: moments[number][name] for name in wanted}, wanted)


def check_alike(name: str, saved: Any, own: Any) -> None:
    """ValueError unless `saved` has the types, lengths and shapes of `own`; entries of other versions are free."""
    if isinstance(own, dict) and isinstance(saved, dict):
        for key in own.keys() & saved.keys():
            check_alike(f"{name}, {key}", saved[key], own[key])
    elif isinstance(own, (list, tuple)) and isinstance(saved, (list, tuple)) and len(own) == len(saved):
        for one, other in zip(saved, own, strict=True):
            check_alike(name, one, other)
    elif isinstance(own, Tensor) and isinstance(saved, Tensor) and own.shape == saved.shape:
        pass
    elif type(own) is not type(saved) and not (isinstance(own, (int, float)) and isinstance(saved, (int, float))):
        raise ValueError(f"{name} is {shown(saved)}")
    elif isinstance(own, (list, tuple, Tensor)):
        raise ValueError(f"{name} is of another size")


class StepLoss(NamedTuple):
    """The mean loss of one optimizer step over all its samples, and the learning rate it was taken with."""

    step: int
    loss: float
    learning_rate: float


class Diverged(Exception):
    """The loss or a parameter is NaN or infinite; the message says at which step and which of the two."""


class Losses:
    """Collects losses on the device, so that the loop need not wait for it at every step. All processes call alike."""

    def __init__(self, accelerator: Accelerator, trained: nn.Module) -> None:
        self._accelerator = accelerator
        self._trained = trained
        self._unread: list[tuple[int, Tensor, float]] = []

    def add(self, step: int, losses: list[Tensor], learning_rate: float) -> None:
        """Keep the scalar losses of this process's micro-batches of step `step`."""
        self._unread.append((step, torch.stack(losses).mean(), learning_rate))

    def read(self) -> list[StepLoss]:
        """The steps since the last reading, averaged over processes; waits for the device.

        Raises Diverged if any of these losses, or any parameter now, is not finite.
        """
        if not self._unread:
            return []
        parameters_finite = torch.stack([p.detach().isfinite().all() for p in self._trained.parameters()]).all()
        report = torch.stack([*(loss for _, loss, _ in self._unread), parameters_finite.float()])
        *values, all_finite = self._accelerator.reduce(report, reduction="mean").tolist()
        read = [StepLoss(step, value, rate) for (step, _, rate), value in zip(self._unread, values, strict=True)]
        self._unread.clear()
        for step, value, _ in read:
            if not math.isfinite(value):
                raise Diverged(f"at step {step}: the loss is {value}")
        if all_finite < 1:
            raise Diverged(f"at step {read[-1].step}: the parameters are no longer finite")
        return read
