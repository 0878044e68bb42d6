"""Attaching concepts to pipelines: what handles carry, what is refused, and that nothing of it stays behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from diffusers.models import UNet2DModel
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from diffusers.schedulers import DDIMScheduler
from frames import created
from torch import Tensor

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.models.conditioning.tokens import Tokens
from neti.models.methods import Method, NeTI, NeTIConfig, TextualInversion, WordVectorsConfig
from neti.models.pipelines.attach import attach
from neti.models.pipelines.handles import are_handles, from_handle_bytes, handle_bytes, to_handles
from neti.utils.errors import UserError

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_method(num_layers: int = 16, width: int = 32) -> Method:
    generator = torch.Generator().manual_seed(0)
    method = created(NeTI, NeTIConfig(), num_layers, torch.ones(width), generator)
    return method.eval()


def make_parts(backbone: Backbone) -> dict[str, Any]:
    return {
        "vae": backbone.vae,
        "text_encoder": backbone.text_encoder,
        "tokenizer": backbone.tokenizer,
        "unet": backbone.unet,
        "scheduler": backbone.scheduler,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


@pytest.fixture
def pipe(tiny_backbone: Backbone) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline(**make_parts(tiny_backbone))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, prompt: str, **options: Any) -> Tensor:
    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)} | options
    return pipe(prompt, output_type="latent", **options).images


def state_of(pipe: Any) -> dict[str, Any]:
    """All that attaching may touch: what lies on the instance, the processors (as objects) and the hooks."""
    processors = {path: id(processor) for path, processor in pipe.unet.attn_processors.items()}
    hooks = len(pipe.unet._forward_pre_hooks), len(pipe.unet._forward_hooks)
    return {"instance": set(vars(pipe)), "processors": processors, "hooks": hooks}


@pytest.mark.parametrize("dtype", DTYPES)
def test_handles_survive_what_pipelines_do_to_embeddings(dtype: torch.dtype) -> None:
    ids = torch.tensor([[49406, 0, 255, 256, 257, 49407], [49406, 65535, 12345, 1, 2, 49407]])
    slots = {f"<c{n}>": torch.zeros(2, 6, dtype=torch.bool) for n in range(255)}
    slots["<c0>"][0, 1] = slots["<c254>"][1, 2] = slots["<c254>"][1, 4] = True
    names = list(slots)
    handles = to_handles(Tokens(ids, slots), names, width=8).to(dtype)
    encodings = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)).to(dtype)

    repeated = handles.repeat(1, 2, 1).view(4, 6, 8)  # num_images_per_prompt=2, as the pipelines do it
    batch = torch.cat([encodings, repeated])
    assert are_handles(batch).tolist() == [False] * 2 + [True] * 4
    assert not are_handles(torch.full((1, 6, 8), torch.nan)).any(), "an overflown encoding is no handle"
    message = handle_bytes(batch[2:])
    assert message[0] == message[1] != message[2] == message[3]
    back = from_handle_bytes([message[0], message[2]], names)
    assert torch.equal(back.ids, ids)
    assert back.slots.keys() == slots.keys()
    assert all(torch.equal(mask, slots[name]) for name, mask in back.slots.items())


def test_detaching_leaves_no_trace(pipe: StableDiffusionPipeline) -> None:
    before, state = draw(pipe, "a photo of a teddy"), state_of(pipe)
    attached = attach(pipe, {"<toy>": make_method()})
    with_concept = draw(pipe, "a photo of a <toy>")
    assert torch.equal(draw(pipe, "a photo of a teddy"), before), "prompts without a concept are not touched"
    attached.detach()
    attached.detach()
    assert state_of(pipe) == state
    assert torch.equal(draw(pipe, "a photo of a teddy"), before)
    assert not torch.allclose(with_concept, before, atol=1e-3)
    with attach(pipe, {"<toy>": Concept(make_method(), "<other>", "teddy")}):
        assert torch.equal(draw(pipe, "a photo of a <toy>"), with_concept)
    assert state_of(pipe) == state


def test_a_failing_forward_pass_leaves_the_processors_in_place(pipe: StableDiffusionPipeline) -> None:
    draw(pipe, "a teddy")
    state = state_of(pipe)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with attach(pipe, {"<toy>": make_method()}):
        hook = pipe.unet.mid_block.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            draw(pipe, "a <toy>")
        hook.remove()
        draw(pipe, "a <toy>")
    assert state_of(pipe) == state


def test_embeddings_of_the_callers_own_pass(pipe: StableDiffusionPipeline) -> None:
    """Ordinary ones as ever, and those that the pipeline made of a prompt with a concept, too."""
    device = torch.device("cpu")
    plain, negative = pipe.encode_prompt("a photo of a teddy", device, 1, True)
    options = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 2, "output_type": "latent"}
    before = pipe(prompt_embeds=plain, negative_prompt_embeds=negative, **options).images
    with attach(pipe, {"<toy>": make_method()}):
        options["generator"] = torch.Generator().manual_seed(0)
        assert torch.equal(pipe(prompt_embeds=plain, negative_prompt_embeds=negative, **options).images, before)
        spoken, negative = pipe.encode_prompt("a photo of a <toy>", device, 1, True)
        assert spoken.shape == plain.shape and are_handles(spoken).all() and not are_handles(negative).any()
        options["generator"] = torch.Generator().manual_seed(0)
        passed_on = pipe(prompt_embeds=spoken, negative_prompt_embeds=negative, **options).images
        assert torch.equal(passed_on, draw(pipe, "a photo of a <toy>"))


def test_embeddings_made_under_another_attach_are_refused(pipe: StableDiffusionPipeline) -> None:
    """The same word may be another concept there, and the one it was would be drawn with that one's vectors."""
    with attach(pipe, {"<toy>": make_method()}):
        spoken, negative = pipe.encode_prompt("a <toy>", torch.device("cpu"), 1, True)
    given = {"prompt_embeds": spoken.half(), "negative_prompt_embeds": negative.half()}
    with attach(pipe, {"<cat>": make_method()}), pytest.raises(UserError, match="made under another attach"):
        pipe(**given, num_inference_steps=2, output_type="latent")


