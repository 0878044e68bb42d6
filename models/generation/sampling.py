"""One sampling loop, for validation, inference and every other user of pictures.

A picture is fixed by prompt, concept, seed and config. The conditioning does not depend on the seed: it is computed
once per prompt and truncation and shared by all seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler
from PIL import Image
from torch import Tensor

from ...utils.errors import UserError
from ..attention.layers import install_space_time_attention
from ..backbone.backbone import Backbone
from ..conditioning.composition import Voice
from ..conditioning.conditioning import condition, plain_condition
from ..conditioning.tokens import tokenize
from ..methods.neti.positional_encoding import NUM_TIMESTEPS

# Name -> class and what is changed in the model's own scheduler config (all else is kept, clip_sample too). Only
# deterministic samplers: the seed's initial noise is the only randomness of a picture.
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    # the last step as the public code's diffusers took it
    "dpmsolver++sigma_min": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "final_sigmas_type": "sigma_min"},
    ),
    "ddim": (DDIMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
}


class NaNImageError(UserError):
    """The model's output is not a number, which would show as a black image."""


@dataclass(frozen=True)
class SamplingConfig:
    """How to sample.

    steps: K. guidance_scale: 1 or less means no guidance. scheduler: a name in SCHEDULERS. height, width: in pixels,
    multiples of the VAE's scale factor; None takes the size the model was trained on.
    """

    steps: int = 50
    guidance_scale: float = 7.5
    scheduler: str = "dpmsolver++"
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise UserError(f"scheduler {self.scheduler!r}: must be one of {', '.join(SCHEDULERS)}")
        if not 1 <= self.steps <= NUM_TIMESTEPS:
            raise UserError(f"steps {self.steps}: must lie in 1..{NUM_TIMESTEPS}")


@dataclass(frozen=True)
class PromptConditioning:
    """One prompt, ready for the U-Net at every denoising step.

    conditional [K, L*2*T, D], unconditional [1, L*2*T, D] (both packed), timesteps [K] as the scheduler gives them.
    """

    conditional: Tensor
    unconditional: Tensor
    timesteps: Tensor


@torch.no_grad()
def prepare_conditioning(
    backbone: Backbone,
    prompt: str,
    concepts: Mapping[str, Voice],
    config: SamplingConfig,
    *,
    truncation: int | None = None,
    negative_prompt: str = "",
    chunk_rows: int | None = 128,
) -> PromptConditioning:
    """Encode a prompt for all K steps and L layers at once.

    concepts: placeholder, as it stands in the prompt -> method or mixture; {} samples the plain prompt. Several share
        the one text-encoder call.
    truncation: for every concept that a mixture does not truncate itself (None keeps all).
    chunk_rows: of the L*K text-encoder rows, how many run at once.
    Raises UserError for a prompt that names no concept, or a truncation a concept does not have.
    """
    timesteps = _scheduler(backbone, config).timesteps
    with _eval_mode(concepts):
        vectors = {name: voice.vectors(timesteps, truncation) for name, voice in concepts.items()}
    tokens = tokenize(backbone.tokenizer, [prompt], list(concepts))
    num_layers = backbone.num_layers
    conditional = condition(backbone.text_encoder, tokens, vectors, num_layers, chunk_rows).packed()
    plain = plain_condition(backbone.text_encoder, backbone.tokenizer, [negative_prompt], num_layers)
    return PromptConditioning(
        conditional=conditional.expand(len(timesteps), -1, -1), unconditional=plain.packed(), timesteps=timesteps
    )


