"""Stable Diffusion XL on a tiny random model: against the stock pipelines, and every method trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.controlnet.pipeline_controlnet_sd_xl import StableDiffusionXLControlNetPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint import (
    StableDiffusionXLInpaintPipeline,
)
from diffusers.schedulers import DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file
from tiny_xl import WIDTHS, build_tiny_xl, parts_of
from torch import Tensor

from neti.models.backbone.backbone import Backbone
from neti.models.backbone.memory import estimate_memory
from neti.models.concepts.concept import Concept
from neti.models.concepts.embeddings import save_embedding
from neti.models.conditioning.prompts import OBJECT_TEMPLATES, SLOT
from neti.models.conditioning.tokens import tokenize
from neti.models.generation.draw import draw
from neti.models.generation.recipes import ImageRecipe
from neti.models.generation.sampling import SamplingConfig, decode, denoise, initial_latents, prepare_conditioning
from neti.models.methods import METHODS, Method, NeTI, NeTIConfig, Perfusion, Start
from neti.models.methods.perfusion.config import PerfusionOptions
from neti.models.methods.perfusion.second_moments import Captions, measure
from neti.models.pipelines.attach import attach
from neti.training.coach.objective import Batch, Objective
from neti.utils.errors import UserError

CONFIG = SamplingConfig(steps=4, guidance_scale=5.0)
PROMPT = "a photo of a {}"


@pytest.fixture
def xl() -> Backbone:
    return build_tiny_xl()


def create(name: str, backbone: Backbone, folder: Path | None = None) -> Method:
    """folder: for the covariance that Perfusion wants of both text encoders together."""
    method_class = METHODS[name]
    config: Any = method_class.config_class()
    if name == "perfusion":
        assert folder is not None
        captions = folder / "captions.txt"
        captions.write_text("\n".join(t.format(word) for t in OBJECT_TEMPLATES for word in ("cat", "red car", "teddy")))
        covariance = measure(backbone.text, "xl", Captions(captions), folder / "partial", ridge=1e-3)
        covariance.save(folder / "covariance.safetensors")
        config = PerfusionOptions(covariance=str(folder / "covariance.safetensors"))
    start = Start(backbone.word_embedding("teddy"), torch.Generator().manual_seed(0), "teddy", backbone)
    return method_class.create(config, backbone.frame, start)


def stock(pipeline_class: Any, backbone: Backbone, **more: Any) -> Any:
    pipe = pipeline_class(**parts_of(backbone), force_zeros_for_empty_prompt=True, **more)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_layers_share_places(xl: Backbone) -> None:
    frame = xl.frame
    assert (len(frame.layers), frame.num_places, frame.text_widths) == (28, 11, WIDTHS)
    assert frame.place_names == tuple(
        ["IN04", "IN05", "IN07", "IN08", "MID", "OUT00", "OUT01", "OUT02", "OUT03", "OUT04", "OUT05"]
    )


@pytest.mark.parametrize("negative", ["", "a painting"])
def test_plain_prompts_equal_the_stock_pipeline(xl: Backbone, negative: str) -> None:
    latents = initial_latents(xl, [3, 4], CONFIG)
    expected = stock(StableDiffusionXLPipeline, xl)(
        ["a photo of a teddy"] * 2,
        negative_prompt=[negative] * 2 if negative else None,
        num_inference_steps=CONFIG.steps,
        guidance_scale=CONFIG.guidance_scale,
        latents=latents.clone(),
        height=64,
        width=64,
        output_type="latent",
    ).images
    conditioning = prepare_conditioning(xl, "a photo of a teddy", {}, CONFIG, negative_prompt=negative)
    torch.testing.assert_close(denoise(xl, conditioning, latents, CONFIG), expected, rtol=1e-4, atol=1e-4)


def test_the_mapper_gives_each_tower_its_own_norm(xl: Backbone) -> None:
    method = create("neti", xl).eval()
    assert isinstance(method, NeTI)
    vectors = method.vectors(torch.tensor([5, 700]))
    assert vectors.words.shape == (11, 2, sum(WIDTHS))
    assert vectors.bypass is not None
    word = xl.word_embedding("teddy").split(list(WIDTHS))
    for own, bypass, target in zip(
        vectors.words.split(list(WIDTHS), -1), vectors.bypass.split(list(WIDTHS), -1), word, strict=True
    ):
        norms = torch.cat([own, bypass], dim=-1).norm(dim=-1)
        torch.testing.assert_close(norms, target.norm().expand_as(norms))


@pytest.mark.parametrize("name", ["neti", "xti", "textual_inversion", "perfusion"])
def test_every_method_learns_and_its_concept_is_drawn(xl: Backbone, name: str, tmp_path: Path) -> None:
    method = create(name, xl, tmp_path)
    objective = Objective(method, xl).train()
    generator = torch.Generator().manual_seed(1)
    batch = Batch(
        latents=torch.randn(2, 4, 8, 8, generator=generator),
        noise=torch.randn(2, 4, 8, 8, generator=generator),
        timesteps=torch.tensor([10, 900]),
        tokens=tokenize(xl.tokenizer, [PROMPT, "{} on a {}"], [SLOT]),
        generators=[torch.Generator().manual_seed(i) for i in range(2)],
    )
    objective(batch).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    Concept(method.eval(), "<toy>", "teddy").save(tmp_path / "concept.safetensors")
    loaded = Concept.load(tmp_path / "concept.safetensors", backbone=xl).method
    images = [
        next(iter(draw(xl, [ImageRecipe(PROMPT, seed=1, steps=2)], {SLOT: each}))).image for each in (method, loaded)
    ]
    assert images[0].size == (64, 64) and images[0].tobytes() == images[1].tobytes()


def test_perfusion_edits_every_projection_by_the_joined_encodings(xl: Backbone, tmp_path: Path) -> None:
    """70 keys and 70 values on SDXL; one key i* of the width of both encoders, compared by the C of both together."""
    method = create("perfusion", xl, tmp_path)
    assert isinstance(method, Perfusion) and method.covariance is not None
    assert method.key.shape == (sum(WIDTHS),) and method.covariance.matrix.shape == (sum(WIDTHS),) * 2
    assert method.value_targets.numel() == sum(layer.width for layer in xl.frame.layers)
    layer, attention = xl.frame.layers[17], cast(Any, xl.unet.get_submodule(xl.frame.layers[17].path))
    text, inverse = torch.randn(1, 3, sum(WIDTHS)), method.covariance.inverse
    key, value = method.eval().projection().project(attention, layer, text, text, torch.ones(1, 3, dtype=torch.long))
    similarity = text @ inverse @ method.key / (method.key @ inverse @ method.key)
    gate = torch.sigmoid((similarity - method.beta) / method.tau)
    for weight, result in ((attention.to_k.weight, key), (attention.to_v.weight, value)):
        # a new concept's targets o* are W i*
        expected = text @ weight.T + (gate - similarity)[..., None] * (weight @ method.key)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_the_pooled_text_takes_part_and_time_counts(xl: Backbone) -> None:
    """The concept's word changes it, differently at different timesteps, and the U-Net reads it."""
    conditioning = prepare_conditioning(xl, PROMPT, {SLOT: create("neti", xl).eval()}, CONFIG)
    first, last = conditioning.at(0)[0].added["text_embeds"], conditioning.at(3)[0].added["text_embeds"]
    plain = prepare_conditioning(xl, "a photo of a teddy", {}, CONFIG).at(0)[0].added["text_embeds"]
    assert not torch.allclose(first, last, atol=1e-5) and not torch.allclose(first, plain, atol=1e-5)