def test_prompts_are_encoded_where_gradients_are_on(pipe: StableDiffusionPipeline) -> None:
    """As in a notebook, where the parameters of a stock pipeline ask for gradients."""
    with attach(pipe, {"<toy>": make_method()}):
        expected = draw(pipe, "a <toy>")
        pipe.text_encoder.requires_grad_(True)
        spoken, negative = pipe.encode_prompt(["a <toy>", "a teddy"], torch.device("cpu"), 1, True)
        assert negative.requires_grad and torch.autograd.grad(spoken[1].sum(), pipe.text_encoder.parameters())
        one = {"prompt_embeds": spoken[:1].detach(), "negative_prompt_embeds": negative[:1].detach()}
        options = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 2, "output_type": "latent"}
        assert torch.equal(pipe(**one, **options).images, expected)


def test_truncation_reaches_the_concept(pipe: StableDiffusionPipeline) -> None:
    images = []
    for truncation in (None, 128, 4):
        with attach(pipe, {"<toy>": make_method()}, truncation=truncation):
            images.append(draw(pipe, "a photo of a <toy>"))
    assert torch.equal(images[0], images[1])
    assert not torch.allclose(images[0], images[2], atol=1e-4)


def test_a_changed_concept_counts_at_once(pipe: StableDiffusionPipeline) -> None:
    """With one step, the last timestep of a call is the first of the next."""
    method = created(TextualInversion, WordVectorsConfig(), 16, torch.ones(32)).eval()
    with attach(pipe, {"<toy>": method}):
        before = draw(pipe, "a <toy>", num_inference_steps=1)
        with torch.no_grad():
            method.words.copy_(torch.arange(32.0))
        assert not torch.allclose(draw(pipe, "a <toy>", num_inference_steps=1), before, atol=1e-4)


