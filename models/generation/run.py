"""What `scripts/inference.py` does with its config: plan, check, generate, write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from ...utils.devices import pick_device
from ...utils.errors import UserError
from ..backbone.backbone import Backbone
from ..backbone.loading import check_text_to_image
from ..backbone.safety import SafetyChecker, has_safety_checker
from ..concepts.files import ConceptFiles
from ..conditioning.composition import concepts_in, require_concept
from ..conditioning.prompts import SLOT, Prompt
from ..conditioning.tokens import tokenize
from .config import InferenceConfig
from .draw import Drawn, draw, named, sampling_config
from .gallery import Gallery
from .named_concepts import NamedConcepts
from .recipes import ImageRecipe, made_with
from .sampling import SamplingConfig

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class InferenceRun:
    """One set of images. Making the object checks all that can be checked without the base model's weights.

    recipes: prompt -> all its images, truncation by truncation; missing: the same, without the finished ones.
    columns: for style mixing, prompt with `{}` -> column label -> the prompt of that column.
    Raises UserError for a device that is not there, a concept file that cannot be loaded, a prompt that names none or
    an unknown concept, a truncation a concept does not have, a mixture that does not work, an unknown scheduler, a base
    model that cannot be found, a safety checker it does not have, and images of another recipe in the way.
    """

    def __init__(self, config: InferenceConfig, files: Mapping[str, ConceptFiles], prompts: Sequence[str]) -> None:
        """files: name -> the concept's files, `{}` for the one without a name; empty for a plain word."""
        self.config = config
        self.device = pick_device(config.device)
        self.concepts = NamedConcepts(config, files)
        self.base_model = self.concepts.base_model
        self.assumed = check_text_to_image(self.base_model, config.revision)
        self.has_checker = has_safety_checker(self.base_model, config.revision)
        self.use_checker = self.has_checker if config.safety_checker is None else config.safety_checker
        if self.use_checker and not self.has_checker:
            raise UserError(
                f"safety_checker = true, but the base model {self.base_model} has none; pass --safety_checker false"
            )

        self.columns = {prompt: _columns(config, prompt) for prompt in prompts if _is_mixed(config, prompt)}
        written = [column for prompt in prompts for column in self.columns.get(prompt, {"": prompt}).values()]
        iteration = files[SLOT].iteration if SLOT in files else None
        self.gallery = Gallery(replace(config, iteration=iteration).output_dir)
        self.recipes = self._recipes(list(dict.fromkeys(written)))
        missing = self.gallery.unfinished([recipe for recipes in self.recipes.values() for recipe in recipes])
        self.missing = {prompt: [r for r in missing if r.prompt == prompt] for prompt in self.recipes}

    @property
    def source(self) -> str:
        """Where what stands in the prompts comes from, in words."""
        if self.config.word is not None:
            return f"the word {self.config.word!r}, no concept"
        return ", ".join(
            f"concept {self._placeholder if name == SLOT else f'{{{name}}}'} from "
            f"{(name == SLOT and self.config.image) or files.concept}"
            for name, files in self.concepts.files.items()
        )

    @property
    def notes(self) -> list[str]:
        """What the user should know before the images are made, in words."""
        notes = [*self.assumed]
        if not self.has_checker:
            notes.append("the base model has no safety checker; the images are not checked")
        if self.device.type == "cpu" and self.config.torch_dtype == "fp16":
            notes.append("fp16 is slow on a CPU; pass --torch_dtype fp32")
        rules = [rule for rules in (self.config.mixtures or {}).values() for rule in rules]
        units = [*self.config.truncations, *(rule.truncation for rule in rules)]
        units += [slot.units for recipes in self.recipes.values() for slot in recipes[0].parsed.slots]
        for name, concept in self.concepts.concepts.items():
            if any(kept is not None for kept in units) and not concept.method.is_ordered:
                notes.append(
                    f"{concept.placeholder if name == SLOT else name} was trained without nested dropout: its hidden "
                    "units have no order, and a truncation keeps any of them, not the most important"
                )
        return notes

    @property
    def num_images(self) -> int:
        """How many images were asked for."""
        return sum(map(len, self.recipes.values()))

    @property
    def num_missing(self) -> int:
        """How many of them are not there yet."""
        return sum(map(len, self.missing.values()))

    @property
    def folders(self) -> list[Path]:
        """Where to look: a folder per prompt, and for style mixing the one that holds the grid of its columns."""
        inside = {column for columns in self.columns.values() for column in columns.values()}
        shown = [*self.columns, *(prompt for prompt in self.recipes if prompt not in inside)]
        return [self.gallery.folder(prompt) for prompt in shown]

    def images(self, on_step: Callable[[int], object] | None = None) -> Iterator[Drawn]:
        """Make the missing images, write and yield each, and bring every grid up to date.

        on_step(n): called after every denoising step, n images having made it.
        """
        self.gallery.require_writable()
        making = self._make(on_step)
        for prompt, recipes in self.recipes.items():
            yield from islice(making, len(self.missing[prompt]))
            self.gallery.write_grids(recipes)
        for prompt, columns in self.columns.items():
            shown = {label: self.recipes[column] for label, column in columns.items()}
            self.gallery.write_columns("style_mixing", prompt, shown)

    def _make(self, on_step: Callable[[int], object] | None) -> Iterator[Drawn]:
        """Make, write and yield what is missing, all prompts in one go, so that prompts of few seeds share a batch."""
        backbone, checker = self._load()
        for made in draw(
            backbone,
            [recipe for recipes in self.recipes.values() for recipe in recipes],
            self.concepts.by_name,
            batch_size=self.config.batch_size,
            safety_checker=checker,
            on_step=on_step,
            wanted=[recipe for recipes in self.missing.values() for recipe in recipes],
        ):
            withheld = {"withheld_by": "safety checker"} if made.withheld else {}
            about = made_with(self.concepts.paths(_names(made.recipe)), str(self.device))
            self.gallery.add(made.image, made.recipe, {**withheld, "made_with": about})
            yield made

    def _recipes(self, prompts: Sequence[str]) -> dict[str, list[ImageRecipe]]:
        config = self.config
        common = ImageRecipe(
            prompt="",
            negative_prompt=config.negative_prompt,
            seed=0,
            truncation=None,
            steps=config.num_denoising_steps,
            guidance_scale=config.guidance_scale,
            scheduler=SamplingConfig(scheduler=config.scheduler).scheduler,
            height=config.height,
            width=config.width,
            base_model=self.base_model,
            base_revision=config.revision,
            concept="",
            placeholder="",
            torch_dtype=config.torch_dtype.value,
            safety_checker=self.use_checker,
            word=config.word,
        )
        sampling_config(common)
        recipes, problems = {}, []
        for prompt in prompts:
            try:
                shared = self._of_prompt(replace(common, prompt=prompt))
            except UserError as error:
                problems.append(str(error))
                continue
            recipes[prompt] = [
                replace(shared, truncation=truncation, settings=settings, seed=seed)
                for settings in config.variants
                for truncation in dict.fromkeys(config.truncations)
                for seed in dict.fromkeys(config.seeds)
            ]
        if problems:
            raise UserError("\n".join(dict.fromkeys(problems)))
        return recipes

    def _of_prompt(self, recipe: ImageRecipe) -> ImageRecipe:
        """The recipe with what its prompt names, after checking that all of it is there."""
        if recipe.word is not None:
            wanted = Prompt.parse(recipe.prompt).names
            if wanted != (SLOT,):
                others = [name for name in wanted if name != SLOT]
                wrong = f"names {{{others[0]}}}" if others else f"has no {SLOT}"
                raise UserError(f"the prompt {recipe.prompt!r} {wrong}; the word {recipe.word!r} stands for {SLOT}")
            concepts_in(recipe.parsed_negative, {})
            return recipe
        if SLOT in self.concepts.files:
            recipe = replace(recipe, placeholder=self._placeholder)
        require_concept(recipe.parsed, self.concepts.by_name)
        for settings in self.config.variants:
            for concept in named(replace(recipe, settings=settings), self.concepts.by_name).values():
                concept.projection()
        present = named(recipe, self.concepts.by_name)
        for truncation in self.config.truncations:
            for concept in present.values():
                concept.check_truncation(truncation)
        if SLOT not in _names(recipe):
            recipe = replace(recipe, placeholder="")
        else:
            recipe = replace(recipe, concept=self.concepts.descriptions[SLOT])
        return replace(recipe, concepts=self.concepts.described(_names(recipe)))

    @property
    def _placeholder(self) -> str:
        return self.concepts.concepts[SLOT].placeholder

    def _load(self) -> tuple[Backbone, SafetyChecker | None]:
        """The base model, and the last checks: that the concepts fit it and the prompts are not too long for it."""
        dtype, revision = DTYPES[self.config.torch_dtype.value], self.config.revision
        backbone = Backbone.from_pretrained(self.base_model, revision=revision, dtype=dtype, device=self.device)
        self.concepts.check_fit(backbone)
        for recipes in self.recipes.values():
            recipe = recipes[0]
            positions = {text: each.positions for text, each in named(recipe, self.concepts.by_name).items()}
            prompts = [recipe.parsed.text, recipe.parsed_negative.text]
            tokenize(backbone.tokenizer, prompts, positions, required=False)
        checker = None
        if self.use_checker:
            checker = SafetyChecker.from_pretrained(self.base_model, revision=revision, dtype=dtype, device=self.device)
        return backbone, checker


def _names(recipe: ImageRecipe) -> list[str]:
    """Of the concepts in the recipe's two prompts."""
    return list(dict.fromkeys([*recipe.parsed.names, *recipe.parsed_negative.names]))


def _is_mixed(config: InferenceConfig, prompt: str) -> bool:
    return config.style_mixing.wanted and SLOT in prompt


def _columns(config: InferenceConfig, prompt: str) -> dict[str, str]:
    """Style mixing's columns of a prompt with `{}`: label -> the prompt that fills it."""
    style = config.style_mixing
    fillings = {f"geometry: {style.geometry}": style.geometry, f"appearance: {style.appearance}": style.appearance}
    fillings |= {f"mixing from t = {start}": name for start, name in style.names.items()}
    return {label: prompt.replace(SLOT, f"{{{name}}}") for label, name in fillings.items()}
