"""The pieces of a picture: noise, conditioning, the denoising loop, decoding. `draw` puts them together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image
from torch import Tensor

from ...utils.errors import UserError, first_line, shown
from ..attention.projection import KeyValueProjection, join_rows
from ..backbone.backbone import Backbone
from ..backbone.denoiser import Denoiser
from ..conditioning.composition import AnyConcept
from ..conditioning.conditioning import Conditioning, join
from ..conditioning.prompt_conditioning import PromptConditioning
from ..methods.neti.positional_encoding import NUM_TIMESTEPS

# Latents are never in [-1, 1]: a scheduler that clips them draws garbage, and schedulers saved by diffusers leave it to
# a default that clips. The offset is what stock pipelines correct it to.
LATENTS = {"clip_sample": False, "thresholding": False, "steps_offset": 1}
# Name -> class and what is changed in the model's own scheduler config beside LATENTS (all else is kept).
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    # as the public code's diffusers took its steps: from t = 999 whatever the config says, and not quite down to 0
    "dpmsolver++sigma_min": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "final_sigmas_type": "sigma_min", "timestep_spacing": "linspace"},
    ),
    "ddim": (DDIMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "dpm++ 2m karras": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "unipc": (UniPCMultistepScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),  # this one and the next draw new noise at every step
    "lcm": (LCMScheduler, {}),
}
ALIASES = {"dpm++ 2m": "dpmsolver++", "euler a": "euler_a"}  # as other tools call them


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
        object.__setattr__(self, "scheduler", ALIASES.get(self.scheduler.lower(), self.scheduler.lower()))
        if self.scheduler not in SCHEDULERS:
            raise UserError(f"scheduler {shown(self.scheduler)}: must be one of {', '.join(SCHEDULERS)}")
        if not 1 <= self.steps <= NUM_TIMESTEPS:
            raise UserError(f"steps {self.steps}: must lie in 1..{NUM_TIMESTEPS}")


def prepare_conditioning(
    backbone: Backbone,
    prompt: str,
    concepts: Mapping[str, AnyConcept],
    config: SamplingConfig,
    *,
    truncation: int | None = None,
    negative_prompt: str = "",
    chunk_rows: int = 128,
) -> PromptConditioning:
    """What `denoise` needs of a prompt.

    concepts: placeholder, as it stands in the prompt or the negative prompt -> method or mixture; {}: plain prompts.
    truncation: for every concept that a mixture does not truncate itself (None keeps all).
    chunk_rows: how many text-encoder rows run at once.
    Raises UserError for a truncation that a concept does not have.
    """
    for concept in concepts.values():
        concept.check_truncation(truncation)
    timesteps = make_scheduler(backbone, config).timesteps
    size = (config.height or backbone.image_size, config.width or backbone.image_size)
    return PromptConditioning(backbone, prompt, negative_prompt, concepts, timesteps, truncation, chunk_rows, size)


def initial_latents(backbone: Backbone, seeds: Sequence[int], config: SamplingConfig) -> Tensor:
    """Unit normal noise [S, C, h, w], float32, on the backbone's device.

    Every seed has its own CPU generator, so that its noise is the same in any batch and on any device.
    Raises UserError unless height and width are multiples of the VAE's scale factor.
    """
    shape = latent_shape(backbone, config)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(backbone.unet.device)


def step_generators(backbone: Backbone, seeds: Sequence[int], config: SamplingConfig) -> list[torch.Generator]:
    """The seeds' CPU generators after the initial noise: where a sampler that draws noise at every step goes on."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for generator in generators:
        torch.randn(latent_shape(backbone, config), generator=generator)
    return generators