def initial_latents(backbone: Backbone, seeds: Sequence[int], config: SamplingConfig) -> Tensor:
    """Unit normal noise [S, C, h, w], float32, on the backbone's device.

    Every seed has its own CPU generator, so that its noise is the same in any batch and on any device.
    Raises UserError unless height and width are multiples of the VAE's scale factor.
    """
    height, width = config.height or backbone.image_size, config.width or backbone.image_size
    factor = backbone.vae_scale_factor
    if height <= 0 or width <= 0 or height % factor or width % factor:
        raise UserError(
            f"height x width {height} x {width}: both must be positive multiples of {factor} for {backbone.name}"
        )
    shape = (backbone.latent_channels, height // factor, width // factor)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(backbone.unet.device)


@torch.no_grad()
def denoise(
    backbone: Backbone,
    conditioning: PromptConditioning | Sequence[PromptConditioning],
    latents: Tensor,
    config: SamplingConfig,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Initial noise [S,C,h,w] -> latents [S,C,h,w] in float32, whatever the U-Net's dtype.

    conditioning: one for all seeds, or S of them, so that different prompts and truncations share a batch.
    Both branches of classifier-free guidance run in one U-Net batch; without guidance only the conditional one runs.
    config: the one `conditioning` was prepared with. on_step(k) is called after step k.
    The U-Net has space-time attention during the call; its processors are put back afterwards.
    """
    scheduler = _scheduler(backbone, config)
    each = [conditioning] * len(latents) if isinstance(conditioning, PromptConditioning) else conditioning
    if len(each) != len(latents):
        raise ValueError(f"{len(each)} conditionings for {len(latents)} latents: give one for all, or one for each")
    if not all(torch.equal(scheduler.timesteps.cpu(), own.timesteps.cpu()) for own in each):
        raise ValueError("the conditioning was prepared for other timesteps: use the same SamplingConfig for both")
    unet = backbone.unet
    dtype = unet.conv_in.weight.dtype  # `unet.dtype` walks through all its modules, too slow for every step
    guided = config.guidance_scale > 1
    unconditional = [own.unconditional[0] for own in each] if guided else []
    latents = latents.float() * scheduler.init_noise_sigma
    restore = install_space_time_attention(unet)
    try:
        for k, t in enumerate(scheduler.timesteps):
            context = torch.stack([*unconditional, *(own.conditional[k] for own in each)])
            model_input = scheduler.scale_model_input(latents, t).to(dtype)
            model_input = torch.cat([model_input, model_input]) if guided else model_input
            prediction = unet(model_input, t, encoder_hidden_states=context.to(model_input)).sample.float()
            if guided:
                without, with_prompt = prediction.chunk(2)
                prediction = without + config.guidance_scale * (with_prompt - without)
            latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
            if on_step is not None:
                on_step(k)
    finally:
        restore()
    return latents


@torch.no_grad()
def decode(backbone: Backbone, latents: Tensor) -> list[Image.Image]:
    """Latents [S,C,h,w] -> S RGB images. Raises NaNImageError rather than giving a black image without a reason.

    One at a time: the VAE is what needs most memory, and an image does not depend on its batch.
    """
    vae = backbone.vae
    images = []
    for latent in latents:
        pixels = vae.decode(latent[None].to(vae.dtype) / vae.config["scaling_factor"], return_dict=False)[0].float()
        if not torch.isfinite(pixels).all():
            stage = "the VAE" if torch.isfinite(latent).all() else "the U-Net"
            fix = "use torch_dtype fp32 or bf16" if vae.dtype == torch.float16 else "the weights or concept are broken"
            raise NaNImageError(f"{stage} of {backbone.name} gave NaN or infinite values, a black image: {fix}")
        array = (pixels[0] / 2 + 0.5).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
        images.append(Image.fromarray(array))
    return images


def _scheduler(backbone: Backbone, config: SamplingConfig) -> Any:
    """A fresh scheduler (they carry state from step to step) with its timesteps set."""
    scheduler_class, changes = SCHEDULERS[config.scheduler]
    own: Any = backbone.scheduler
    scheduler = scheduler_class.from_config(own.config, **changes)
    scheduler.set_timesteps(config.steps, device=backbone.unet.device)
    return scheduler


@contextmanager
def _eval_mode(concepts: Mapping[str, Voice]) -> Iterator[None]:
    """Nested dropout off while sampling, also in the middle of a training; every module gets its own mode back."""
    training = [module for voice in concepts.values() for module in voice.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
