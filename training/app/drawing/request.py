"""What a person asks for on the page, as the configuration of scripts/inference.py, which checks all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....models.concepts.files import ConceptFiles, without_paths
from ....models.conditioning.prompts import SLOT, Prompt
from ....models.generation.config import InferenceConfig
from ....models.generation.recipes import read_recipe
from ....models.methods.elite.files import BUNDLED
from ....utils.config.parsing import parse_config
from ....utils.errors import UserError
from ..config import AppConfig
from .controls import TRUNCATION, Controls
from .library import Library


@dataclass(frozen=True)
class Request:
    """Images of one prompt. concept: its name in the library, for `{}`; others stand in the prompt as `{name}`.

    truncation None: all units. settings: of the concept's method, by name, as far as they are moved. compare: the
    control that stands side by side at several values. mixtures: as in scripts/inference.py, with names of the library.
    beside: further prompts, each a row of its own.
    """

    prompt: str
    concept: str | None = None
    negative_prompt: str = ""
    seeds: str = "0-3"
    truncation: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    compare: str | None = None
    steps: int = 25
    guidance_scale: float = 7.5
    scheduler: str = "dpmsolver++"
    mixtures: Mapping[str, Any] = field(default_factory=dict)
    beside: tuple[str, ...] = ()

    @property
    def prompts(self) -> tuple[str, ...]:
        return (self.prompt, *self.beside)


def inference_config(
    request: Request, app: AppConfig, library: Library, controls: Controls | None, folder: Path
) -> tuple[InferenceConfig, dict[str, ConceptFiles]]:
    """The configuration, and the files of the concepts by name. UserError, one line, for whatever is wrong with it."""
    written = [name for prompt in request.prompts for name in Prompt.parse(prompt).names]
    named = [name for name in written if name != SLOT and name not in request.mixtures]
    named += [rule["concept"] for rules in request.mixtures.values() for rule in rules]
    entries = {name: library[name] for name in dict.fromkeys(named)}
    if request.concept is not None and SLOT in request.prompt:
        entries[SLOT] = library[request.concept]
    elif SLOT in request.prompt:
        raise UserError("choose a concept for the {} in the prompt, or name one as {name}")
    elif not named:
        raise UserError("write {} in the prompt where the concept belongs, or {name} for another")
    files = {name: entry.files for name, entry in entries.items()}
    truncations, settings = [request.truncation], {name: [value] for name, value in request.settings.items()}
    if request.compare and controls is not None:
        steps = controls.steps(request.compare)
        if request.compare == TRUNCATION:
            truncations = steps
        else:
            settings[request.compare] = steps
    options: dict[str, Any] = {
        "prompts": list(request.prompts),
        "seeds": request.seeds,
        "num_denoising_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "scheduler": request.scheduler,
        "inference_dir": str(folder),
        "torch_dtype": app.torch_dtype.value,
        "device": app.device,
        "truncation_idxs": truncations,
    }
    if SLOT in files:
        main = files[SLOT]
        key = "concept" if main.embeds is None else "mapper_checkpoint_path"
        options |= {key: str(main.concept)} | ({"learned_embeds_path": str(main.embeds)} if main.embeds else {})
    if named:
        options["concepts"] = {name: str(files[name].concept) for name in named}
    options |= {key: value for key, value in (("settings", settings), ("mixtures", request.mixtures)) if value}
    trained_on = {entry.header.base_model for entry in entries.values() if entry.header is not None}
    if app.base_model and trained_on == {without_paths(app.base_model)}:  # a file keeps no local path
        options["pretrained_model_name_or_path"] = app.base_model
    options |= {"encoder": app.encoder} if app.encoder not in BUNDLED else {}
    options |= {"negative_prompt": request.negative_prompt} if request.negative_prompt.strip() else {}
    words = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]
    config = parse_config(InferenceConfig, words)
    count = len(request.prompts) * len(config.seeds) * len(config.truncations) * len(config.variants)
    if count > app.max_images:
        raise UserError(f"these are {count} images; ask for at most {app.max_images} at once")
    return config, files


def restored(path: Path, library: Library) -> list[Any]:
    """The request that a downloaded image came from, then what the page's fields say of it: concept, prompt, seeds,
    negative prompt, steps, guidance and sampler. UserError if it carries none, or its concept is not here."""
    try:
        recipe = read_recipe(path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), path.name)) from None
    if recipe is None:
        raise UserError(f"{path.name} carries no recipe; take a PNG that was downloaded here, not a screenshot")
    for name, content in (recipe.concepts or {}).items():
        if not isinstance(content, str) or library.with_hash(content).name != name:
            raise UserError(f"{path.name} shows {{{name}}}, a mixture, or a concept that has another name here")
    concept = library.with_hash(recipe.concept).name if recipe.concept else None
    seeds, settings = str(recipe.seed), recipe.settings or {}
    how = recipe.steps, recipe.guidance_scale, recipe.scheduler
    request = Request(recipe.prompt, concept, recipe.negative_prompt, seeds, recipe.truncation, settings, None, *how)
    return [request, concept, recipe.prompt, seeds, recipe.negative_prompt, *how]