def test_what_does_not_fit_is_refused_and_changes_nothing(pipe: StableDiffusionPipeline) -> None:
    state = state_of(pipe)
    learning = make_method().train()
    for concepts, truncation, message in (
        ({"<toy>": make_method(width=16)}, None, "text width 16 and 16 layers, but the pipeline's .* has 32 and 16"),
        ({"<toy>": make_method(num_layers=8)}, None, "and 8 layers"),
        ({"<toy>": make_method(), "teddy": make_method()}, None, "already a word"),
        ({"two words": make_method()}, None, "one word"),
        ({"<toy>": learning}, None, "training mode"),
        ({"<toy>": make_method()}, 129, "must lie in 0..128"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            attach(pipe, concepts, truncation=truncation)
        assert "\n" not in str(caught.value)
        assert state_of(pipe) == state


def test_only_one_attachment_at_a_time(pipe: StableDiffusionPipeline, tiny_backbone: Backbone) -> None:
    sibling = StableDiffusionImg2ImgPipeline(**make_parts(tiny_backbone))
    with attach(pipe, {"<toy>": make_method()}):
        for other in (pipe, sibling):
            with pytest.raises(UserError, match="attached already"):
                attach(other, {"<cat>": make_method()})
    attach(sibling, {"<cat>": make_method()}).detach()


def test_other_pipelines_are_refused(tiny_backbone: Backbone, make_tiny_backbone: Any) -> None:
    unet = UNet2DModel(
        block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4
    )
    wider = make_tiny_backbone(text_width=64)
    for pipe in (
        DDIMPipeline(unet=unet, scheduler=DDIMScheduler()),
        StableDiffusionPipeline(**make_parts(tiny_backbone) | {"text_encoder": wider.text_encoder}),
    ):
        with pytest.raises(UserError, match=r"pipelines of Stable Diffusion 1\.x, 2\.x and XL"):
            attach(pipe, {"<toy>": make_method()})


def test_a_controlnet_for_another_model_is_refused(tiny_backbone: Backbone) -> None:
    controlnet = ControlNetModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=32,
        conditioning_embedding_out_channels=(4, 4),
    )
    pipe = StableDiffusionControlNetPipeline(controlnet=controlnet, **make_parts(tiny_backbone))
    with pytest.raises(UserError, match="ControlNetModel: its cross-attention layers are not those"):
        attach(pipe, {"<toy>": make_method()})
    assert "encode_prompt" not in vars(pipe)


def test_a_unet_made_for_inpainting_works(tiny_backbone: Backbone) -> None:
    """Nine input channels: the latents, the mask, and the latents of what the mask leaves."""
    unet = tiny_backbone.unet
    unet.conv_in = torch.nn.Conv2d(9, 8, kernel_size=3, padding=1)
    unet.register_to_config(in_channels=9)
    pipe = StableDiffusionInpaintPipeline(**make_parts(tiny_backbone))
    pipe.set_progress_bar_config(disable=True)
    options = {"image": torch.zeros(1, 3, 64, 64), "mask_image": torch.ones(1, 1, 64, 64), "height": 64, "width": 64}
    plain = draw(pipe, "a teddy", **options)
    with attach(pipe, {"<toy>": make_method()}):
        assert not torch.allclose(draw(pipe, "a <toy>", **options), plain, atol=1e-3)
        assert torch.equal(draw(pipe, "a teddy", **options), plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_skip": 1}, "clip_skip"),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "set_adapters"),
        ({"prompt": "a <toy> " + "teddy " * 80 + "<toy>"}, "would be cut off"),
    ],
)
def test_options_that_cannot_reach_a_concept_are_refused(
    pipe: StableDiffusionPipeline, options: dict[str, Any], message: str
) -> None:
    with attach(pipe, {"<toy>": make_method()}), pytest.raises(UserError, match=message):
        draw(pipe, options.pop("prompt", "a <toy>"), **options)


