"""Concepts inside stock diffusers pipelines on the miniature: the same latents as by other roads to them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from frames import created
from PIL import Image
from torch import Tensor, nn

from neti.models.attention.layers import cross_attention_layers
from neti.models.backbone.backbone import Backbone
from neti.models.backbone.frame import Frame
from neti.models.backbone.loading import model_folder
from neti.models.backbone.text import TextStack, TextTower
from neti.models.concepts.concept import Concept
from neti.models.conditioning.conditioning import Conditioning, condition
from neti.models.conditioning.tokens import tokenize
from neti.models.generation.sampling import SamplingConfig, denoise, initial_latents, prepare_conditioning
from neti.models.methods import XTI, NeTI, NeTIConfig, TextualInversion, WordVectorsConfig
from neti.models.pipelines.attach import attach

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "pipelines.md"
PROMPT, NEGATIVE = "A photo of a <toy> on a beach", "a painting"


def make_neti(seed: int) -> NeTI:
    """A concept fresh from its initialisation: far from every word, and different at every layer and timestep."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(128, generator=generator) * 0.4
    return created(NeTI, NeTIConfig(), 16, embedding, generator).eval()


def make_controlnet(unet: Any, seed: int) -> ControlNetModel:
    """A ControlNet with its zero convolutions made non-zero, so that it matters."""
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 16)).eval()
    generator = torch.Generator().manual_seed(seed)
    zero = [controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block, controlnet.controlnet_cond_embedding]
    for parameter in (parameter for part in zero for parameter in part.parameters()):
        nn.init.normal_(parameter, std=0.05, generator=generator)
    return controlnet


@pytest.fixture(scope="module")
def concept() -> NeTI:
    return make_neti(1)


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    pipe = StableDiffusionPipeline.from_pretrained(model_folder("miniature"), dtype=torch.float32)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    return {**pipe.components, "requires_safety_checker": False}


@pytest.fixture(scope="module")
def text2img(parts: dict[str, Any]) -> StableDiffusionPipeline:
    return quiet(StableDiffusionPipeline(**parts))


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    pixels = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(5)).mul(255).byte().numpy()
    return Image.fromarray(pixels)


@pytest.fixture(params=["text2img", "img2img", "inpaint", "controlnet", "controlnets"])
def pipeline(request: pytest.FixtureRequest, parts: dict[str, Any], photo: Image.Image) -> tuple[Any, dict[str, Any]]:
    """A pipeline, and what it needs beside the prompt."""
    mask = Image.fromarray((np.indices((64, 64))[0] > 20).astype(np.uint8) * 255)
    if request.param == "text2img":
        return quiet(StableDiffusionPipeline(**parts)), {}
    if request.param == "img2img":
        return quiet(StableDiffusionImg2ImgPipeline(**parts)), {"image": photo, "strength": 0.7}
    if request.param == "inpaint":
        return quiet(StableDiffusionInpaintPipeline(**parts)), {"image": photo, "mask_image": mask, "strength": 0.9}
    if request.param == "controlnet":
        controlnet: Any = make_controlnet(parts["unet"], 3)
        return quiet(StableDiffusionControlNetPipeline(controlnet=controlnet, **parts)), {"image": photo}
    two = [make_controlnet(parts["unet"], seed) for seed in (3, 4)]
    pipe = StableDiffusionControlNetPipeline(controlnet=two, **parts)
    return quiet(pipe), {"image": [photo, photo.rotate(90)], "controlnet_conditioning_scale": [1.0, 0.5]}


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, prompt: Any = None, **options: Any) -> Tensor:
    options = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(0)} | options
    return pipe(prompt, output_type="latent", **options).images


def models_of(pipe: Any) -> list[Any]:
    controlnet = getattr(pipe, "controlnet", None)
    return [pipe.unet, *(getattr(controlnet, "nets", [controlnet]) if controlnet is not None else [])]


