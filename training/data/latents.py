"""The frozen VAE, run once: every image's latent posterior, mirrored and not, and the masks at the same size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from ...utils.errors import UserError
from .dataset import ConceptDataset


class LatentCache:
    """Mean and log-variance of q(z | image) for each image, so that a step samples latents without running the VAE.

    Shapes: `mean`, `log_variance` [2, images, C, h, w]; the first axis is as it is (0) or mirrored (1). `masks`
    [images, 1, h, w], soft, 1 where the concept is; None without masks. All are kept on the CPU in float32, so that the
    samples drawn from them are the same for every device and compute dtype.
    """

    def __init__(
        self,
        mean: Tensor,
        log_variance: Tensor,
        scaling_factor: float,
        shift_factor: float = 0.0,
        masks: Tensor | None = None,
    ) -> None:
        self.mean = mean
        self.log_variance = log_variance
        self.masks = masks
        self.scaling_factor = scaling_factor
        self.shift_factor = shift_factor

    @classmethod
    @torch.no_grad()
    def build(cls, vae: AutoencoderKL, dataset: ConceptDataset, *, chunk: int = 1) -> LatentCache:
        """Encode all images on the VAE's device and in its dtype, `chunk` at a time: memory, for hardly any time.

        Raises UserError for images that cannot be read, and when the VAE overflows (which half precision can do).
        """
        moments: list[tuple[list[Tensor], list[Tensor]]] = [([], []), ([], [])]
        masks: list[Tensor] = []
        for start in range(0, len(dataset), chunk):
            image_ids = range(start, min(start + chunk, len(dataset)))
            images, image_masks = dataset.read(image_ids)
            pixels = images.to(vae.device, vae.dtype)
            for (means, log_variances), view in zip(moments, (pixels, pixels.flip(-1)), strict=True):
                posterior = vae.encode(view).latent_dist
                means.append(posterior.mean.float().cpu())
                log_variances.append(posterior.logvar.float().cpu())
            if image_masks is not None:
                masks.append(F.adaptive_avg_pool2d(image_masks, posterior.mean.shape[-2:]))
        mean = torch.stack([torch.cat(means) for means, _ in moments])
        log_variance = torch.stack([torch.cat(log_variances) for _, log_variances in moments])
        finite = (mean.isfinite() & log_variance.isfinite()).all(dim=0).flatten(1).all(dim=1)
        if not finite.all():
            broken = ", ".join(dataset.paths[i].name for i in (~finite).nonzero().flatten().tolist())
            raise UserError(f"the VAE gives NaN or infinite latents in {vae.dtype} for {broken}; run it in float32")
        shift_factor = getattr(vae.config, "shift_factor", None) or 0.0
        return cls(mean, log_variance, vae.config.scaling_factor, shift_factor, torch.cat(masks) if masks else None)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        _, _, channels, height, width = self.mean.shape
        return channels, height, width

    def sample(self, image_ids: Sequence[int], flips: Sequence[bool], noise: Tensor) -> Tensor:
        """Scaled latents [B,C,h,w] drawn with the given standard normal noise [B,C,h,w], on the CPU.

        z = mean + exp(log_variance / 2) * noise, then (z - shift_factor) * scaling_factor.
        """
        view = torch.tensor([int(flip) for flip in flips])
        image = torch.tensor(list(image_ids))
        mean, log_variance = self.mean[view, image], self.log_variance[view, image]
        latents = mean + torch.exp(0.5 * log_variance) * noise
        return (latents - self.shift_factor) * self.scaling_factor

    def masks_of(self, image_ids: Sequence[int], flips: Sequence[bool]) -> Tensor | None:
        """The masks [B,1,h,w] of these images, mirrored where they are; None without masks."""
        if self.masks is None:
            return None
        masks = [self.masks[image_id] for image_id in image_ids]
        return torch.stack([mask.flip(-1) if flip else mask for mask, flip in zip(masks, flips, strict=True)])
