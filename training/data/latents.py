"""The frozen VAE, run once: every image's latent posterior, mirrored and not, and the masks at the same size."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from ...utils.errors import UserError
from .dataset import ConceptDataset


class LatentCache:
    """Mean and log-variance of q(z | image) for each image, so that a step samples latents without running the VAE.

    mean, log_variance: [2 views][images] of [C, h, w]; the first view is as it is, the second mirrored. masks: [images]
    of [1, h, w], soft, 1 where the concept is; None without masks. All are kept on the CPU in float32, so that the
    samples drawn from them are the same for every device and compute dtype.
    """

    def __init__(
        self,
        mean: Sequence[Sequence[Tensor]] | Tensor,
        log_variance: Sequence[Sequence[Tensor]] | Tensor,
        scaling_factor: float,
        shift_factor: float = 0.0,
        masks: Sequence[Tensor] | None = None,
    ) -> None:
        self.mean = mean
        self.log_variance = log_variance
        self.masks = masks
        self.scaling_factor = scaling_factor
        self.shift_factor = shift_factor

    @classmethod
    @torch.no_grad()
    def build(cls, vae: AutoencoderKL, dataset: ConceptDataset) -> LatentCache:
        """Encode all images on the VAE's device and in its dtype, one at a time: memory, for hardly any time.

        Raises UserError for images that cannot be read, and when the VAE overflows (which half precision can do).
        """
        mean: tuple[list[Tensor], list[Tensor]] = ([], [])
        log_variance: tuple[list[Tensor], list[Tensor]] = ([], [])
        masks, broken = [], []
        for image_id, path in enumerate(dataset.paths):
            image, mask = dataset.read(image_id)
            pixels = image[None].to(vae.device, vae.dtype)
            for view, shown in enumerate((pixels, pixels.flip(-1))):
                posterior = vae.encode(shown).latent_dist
                mean[view].append(posterior.mean[0].float().cpu())
                log_variance[view].append(posterior.logvar[0].float().cpu())
            if mask is not None:
                masks.append(F.adaptive_avg_pool2d(mask, posterior.mean.shape[-2:]))
            if not all(part[image_id].isfinite().all() for part in (*mean, *log_variance)):
                broken.append(path.name)
        if broken:
            names = ", ".join(broken)
            raise UserError(f"the VAE gives NaN or infinite latents in {vae.dtype} for {names}; run it in float32")
        shift_factor = getattr(vae.config, "shift_factor", None) or 0.0
        return cls(mean, log_variance, vae.config.scaling_factor, shift_factor, masks or None)

    def shape(self, image_id: int) -> tuple[int, ...]:
        """(C, h, w) of an image's latent."""
        return tuple(self.mean[0][image_id].shape)

    @functools.cached_property
    def buckets(self) -> tuple[int, ...]:
        """Of each image the number of its shape: those of one number fit into one batch."""
        shapes = [self.shape(image_id) for image_id in range(len(self.mean[0]))]
        numbers = {shape: number for number, shape in enumerate(sorted(set(shapes)))}
        return tuple(numbers[shape] for shape in shapes)

    def sample(self, image_ids: Sequence[int], flips: Sequence[bool], noise: Tensor) -> Tensor:
        """Scaled latents [B,C,h,w] drawn with the given standard normal noise [B,C,h,w], on the CPU.

        z = mean + exp(log_variance / 2) * noise, then (z - shift_factor) * scaling_factor.
        """
        shown = [(int(flip), image_id) for flip, image_id in zip(flips, image_ids, strict=True)]
        mean, log_variance = (
            torch.stack([part[view][image_id] for view, image_id in shown]) for part in (self.mean, self.log_variance)
        )
        latents = mean + torch.exp(0.5 * log_variance) * noise
        return (latents - self.shift_factor) * self.scaling_factor

    def masks_of(self, image_ids: Sequence[int], flips: Sequence[bool]) -> Tensor | None:
        """The masks [B,1,h,w] of these images, mirrored where they are; None without masks."""
        if self.masks is None:
            return None
        masks = [self.masks[image_id] for image_id in image_ids]
        return torch.stack([mask.flip(-1) if flip else mask for mask, flip in zip(masks, flips, strict=True)])
