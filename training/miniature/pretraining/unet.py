"""The miniature's U-Net: SD 1.x topology (16 cross-attention layers) on cached latents, with the text tower fine-tuned.

The text tower starts as CLIP A's, contrastively trained, and goes on learning at a lower rate beside the U-Net; after
pretraining both are frozen for good.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import PNDMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from ....utils.config.parsing import Config
from . import loop, parallel
from .clip import Captions, tokenise


@dataclass(frozen=True)
class UNetConfig(Config):
    """Widths and heads of the four levels, how long to train, and on which kinds of things (empty: all of the world's).

    Fewer kinds, learned well, are worth more than many blobs: a small network that a CPU trains draws some, not all.
    """

    categories: tuple[str, ...] = ()
    channels: tuple[int, ...] = (32, 64, 128, 128)
    heads: tuple[int, ...] = (1, 2, 4, 4)
    steps: int = 6000
    batch: int = 32
    learning_rate: float = 1e-3
    text_learning_rate: float = 3e-4
    caption_dropout: float = 0.1
    # A sample's loss weighs snr ** -noise_emphasis: 0 is the plain loss, 1 the error of the image instead of the noise
    noise_emphasis: float = 0.5
    ema: float = 0.9995
    seed: int = 31


def scheduler() -> PNDMScheduler:
    """Stable Diffusion 1.4's noise schedule, in the form its own scheduler config has."""
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )


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
        norm_num_groups=16,
    )


class MatmulAttention:
    """Attention as two matrix products: PyTorch's fused CPU kernel is ten times slower in a bf16 backward pass."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        batch, tokens, width = hidden_states.shape
        split = (batch, -1, attn.heads, width // attn.heads)
        query, key, value = (
            projection(x).view(split).transpose(1, 2)  # [B, heads, tokens, width per head]
            for projection, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        weights = ((query * attn.scale) @ key.transpose(-1, -2)).softmax(-1).to(value.dtype)
        return attn.to_out[0]((weights @ value).transpose(1, 2).reshape(batch, tokens, width))


class Float32GroupNorm(nn.GroupNorm):
    """GroupNorm in float32: PyTorch's bf16 CPU kernel is ten times slower than its float32 one."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps)


def for_cpu_training(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Swap in the parts that train fast in bf16 on a CPU; same parameters, same function."""
    unet.set_attn_processor(MatmulAttention())
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm):
            module.__class__ = Float32GroupNorm
    return unet


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    """CLIP A's text tower as a CLIPTextModel of its own, with A's weights."""
    config: Any = clip.config.text_config
    config._attn_implementation = "eager"  # as in clip.build: fast in bf16 on a CPU
    tower = CLIPTextModel(config)
    own = tower.state_dict()
    source = clip.text_model.state_dict()
    tower.load_state_dict({name: source[name.removeprefix("text_model.")] for name in own})
    return tower


def train(
    config: UNetConfig,
    moments: Tensor,
    scaling: float,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    captions: Captions,
    part: loop.Slice,
    device: str = "cpu",
) -> tuple[UNet2DConditionModel, CLIPTextModel] | None:
    """Denoising on moments [count,2,4,h,w]; averaged models, None when the slice ended first.

    The plain loss falls by two orders of magnitude from little noise to much, where what kind of thing is in the
    picture is decided. ``noise_emphasis`` 0.5 brings all noise levels to about the same loss.
    """
    tower: Any = text.train()
    tower.to(device)
    unet = unet.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device == "cpu":
        for_cpu_training(unet)
    groups: list[dict[str, Any]] = [
        {"params": list(unet.parameters()), "peak": config.learning_rate},
        {"params": list(text.parameters()), "peak": config.text_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    averages = {"unet_ema": loop.EMA(unet, config.ema), "text_ema": loop.EMA(text, config.ema)}
    alphas = scheduler().alphas_cumprod
    weights = ((1 - alphas) / alphas) ** config.noise_emphasis
    weights /= weights.mean()
    own = parallel.own_share(config.batch)

    def step(number: int) -> dict[str, float]:
        random = loop.generator(config.seed, number)
        chosen = torch.randint(len(moments), (config.batch,), generator=random).sort().values
        mean, logvar = moments[chosen].float().unbind(1)
        latents = (mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=random)) * scaling
        noise = torch.randn(mean.shape, generator=random)
        timesteps = torch.randint(1000, (config.batch,), generator=random)
        dropped = torch.rand(config.batch, generator=random) < config.caption_dropout
        words = captions(chosen[own].numpy(), number)
        ids = tokenise(
            tokenizer, ["" if drop else text for drop, text in zip(dropped[own].tolist(), words, strict=True)]
        )
        level = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = (level.sqrt() * latents + (1 - level).sqrt() * noise)[own]
        noise, timesteps = noise[own], timesteps[own]
        for group in optimizer.param_groups:
            group["lr"] = loop.learning_rate(number, config.steps, group["peak"])
        with torch.autocast(device, torch.bfloat16):
            states = text(ids.to(device)).last_hidden_state
            output = unet(noisy.to(device, memory_format=torch.channels_last), timesteps.to(device), states).sample
        error = F.mse_loss(output.float(), noise.to(device), reduction="none").mean((1, 2, 3))
        loss = (weights[timesteps].to(device) * error).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(optimizer)
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        for average in averages.values():
            average.update(number)
        return {"loss": loss.item(), "mse": error.mean().item()}

    if not loop.run(part, {"unet": unet, "text": text, "optimizer": optimizer, **averages}, config.steps, step):
        return None
    finished = build(config, moments.shape[-1], text.config.hidden_size)
    finished.load_state_dict(averages["unet_ema"].state_dict())
    text.load_state_dict(averages["text_ema"].state_dict())
    return finished.eval(), text.cpu().eval()
