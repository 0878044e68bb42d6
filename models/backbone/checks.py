"""Which models training and sampling are made for, decided by their settings alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...utils.errors import shown

SIZES = (
    *("in_channels", "out_channels", "latent_channels", "block_out_channels", "norm_num_groups", "cross_attention_dim"),
    *("attention_head_dim", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"),
    *("max_position_embeddings", "num_train_timesteps"),
)
RANGES: dict[str, tuple[type, float, float]] = {  # settings that the libraries take as they come, and fail at later
    **dict.fromkeys(SIZES, (int, 1, 2**20)),
    **dict.fromkeys(("layers_per_block", "num_hidden_layers"), (int, 1, 100)),
    "sample_size": (int, 1, 2048),
    "scaling_factor": (float, 1e-6, 1e6),
    **dict.fromkeys(("beta_start", "beta_end"), (float, 1e-9, 1)),
}
INPUTS = {  # a U-Net's input channels -> what it wants beside the noisy latents
    5: "a depth map",
    7: "a small image to enlarge",
    8: "a picture to edit",
    9: "a mask and a masked picture, to paint inside the mask",
}
TARGETS = ("epsilon", "v_prediction")
SCHEDULES = ("FlowMatch", "EDM")  # how the names of schedulers begin whose noise is not that of Stable Diffusion
OTHER_INPUTS = {  # settings that are null in a U-Net which takes latents, a time and text
    "time_cond_proj_dim": "the guidance scale (it is distilled, as LCM)",
    "class_embed_type": "a class, a noise level or an image",
    "num_class_embeds": "a class or a noise level",
    "encoder_hid_dim_type": "another text than its encoder's, or an image",
}


def number_problem(settings: Mapping[str, Any]) -> str | None:
    """What is wrong with one of the sizes of a part, or of a list of them; None if nothing is. A size may be null."""
    for name, (kind, lowest, highest) in RANGES.items():
        value: Any = settings.get(name)
        numbers: list[Any] = value if isinstance(value, list) and value else [value]
        for number in numbers:
            is_absent = name not in settings or (number is None and kind is int)
            if not is_absent and not (type(number) in (int, kind) and lowest <= number <= highest):
                what = "a whole number" if kind is int else "a number"
                return f"{name} is {shown(value)}; it must be {what} from {lowest:g} to {highest:g}"
    return None


def input_problem(channels: int, latent_channels: int) -> str | None:
    """What is wrong with a U-Net's number of input channels; None if it takes latents alone."""
    if channels == latent_channels:
        return None
    extra = f": beside them it wants {INPUTS[channels]}" if channels in INPUTS else ""
    return (
        f"its U-Net has {channels} input channels, not the {latent_channels} of its VAE's latents{extra}; train and "
        "draw with the text-to-image model it was made from, whose concepts attach to this one's own pipeline"
    )


def settings_problem(
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    text_width: int,
    two_encoders: bool = False,
) -> str | None:
    """Why a model with these settings does not turn noise and text, and nothing else, into a square picture.

    unet, vae, scheduler: as their JSON files have them, where settings at their defaults may be left out. text_width:
    D, of all text encoders together. two_encoders: as SDXL has them. None if it does.
    """
    if problem := input_problem(unet.get("in_channels", 4), vae.get("latent_channels", 4)):
        return problem
    if (added := unet.get("addition_embed_type")) not in ((None, "text_time") if two_encoders else (None,)):
        return f"its U-Net wants more than text and time ({added}), which its text encoders do not write"
    if wanted := [what for key, what in OTHER_INPUTS.items() if unet.get(key) is not None]:
        return f"its U-Net wants {wanted[0]}; only latents, a time and text are given to it"
    if (width := unet.get("cross_attention_dim", 1280)) != text_width:
        return f"its U-Net reads text of width {width}, its text encoder writes {text_width}: parts of two models"
    size = unet.get("sample_size")
    if not isinstance(size, int) and not (isinstance(size, list) and len({*size}) == 1):
        return (
            f"its U-Net's sample_size is {size}; write the side of the square latents it was trained on into its config"
        )
    if (target := scheduler.get("prediction_type", "epsilon")) not in TARGETS:
        return f"its scheduler's prediction_type is {target!r}; {' and '.join(TARGETS)} are known"
    if (name := str(scheduler.get("_class_name"))).startswith(SCHEDULES):
        return f"its scheduler is a {name}, whose noise is not that of Stable Diffusion"
    return None