def latent_shape(backbone: Backbone, config: SamplingConfig) -> tuple[int, int, int]:
    """(C, h, w) of one latent; UserError unless height and width are multiples of the VAE's scale factor."""
    height, width = config.height or backbone.image_size, config.width or backbone.image_size
    factor = backbone.vae_scale_factor
    if height <= 0 or width <= 0 or height % factor or width % factor:
        raise UserError(
            f"height x width {height} x {width}: both must be positive multiples of {factor} for {backbone.name}"
        )
    return backbone.latent_channels, height // factor, width // factor


class Denoising:
    """Images that go from noise to latents together, one step at a time; any number of them share a U-Net batch.

    conditioning: one for all S images, or S of them, so that different prompts, truncations and edits of the attention
    share a batch. latents: the noise [S,C,h,w]. config: the one `conditioning` was prepared with. generators: see
    `step_generators`; without them a sampler that draws noise at every step is seeded with 0.
    latents [S,C,h,w], float32: as they are now. step: 0..K, how many were taken.
    """

    def __init__(
        self,
        backbone: Backbone,
        conditioning: PromptConditioning | Sequence[PromptConditioning],
        latents: Tensor,
        config: SamplingConfig,
        generators: list[torch.Generator] | None = None,
    ) -> None:
        scheduler = self._scheduler = make_scheduler(backbone, config)
        each = [conditioning] * len(latents) if isinstance(conditioning, PromptConditioning) else conditioning
        if len(each) != len(latents):
            raise ValueError(f"{len(each)} conditionings for {len(latents)} latents: give one for all, or one for each")
        if not all(torch.equal(scheduler.timesteps.cpu(), own.timesteps.cpu()) for own in each):
            raise ValueError("the conditioning was prepared for other timesteps: use the same SamplingConfig for both")
        self._options: dict[str, Any] = {"return_dict": False}
        if "generator" in inspect.signature(scheduler.step).parameters:
            self._options["generator"] = generators or [torch.Generator().manual_seed(0) for _ in latents]
        self._each, self._guidance = each, config.guidance_scale
        self.latents: Tensor = latents.float() * scheduler.init_noise_sigma
        self.step = 0

    @property
    def finished(self) -> bool:
        """Whether all steps were taken."""
        return self.step == len(self._scheduler.timesteps)

    @property
    def timestep(self) -> Tensor:
        """t [] of the next step."""
        return self._scheduler.timesteps[self.step]

    @property
    def projections(self) -> list[KeyValueProjection]:
        """Of every row of the U-Net's batch."""
        return [own.projection for own in self._each] * (2 if self._guidance > 1 else 1)

    def model_input(self) -> tuple[Tensor, list[Conditioning]]:
        """Latents [N,C,h,w] and conditionings of the U-Net's rows: with guidance first all S without the prompt, then
        all with it (N = 2S); without guidance only the latter (N = S)."""
        latents = self._scheduler.scale_model_input(self.latents, self.timestep)
        branches = [own.at(self.step) for own in self._each]
        if self._guidance <= 1:
            return latents, [positive for positive, _ in branches]
        return torch.cat([latents, latents]), [each for branch in (1, 0) for each in (own[branch] for own in branches)]

    def advance(self, prediction: Tensor) -> None:
        """Take the step, by the U-Net's prediction [N,C,h,w] for `model_input`."""
        if self._guidance > 1:
            without, with_prompt = prediction.chunk(2)
            prediction = without + self._guidance * (with_prompt - without)
        self.latents = self._scheduler.step(prediction, self.timestep, self.latents, **self._options)[0]
        self.step += 1


