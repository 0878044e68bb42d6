"""What every personalisation method is: something that gives a concept's vectors for given timesteps."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ...utils.config.parsing import Config
from ...utils.errors import UserError
from ..attention.projection import KeyValueProjection
from ..backbone.frame import Frame
from ..conditioning.conditioning import ConceptVectors, Conditioning

if TYPE_CHECKING:
    from ..backbone.backbone import Backbone

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class Start:
    """Where a new concept starts: all that `Method.create` may take from outside.

    embedding [D]: token embedding of the super-category word, in float32 on the CPU. generator: CPU generator of all
    initial values, so that a seed fixes them. word: the super-category word. backbone: for methods that read the frozen
    model's text encoder or weights; None where there is none. is_encoded: `embedding` is not the word's but what an
    encoder gave for the concept's photos, and the new concept is to stand for that, not only to be as long.
    """

    embedding: Tensor
    generator: torch.Generator | None = None
    word: str = ""
    backbone: Backbone | None = None
    is_encoded: bool = False


@dataclass(frozen=True)
class WordSettings(Config):
    """What a concept that is words may be drawn with."""

    # Keys from the super-category word, values from the concept: closer to the prompt, at nearly the same likeness;
    # unset: as it was trained
    key_lock: bool | None = None


class Method(nn.Module, ABC):
    """One learned concept. A new method is one file or folder with a subclass and a config, and a line in `METHODS`.

    A subclass's state dict must hold everything its vectors depend on beyond `config` and `frame`: those are what a
    concept file stores. `__init__` only builds the module; `create` draws its initial values.
    """

    name: ClassVar[str]
    config_class: ClassVar[type]  # a frozen dataclass of numbers, booleans, strings and None
    settings_class: ClassVar[type] = WordSettings  # a frozen dataclass: what may be chosen when drawing
    truncation_width: int = 0
    """How many units `truncation` may keep; 0: the method cannot be truncated."""
    is_ordered: bool = True
    """Whether training has ordered the units by importance, which is what a truncation counts on."""
    folder: Path | None = None
    """Where the concept's file lies, if it comes from one; a method may need other files beside it."""
    positions: int = 1
    """How many token positions the placeholder takes."""

    def __init__(self, config: Any, frame: Frame) -> None:
        super().__init__()
        self.config = config
        self.frame = frame
        self.settings: Any = self.settings_class()
        self.word_for_keys = ""  # the super category; a concept file has it

    @classmethod
    @abstractmethod
    def create(cls, config: Any, frame: Frame, start: Start) -> Self:
        """A new concept, ready to be trained."""

    @abstractmethod
    def vectors(self, timesteps: Tensor, truncation: int | None = None, generator: Generators = None) -> ConceptVectors:
        """The concept at `timesteps` [B] and all P places, in float32, as ConceptVectors [P|1, B|1, D].

        truncation: how many units to keep, None for all; UserError outside 0..truncation_width.
        generator: randomness of train mode (nested dropout); eval mode is deterministic. One per timestep makes what a
            timestep draws independent of the others; they must be on the CPU.
        """

    def projection(self) -> KeyValueProjection | None:
        """How cross-attention layers project a text that names this concept; None: as they always do."""
        return None

    def observe(self, conditioning: Conditioning) -> None:
        """Sees the conditioning of every micro-batch in train mode, before the U-Net; there this concept has slot 1."""

    @classmethod
    def has_setting(cls, name: str) -> bool:
        """Whether it may be chosen when drawing."""
        return any(field.name == name for field in fields(cls.settings_class))

    @property
    def key_word(self) -> str | None:
        """The word that keys are read from (key locking), None where they are read from the concept itself: as the
        setting `key_lock` says, else as the concept was trained.

        Raises UserError where the concept's super category is not known.
        """
        wanted = getattr(self.settings, "key_lock", None)
        if not (getattr(self.config, "key_lock", False) if wanted is None else wanted):
            return None
        if not self.word_for_keys:
            raise UserError("key_lock: this concept does not name its super category, from which keys would come")
        return self.word_for_keys

    def drawn_with(self, **settings: Any) -> Self:
        """The same concept, drawn with other settings (fields of `settings_class`): a view that shares every tensor.

        Raises UserError for a setting this method does not have, and for a value out of range.
        """
        known = [field.name for field in fields(self.settings_class)]
        if unknown := [name for name in settings if name not in known]:
            raise UserError(
                f"setting {unknown[0]}: a concept of method '{self.name}' has {', '.join(known) or 'no settings'}"
            )
        view = copy.copy(self)
        try:
            view.settings = self.settings_class(**{**asdict(self.settings), **settings})
        except ValueError as error:
            raise UserError(f"settings of method '{self.name}': {error}") from None
        view.settings.validate()
        return view

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained: optimiser parameter groups, each with `lr_scale`, a factor on the base learning rate."""
        return [{"params": list(self.parameters()), "lr_scale": 1.0}]

    def check_truncation(self, truncation: int | None) -> None:
        """Raise UserError if this method cannot keep `truncation` units."""
        if truncation is not None and not self.truncation_width:
            raise UserError(
                f"truncation {truncation}: a concept of method '{self.name}' cannot be truncated; leave it out"
            )
        if truncation is not None and not 0 <= truncation <= self.truncation_width:
            raise UserError(
                f"truncation {truncation}: must lie in 0..{self.truncation_width}, the units this concept has"
            )
