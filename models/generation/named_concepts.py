"""From a config to the voices its prompts may name: concepts, mixtures, and the columns of style mixing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...utils.errors import UserError
from ..attention.layers import CrossAttentionLayer, cross_attention_layers
from ..backbone.backbone import Backbone
from ..concepts.concept import Concept
from ..concepts.files import ConceptFiles
from ..conditioning.composition import Mixture, Rule, Voice, parse_layers, style_mixture
from ..conditioning.prompts import slots
from .config import InferenceConfig
from .recipes import content_hash


class Voices:
    """The voices of one run by name, that of `{}` under "". Making the object reads the concepts, but no base model.

    base_model: the one given, else the one that all concepts were trained on. descriptions: what a recipe says about
    each voice: the content hash of a concept, the rules of a mixture. Without files (a plain word) there are no voices.
    Raises UserError for files that cannot be loaded, no base model or several, and mixtures that do not work.
    """

    def __init__(self, config: InferenceConfig, files: Mapping[str, ConceptFiles]) -> None:
        self.files = files
        self.concepts = _load(files)
        self.by_name: dict[str, Voice] = {name: concept.method for name, concept in self.concepts.items()}
        self.base_model = config.pretrained_model_name_or_path or _common_base_model(self.concepts, files)
        self.descriptions: dict[str, Any] = {name: content_hash(found.paths) for name, found in files.items()}
        self._parts = {name: [name] for name in files}
        if config.mixtures or config.style_mixing.wanted:
            self._mix(config)

    def described(self, prompt: str) -> dict[str, Any] | None:
        """Name -> what a recipe says about the voice, for every `{name}` of the prompt; None if there is none."""
        return {slot.name: self.descriptions[slot.name] for slot in slots(prompt) if slot.name} or None

    def paths(self, prompt: str) -> list[Path]:
        """The files behind the prompt's voices, each once."""
        parts = [part for slot in slots(prompt) for part in self._parts[slot.name]]
        return list(dict.fromkeys(path for part in parts for path in self.files[part].paths))

    def check_fit(self, backbone: Backbone) -> None:
        """Raise UserError unless every concept has the backbone's sizes."""
        for name, concept in self.concepts.items():
            concept.check_fits(backbone, source=str(self.files[name].concept))

    def _mix(self, config: InferenceConfig) -> None:
        """Add the mixtures and the columns of style mixing; what the layers are called, the U-Net's config tells."""
        sketch = Backbone.from_pretrained(self.base_model, revision=config.revision, components=())
        self.check_fit(sketch)
        layers = cross_attention_layers(sketch.unet)
        mixtures: dict[str, Mixture] = {}
        problems: list[str] = []
        for name, rules in (config.mixtures or {}).items():
            try:
                made = [
                    Rule(self.by_name[rule.concept], parse_layers(rule.layers, layers), rule.timesteps, rule.truncation)
                    for rule in rules
                ]
                mixtures[name] = Mixture(made, [layer.name for layer in layers])
            except UserError as error:
                problems.append(f"mixtures.{name}: {error}")
        style = config.style_mixing
        if style.wanted:
            geometry, appearance = self.by_name[style.geometry], self.by_name[style.appearance]
            try:
                inner = parse_layers(style.geometry_layers, layers)
                for start, name in style.names.items():
                    mixtures[name] = style_mixture(geometry, appearance, layers, start, inner)
            except UserError as error:
                problems.append(f"style_mixing: {error}")
        if problems:
            raise UserError("\n".join(problems))
        names = {method: name for name, method in self.by_name.items()}
        for name, mixture in mixtures.items():
            self._parts[name] = [names[rule.voice] for rule in mixture.rules]
            self.descriptions[name] = [self._rule(names[rule.voice], rule, layers) for rule in mixture.rules]
        self.by_name.update(mixtures)

    def _rule(self, concept: str, rule: Rule, layers: Sequence[CrossAttentionLayer]) -> dict[str, Any]:
        """A rule as a recipe keeps it: whatever was written, equal rules read the same."""
        chosen = [layer.name for layer in layers if rule.layers is None or layer.index in rule.layers]
        return {
            "concept": self.descriptions[concept],
            "layers": "all" if len(chosen) == len(layers) else chosen,
            "timesteps": list(rule.timesteps),
            "truncation": rule.truncation,
        }


def _load(files: Mapping[str, ConceptFiles]) -> dict[str, Concept]:
    concepts, problems = {}, []
    for name, found in files.items():
        try:
            concepts[name] = found.load()
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return concepts


def _common_base_model(concepts: Mapping[str, Concept], files: Mapping[str, ConceptFiles]) -> str:
    """The base model that all concepts name."""
    named: dict[str, str] = {}  # base model -> the first concept that was trained on it
    for name, concept in concepts.items():
        base_model = concept.metadata.get("base_model", "")
        if not base_model:
            raise UserError(f"{files[name].concept} does not name its base model: pass --pretrained_model_name_or_path")
        named.setdefault(base_model, name)
    if len(named) != 1:
        told = ", ".join(f"{{{name}}} on {base_model}" for base_model, name in named.items())
        raise UserError(f"concepts of several base models ({told}): pass --pretrained_model_name_or_path")
    return next(iter(named))