@contextmanager
def spoken_by_hand(pipe: Any, concept: NeTI, prompt: str) -> Iterator[None]:
    """The stock pipeline, called with any prompt, where every key and value projection of the U-Net and the ControlNets
    is given `prompt`'s encoding for its layer and timestep by a hook: what an attached concept must equal."""
    tokens = tokenize(pipe.tokenizer, [prompt], ["<toy>"])
    text = TextStack((TextTower(pipe.tokenizer, pipe.text_encoder),))
    frame = Frame(cross_attention_layers(pipe.unet), text.widths, pipe.tokenizer.model_max_length)
    now: dict[str, Conditioning] = {}
    hooks = []

    def before_model(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        vectors = concept.vectors(timestep.reshape(1))
        now["spoken"] = condition(text, tokens, {"<toy>": vectors}, frame)

    def before_projection(which: str, layer: int) -> Callable[..., Any]:
        def feed(_: nn.Module, args: Any) -> tuple[Tensor]:
            context = args[0].clone()  # negative rows, then those of the prompt
            context[len(context) // 2 :] = getattr(now["spoken"], which)[layer]
            return (context,)

        return feed

    for model in models_of(pipe):
        hooks.append(model.register_forward_pre_hook(before_model, with_kwargs=True))
        for layer in cross_attention_layers(pipe.unet):
            if layer.path in dict(model.named_modules()):
                attention = model.get_submodule(layer.path)
                hooks.append(attention.to_k.register_forward_pre_hook(before_projection("keys", layer.index)))
                hooks.append(attention.to_v.register_forward_pre_hook(before_projection("values", layer.index)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def test_every_pipeline_lets_the_concept_speak_and_is_given_back(pipeline: Any, concept: NeTI) -> None:
    pipe, options = pipeline
    options = {"negative_prompt": NEGATIVE, "num_images_per_prompt": 2} | options
    before = draw(pipe, "A photo of a bird", **options)
    with spoken_by_hand(pipe, concept, PROMPT):
        expected = draw(pipe, "any prompt", **options)
    processors = [dict(model.attn_processors) for model in models_of(pipe)]
    attributes = set(vars(pipe))

    with attach(pipe, {"<toy>": concept}):
        spoken = draw(pipe, PROMPT, **options)
        assert torch.equal(draw(pipe, "A photo of a bird", **options), before)
    torch.testing.assert_close(spoken, expected, atol=1e-4, rtol=0)
    assert (spoken - before).abs().max() > 0.05

    assert torch.equal(draw(pipe, "A photo of a bird", **options), before)
    assert set(vars(pipe)) == attributes
    for model, own in zip(models_of(pipe), processors, strict=True):
        assert all(model.attn_processors[path] is processor for path, processor in own.items())
        assert not model._forward_pre_hooks and not model._forward_hooks


def test_a_controlnet_hears_the_concept_too(parts: dict[str, Any], concept: NeTI, photo: Image.Image) -> None:
    """Beside a ControlNet that heard nothing of it (an empty prompt) the image would be another one."""
    pipe = quiet(StableDiffusionControlNetPipeline(controlnet=make_controlnet(parts["unet"], 3), **parts))
    with attach(pipe, {"<toy>": concept}):
        spoken = draw(pipe, PROMPT, image=photo)
        guessed = draw(pipe, PROMPT, image=photo, guess_mode=True)
        empty, _ = pipe.encode_prompt("", torch.device("cpu"), 1, False)

        def deafen(_: nn.Module, args: Any, kwargs: Any) -> Any:
            kwargs["encoder_hidden_states"] = empty.expand_as(kwargs["encoder_hidden_states"])
            return args, kwargs

        hook = pipe.controlnet.register_forward_pre_hook(deafen, with_kwargs=True, prepend=True)
        assert (draw(pipe, PROMPT, image=photo) - spoken).abs().max() > 1e-3
        hook.remove()
    assert torch.isfinite(guessed).all() and not torch.allclose(guessed, spoken, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "scheduler"), [("dpmsolver++", DPMSolverMultistepScheduler), ("euler", EulerDiscreteScheduler)]
)
@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_text_to_image_equals_our_own_sampler(parts: dict[str, Any], name: str, scheduler: Any, guidance_scale: float):
    backbone = Backbone.from_pretrained("miniature")
    config = SamplingConfig(steps=6, guidance_scale=guidance_scale, scheduler=name)
    concepts = {"<toy>": make_neti(1), "<cat>": make_neti(2)}
    prompt, noise = "A painting of a <toy> next to a <cat> and a <toy>", initial_latents(backbone, [3], config)
    conditioning = prepare_conditioning(backbone, prompt, concepts, config, truncation=64, negative_prompt=NEGATIVE)
    ours = denoise(backbone, conditioning, noise, config)

    pipe = quiet(StableDiffusionPipeline(**parts | {"scheduler": scheduler.from_config(parts["scheduler"].config)}))
    options = {"negative_prompt": NEGATIVE, "num_inference_steps": 6, "guidance_scale": guidance_scale}
    with attach(pipe, concepts, truncation=64):
        stock = draw(pipe, prompt, latents=noise.clone(), **options)
    torch.testing.assert_close(stock, ours, atol=1e-4, rtol=0)


def test_lists_of_prompts_are_what_the_prompts_are_alone(text2img: Any, concept: NeTI) -> None:
    prompts = [PROMPT, "A photo of a bird", "<toy>", PROMPT]
    negatives = ["", "a <toy>", NEGATIVE, "a <toy>"]
    noise = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with attach(text2img, {"<toy>": concept}):
        together = draw(text2img, prompts, negative_prompt=negatives, num_images_per_prompt=2, latents=noise)
        for i, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True)):
            alone = draw(text2img, prompt, negative_prompt=negative, latents=noise[2 * i : 2 * i + 1])
            torch.testing.assert_close(together[2 * i : 2 * i + 1], alone, atol=1e-4, rtol=0)


def test_a_concept_in_the_negative_prompt_speaks_there(text2img: Any, concept: NeTI) -> None:
    """The same on both sides cancels the guidance."""
    with attach(text2img, {"<toy>": concept}):
        cancelled = draw(text2img, PROMPT, negative_prompt=PROMPT)
        torch.testing.assert_close(cancelled, draw(text2img, PROMPT, guidance_scale=1.0), atol=1e-4, rtol=0)


def test_one_text_encoder_call_per_timestep(parts: dict[str, Any], concept: NeTI, photo: Image.Image) -> None:
    """However many prompts, and for the U-Net and its ControlNet together; also where a sampler stays at a timestep."""
    scheduler = HeunDiscreteScheduler.from_config(parts["scheduler"].config)
    controlnet = make_controlnet(parts["unet"], 3)
    pipe = quiet(StableDiffusionControlNetPipeline(controlnet=controlnet, **parts | {"scheduler": scheduler}))
    rows: list[int] = []
    text_encoder = parts["text_encoder"].encoder
    hook = text_encoder.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    with attach(pipe, {"<toy>": concept}):
        draw(pipe, [PROMPT, "a <toy>", PROMPT], image=[photo] * 3)
    hook.remove()
    stock, ours = rows[:2], rows[2:]
    assert stock == [3, 3]
    assert ours == [2 * 16] * 3, "two different prompts at 16 layers, for each of three timesteps"


def test_callbacks_may_cut_the_embeddings(text2img: Any, concept: NeTI) -> None:
    """Guidance switched off half-way by a callback, as diffusers' manual has it."""

    def stop_guidance(pipe: Any, step: int, _: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == 0:
            pipe._guidance_scale = 1.0
            given["prompt_embeds"] = given["prompt_embeds"].chunk(2)[1]
        return given

    options = {"callback_on_step_end": stop_guidance, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with spoken_by_hand(text2img, concept, PROMPT):
        full = draw(text2img, "any prompt")
    with attach(text2img, {"<toy>": concept}):
        assert torch.isfinite(cut := draw(text2img, PROMPT, **options)).all()
        torch.testing.assert_close(draw(text2img, PROMPT), full, atol=1e-4, rtol=0)
    assert not torch.allclose(cut, full, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_the_same_picture(text2img: Any, concept: NeTI, dtype: torch.dtype) -> None:
    half = StableDiffusionPipeline.from_pretrained(model_folder("miniature"), dtype=dtype)
    half.scheduler = DPMSolverMultistepScheduler.from_config(half.scheduler.config)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    images = []
    for pipe, latents in ((text2img, noise), (quiet(half), noise.to(dtype))):
        with attach(pipe, {"<toy>": concept}):
            images.append(draw(pipe, PROMPT, latents=latents, guidance_scale=2.0).float())
    rounding = 0.1 if dtype == torch.bfloat16 else 0.02
    assert (images[1] - images[0]).norm() / images[0].norm() < rounding


def test_methods_without_time_or_bypass_speak_too(text2img: Any) -> None:
    backbone, config = Backbone.from_pretrained("miniature"), SamplingConfig(steps=3)
    method = created(XTI, WordVectorsConfig(), 16, torch.zeros(128)).eval()
    with torch.no_grad():
        method.words.normal_(generator=torch.Generator().manual_seed(0), std=0.1)
    noise = initial_latents(backbone, [0], config)
    ours = denoise(backbone, prepare_conditioning(backbone, PROMPT, {"<toy>": method}, config), noise, config)
    with attach(text2img, {"<toy>": Concept(method, "<x>", "bird")}):
        torch.testing.assert_close(draw(text2img, PROMPT, latents=noise.clone()), ours, atol=1e-4, rtol=0)


def test_an_export_loads_in_the_stock_pipeline(parts: dict[str, Any], tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("concept_script", ROOT / "scripts" / "concept.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    source, embedding = tmp_path / "toy.safetensors", tmp_path / "learned_embeds.safetensors"
    method = make_neti(1)
    Concept(method, "<toy>", "bird", {"base_model": "miniature"}).save(source)
    assert script.main(["export", "--timestep", "700", str(source), str(embedding)]) == 0

    mean = created(
        TextualInversion, WordVectorsConfig(), 16, method.vectors(torch.tensor([700])).words.mean(dim=0)[0].detach()
    )
    pipe = quiet(StableDiffusionPipeline.from_pretrained(model_folder("miniature"), dtype=torch.float32))
    with attach(pipe, {"<toy>": mean.eval()}):
        expected = draw(pipe, PROMPT)
    pipe.load_textual_inversion(str(embedding))
    torch.testing.assert_close(draw(pipe, PROMPT), expected, atol=1e-4, rtol=0)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of docs/pipelines.md, one after the other, with fewer steps than a person would take."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 5
    code, shortened = re.subn(r"num_inference_steps=\d+", "num_inference_steps=3", "\n".join(blocks))
    assert shortened >= 4
    concept = Path("outputs/demo/concept-steps-300.safetensors")
    assert str(concept) in code
    monkeypatch.chdir(tmp_path)
    concept.parent.mkdir(parents=True)
    Concept(make_neti(1), "<concept>", "bird", {"base_model": "miniature"}).save(concept)
    exec(compile(code, str(PAGE), "exec"), {})
    images = {path.name for path in tmp_path.glob("*.png")}
    assert {f'"{name}"' in code for name in images} == {True} and len(images) >= 4
