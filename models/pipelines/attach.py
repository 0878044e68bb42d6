"""A concept inside a stock Stable Diffusion pipeline of diffusers, with another encoding at every timestep and layer.

    pipe.encode_prompt: prompts that name a concept become handles (`prompt_handles`), all others encodings as ever
    the pipeline:       repeats them, joins them with the negative prompt, batches them, and starts denoising
    U-Net, ControlNet:  before each forward pass the handles are encoded for its timestep, and every cross-attention
                        layer reads its own slice; after it the layers are the pipeline's own again

Only `encode_prompt` and the models' forward hooks are touched, so it does not matter what else a pipeline does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ...utils.errors import UserError
from ..attention.layers import cross_attention_layers
from ..attention.processor import SpaceTimeAttnProcessor
from ..concepts.concept import Concept
from ..conditioning.composition import Voice
from ..conditioning.conditioning import condition
from ..conditioning.tokens import tokenize
from .checks import check_pipeline, check_voice, refuse_image_prompts, refuse_options
from .handles import are_handles, from_handle_bytes, handle_bytes, to_handles

CHUNK_ROWS = 128  # text-encoder rows (of L per prompt) that run at once
_SPEAKING: WeakSet[nn.Module] = WeakSet()  # U-Nets and ControlNets that have concepts attached
PROMPTS = {"prompt": "prompt_embeds", "negative_prompt": "negative_prompt_embeds"}  # what encode_prompt takes and gives


def attach(pipe: Any, concepts: Mapping[str, Concept | Voice], *, truncation: int | None = None) -> Attached:
    """Let a diffusers pipeline's prompts name concepts: `attach(pipe, {"<mug>": concept})`, then `pipe("a <mug>")`.

    pipe: a pipeline of Stable Diffusion 1.x/2.x: text-to-image, image-to-image, inpainting, ControlNet, and any other
        whose `encode_prompt` takes `prompt` and `negative_prompt` and whose U-Net is a UNet2DConditionModel.
    concepts: the word in the prompts -> a concept, a method or a mixture. One prompt may name several.
    truncation: hidden units kept, of every concept (None keeps all); a mixture can give each its own.
    Detach with `.detach()`, or use it as a context manager: `with attach(...):`. Prompts that name no concept, and
    `prompt_embeds` of the caller's own, give what they give without it.
    Raises UserError for another kind of pipeline, one that has concepts already, and a concept that does not fit.
    """
    return Attached(pipe, concepts, truncation)


class Attached:
    """Concepts that speak through a pipeline, until `detach`; made by `attach`."""

    def __init__(self, pipe: Any, concepts: Mapping[str, Concept | Voice], truncation: int | None) -> None:
        controlnet = getattr(pipe, "controlnet", None)
        controlnets = getattr(controlnet, "nets", [controlnet] if controlnet is not None else [])
        self._models = list(dict.fromkeys([getattr(pipe, "unet", None), *controlnets]))
        if "encode_prompt" in vars(pipe) or any(model in _SPEAKING for model in self._models):
            raise UserError(
                f"{type(pipe).__name__}: concepts are attached already, to it or to a pipeline that shares its models; "
                "detach those first, or give all concepts to one attach"
            )
        check_pipeline(pipe)
        self.pipe = pipe
        self.truncation = truncation
        self.voices: dict[str, Voice] = {}
        layers = cross_attention_layers(pipe.unet)
        self._num_layers = len(layers)
        for placeholder, concept in concepts.items():
            voice = concept.method if isinstance(concept, Concept) else concept
            check_voice(placeholder, voice, truncation, pipe, len(layers))
            self.voices[placeholder] = voice

        paths = [layer.path for layer in layers]
        attentions = [_attentions(model, paths) for model in self._models]  # the last check; from here on things change
        self._encoded: dict[tuple[bytes, float], Tensor] = {}  # (prompt, timestep) -> packed [L*2*T, D]
        self._restore: list[Callable[[], None]] = []
        self._stock_encode_prompt = pipe.encode_prompt
        pipe.encode_prompt = self._encode_prompt
        _SPEAKING.update(self._models)
        self._hooks = [
            hook
            for model, own in zip(self._models, attentions, strict=True)
            for hook in (
                model.register_forward_pre_hook(partial(self._before_forward, own), with_kwargs=True),
                model.register_forward_hook(self._after_forward, always_call=True),
            )
        ]

    def detach(self) -> None:
        """Give the pipeline back as it was, bit by bit. Detaching again does nothing."""
        for hook in self._hooks:
            hook.remove()
        _SPEAKING.difference_update(self._models)
        if vars(self.pipe).get("encode_prompt") == self._encode_prompt:
            del self.pipe.encode_prompt  # the class's own shows again
        self._encoded = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    def _encode_prompt(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The pipeline's `encode_prompt`, with handles for the prompts that name a concept."""
        self._encoded = {}  # whatever was changed since the last call counts
        call = inspect.signature(self._stock_encode_prompt).bind(*args, **kwargs)
        given: dict[int, list[str]] = {}  # position in the result -> prompts
        for position, (name, embeddings) in enumerate(PROMPTS.items()):
            prompts = call.arguments.get(name)
            if prompts is None or call.arguments.get(embeddings) is not None:
                continue
            given[position] = [prompts] if isinstance(prompts, str) else list(prompts)
            plain = ["" if self._names_concept(prompt) else prompt for prompt in given[position]]
            call.arguments[name] = plain[0] if isinstance(prompts, str) else plain
        if any(self._names_concept(prompt) for prompts in given.values() for prompt in prompts):
            refuse_options(call.arguments)
        results = list(self._stock_encode_prompt(*call.args, **call.kwargs))
        for position, prompts in given.items():
            if results[position] is not None:  # without guidance there is no negative prompt
                results[position] = self._with_handles(results[position], prompts)
        return tuple(results)

    def _names_concept(self, prompt: str) -> bool:
        return any(placeholder in prompt for placeholder in self.voices)

    def _with_handles(self, embeddings: Tensor, prompts: list[str]) -> Tensor:
        """embeddings [rows,T,D], so many rows per prompt, with handles in the rows of those that name a concept."""
        embeddings = embeddings.clone()
        for prompt, rows in zip(prompts, embeddings.chunk(len(prompts)), strict=True):
            if self._names_concept(prompt):
                # embeddings loaded by the pipeline itself may stand for several tokens
                tokens = tokenize(
                    self.pipe.tokenizer,
                    [self.pipe.maybe_convert_prompt(prompt, self.pipe.tokenizer)],
                    list(self.voices),
                )
                rows.copy_(to_handles(tokens, list(self.voices), rows.shape[-1]))
        return embeddings

    def _before_forward(
        self, attentions: Mapping[int, Any], model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Encode the handles among `encoder_hidden_states` for this forward pass, and let the layers read them."""
        call = inspect.signature(type(model).forward).bind(model, *args, **kwargs)
        embeddings = call.arguments["encoder_hidden_states"]
        spoken = are_handles(embeddings)
        if not spoken.any():
            return None
        refuse_image_prompts(model)
        call.arguments["encoder_hidden_states"] = self._packed(embeddings, spoken, call.arguments["timestep"])
        self._restore.append(_install(attentions, self._num_layers))
        return call.args[1:], call.kwargs

    def _after_forward(self, *_: Any) -> None:
        while self._restore:
            self._restore.pop()()

    @torch.no_grad()
    def _packed(self, embeddings: Tensor, spoken: Tensor, timestep: Tensor | float) -> Tensor:
        """Embeddings [rows,T,D], those in `spoken` handles, at timestep(s) [] or [rows] -> packed [rows, L*2*T, D]."""
        times: list[float] = torch.as_tensor(timestep).flatten().expand(len(embeddings)).tolist()
        rows = spoken.nonzero().flatten().tolist()
        keys = [(told, times[row]) for told, row in zip(handle_bytes(embeddings[spoken]), rows, strict=True)]
        # what this forward pass needs is kept: for the U-Net after a ControlNet, for samplers that stay at a timestep
        kept = {key: self._encoded[key] for key in keys if key in self._encoded}
        if missing := [key for key in dict.fromkeys(keys) if key not in kept]:
            kept |= zip(missing, self._encode(missing), strict=True)
        self._encoded = kept
        packed = embeddings.repeat(1, 2 * self._num_layers, 1)  # an encoding says the same to every layer
        for row, key in zip(rows, keys, strict=True):
            packed[row] = kept[key].to(packed)
        return packed

    def _encode(self, wanted: list[tuple[bytes, float]]) -> Tensor:
        """Prompts at timesteps, in one text-encoder call: [len(wanted), L*2*T, D]."""
        tokens = from_handle_bytes([told for told, _ in wanted], list(self.voices))
        timesteps = torch.tensor([t for _, t in wanted])
        vectors = {name: self.voices[name].vectors(timesteps, self.truncation) for name in tokens.slots}
        text_encoder = self.pipe.text_encoder
        if text_encoder.device.type == "meta":
            raise UserError("sequential CPU offloading is not supported with concepts; use enable_model_cpu_offload()")
        if (offloading := getattr(text_encoder, "_hf_hook", None)) is not None:
            offloading.pre_forward(text_encoder)  # only its parts are called below, which would not fetch it
        return condition(text_encoder, tokens, vectors, self._num_layers, CHUNK_ROWS).packed()


def _install(attentions: Mapping[int, Any], num_layers: int) -> Callable[[], None]:
    """Give attention modules, by their layer's index, space-time processors; returns what puts the old ones back."""
    replaced = {index: attention.processor for index, attention in attentions.items()}
    for index, attention in attentions.items():
        attention.set_processor(SpaceTimeAttnProcessor(index, num_layers))

    def restore() -> None:
        for index, attention in attentions.items():
            attention.set_processor(replaced[index])

    return restore


def _attentions(model: nn.Module, paths: list[str]) -> dict[int, Any]:
    """Cross-attention modules of a U-Net, or of a ControlNet, by the index of the U-Net's layer at the same place.

    A ControlNet copies the U-Net's first half, down and middle, and so hears what the U-Net's own layers hear there.
    """
    own = dict(model.named_modules())
    attentions = {index: own[path] for index, path in enumerate(paths) if path in own}
    second_half = [path for path in paths if path not in own]
    if len(attentions) != sum(path.endswith(".attn2") for path in own) or not all(
        path.startswith("up_blocks") for path in second_half
    ):
        raise UserError(
            f"{type(model).__name__}: its cross-attention layers are not those of the U-Net's first half; use one made "
            "for this base model"
        )
    return attentions
