"""From a config to the concepts its prompts may name: learned ones, mixtures, and the columns of style mixing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...utils.errors import UserError
from ...utils.hashing import file_hash
from ..attention.layers import Layer
from ..backbone.backbone import Backbone
from ..concepts.concept import Concept
from ..concepts.files import ConceptFiles
from ..conditioning.composition import AnyConcept, Mixture, Rule, parse_layers, place_names, style_mixture
from ..conditioning.prompts import SLOT
from ..methods.elite.method import ELITE, ELITESettings
from .config import InferenceConfig


class NamedConcepts:
    """The concepts of one run by name, `{}` for the one without. Making the object reads them, but no base model.

    base_model: the one given, else the one that all concepts were trained on. descriptions: what a recipe says about
    each: the content hash of a concept, the rules of a mixture. Without files (a plain word) there are none.
    Raises UserError for files that cannot be loaded, no base model or several, and mixtures that do not work.
    """

    def __init__(self, config: InferenceConfig, files: Mapping[str, ConceptFiles]) -> None:
        self.files = files
        self.concepts = _load(files)
        for concept in self.concepts.values():
            if isinstance(concept.method, ELITE):
                concept.method.settings = ELITESettings(encoder=config.encoder)
        self.by_name: dict[str, AnyConcept] = {name: concept.method for name, concept in self.concepts.items()}
        self.base_model = config.pretrained_model_name_or_path or _common_base_model(self.concepts, files)
        self.descriptions: dict[str, Any] = {name: file_hash(*found.paths) for name, found in files.items()}
        self._parts = {name: [name] for name in files}
        if config.mixtures or config.style_mixing.wanted:
            self._mix(config)

    def described(self, names: Iterable[str]) -> dict[str, Any] | None:
        """Name -> what a recipe says about it, for every one that has a name; None if there is none."""
        return {name: self.descriptions[name] for name in names if name != SLOT} or None

    def paths(self, names: Iterable[str]) -> list[Path]:
        """The files behind these names, each once."""
        parts = [part for name in names for part in self._parts[name]]
        return list(dict.fromkeys(path for part in parts for path in self.files[part].paths))

    def check_fit(self, backbone: Backbone) -> None:
        """Raise UserError unless every concept has the backbone's sizes."""
        for name, concept in self.concepts.items():
            concept.check_fits(backbone, source=str(self.files[name].concept))

    def _mix(self, config: InferenceConfig) -> None:
        """Add the mixtures and the columns of style mixing; what the layers are called stands in the U-Net's config."""
        sketch = Backbone.from_pretrained(self.base_model, revision=config.revision, components=())
        self.check_fit(sketch)
        layers = sketch.frame.layers
        mixtures: dict[str, Mixture] = {}
        problems: list[str] = []
        for name, rules in (config.mixtures or {}).items():
            try:
                made = [
                    Rule(self.by_name[rule.concept], parse_layers(rule.layers, layers), rule.timesteps, rule.truncation)
                    for rule in rules
                ]
                mixtures[name] = Mixture(made, sketch.frame.place_names)
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
            self._parts[name] = [names[rule.concept] for rule in mixture.rules]
            self.descriptions[name] = [self._rule(names[rule.concept], rule, layers) for rule in mixture.rules]
        self.by_name.update(mixtures)

    def _rule(self, concept: str, rule: Rule, layers: Sequence[Layer]) -> dict[str, Any]:
        """A rule as a recipe keeps it: whatever was written, equal rules read the same."""
        names = place_names(layers)
        chosen = [name for place, name in enumerate(names) if rule.layers is None or place in rule.layers]
        return {
            "concept": self.descriptions[concept],
            "layers": "all" if len(chosen) == len(names) else chosen,
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
        base_model = concept.base_model(files[name].concept, "--pretrained_model_name_or_path")
        named.setdefault(base_model, name)
    if len(named) != 1:
        shown = ", ".join(f"{{{name}}} on {base_model}" for base_model, name in named.items())
        raise UserError(f"concepts of several base models ({shown}): pass --pretrained_model_name_or_path")
    return next(iter(named))
