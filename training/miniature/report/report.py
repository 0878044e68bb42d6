"""The quality report of a miniature: measure every row, draw the pictures, fill in docs/miniature.md."""

from __future__ import annotations

from typing import Any

from PIL import Image

from ....models.backbone.loading import model_folder
from ...studies.page import measured_part, replace_measured_part, save_jpeg
from ...studies.study import LearnedConcept, Study, steps_of
from . import pictures
from .config import ReportConfig
from .measurements import Measurements
from .page import Picture, model_parts, render_page
from .table import Row, table_rows

FAILURES = 12
BESIDE = 18  # captions shown with real and generated image


def write_report(config: ReportConfig) -> list[Row]:
    """Measure what is not measured yet, then write page and pictures; returns the table.

    Raises UserError, before anything is measured, for whatever is missing: font, models, concepts, how to learn those
    that have no file, and a page without a place for the numbers.
    """
    page = config.docs_dir / "miniature.md"
    measured_part(page)
    study = Study(config)
    names = [name for name in study.photos if config.train_missing or study.given(name)]
    study.check(names)
    measure = Measurements(study, config)
    measured = {
        "vae": measure.reconstruction(),
        "retrieval": measure.retrieval(),
        "speed": measure.speed(),
        "text_to_image": measure.text_to_image(),
    }
    learned = [study.learned(name) for name in names]
    measured["concepts"] = measure.concepts(learned)
    rows = table_rows(measured, config.retrieval_pool)
    drawn = _draw(config, measure, learned, measured)
    for picture, image in drawn.items():
        save_jpeg(image, config.docs_dir / "images" / picture.file)
    settings = {
        **study.settings(),
        "world": config.scale.value,
        "text to image of": ", ".join(config.categories) or "all kinds of things",
        "images per concept": config.concept_images,
        "NeTI steps": steps_of(learned),
    }
    parts = model_parts({"sd": model_folder(config.sd), "metric model": model_folder(config.judge)})
    text = render_page(measured, rows, parts, settings, config.concept_prompt, list(drawn))
    replace_measured_part(page, text)
    return rows


def _draw(
    config: ReportConfig, measure: Measurements, learned: list[LearnedConcept], measured: dict[str, Any]
) -> dict[Picture, Image.Image]:
    """All pictures; those about learned concepts only where there are such."""
    prompt, study = config.concept_prompt, measure.study
    drawn = {
        Picture(
            "miniature_scenes.jpg",
            "Real and generated",
            f"The first {BESIDE} held-out captions with the scene they describe and the image generated from the words "
            "alone, shown at twice their size.",
        ): pictures.real_beside_generated(measure, range(min(BESIDE, config.captions))),
        Picture(
            "miniature_vae.jpg", "Reconstructions", "Held-out scenes through the autoencoder and back."
        ): pictures.reconstructions(measure),
        Picture(
            "miniature_concepts.jpg",
            "Held-out concepts",
            f'One of the training photos of each, "{prompt}" with the learned concept, and with nothing but its '
            "super-category word. Grey: not learned.",
        ): pictures.concept_overview(study, learned, prompt, config.concept_images),
    }
    if chosen := [one for one in learned if one.photos.name in config.paper_concepts]:
        names = " and ".join(one.photos.name for one in chosen)
        about = Picture("miniature_prompts.jpg", "The paper's prompts", f"Seeds 0, 1 and 2 of the learned {names}.")
        drawn[about] = pictures.paper_prompts(study, chosen)
    about = Picture(
        "miniature_failures.jpg",
        "Failures",
        f"The {FAILURES} captions of {config.captions} whose generated image the metric model finds least like them.",
    )
    drawn[about] = pictures.real_beside_generated(measure, pictures.worst(measured["text_to_image"], FAILURES))
    return drawn
