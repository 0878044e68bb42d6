"""Which models text-to-image training and sampling are made for, decided by their settings alone."""

from __future__ import annotations

from typing import Any

from ...utils.errors import UserError

INPUTS = {  # a U-Net's input channels -> what it wants beside the noisy latents
    5: "a depth map",
    7: "a small image to enlarge",
    8: "a picture to edit",
    9: "a mask and a masked picture (inpainting)",
}
TARGETS = ("epsilon", "v_prediction")


def check_text_to_image(name: str, unet: Any, vae: Any, scheduler: Any, text_width: int) -> None:
    """Raise UserError unless a model with these settings turns noise and text, and nothing else, into a picture.

    unet, vae, scheduler: the parts' configs. text_width: D, of all text encoders together.
    """
    if problem := _problem(unet, vae, scheduler, text_width):
        raise UserError(
            f"model {name!r}: {problem}; take a text-to-image model, such as the one that it was made from (its "
            "concepts attach to this model's own pipeline)"
        )


def input_problem(channels: int, latent_channels: int) -> str | None:
    """What is wrong with a U-Net's number of input channels; None if it takes latents alone."""
    if channels == latent_channels:
        return None
    extra = f": beside them it wants {INPUTS[channels]}" if channels in INPUTS else ""
    return f"its U-Net has {channels} input channels, not the {latent_channels} of its VAE's latents{extra}"


def _problem(unet: Any, vae: Any, scheduler: Any, text_width: int) -> str | None:
    if problem := input_problem(unet["in_channels"], vae["latent_channels"]):
        return problem
    if unet["cross_attention_dim"] != text_width:
        return f"its U-Net reads text of width {unet['cross_attention_dim']}, and its text encoder writes {text_width}"
    if scheduler["prediction_type"] not in TARGETS:
        return f"its scheduler's prediction_type is {scheduler['prediction_type']!r}, not one of {', '.join(TARGETS)}"
    if unet["time_cond_proj_dim"] is not None:
        return "its U-Net is distilled to take the guidance scale as an input (time_cond_proj_dim, as in LCM)"
    if unet["class_embed_type"] is not None or unet["num_class_embeds"] is not None:
        return "its U-Net wants a class, a noise level or an image beside the text (class_embed_type)"
    if unet["addition_embed_type"] is not None:
        return f"its U-Net wants more than text and time (addition_embed_type {unet['addition_embed_type']!r})"
    if unet["encoder_hid_dim_type"] is not None:
        return f"its U-Net's text is not that of its encoder (encoder_hid_dim_type {unet['encoder_hid_dim_type']!r})"
    return None