class Predictor:
    """The U-Net's predictions for any number of `Denoising`s of one latent size, in one batch.

    They may be at different steps, with different samplers and guidance. Keeps the denoiser of the last call.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._denoiser: Denoiser | None = None
        self._rows: tuple[int, ...] = ()  # whose projections it has, where they are not the layers' own

    @torch.no_grad()
    def __call__(self, images: Sequence[Denoising]) -> list[Tensor]:
        """For each of `images` what its `advance` takes, float32; nothing about them is changed."""
        projections = [projection for each in images for projection in each.projections]
        projection = join_rows(projections)
        rows = () if type(projection) is KeyValueProjection else tuple(map(id, projections))
        if self._denoiser is None or rows != self._rows:
            self._denoiser, self._rows = Denoiser(self._backbone, projection), rows
        inputs = [each.model_input() for each in images]
        counts = [len(latents) for latents, _ in inputs]
        if len(images) == 1:  # no copy, and one timestep for all
            latents, timesteps = inputs[0][0], images[0].timestep
        else:
            latents = torch.cat([rows for rows, _ in inputs])
            timesteps = torch.cat([each.timestep.expand(count) for each, count in zip(images, counts, strict=True)])
        predictions = self._denoiser(latents, timesteps, join([each for _, own in inputs for each in own]))
        return list(predictions.split(counts))


@torch.no_grad()
def denoise(
    backbone: Backbone,
    conditioning: PromptConditioning | Sequence[PromptConditioning],
    latents: Tensor,
    config: SamplingConfig,
    on_step: Callable[[int], None] | None = None,
    generators: list[torch.Generator] | None = None,
) -> Tensor:
    """Initial noise [S,C,h,w] -> latents [S,C,h,w] in float32, whatever the U-Net's dtype.

    Arguments: see `Denoising`. Both branches of classifier-free guidance run in one U-Net batch. on_step(k) is called
    after step k.
    """
    images, predict = Denoising(backbone, conditioning, latents, config, generators), Predictor(backbone)
    while not images.finished:
        images.advance(predict([images])[0])
        if on_step is not None:
            on_step(images.step - 1)
    return images.latents


@torch.no_grad()
def decode(backbone: Backbone, latents: Tensor) -> list[Image.Image]:
    """Latents [S,C,h,w] -> S RGB images. Raises NaNImageError rather than giving a black image without a reason.

    One at a time: the VAE is what needs most memory, and an image does not depend on its batch.
    """
    vae = backbone.vae
    images = []
    for latent in latents:
        unscaled = latent[None].to(vae.dtype) / vae.config["scaling_factor"] + (vae.config["shift_factor"] or 0.0)
        pixels = vae.decode(unscaled, return_dict=False)[0].float()
        if not torch.isfinite(pixels).all():
            stage = "the VAE" if torch.isfinite(latent).all() else "the U-Net"
            fix = "use torch_dtype fp32 or bf16" if vae.dtype == torch.float16 else "the weights or concept are broken"
            raise NaNImageError(f"{stage} of {backbone.name} gave NaN or infinite values, a black image: {fix}")
        array = (pixels[0] / 2 + 0.5).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
        images.append(Image.fromarray(array))
    return images


def make_scheduler(backbone: Backbone, config: SamplingConfig) -> Any:
    """A fresh scheduler (they carry state from step to step) with its timesteps set.

    Raises UserError for more steps than it has timesteps.
    """
    scheduler_class, changes = SCHEDULERS[config.scheduler]
    own: Any = backbone.scheduler
    understood = inspect.signature(scheduler_class.__init__).parameters  # it warns of others
    settings = {name: own.config[name] for name in own.config if name in understood or name.startswith("_")}
    changes = {name: value for name, value in {**LATENTS, **changes}.items() if name in understood}
    scheduler = scheduler_class.from_config(settings, **changes)
    try:
        scheduler.set_timesteps(config.steps, device=backbone.unet.device)
    except ValueError as error:
        raise UserError(f"steps {config.steps}: {config.scheduler} takes fewer ({first_line(error)})") from error
    last = own.config["num_train_timesteps"] - 1
    if scheduler.timesteps.max() > last or (config.steps > 1 and scheduler.timesteps.max() <= 1):
        raise UserError(
            f"steps {config.steps}: the timesteps of {backbone.name} go up to {last}, and scheduler {config.scheduler} "
            f"would pass them; ask for {last // 2} or fewer"
        )
    return scheduler