def test_a_concept_of_another_family_is_refused(xl: Backbone, tiny_backbone: Backbone, tmp_path: Path) -> None:
    Concept(create("xti", xl).eval(), "<toy>", "teddy").save(tmp_path / "xl.safetensors")
    with pytest.raises(UserError, match="text width 80 and 11 layers, but tiny has 32 and 16"):
        Concept.load(tmp_path / "xl.safetensors", backbone=tiny_backbone)
    with pytest.raises(ValueError, match="target_norm"):
        NeTI(NeTIConfig(target_norm=1.0), xl.frame)


PIPELINES: dict[str, tuple[Any, dict[str, Any]]] = {
    "text2img": (StableDiffusionXLPipeline, {}),
    "img2img": (StableDiffusionXLImg2ImgPipeline, {"strength": 0.8}),
    "inpaint": (StableDiffusionXLInpaintPipeline, {"strength": 0.9}),
    "controlnet": (StableDiffusionXLControlNetPipeline, {}),
}


def run(pipe: Any, prompt: str, name: str, backbone: Backbone, **options: Any) -> Tensor:
    photo = Image.new("RGB", (64, 64), (200, 60, 30))
    own = dict(PIPELINES[name][1])
    if name != "text2img":
        own["image"] = photo
    if name == "inpaint":
        own["mask_image"] = Image.new("L", (64, 64), 255)
    if name != "img2img":
        own |= {"height": 64, "width": 64}
    return pipe(
        prompt,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
        **own,
        **options,
    ).images


