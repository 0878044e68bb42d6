"""AdamW and its learning-rate schedule, as the configuration asks for them."""

from __future__ import annotations

import torch
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import LRScheduler

from ...models.methods import Method
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
