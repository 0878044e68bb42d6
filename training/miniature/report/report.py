"""The quality report of a miniature: measure every row, draw the pictures, write docs/miniature.md.

Whatever was measured or painted stands in `work_dir` under a hash of the models and settings it depends on, so the same
command goes on after an interruption and measures again only what changed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ....models.backbone.backbone import Backbone
from ....models.backbone.loading import BUNDLED, model_folder, model_hash
from ....models.concepts.concept import Concept
from ....models.generation.sampling import SamplingConfig
from ....models.judging.metric_model import CLIPMetricModel
from ....utils.errors import UserError
from ....utils.files import write_atomically
from ....utils.hashing import folder_hash
from ..pretraining import data
from ..world.concepts import ConceptPhotos, read_concepts
from ..world.world import World
from . import pictures, rows
from .concept_training import trained_file
from .config import ReportConfig
from .page import Picture, model_parts, render_page
from .rows import Bench, HeldOut, LearnedConcept
from .table import Row, table_rows
from .workbench import Painter, Results

FAILURES = 12
BESIDE = 18  # captions shown with real and generated image


def write_report(config: ReportConfig, train_script: Path) -> list[Row]:
    """Measure what is not measured yet, then write page and pictures; returns the table.

    train_script: scripts/train.py, with which missing concepts are learned.
    Raises UserError for a missing font, model, judge, concept folder or training config.
    """
    if config.train_missing and not config.train_config.is_file():
        raise UserError(
            f"train_config = {config.train_config}: no such file; or leave concepts out: train_missing false"
        )
    everyone = read_concepts(config.concepts_dir)
    bench = _bench(config)
    measured = {
        "vae": rows.reconstruction(bench),
        "retrieval": rows.retrieval(bench, config.retrieval_pool),
        "speed": rows.speed(bench),
        "text_to_image": rows.text_to_image(bench),
    }
    learned = _learned(config, everyone, bench, train_script)
    measured["concepts"] = rows.concepts(bench, everyone, learned, config.concept_prompt, config.concept_images)
    table = table_rows(measured, config.retrieval_pool)
    shown = _draw(config, bench, everyone, learned, measured)
    page = render_page(
        measured=measured,
        rows=table,
        parts=model_parts({"sd": model_folder(config.sd), "judge": model_folder(config.judge)}),
        categories=bench.world.categories,
        sizes={
            "pixels": bench.backbone.image_size,
            "latent": bench.backbone.latent_size,
            "layers": len(bench.backbone.frame.layers),
        },
        settings={
            "model": f"{_shown_name(config.sd)} (digest {bench.model})",
            "judge": f"{_shown_name(config.judge)} (digest {bench.judge_model})",
            "world": config.scale.value,
            "text to image of": ", ".join(config.categories) or "all kinds of things",
            "sampler": f"DPM-Solver++, {config.steps} steps, guidance {config.guidance_scale:g}",
            "images per concept": config.concept_images,
            "NeTI steps": ", ".join(sorted({str(one.concept.metadata.get("step", "?")) for one in learned})) or "none",
        },
        prompt=config.concept_prompt,
        pictures=shown,
    )
    write_atomically(config.docs_dir / "miniature.md", lambda file: file.write(page.encode()))
    return table


def _bench(config: ReportConfig) -> Bench:
    try:
        world = World.create(config.scale.value, str(config.font) if config.font else None)
    except FileNotFoundError as error:
        raise UserError(str(error)) from None
    if unknown := set(config.categories) - set(world.categories):
        raise UserError(
            f"categories = {sorted(unknown)}: not in the world of scale {config.scale}, which has "
            f"{', '.join(world.categories)}"
        )
    backbone = Backbone.from_pretrained(config.sd)
    model = model_hash(config.sd)
    sampling = SamplingConfig(steps=config.steps, guidance_scale=config.guidance_scale)
    share = len(config.categories or world.categories) / len(world.categories)
    held_out = data.scenes(world, math.ceil(2 * config.captions / share), held_out=True)
    known = [scene for scene in held_out if scene.look.category in (config.categories or world.categories)]
    return Bench(
        world=world,
        whole=HeldOut(world, held_out[: config.captions], backbone.image_size),
        known=HeldOut(world, known[: config.captions], backbone.image_size),
        backbone=backbone,
        model=model,
        judge=CLIPMetricModel.from_pretrained(config.judge, key="judge"),
        judge_model=folder_hash(model_folder(config.judge)),
        results=Results(config.work_dir / "results"),
        painter=Painter(backbone, model, sampling, config.work_dir / "images"),
    )


def _learned(
    config: ReportConfig, everyone: list[ConceptPhotos], bench: Bench, train_script: Path
) -> list[LearnedConcept]:
    """Every concept that has a file, or gets one now."""
    found = []
    for photos in everyone:
        given = config.concept_files and config.concept_files / f"{photos.name}.safetensors"
        if given and given.exists():
            file = given
        elif config.train_missing:
            file = trained_file(
                photos,
                train_config=config.train_config,
                base_model=config.sd,
                model=bench.model,
                folder=config.work_dir / "training",
                train_script=train_script,
            )
        else:
            continue
        found.append(LearnedConcept(photos, Concept.load(file, backbone=bench.backbone), folder_hash(file)))
    return found


def _draw(
    config: ReportConfig,
    bench: Bench,
    everyone: list[ConceptPhotos],
    learned: list[LearnedConcept],
    measured: dict[str, Any],
) -> list[Picture]:
    """Write all pictures; those about learned concepts only where there are such."""
    drawn = [
        (
            Picture(
                "miniature_scenes.jpg",
                "Real and generated",
                f"The first {BESIDE} held-out captions with the scene they describe and the image generated from the "
                "words alone, shown at twice their size.",
            ),
            pictures.real_beside_generated(bench, range(min(BESIDE, config.captions))),
        ),
        (
            Picture("miniature_vae.jpg", "Reconstructions", "Held-out scenes through the autoencoder and back."),
            pictures.reconstructions(bench),
        ),
        (
            Picture(
                "miniature_concepts.jpg",
                "Held-out concepts",
                f'One of the {len(everyone[0].paths)} training photos of each, "{config.concept_prompt}" with the '
                "learned concept, and with nothing but its super-category word. Grey: not learned.",
            ),
            pictures.concept_overview(bench, everyone, learned, config.concept_prompt, config.concept_images),
        ),
        (
            Picture(
                "miniature_failures.jpg",
                "Failures",
                f"The {FAILURES} captions of {config.captions} whose generated image the judge finds least like them.",
            ),
            pictures.real_beside_generated(bench, pictures.worst(measured["text_to_image"], FAILURES)),
        ),
    ]
    if chosen := [one for one in learned if one.photos.name in config.paper_concepts]:
        names = " and ".join(one.photos.name for one in chosen)
        about = Picture("miniature_prompts.jpg", "The paper's prompts", f"Seeds 0, 1 and 2 of the learned {names}.")
        drawn.insert(3, (about, pictures.paper_prompts(bench, chosen)))
    for picture, image in drawn:
        pictures.save_jpeg(image, config.docs_dir / "images" / picture.file)
    return [picture for picture, _ in drawn]


def _shown_name(name_or_path: str) -> str:
    """A model's name as a page may print it: not where it lies on this machine."""
    return f"`{name_or_path if name_or_path in BUNDLED else Path(name_or_path).name}`"
