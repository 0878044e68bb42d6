"""A concept inside a stock Stable Diffusion pipeline of diffusers, with another encoding at every timestep and layer.

    pipe.encode_prompt: prompts that name a concept become handles (`handles`), all others encodings as ever
    the pipeline:       repeats them, joins them with the negative prompt, batches them, and starts denoising
    U-Net, ControlNet:  before each forward pass the handles are encoded for its timestep, and every cross-attention
                        layer reads its own place of a packed conditioning; an ordinary encoding it reads as ever

Only `encode_prompt`, the models' forward hooks and the cross-attention processors are touched, so it does not matter
what else a pipeline does.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from ...utils.errors import UserError
from ..attention.layers import Layer, cross_attention_layers
from ..attention.packing import packed_rows
from ..attention.processor import PlacedAttnProcessor
from ..backbone.frame import Frame
from ..backbone.text import text_stack
from ..concepts.concept import Concept
from ..conditioning.composition import AnyConcept
from ..conditioning.conditioning import Conditioning, condition
from ..conditioning.prompts import placeholder_pattern
from ..conditioning.tokens import tokenize
from .checks import check_concept, check_pipeline, refuse_compiled, refuse_image_prompts, refuse_options
from .edits import NamedEdits
from .handles import BASE, are_handles, from_handle_bytes, handle_bytes, owner_of, to_handles
from .offloading import fetched

CHUNK_ROWS = 128  # text-encoder rows (of L per prompt) that run at once
_ATTACHED: WeakSet[nn.Module] = WeakSet()  # U-Nets and ControlNets that have concepts
_NUMBERS = itertools.cycle(range(BASE**2))  # of attachments
PROMPTS = {"prompt": "prompt_embeds", "negative_prompt": "negative_prompt_embeds"}  # what encode_prompt takes and gives


def attach(pipe: Any, concepts: Mapping[str, Concept | AnyConcept], *, truncation: int | None = None) -> Attached:
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


class _Encoded(NamedTuple):
    """A prompt at a timestep: packed [R,D], and of SDXL the pooled text."""

    packed: Tensor
    pooled: Tensor | None


class Attached:
    """Concepts that speak through a pipeline, until `detach`; made by `attach`."""

    def __init__(self, pipe: Any, concepts: Mapping[str, Concept | AnyConcept], truncation: int | None) -> None:
        controlnet = getattr(pipe, "controlnet", None)
        controlnets = getattr(controlnet, "nets", [controlnet] if controlnet is not None else [])
        self._models = list(dict.fromkeys([getattr(pipe, "unet", None), *controlnets]))
        if "encode_prompt" in vars(pipe) or any(model in _ATTACHED for model in self._models):
            raise UserError(
                f"{type(pipe).__name__}: concepts are attached already, to it or to a pipeline that shares its models; "
                "detach those first, or give all concepts to one attach"
            )
        check_pipeline(pipe)
        refuse_compiled(self._models)
        self.pipe = pipe
        self._number = next(_NUMBERS)
        self.truncation = truncation
        self.concepts: dict[str, AnyConcept] = {}
        layers = cross_attention_layers(pipe.unet)
        second = (getattr(pipe, "tokenizer_2", None), getattr(pipe, "text_encoder_2", None))
        self._text = text_stack(pipe.tokenizer, pipe.text_encoder, *second)
        self._frame = Frame(layers, self._text.widths, pipe.tokenizer.model_max_length)
        for placeholder, concept in concepts.items():
            method = concept.method if isinstance(concept, Concept) else concept
            check_concept(placeholder, method, truncation, pipe, self._frame)
            self.concepts[placeholder] = method
        self._projection = NamedEdits(self.concepts)

        attentions = [_attentions(model, layers) for model in self._models]  # the last check; then things change
        self._encoded: dict[tuple[bytes, float], _Encoded] = {}  # by prompt and timestep
        self._replaced: list[tuple[Any, Any]] = []  # attention module, its own processor
        for layer, attention in (pair for own in attentions for pair in own):
            self._replaced.append((attention, attention.processor))
            attention.set_processor(PlacedAttnProcessor(layer, self._frame, self._projection, attention.processor))
        self._stock_encode_prompt = pipe.encode_prompt
        pipe.encode_prompt = self._encode_prompt
        _ATTACHED.update(self._models)
        self._hooks = [
            model.register_forward_pre_hook(partial(self._before_forward, own), with_kwargs=True)
            for model, own in zip(self._models, attentions, strict=True)
        ]

    def detach(self) -> None:
        """Give the pipeline back as it was, bit by bit. Detaching again does nothing."""
        for hook in self._hooks:
            hook.remove()
        for attention, processor in self._replaced:
            if isinstance(attention.processor, PlacedAttnProcessor):  # not where somebody has set another one since
                attention.set_processor(processor)
        _ATTACHED.difference_update(self._models)
        if vars(self.pipe).get("encode_prompt") == self._encode_prompt:
            del self.pipe.encode_prompt  # the class's own shows again
        self._hooks, self._replaced, self._encoded = [], [], {}

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
            refuse_compiled(self._models)
            self._projection.check_same([self._named(prompt) for prompt in given.get(0, [])])
        self._refuse_second_prompts(call.arguments)
        results = list(self._stock_encode_prompt(*call.args, **call.kwargs))
        for position, prompts in given.items():
            if results[position] is not None:  # without guidance there is no negative prompt
                results[position] = self._with_handles(results[position], prompts)
        return tuple(results)

    def _refuse_second_prompts(self, arguments: Mapping[str, Any]) -> None:
        """SDXL can give its second text encoder another prompt; a concept stands in both, or in neither."""
        for name in ("prompt_2", "negative_prompt_2"):
            second = arguments.get(name)
            for prompt in [second] if isinstance(second, str) else second or []:
                if self._names_concept(prompt):
                    raise UserError(
                        f"{name} names a concept; write it into {name[:-2]} alone, which is for both encoders"
                    )

    def _named(self, prompt: str) -> list[str]:
        return [name for name in self.concepts if re.search(placeholder_pattern(name), prompt)]

    def _names_concept(self, prompt: str) -> bool:
        return bool(self._named(prompt))

    def _with_handles(self, embeddings: Tensor, prompts: list[str]) -> Tensor:
        """embeddings [rows,T,D], so many rows per prompt, with handles in the rows of those that name a concept."""
        parts = list(embeddings.chunk(len(prompts)))
        for number, prompt in enumerate(prompts):
            if self._names_concept(prompt):
                # embeddings loaded by the pipeline itself may stand for several tokens
                tokens = tokenize(
                    self.pipe.tokenizer,
                    [self.pipe.maybe_convert_prompt(prompt, self.pipe.tokenizer)],
                    {name: concept.positions for name, concept in self.concepts.items()},
                )
                handles = to_handles(tokens, list(self.concepts), embeddings.shape[-1], self._number)
                parts[number] = handles.to(embeddings).expand_as(parts[number])
        return torch.cat(parts)

    def _before_forward(
        self, own: list[tuple[Layer, Any]], model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Encode the handles among `encoder_hidden_states` for this forward pass."""
        call = inspect.signature(type(model).forward).bind(model, *args, **kwargs)
        embeddings = call.arguments["encoder_hidden_states"]
        present = are_handles(embeddings)
        if not present.any():
            return None
        refuse_image_prompts(model)
        if not all(isinstance(attention.processor, PlacedAttnProcessor) for _, attention in own):
            raise UserError(
                f"{type(model).__name__}: its attention processors were replaced after attach; set them first, then "
                "attach"
            )
        packed, pooled = self._packed(embeddings, present, call.arguments["timestep"])
        call.arguments["encoder_hidden_states"] = packed
        if pooled:
            added = dict(call.arguments["added_cond_kwargs"])
            texts = added["text_embeds"] = added["text_embeds"].clone()
            for row, text in pooled.items():
                texts[row] = text.to(texts)
            call.arguments["added_cond_kwargs"] = added
        return call.args[1:], call.kwargs

    @torch.no_grad()
    def _packed(
        self, embeddings: Tensor, present: Tensor, timestep: Tensor | float
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Embeddings [rows,T,D], those in `present` handles, at timestep(s) [] or [rows] -> packed [rows,R,D].

        And, for SDXL, the pooled texts of the rows that are handles.
        """
        times: list[float] = torch.as_tensor(timestep).flatten().expand(len(embeddings)).tolist()
        rows = present.nonzero().flatten().tolist()
        keys = [(prompt, times[row]) for prompt, row in zip(handle_bytes(embeddings[present]), rows, strict=True)]
        if any(owner_of(prompt) != self._number for prompt, _ in keys):
            raise UserError(
                "prompt_embeds: made under another attach, where the same word may be another concept; call "
                "encode_prompt again under this one"
            )
        # what this forward pass needs is kept: for the U-Net after a ControlNet, for samplers that stay at a timestep
        kept = {key: self._encoded[key] for key in keys if key in self._encoded}
        if missing := [key for key in dict.fromkeys(keys) if key not in kept]:
            kept |= zip(missing, self._encode(missing), strict=True)
        self._encoded = kept
        slots = from_handle_bytes([prompt for prompt, _ in keys], list(self.concepts)).slots
        self._projection.choose([name for name, slot in slots.items() if slot.any()])
        everywhere = embeddings.expand(self._frame.num_places, -1, -1, -1)  # an encoding is the same for every place
        packed = self._repack(Conditioning(everywhere, everywhere))
        for row, key in zip(rows, keys, strict=True):
            packed[row] = kept[key].packed.to(packed)
        pooled = {row: kept[key].pooled for row, key in zip(rows, keys, strict=True)}
        return packed, {row: own for row, own in pooled.items() if own is not None}

    def _encode(self, wanted: list[tuple[bytes, float]]) -> list[_Encoded]:
        """Prompts at timesteps, in one text-encoder call."""
        tokens = from_handle_bytes([prompt for prompt, _ in wanted], list(self.concepts))
        timesteps = torch.tensor([t for _, t in wanted])
        vectors = {
            name: self.concepts[name].vectors(timesteps, self.truncation)
            for name, slot in tokens.slots.items()
            if slot.any()
        }
        encoders = [tower.encoder for tower in self._text.towers]
        with fetched(encoders):
            # the pipeline itself tells the U-Net of sizes
            made = condition(self._text, tokens, vectors, self._frame, CHUNK_ROWS, image_size=(0, 0))
        pooled = made.added.get("text_embeds", [None] * len(wanted))
        return [_Encoded(*row) for row in zip(self._repack(made), pooled, strict=True)]

    def _repack(self, conditioning: Conditioning) -> Tensor:
        """Packed, with as many rows of image features as the projection wants, zeros where there are none."""
        packed = conditioning.packed()
        missing = packed_rows(self._frame, self._projection.image_tokens) - packed.shape[1]
        return F.pad(packed, (0, 0, 0, missing))


def _attentions(model: nn.Module, layers: Sequence[Layer]) -> list[tuple[Layer, Any]]:
    """Cross-attention modules of a U-Net, or of a ControlNet, with the U-Net's layer at the same place.

    A ControlNet copies the U-Net's first half, down and middle, and so hears what the U-Net's own layers hear there.
    """
    own = dict(model.named_modules())
    attentions = [(layer, own[layer.path]) for layer in layers if layer.path in own]
    second_half = [layer.path for layer in layers if layer.path not in own]
    if len(attentions) != sum(path.endswith(".attn2") for path in own) or not all(
        path.startswith("up_blocks") for path in second_half
    ):
        raise UserError(
            f"{type(model).__name__}: its cross-attention layers are not those of the U-Net's first half; use one made "
            "for this base model"
        )
    return attentions
