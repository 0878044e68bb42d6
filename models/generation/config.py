# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""Every setting of `scripts/inference.py`: the public code's keys with its defaults and meaning, and ours."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from ...utils.config.choices import Choice
from ...utils.config.parsing import Config
from ...utils.config.values import name_or_path, setting
from ...utils.devices import device_problems
from ...utils.errors import UserError, shorten, shown
from ...utils.seeds import parse_seeds
from ..conditioning.prompts import NAME, safe_name
from .mixtures import RuleConfig, StyleMixingConfig, combinations, parse_mixtures, parse_settings

MAX_IMAGES = 1_000_000
ONE_CONCEPT = ("concept", "input_dir", "mapper_checkpoint_path", "image")  # the keys that say which concept `{}` is


class EncodingMethod(Choice):
    """How a picture becomes a concept without training."""

    elite = "elite"


class Dtype(Choice):
    """Precision of the frozen models, with PyTorch's own names as aliases; noise and mapper are always float32."""

    fp16 = "fp16"
    fp32 = "fp32"
    bf16 = "bf16"
    float16 = "fp16"
    float32 = "fp32"
    bfloat16 = "bf16"


@dataclass(frozen=True)
class InferenceConfig(Config):
    """One call of `scripts/inference.py`."""

    # Which saved step of input_dir to use; unset: the final one
    iteration: Optional[int] = setting(None, at_least=0)
    # Folder of a training run, ours or the public code's
    input_dir: Optional[Path] = None
    # Where the images go; unset: a folder inference_{iteration} beside the concept
    inference_dir: Optional[Path] = None
    # A mapper file of the public code (mapper-steps-N.pt); wins over that of input_dir
    mapper_checkpoint_path: Optional[Path] = None
    # The embeddings file that belongs to it (learned_embeds-steps-N.bin); wins over that of input_dir
    learned_embeds_path: Optional[Path] = None
    # Prompts, each with {} for the concept, or {name} for one of several
    prompts: Optional[tuple[str, ...]] = None
    # Text file with one prompt per line, instead of prompts
    prompts_file_path: Optional[Path] = None
    # One image per prompt and seed: [42, 420], "0-31" or "1,5,7-9"
    seeds: tuple[int, ...] = setting((42,), at_least=0, parse=parse_seeds)
    # Hidden units kept: null keeps all; a number or a list makes one set of images for each
    truncation_idxs: Optional[tuple[Optional[int], ...]] = setting(None, at_least=0)
    # Settings of the concepts' methods, a set of images for each combination: {beta: [0.6, 0.75], lock: global}
    # (perfusion), {strength: [0, 0.8]} (elite), {key_lock: [false, true]} (neti, xti, textual_inversion)
    settings: Optional[dict[str, tuple[Any, ...]]] = setting(None, parse=parse_settings)  # noqa: RUF009
    # fp16, fp32 or bf16: precision of the frozen models
    torch_dtype: Dtype = Dtype.fp16
    # A concept file of this project (.safetensors), instead of input_dir
    concept: Optional[Path] = None
    # A picture to encode as the concept, without training, instead of a concept file
    image: Optional[Path] = None
    # Its mask, white where the object is; unset: the picture's own transparency, if it has any
    mask: Optional[Path] = None
    # How it is encoded: elite
    method: EncodingMethod = EncodingMethod.elite
    # Its encoder, and that of encoded concepts: "miniature", a .safetensors file, or a folder of the official files
    encoder: Optional[str] = None
    # lambda, the strength of the picture's patches: higher is closer to it and harder to edit; unset: 0.8
    strength: Optional[float] = setting(None, at_least=0)
    # Several concepts, name -> file or run folder: {mug} in a prompt is the one called mug, {mug:16} its first 16 units
    concepts: Optional[dict[str, Path]] = None
    # Concepts that take turns by layer and timestep, name -> rules, the last one that applies wins; {name} in a prompt
    mixtures: Optional[dict[str, tuple[RuleConfig, ...]]] = setting(None, parse=parse_mixtures)  # noqa: RUF009
    # Geometry of one concept, appearance of another: one column per mixing_start for each prompt with {}
    style_mixing: StyleMixingConfig = field(default_factory=StyleMixingConfig)
    # A plain word for {} instead of a concept: what the base model makes of the prompt alone
    word: Optional[str] = None
    # Model to generate with; unset: the one the concept was trained on
    pretrained_model_name_or_path: Optional[str] = setting(None, parse=name_or_path)
    # Revision of the Hugging Face model: a branch, a tag or a commit
    revision: Optional[str] = None
    # What the images should not show
    negative_prompt: str = ""
    # Denoising steps per image
    num_denoising_steps: int = setting(50, at_least=1, at_most=1000)
    # Strength of the prompt; 1 or less switches guidance off
    guidance_scale: float = setting(7.5, at_least=0, at_most=1000, why="images are noise long before")
    # Height and width of the images in pixels; unset: what the base model was trained on
    height: Optional[int] = setting(None, at_least=8, at_most=8192, why="no device decodes more")
    width: Optional[int] = setting(None, at_least=8, at_most=8192, why="no device decodes more")
    # Sampler: dpmsolver++, dpm++ 2m karras, ddim, euler, euler_a, pndm, heun, unipc, lcm or dpmsolver++sigma_min
    scheduler: str = "dpmsolver++"
    # Images denoised together; changes memory and speed, not the images
    batch_size: int = setting(4, at_least=1, at_most=1024, why="no device holds more at once, and it saves no time")
    # auto (CUDA, else MPS, else CPU), cpu, mps, cuda or cuda:N
    device: str = "auto"
    # Run the base model's safety checker; unset: if it has one
    safety_checker: Optional[bool] = None

    @property
    def truncations(self) -> tuple[Optional[int], ...]:
        """`truncation_idxs` as a tuple; None in it keeps all hidden units."""
        return self.truncation_idxs or (None,)

    @property
    def variants(self) -> list[dict[str, Any] | None]:
        """Every combination of `settings`; [None] where there are none."""
        return combinations(self.settings)

    @property
    def has_one_concept(self) -> bool:
        """Whether some concept is `{}` itself."""
        return any(getattr(self, key) is not None for key in (*ONE_CONCEPT, "learned_embeds_path"))

    @property
    def output_dir(self) -> Path:
        """Where the images go: `inference_dir`, else a folder beside the concept that tells the step."""
        if self.inference_dir is not None:
            return self.inference_dir
        if self.input_dir is not None:
            return self.input_dir / ("inference" if self.iteration is None else f"inference_{self.iteration}")
        source = self.concept or self.mapper_checkpoint_path or self.image
        assert source is not None, "problems() asks for inference_dir where there is no single concept"
        return source.parent / safe_name(f"inference_{source.stem}")

    def check_count(self, prompts: int) -> None:
        """Raise UserError if that many prompts, with all seeds and truncations, are more images than anybody draws."""
        if (count := prompts * len(self.seeds) * len(self.truncations)) > MAX_IMAGES:
            factors = f"{prompts} prompts x {len(self.seeds)} seeds x {len(self.truncations)} truncations"
            raise UserError(f"{factors} are {count} images; one call makes at most {MAX_IMAGES}: ask for fewer")

    def problems(self) -> list[str]:
        lines = device_problems("device", self.device)
        if self.prompts and self.prompts_file_path is not None:
            lines.append("prompts and prompts_file_path are both given; leave one of them out")
        if not self.prompts and self.prompts_file_path is None:
            lines.append('no prompts given; write prompts: ["A photo of a {}"], or prompts_file_path: a text file')
        if self.concept is not None:
            for key in ("input_dir", "iteration", "mapper_checkpoint_path", "learned_embeds_path"):
                if getattr(self, key) is not None:
                    lines.append(f"concept and {key} are both given; concept alone says which file to use")
        elif self.input_dir is None and (self.mapper_checkpoint_path is None) != (self.learned_embeds_path is None):
            lines.append("mapper_checkpoint_path and learned_embeds_path need each other, or input_dir for the other")
        if self.image is not None:
            given = [key for key in ONE_CONCEPT if key != "image" and getattr(self, key) is not None]
            lines += [f"image and {key} are both given; the picture becomes the concept" for key in given]
        else:
            lone = [key for key in ("mask", "strength") if getattr(self, key) is not None]
            lines += [f"{key} belongs to image, the picture to encode, which is not given" for key in lone]
        if self.word is not None:
            return lines + self._word_problems()
        if not (self.has_one_concept or self.concepts):
            lines.append(
                "no concept given; write concept: a .safetensors file, input_dir: the folder of a run, concepts: "
                "{name: file} for several, or image: a picture to encode"
            )
        elif not self.has_one_concept and self.inference_dir is None:
            lines.append("several concepts have no folder in common; write inference_dir: where the images go")
        return lines + self._name_problems()

    def _word_problems(self) -> list[str]:
        given = [key for key in (*ONE_CONCEPT, "concepts", "mixtures") if getattr(self, key) is not None]
        given += ["style_mixing"] if self.style_mixing.wanted else []
        lines = [f"word and {key} are both given; with a plain word no concept is used" for key in given]
        if self.truncation_idxs is not None:
            lines.append("word and truncation_idxs are both given; a plain word has no hidden units")
        for key in ("pretrained_model_name_or_path", "inference_dir"):
            if getattr(self, key) is None:
                lines.append(f"word needs {key}: there is no concept to take it from")
        return lines

    def _name_problems(self) -> list[str]:
        """Names that are no names, that mean two things, or that mean nothing."""
        concepts, mixtures, style = self.concepts or {}, self.mixtures or {}, self.style_mixing
        made = list(style.names.values()) if style.wanted else []
        lines = [
            f"{key}: {shown(name)} is no name; begin with a letter, then letters, digits, _ and -"
            for key, names in (("concepts", concepts), ("mixtures", mixtures))
            for name in names
            if not NAME.fullmatch(name)
        ]
        lines += [f"mixtures: {shown(name)} is the name of a concept too" for name in mixtures if name in concepts]
        lines += [f"{shown(name)} is what style_mixing calls a mixture of its own" for name in made if name in mixtures]
        lines += [f"{shown(name)} is what style_mixing calls a mixture of its own" for name in made if name in concepts]
        wanted = [(f"mixtures.{shorten(name)}", rule.concept) for name, rules in mixtures.items() for rule in rules]
        wanted += [("style_mixing", name) for name in (style.geometry, style.appearance) if name]
        known = shorten(", ".join(concepts) or "none")
        lines += [
            f"{key}: no concept is called {shown(name)}; concepts: {known}"
            for key, name in wanted
            if name not in concepts
        ]
        if style.wanted and self.has_one_concept:
            lines.append("style_mixing fills {} itself; leave out concept, input_dir and mapper_checkpoint_path")
        return lines
