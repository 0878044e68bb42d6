"""Models as they lie on people's disks, made from the tiny backbone: old key names, one file, hub repositories."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig

from neti.models.backbone.backbone import Backbone
from neti.models.backbone.files.weights import CHECKER, STEMS, WEIGHTS

POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123456\n"
)  # what git checks out without git-lfs
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
STAGES = [  # the latent-diffusion code's names, of the U-Net and of the VAE
    (r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"^conv_in", lambda m: "input_blocks.0.0"),
    (r"^conv_norm_out", lambda m: "out.0"),
    (r"^conv_out", lambda m: "out.2"),
    (r"^down_blocks\.(\d)\.resnets\.(\d)", lambda m: f"input_blocks.{3 * int(m[1]) + int(m[2]) + 1}.0"),
    (r"^down_blocks\.(\d)\.attentions\.(\d)", lambda m: f"input_blocks.{3 * int(m[1]) + int(m[2]) + 1}.1"),
    (r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{3 * int(m[1]) + 3}.0.op"),
    (r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.0"),
    (r"^up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.1"),
    (r"^add_embedding\.linear_(\d)", lambda m: f"label_emb.0.{2 * int(m[1]) - 2}"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"^mid_block\.attentions\.0", lambda m: "middle_block.1"),
]
VAE_STAGES = [
    (r"down_blocks\.(\d)\.resnets\.(\d)", lambda m: f"down.{m[1]}.block.{m[2]}"),
    (r"down_blocks\.(\d)\.downsamplers\.0", lambda m: f"down.{m[1]}.downsample"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"mid_block\.attentions\.0", lambda m: "mid.attn_1"),
    (r"conv_norm_out", lambda m: "norm_out"),
    (r"conv_shortcut", lambda m: "nin_shortcut"),
]
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
KEYS_OF_2022 = {
    "text_encoder": "architectures attention_dropout hidden_act hidden_size initializer_factor initializer_range "
    "intermediate_size layer_norm_eps max_position_embeddings num_attention_heads num_hidden_layers vocab_size",
    "vae": "_class_name act_fn block_out_channels down_block_types in_channels latent_channels layers_per_block "
    "norm_num_groups out_channels up_block_types",
    "unet": "_class_name act_fn attention_head_dim block_out_channels center_input_sample cross_attention_dim "
    "down_block_types downsample_padding flip_sin_to_cos freq_shift in_channels layers_per_block "
    "mid_block_scale_factor norm_eps norm_num_groups out_channels up_block_types",
}
CHANGES_OF_2022 = {
    "text_encoder": {
        "_name_or_path": "openai/clip-vit-large-patch14",
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "model_type": "clip_text_model",
        "pad_token_id": 1,
        "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0",
    },
    "vae": {"_diffusers_version": "0.2.2", "sample_size": 512},
    "unet": {"_diffusers_version": "0.2.2", "sample_size": 64},
}
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
FEATURE_EXTRACTOR = {
    "crop_size": 32,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 32,
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.2.2",
    "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def one_file(backbone: Backbone, family: str = "1") -> dict[str, Tensor]:
    """All weights of a backbone under the names of the latent-diffusion code. family: "1", "2" or "xl"."""
    attends = [len(getattr(block, "attentions", ())) > 0 for block in backbone.unet.up_blocks]
    tensors = {f"model.diffusion_model.{_unet_name(name, attends)}": value for name, value in _weights(backbone.unet)}
    for name, value in _weights(backbone.vae):
        is_linear = ".attentions." in name and "norm" not in name and name.endswith("weight")
        tensors[f"first_stage_model.{_vae_name(name)}"] = value[:, :, None, None] if is_linear else value
    clip = {f"transformer.text_model.{name}": value for name, value in _weights(backbone.text_encoder)}
    if family == "xl":
        assert backbone.text_encoder_2 is not None
        second = {f"1.model.{name}": value for name, value in _open_clip(backbone.text_encoder_2).items()}
        both = {**{f"0.{name}": value for name, value in clip.items()}, **second}
        return tensors | {f"conditioner.embedders.{name}": value for name, value in both.items()}
    if family == "2":
        clip = {f"model.{name}": value for name, value in _open_clip(backbone.text_encoder).items()}
    return tensors | {f"cond_stage_model.{name}": value for name, value in clip.items()}


def make_counterfeit(folder: Path, tiny: Path, *, pickles: bool = True) -> Path:
    """Stable Diffusion v1.4 as it was published in 2022, but tiny: JSON files, names of weights, safety checker.

    tiny: a folder in today's layout, whose weights and sizes are taken. pickles: as `.bin`, else as `.safetensors`.
    """
    for part in WEIGHTS:
        safe, pickled = STEMS[part]
        config = json.loads((tiny / part / "config.json").read_text())
        kept = {key: config[key] for key in KEYS_OF_2022[part].split()}
        _write(folder / part / "config.json", kept | CHANGES_OF_2022[part])
        weights = load_file(tiny / part / f"{safe}.safetensors")
        if part == "vae":
            weights = {_old_attention(name): value for name, value in weights.items()}
        if part == "text_encoder":
            weights = {f"text_model.{name}": value for name, value in weights.items()}
            weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        _save(folder / part, weights, pickled if pickles else safe, pickles)
    shutil.copytree(tiny / "tokenizer", folder / "tokenizer")
    checker = tiny_safety_checker()
    config = checker.config.to_dict()
    _write(folder / CHECKER / "config.json", {**config, "architectures": ["StableDiffusionSafetyChecker"]})
    weights = {
        name.replace("vision_model.", "vision_model.vision_model."): value
        for name, value in checker.state_dict().items()
    }
    weights["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    _save(folder / CHECKER, weights, STEMS[CHECKER][pickles], pickles)
    _write(folder / "feature_extractor" / "preprocessor_config.json", FEATURE_EXTRACTOR)
    _write(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write(folder / "model_index.json", MODEL_INDEX)
    return folder


class Hostile:
    """In a pickle: makes a folder when it is read without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.path,)