@pytest.mark.parametrize("name", PIPELINES)
def test_concepts_attach_to_every_pipeline(xl: Backbone, name: str) -> None:
    pipeline_class, _ = PIPELINES[name]
    more = {"controlnet": ControlNetModel.from_unet(xl.unet)} if name == "controlnet" else {}
    pipe = stock(pipeline_class, xl, **more)
    before = run(pipe, "a photo of a teddy", name, xl)
    with attach(pipe, {"<toy>": create("neti", xl).eval()}):
        assert torch.equal(run(pipe, "a photo of a teddy", name, xl), before)
        toy = run(pipe, "a photo of a <toy>", name, xl)
        with pytest.raises(UserError, match="prompt_2 names a concept"):
            run(pipe, "a teddy", name, xl, prompt_2="a <toy>")
    assert toy.isfinite().all() and (toy - before).abs().max() > 1e-3
    assert torch.equal(run(pipe, "a photo of a teddy", name, xl), before)


@pytest.mark.parametrize("name", ["neti", "perfusion"])
def test_attached_text_to_image_equals_our_own_sampler(xl: Backbone, name: str, tmp_path: Path) -> None:
    method = create(name, xl, tmp_path).eval()
    pipe = stock(StableDiffusionXLPipeline, xl)
    latents = initial_latents(xl, [3], CONFIG)
    with attach(pipe, {"<toy>": method}):
        theirs = pipe(
            "a photo of a <toy>",
            num_inference_steps=CONFIG.steps,
            guidance_scale=CONFIG.guidance_scale,
            latents=latents.clone(),
            height=64,
            width=64,
            output_type="latent",
        ).images
    ours = denoise(xl, prepare_conditioning(xl, PROMPT, {SLOT: method}, CONFIG), latents, CONFIG)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_stock_diffusers_reads_an_exported_embedding(xl: Backbone, tmp_path: Path) -> None:
    """One tensor for each of its text encoders, as its manual loads them."""
    method = create("textual_inversion", xl).eval()
    with torch.no_grad():
        method.get_parameter("words").normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    save_embedding(Concept(method, "<toy>", "teddy"), tmp_path / "toy.safetensors")
    tensors, pipe = load_file(tmp_path / "toy.safetensors"), stock(StableDiffusionXLPipeline, xl)
    with attach(pipe, {"<toy>": method}):
        ours = run(pipe, "a photo of a <toy>", "text2img", xl)
    for name, end in (("clip_l", ""), ("clip_g", "_2")):
        parts = {part: getattr(pipe, part + end) for part in ("text_encoder", "tokenizer")}
        pipe.load_textual_inversion(tensors[name], token="<toy>", **parts)
    torch.testing.assert_close(ours, run(pipe, "a photo of a <toy>", "text2img", xl), rtol=1e-4, atol=1e-4)


def test_a_folder_is_loaded_with_both_encoders(xl: Backbone, tmp_path: Path) -> None:
    stock(StableDiffusionXLPipeline, xl).save_pretrained(tmp_path / "xl")
    loaded = Backbone.from_pretrained(str(tmp_path / "xl"))
    assert loaded.frame == xl.frame and loaded.zeros_for_empty_prompt
    sketch = Backbone.from_pretrained(str(tmp_path / "xl"), components=())
    assert sketch.frame == xl.frame
    latents = initial_latents(xl, [3], CONFIG)
    ours, theirs = (denoise(b, prepare_conditioning(b, "a teddy", {}, CONFIG), latents, CONFIG) for b in (xl, loaded))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("upcast", [True, False])
def test_the_vae_is_safe_in_half_precision(xl: Backbone, tmp_path: Path, upcast: bool) -> None:
    """XL's own gives numbers beyond 65504, the largest of float16; there are others made for it."""
    xl.vae.register_to_config(force_upcast=upcast)
    xl.vae.decoder.conv_in.weight.mul_(3e4 if upcast else 1)
    stock(StableDiffusionXLPipeline, xl).save_pretrained(tmp_path / "xl")
    half = Backbone.from_pretrained(str(tmp_path / "xl"), dtype=torch.float16)
    assert (half.unet.dtype, half.vae.dtype) == (torch.float16, torch.float32 if upcast else torch.float16)
    latents = 10 * initial_latents(xl, [3], CONFIG)
    with torch.no_grad():
        assert half.vae.half().decode(latents.half() * 10).sample.isfinite().all() != upcast
    half = Backbone.from_pretrained(str(tmp_path / "xl"), dtype=torch.float16)
    ours, whole = (np.asarray(decode(each, latents)[0], dtype=float) for each in (half, xl))
    assert abs(ours - whole).mean() < 3


def test_the_memory_of_a_step_is_estimated(xl: Backbone) -> None:
    """With both encoders frozen, and one text row per place, not per layer."""
    estimate = estimate_memory(
        xl, trained=10, text_rows=11, dtype=torch.float32, batch_size=1, latent_side=8, gradient_checkpointing=False
    )
    parts = [xl.unet, xl.text_encoder, xl.text_encoder_2]
    assert estimate.frozen == 4 * sum(p.numel() for part in parts if part is not None for p in part.parameters())
    assert estimate.activations > 0
