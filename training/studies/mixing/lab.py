"""What the measurements of mixing share: the models, the learned concepts, and images that are made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ....models.attention.layers import Layer
from ....models.backbone.backbone import Backbone
from ....models.backbone.loading import model_folder, model_hash
from ....models.concepts.concept import Concept
from ....models.conditioning.composition import AnyConcept
from ....models.generation.sampling import SamplingConfig, decode, denoise, initial_latents, prepare_conditioning
from ....models.judging.metric_model import CLIPMetricModel
from ....utils.errors import UserError
from ....utils.hashing import folder_hash, json_hash
from ....utils.images.png import write_png
from ...miniature.report.concept_training import trained_file
from ...miniature.report.rows import LearnedConcept
from ...miniature.report.workbench import Results
from ...miniature.world.concepts import ConceptPhotos, read_concepts
from ...miniature.world.world import World
from .config import MixingConfig, pair_of


@dataclass(frozen=True)
class MixingLab:
    """`model` and `judge_model` are digests of the two models' files; `learned` are the concepts of all pairs."""

    config: MixingConfig
    world: World
    backbone: Backbone
    model: str
    judge: CLIPMetricModel
    judge_model: str
    learned: Mapping[str, LearnedConcept]
    results: Results

    @classmethod
    def open(cls, config: MixingConfig, train_script: Path) -> MixingLab:
        """Load the models and the concepts, learning with `train_script` those that have no file.

        Raises UserError for a missing font, model, judge or training config, and for a concept or kind that is not
        there.
        """
        try:
            world = World.create(config.scale.value, str(config.font) if config.font else None)
        except FileNotFoundError as error:
            raise UserError(str(error)) from None
        if unknown := set(config.categories) - set(world.categories):
            raise UserError(f"categories = {sorted(unknown)}: the world has {', '.join(world.categories)}")
        photos = {one.name: one for one in read_concepts(config.concepts_dir)}
        names = list(
            dict.fromkeys(name for pair in (*config.style_pairs, *config.both_pairs) for name in pair_of(pair))
        )
        if absent := [name for name in names if name not in photos]:
            raise UserError(f"pairs name {', '.join(absent)}; {config.concepts_dir} has {', '.join(photos)}")
        for pair in config.both_pairs:
            if len({photos[name].super_category for name in pair_of(pair)}) == 1:
                raise UserError(f"both_pairs: {pair!r} are of one kind, which their words cannot tell apart")
        backbone = Backbone.from_pretrained(config.sd)
        model = model_hash(config.sd)
        return cls(
            config=config,
            world=world,
            backbone=backbone,
            model=model,
            judge=CLIPMetricModel.from_pretrained(config.judge, key="judge"),
            judge_model=folder_hash(model_folder(config.judge)),
            learned={name: _learned(config, photos[name], backbone, model, train_script) for name in names},
            results=Results(config.work_dir / "results"),
        )

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(steps=self.config.steps, guidance_scale=self.config.guidance_scale)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        return self.backbone.frame.layers

    def inputs(self, names: Sequence[str], **others: Any) -> dict[str, Any]:
        """What a measurement with these concepts depends on."""
        return {
            "model": self.model,
            "judge": self.judge_model,
            "concepts": [[name, self.learned[name].file_digest] for name in names],
            "steps": self.config.steps,
            "guidance_scale": self.config.guidance_scale,
            **others,
        }

    def paint(
        self, prompt: str, concepts: Mapping[str, AnyConcept], about: Sequence[Any], seeds: Sequence[int]
    ) -> list[Image.Image]:
        """One image per seed, made unless it is there. about: a JSON value that tells these concepts from others."""
        sampling = self.sampling
        key = json_hash([self.model, prompt, list(about), sampling.steps, sampling.guidance_scale, sampling.scheduler])
        paths = {seed: self.config.work_dir / "images" / f"{key}-{seed}.png" for seed in seeds}
        missing = [seed for seed, path in paths.items() if not path.exists()]
        if missing:
            with torch.inference_mode():
                conditioning = prepare_conditioning(self.backbone, prompt, concepts, sampling)
                latents = initial_latents(self.backbone, missing, sampling)
                made = decode(self.backbone, denoise(self.backbone, conditioning, latents, sampling))
            for seed, image in zip(missing, made, strict=True):
                write_png(image, paths[seed], {"prompt": prompt, "seed": seed, "voices": list(about)})
        return [Image.open(paths[seed]).convert("RGB") for seed in seeds]

    def paint_alone(self, name: str, prompt: str, seeds: Sequence[int]) -> list[Image.Image]:
        """Images of one concept, which is `{}` in the prompt."""
        one = self.learned[name]
        return self.paint(prompt, {"{}": one.concept.method}, [one.file_digest], seeds)


def _learned(
    config: MixingConfig, photos: ConceptPhotos, backbone: Backbone, model: str, train_script: Path
) -> LearnedConcept:
    given = config.concept_files and config.concept_files / f"{photos.name}.safetensors"
    if given and given.exists():
        file = given
    elif config.train_config.is_file():
        file = trained_file(
            photos,
            train_config=config.train_config,
            base_model=config.sd,
            model=model,
            folder=config.work_dir / "training",
            train_script=train_script,
        )
    else:
        raise UserError(
            f"{photos.name} has no file in concept_files, and there is no train_config {config.train_config}"
        )
    return LearnedConcept(photos, Concept.load(file, backbone=backbone), folder_hash(file))
