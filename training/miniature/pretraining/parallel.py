"""Several processes for one step of a stage: each takes its share of the batch, and the gradients are averaged.

Launched with ``torchrun --nproc_per_node 2 scripts/pretrain_miniature.py ...``. The batch, its noise and so the result
are those of one process, but for rounding: a run may go on with another number of processes than it began with.
"""

from __future__ import annotations

import datetime
import os

import torch
import torch.distributed as dist

PATIENCE = datetime.timedelta(days=2)  # a process waits while the first one runs the stages that are not shared


def start() -> int:
    """Join the processes that torchrun started, if it did; returns the own rank."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
    return rank()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def wait() -> None:
    """Go on when every process is here."""
    if dist.is_initialized():
        dist.barrier()


def first_says(flag: bool) -> bool:
    """The first process's answer, in all of them."""
    if not dist.is_initialized():
        return flag
    answer = torch.tensor([flag])
    dist.broadcast(answer, 0)
    return bool(answer)


def own_share(batch: int) -> slice:
    """The samples of a batch that are this process's. ValueError if they cannot be shared evenly."""
    if not dist.is_initialized():
        return slice(None)
    processes = dist.get_world_size()
    if batch % processes:
        raise ValueError(f"batch = {batch} cannot be shared evenly by {processes} processes")
    return slice(rank(), None, processes)


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace each gradient by its mean over the processes, all in one message."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients]).cpu()
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