def same_numbers(one: Backbone, other: Backbone) -> bool:
    """Whether all parts have the same weights, bit for bit."""
    parts = [*WEIGHTS, *(["text_encoder_2"] if one.text_encoder_2 is not None else [])]
    states = [(getattr(one, part).state_dict(), getattr(other, part).state_dict()) for part in parts]
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in states)


def tiny_safety_checker(threshold: float = 1.0) -> StableDiffusionSafetyChecker:
    """A random one. An image is withheld when its cosine with one of 17 concepts is above `threshold`."""
    tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=tower, vision_config=vision, projection_dim=16))
    for name in ("concept_embeds_weights", "special_care_embeds_weights"):
        torch.nn.init.constant_(checker.get_parameter(name), threshold)
    return checker


def _weights(model: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value.detach().contiguous()) for name, value in model.state_dict().items()]


def _renamed(name: str, stages: list[tuple[str, Any]]) -> str:
    for pattern, new in stages:
        name = re.sub(pattern, new, name)
    return name


def _unet_name(name: str, attends: list[bool]) -> str:
    """attends: which of the up blocks have attention, behind which their upsampler comes."""
    if found := re.match(r"up_blocks\.(\d)\.upsamplers\.0", name):
        block = int(found[1])
        return name.replace(found[0], f"output_blocks.{3 * block + 2}.{2 if attends[block] else 1}")
    new = _renamed(name, STAGES)
    if ".resnets." in name:
        for ours, theirs in RESNET.items():
            new = new.replace(f".{ours}.", f".{theirs}.")
    return new


def _vae_name(name: str) -> str:
    if ".attentions." in name:
        for ours, theirs in VAE_ATTENTION.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
    return _renamed(name, VAE_STAGES)


def _open_clip(encoder: torch.nn.Module) -> dict[str, Tensor]:
    """OpenCLIP's names. It keeps queries, keys and values in one matrix, and the projection transposed."""
    text = {name.removeprefix("text_model."): value for name, value in _weights(encoder)}
    found = {}
    for name, value in text.items():
        new = name
        for ours, theirs in OPEN_CLIP.items():
            new = new.replace(ours, theirs)
        if ".q_proj." in name:
            whole = [text[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            found[new.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(whole)
        elif name == "text_projection.weight":
            found["text_projection"] = value.T.contiguous()
        elif ".k_proj." not in name and ".v_proj." not in name:
            found[new] = value
    return found


def _old_attention(name: str) -> str:
    if ".attentions." in name:
        for new, old in OLD_ATTENTION.items():
            name = name.replace(f".{new}.", f".{old}.")
    return name


def _save(folder: Path, weights: dict[str, Tensor], stem: str, pickled: bool) -> None:
    if pickled:
        torch.save(weights, folder / f"{stem}.bin")
    else:
        save_file(weights, folder / f"{stem}.safetensors", metadata={"format": "pt"})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))
