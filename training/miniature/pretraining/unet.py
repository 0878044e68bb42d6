"""The miniature's U-Net: SD 1.x topology (16 cross-attention layers) on cached latents, with the text tower fine-tuned.

The text tower starts as CLIP A's, contrastively trained, and goes on learning at a lower rate beside the U-Net; after
pretraining both are frozen for good.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.schedulers import PNDMScheduler
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from . import loop
from .clip import Captions, tokenise
from .config import NORM_GROUPS, UNetConfig

SCHEDULER = {  # as Stable Diffusion 1.4 has it: what diffusers saves itself lacks clip_sample and adds a spacing
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.42.1",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def scheduler() -> PNDMScheduler:
    """Stable Diffusion 1.4's noise schedule."""
    return PNDMScheduler.from_config(SCHEDULER)


def build(config: UNetConfig, latent_size: int, text_width: int) -> UNet2DConditionModel:
    """UNet2DConditionModel with SD 1.x's blocks: three with cross-attention and one without, each way, and a middle."""
    torch.manual_seed(config.seed)
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=config.channels,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=text_width,
        attention_head_dim=config.heads,  # diffusers' old name: the number of heads per level
        norm_num_groups=NORM_GROUPS,
    )


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    """CLIP A's text tower as a CLIPTextModel of its own, with A's weights."""
    config: Any = clip.config.text_config
    config._attn_implementation = "eager"  # as in clip.build: fast in bf16 on a CPU
    tower = CLIPTextModel(config)
    own = tower.state_dict()
    source = clip.text_model.state_dict()
    tower.load_state_dict({name: source[name.removeprefix("text_model.")] for name in own})
    return tower


class Pair(nn.Module):
    """U-Net and text tower as one module: what is trained together, averaged together and shared by processes."""

    def __init__(self, unet: UNet2DConditionModel, text: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text = unet, text

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        """Noisy latents [B,4,h,w], timesteps [B] and token ids [B,T] to the predicted noise [B,4,h,w]."""
        return self.unet(noisy, timesteps, self.text(ids).last_hidden_state).sample


def train(
    config: UNetConfig,
    moments: Tensor,
    scaling: float,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    captions: Captions,
    part: loop.Slice,
    device: torch.device = loop.CPU,
) -> tuple[UNet2DConditionModel, CLIPTextModel] | None:
    """Denoising on moments [count,2,4,h,w]; averaged models, None when the slice ended first.

    The plain loss falls by two orders of magnitude from little noise to much, where what kind of thing is in the
    picture is decided. ``noise_emphasis`` 0.5 brings all noise levels to about the same loss.
    """
    pair = Pair(unet, text).train().to(device)
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # plain products: the fused kernel is slower in a bf16 backward pass
    groups = [
        {"params": list(unet.parameters()), "lr": config.learning_rate},
        {"params": list(text.parameters()), "lr": config.text_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    alphas = scheduler().alphas_cumprod
    weights = ((1 - alphas) / alphas) ** config.noise_emphasis
    weights /= weights.mean()
    own = loop.own_share(config.batch)
    predict = loop.shared(pair)

    def loss(step: int) -> dict[str, Tensor]:
        random = loop.generator(config.seed, step)
        chosen = torch.randint(len(moments), (config.batch,), generator=random).sort().values
        mean, logvar = moments[chosen].float().unbind(1)
        latents = (mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=random)) * scaling
        noise = torch.randn(mean.shape, generator=random)
        timesteps = torch.randint(1000, (config.batch,), generator=random)
        dropped = torch.rand(config.batch, generator=random) < config.caption_dropout
        words = captions(chosen[own].numpy(), step)
        ids = tokenise(
            tokenizer, ["" if drop else text for drop, text in zip(dropped[own].tolist(), words, strict=True)]
        )
        level = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = (level.sqrt() * latents + (1 - level).sqrt() * noise)[own]
        noise, timesteps = noise[own], timesteps[own]
        with torch.autocast(device.type, torch.bfloat16):
            output = predict(noisy.to(device, memory_format=torch.channels_last), timesteps.to(device), ids.to(device))
        error = F.mse_loss(output.float(), noise.to(device), reduction="none").mean((1, 2, 3))
        return {"loss": (weights[timesteps].to(device) * error).mean(), "mse": error.detach().mean()}

    trained: Any = loop.run(part, pair, optimizer, config.steps, loss, ema=config.ema)
    return None if trained is None else (trained.unet.cpu(), trained.text.cpu())