def test_an_image_prompt_adapter_is_refused_only_where_a_concept_speaks(pipe: StableDiffusionPipeline) -> None:
    with attach(pipe, {"<toy>": make_method()}):
        pipe.unet.encoder_hid_proj = torch.nn.Identity()  # as loading an IP-Adapter sets it
        draw(pipe, "a teddy")
        with pytest.raises(UserError, match="IP-Adapter"):
            draw(pipe, "a <toy>")


def test_offloading_by_model_works(pipe: StableDiffusionPipeline) -> None:
    with attach(pipe, {"<toy>": make_method()}):
        expected = draw(pipe, "a <toy>")
        pipe.enable_model_cpu_offload(device="cpu")
        fetched = []
        hook = pipe.text_encoder._hf_hook
        fetch = hook.pre_forward
        hook.pre_forward = lambda *args, **kwargs: (fetched.append(None), fetch(*args, **kwargs))[1]
        assert torch.equal(draw(pipe, "a <toy>"), expected)
        assert len(fetched) == 2 + 2, "for the stock pipeline's two calls, and before each of the two steps"


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offloading_works(pipe: StableDiffusionPipeline, kind: str, tmp_path: Path) -> None:
    """To the disk, where the memory of offloaded weights holds anything."""
    with attach(pipe, {"<toy>": make_method()}):
        expected = draw(pipe, "a <toy>")
    cpu = torch.device("cpu")
    options: Any = {"offload_type": kind, "num_blocks_per_group": 1, "offload_to_disk_path": str(tmp_path)}
    apply_group_offloading(pipe.text_encoder, onload_device=cpu, offload_device=cpu, **options)
    with attach(pipe, {"<toy>": make_method()}):
        spoiled(pipe.text_encoder)
        assert torch.equal(draw(pipe, "a <toy>"), expected)


def spoiled(encoder: torch.nn.Module) -> None:
    """What is offloaded now must be fetched before it is used."""
    for parameter in encoder.parameters():
        parameter.data.fill_(torch.nan)


@pytest.mark.parametrize("compiled", ["blocks", "whole"])
def test_a_compiled_unet_is_refused(pipe: StableDiffusionPipeline, compiled: str) -> None:
    """Before attach and after; the concept's layers would each be another graph, and there is a limit to these."""

    def compile_unet() -> None:
        if compiled == "blocks":
            pipe.unet.compile_repeated_blocks(fullgraph=True, backend="eager")
        else:
            pipe.unet.compile(backend="eager")

    with attach(pipe, {"<toy>": make_method()}):
        compile_unet()
        with pytest.raises(UserError, match="is compiled, and its graphs know no concepts"):
            draw(pipe, "a <toy>")
        draw(pipe, "a teddy")
    with pytest.raises(UserError, match="is compiled"):
        attach(pipe, {"<toy>": make_method()})


def test_a_text_encoder_without_its_weights_is_refused(pipe: StableDiffusionPipeline) -> None:
    """Sequential offloading leaves them on the "meta" device between the calls of its parts."""
    with attach(pipe, {"<toy>": make_method()}):
        spoken, _ = pipe.encode_prompt("a <toy>", torch.device("cpu"), 1, False)
        pipe.text_encoder.to("meta")
        with pytest.raises(UserError, match="sequential CPU offloading"):
            pipe.unet(torch.zeros(1, 4, 8, 8), 1, encoder_hidden_states=spoken)


def test_embeddings_loaded_by_the_pipeline_work_beside_a_concept(pipe: StableDiffusionPipeline) -> None:
    """A token of two vectors, which the pipeline spells out before it encodes, and the same two as tokens."""
    first, second = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    for vectors in ({"<style>": torch.stack([first, second])}, {"<one>": first}, {"<two>": second}):
        pipe.load_textual_inversion(vectors)
    with attach(pipe, {"<toy>": make_method()}):
        together = draw(pipe, "a <toy> in <style>")
        assert torch.equal(together, draw(pipe, "a <toy> in <one> <two>"))
        assert not torch.equal(together, draw(pipe, "a <toy> in <one>"))
