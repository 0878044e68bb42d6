"""The pieces of a picture: noise, conditioning, the denoising loop, decoding. `draw` puts them together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from ...utils.errors import UserError, first_line
from ..attention.projection import join_projections
from ..backbone.backbone import Backbone
from ..backbone.denoiser import Denoiser
from ..conditioning.composition import AnyConcept
from ..conditioning.conditioning import Conditioning, condition, join
from ..conditioning.tokens import tokenize
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


KEPT_BYTES = 2**26  # of a prompt's conditioning


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
            raise UserError(f"scheduler {self.scheduler!r}: must be one of {', '.join(SCHEDULERS)}")
        if not 1 <= self.steps <= NUM_TIMESTEPS:
            raise UserError(f"steps {self.steps}: must lie in 1..{NUM_TIMESTEPS}")


class PromptConditioning:
    """One prompt, ready for the U-Net at every denoising step; made by `prepare_conditioning`.

    Text is encoded for a block of steps at a time, and kept for the next batch of seeds only as far as KEPT_BYTES go,
    so that memory does not grow with the number of steps.
    timesteps [K]: as the scheduler gives them. projection: of the layers, for the concepts that the prompt names.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompt: str,
        negative_prompt: str,
        concepts: Mapping[str, AnyConcept],
        timesteps: Tensor,
        truncation: int | None,
        chunk_rows: int,
        image_size: tuple[int, int],
    ) -> None:
        self.timesteps = timesteps
        with _eval_mode(concepts):  # where a method edits the attention otherwise than in training
            self.projection = join_projections([concept.projection() for concept in concepts.values()])
        self._backbone, self._concepts, self._truncation = backbone, concepts, truncation
        self._chunk_rows, self._image_size = chunk_rows, image_size
        self._zeros = backbone.zeros_for_empty_prompt and not negative_prompt
        positions = {name: concept.positions for name, concept in concepts.items()}
        self._texts = [
            tokenize(backbone.tokenizer, [text], positions, required=False) for text in (prompt, negative_prompt)
        ]
        self._block = max(chunk_rows // backbone.frame.num_places, 1)
        self._encoded: dict[int, list[Conditioning]] = {}

    @torch.no_grad()
    def at(self, step: int) -> tuple[Conditioning, Conditioning]:
        """(with the prompt, with the negative prompt) at step 0..K-1, each a batch of one."""
        block, place = divmod(step, self._block)
        if block not in self._encoded:
            made = self._encode(self.timesteps[block * self._block :][: self._block])
            size = sum(each.nbytes for each in made)
            if size * (len(self._encoded) + 1) > KEPT_BYTES:
                self._encoded = {}
            self._encoded[block] = made
        positive, negative = self._encoded[block]
        return positive.at(place), negative.at(place)

    def _encode(self, timesteps: Tensor) -> list[Conditioning]:
        with _eval_mode(self._concepts):
            vectors = {name: each.vectors(timesteps, self._truncation) for name, each in self._concepts.items()}
            text, frame = self._backbone.text, self._backbone.frame
            positive, negative = (
                condition(text, tokens, vectors, frame, self._chunk_rows, self._image_size) for tokens in self._texts
            )
        return [positive, negative.zeros() if self._zeros else negative]


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

    conditioning: one for all seeds, or S of them with one projection, so that different prompts and truncations share a
        batch.
    Both branches of classifier-free guidance run in one U-Net batch; without guidance only the conditional one runs.
    config: the one `conditioning` was prepared with. on_step(k) is called after step k. generators: see
        `step_generators`; without them a sampler that draws noise at every step is seeded with 0.
    """
    scheduler = make_scheduler(backbone, config)
    each = [conditioning] * len(latents) if isinstance(conditioning, PromptConditioning) else conditioning
    if len(each) != len(latents):
        raise ValueError(f"{len(each)} conditionings for {len(latents)} latents: give one for all, or one for each")
    if not all(torch.equal(scheduler.timesteps.cpu(), own.timesteps.cpu()) for own in each):
        raise ValueError("the conditioning was prepared for other timesteps: use the same SamplingConfig for both")
    denoiser = Denoiser(backbone, each[0].projection)
    guidance = config.guidance_scale
    options: dict[str, Any] = {"return_dict": False}
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = generators or [torch.Generator().manual_seed(0) for _ in latents]
    latents = latents.float() * scheduler.init_noise_sigma
    for k, t in enumerate(scheduler.timesteps):
        branches = [own.at(k) for own in each]
        model_input = scheduler.scale_model_input(latents, t)
        if guidance > 1:
            both = join([negative for _, negative in branches] + [positive for positive, _ in branches])
            without, with_prompt = denoiser(torch.cat([model_input, model_input]), t, both).chunk(2)
            prediction = without + guidance * (with_prompt - without)
        else:
            prediction = denoiser(model_input, t, join([positive for positive, _ in branches]))
        latents = scheduler.step(prediction, t, latents, **options)[0]
        if on_step is not None:
            on_step(k)
    return latents


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


@contextmanager
def _eval_mode(concepts: Mapping[str, AnyConcept]) -> Iterator[None]:
    """Nested dropout off while sampling, also in the middle of a training; every module gets its own mode back."""
    training = [module for each in concepts.values() for module in each.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
