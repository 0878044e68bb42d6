"""What every optimizer step sees: all randomness of training, a pure function of (seed, sample number).

Samples are numbered from 0 through the whole run. Each owns one generator, seeded by its number, that draws its
timestep, its diffusion noise and its posterior noise, and then serves the method's own randomness. From this follow:
a run resumes exactly at any step with no generator state on disk; however the samples of a step are cut into
micro-batches and processes, each sample is the same; and nothing else that draws numbers (validation) can disturb it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from ...models.conditioning.prompts import SLOT
from ...models.conditioning.tokens import tokenize
from ...utils.devices import to_device
from ..coach.objective import Batch
from ..config.options import OutsideMask
from .dataset import ConceptDataset
from .latents import LatentCache


def sample_generator(seed: int, sample: int) -> torch.Generator:
    """The CPU generator of one sample; seeds of neighbouring samples are unrelated."""
    digest = hashlib.blake2b(f"{seed}/{sample}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@dataclass(frozen=True)
class Batches:
    """Micro-batches by number. Each optimizer step uses `accumulation` of them on each of `processes` processes.

    positions: how many tokens the concept takes. num_timesteps: timesteps are uniform on 0 .. num_timesteps - 1.
    device: where the tensors go.
    """

    dataset: ConceptDataset
    latents: LatentCache
    tokenizer: PreTrainedTokenizerBase
    positions: int
    num_timesteps: int
    batch_size: int
    accumulation: int
    process: int
    processes: int
    device: torch.device

    def samples(self, step: int, micro_step: int) -> range:
        """The sample numbers of this process's micro-batch; steps and micro-steps count from 0."""
        first = ((step * self.accumulation + micro_step) * self.processes + self.process) * self.batch_size
        return range(first, first + self.batch_size)

    def get(self, step: int, micro_step: int) -> Batch:
        """This process's micro-batch, drawn on the CPU so that it is the same for every device."""
        numbers = self.samples(step, micro_step)
        group = self.batch_size * self.accumulation * self.processes
        shown = [self.dataset.sample(number, self.latents.buckets, group) for number in numbers]
        generators = [sample_generator(self.dataset.seed, number) for number in numbers]
        shape = self.latents.shape(shown[0].image_id)
        timesteps = torch.cat([torch.randint(self.num_timesteps, (1,), generator=g) for g in generators])
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
        posterior_noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
        image_ids, flips = [s.image_id for s in shown], [s.flipped for s in shown]
        latents, masks = self.latents.sample(image_ids, flips, posterior_noise), self.latents.masks_of(image_ids, flips)
        config = self.dataset.config
        plain = None
        if config.outside_mask is OutsideMask.frozen:
            plain = [s.text.replace(SLOT, config.super_category_token) for s in shown]
        return Batch(
            latents=to_device(latents, self.device),
            noise=to_device(noise, self.device),
            timesteps=to_device(timesteps, self.device),
            tokens=tokenize(self.tokenizer, [s.text for s in shown], {SLOT: self.positions}),
            generators=generators,
            weights=None if masks is None else to_device(masks, self.device),
            plain=plain,
        )
