# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""Settings of Perfusion: what a concept is trained with, what its file says of it, what it may be drawn with.

The comment above a field is its documentation and what `--help` prints.
"""

from dataclasses import dataclass
from typing import Optional

from ....utils.config.choices import Choice
from ....utils.config.parsing import Config
from ....utils.config.values import setting


class GateMode(Choice):
    """Which of the three edits: `paper` is Perfusion, `residual` and `explicit` are variants."""

    paper = "paper"
    residual = "residual"
    explicit = "explicit"


class Overlap(Choice):
    """How the keys of several concepts are taken out of an encoding: exactly (`gram`), or as if orthogonal."""

    gram = "gram"
    approx = "approx"


class Lock(Choice):
    """What the concept's keys are locked to.

    local: at the concept, to the key of its super-category word. global: all keys of the prompt come from the prompt
    with that word in the concept's place (when drawing; it is trained as local). trained: to nothing, they are learned.
    """

    local = "local"
    vars()["global"] = "global"  # a word of Python's own
    trained = "trained"


LOCAL, GLOBAL, TRAINED = Lock


@dataclass(frozen=True)
class PerfusionOptions(Config):
    """The group `model.perfusion`: how a concept is trained, and how it is drawn unless something else is asked for."""

    # paper; or a variant: residual (a closed gate changes nothing), explicit (only the concept's own token is edited)
    gate_mode: GateMode = GateMode.paper
    # local, global (when drawing; trained as local) or trained (keys are learned too)
    lock: Lock = LOCAL
    # Where the gate is half open while training, in similarity to the concept's key
    beta: float = setting(0.75)
    # How softly the gate opens while training
    tau: float = setting(0.10, above=0)
    # beta when drawing: lower is more of the concept, higher more of the prompt
    inference_beta: float = setting(0.70)
    # tau when drawing
    inference_tau: float = setting(0.15, above=0)
    # Share of the concept's key that stays at each micro-batch; the rest is the micro-batch's own
    key_decay: float = setting(0.99, at_least=0, at_most=1)
    # Learning rate of the values, as a factor on optim.learning_rate
    value_lr_scale: float = setting(1.0, above=0)
    # Learning rate of the word, as a factor on optim.learning_rate
    word_lr_scale: float = setting(0.2, above=0)
    # File that scripts/make_covariance.py made for the model's text encoder; unset: the one that comes with the project
    covariance: Optional[str] = None

    def __post_init__(self) -> None:
        for name, choice in (("gate_mode", GateMode), ("lock", Lock)):  # words read from JSON become choices
            object.__setattr__(self, name, choice(getattr(self, name)))


@dataclass(frozen=True)
class PerfusionConfig(PerfusionOptions):
    """The options, and what was found for them when training started; a concept file keeps all of it.

    covariance_digest: of the covariance; any other is refused. super_category: the word that keys are locked to.
    """

    covariance_digest: str = ""
    super_category: str = ""


@dataclass(frozen=True)
class PerfusionSettings(Config):
    """What a concept may be drawn with; unset: as it was trained to be drawn."""

    # Where the gate is half open: lower is more of the concept (0.6 to 0.75 with the local lock, 0.4 to 0.6 global)
    beta: Optional[float] = None
    # How softly the gate opens
    tau: Optional[float] = setting(None, above=0)
    # local or global; trained or global for a concept whose keys were trained
    lock: Optional[Lock] = None
    # How several concepts share an encoding: gram (exactly) or approx (as if their keys were orthogonal)
    overlap: Overlap = Overlap.gram
    # Edit prompts without the concept too, such as the empty one, as an edit of the weights would
    edit_plain: bool = True
    # Strength of gate_mode explicit; 0 is the model without the concept
    scale: float = setting(1.0, at_least=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "overlap", Overlap(self.overlap))
        if self.lock is not None:
            object.__setattr__(self, "lock", Lock(self.lock))
