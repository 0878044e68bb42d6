"""Generate images of a learned concept.

    python scripts/inference.py --config_path input_configs/inference.yaml [--key value ...]

docs/inference.md explains the keys, the truncation slider and what is written where; docs/several_concepts.md and
docs/style_mixing.md what several concepts can do in one image.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

try:
    from tqdm import tqdm

    from neti.models.concepts.files import ConceptFiles, chosen_files, explicit_files, files_at
    from neti.models.conditioning.prompts import SLOT, read_prompts
    from neti.models.generation.config import InferenceConfig
    from neti.utils.config.parsing import parse_config
    from neti.utils.errors import UserError, exit_on_user_error
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Check everything, load the model, make the images that are not there yet."""
    config = parse_config(InferenceConfig, sys.argv[1:] if argv is None else argv)
    with TemporaryDirectory() as scratch:  # of a picture that is encoded for this run alone
        generate(config, concept_files(config, Path(scratch)))


def generate(config: InferenceConfig, files: dict[str, ConceptFiles]) -> None:
    """Make the images that are not there yet, of concepts that are."""
    prompts = read_prompts(config.prompts_file_path) if config.prompts_file_path else config.prompts or ()
    config.check_count(len(prompts))

    from neti.models.generation.run import (
        InferenceRun,
    )  # takes seconds (torch): mistakes found above are reported at once

    run = InferenceRun(config, files, prompts)
    precision = run.config.torch_dtype
    print(f"{run.source}; {run.base_model} in {precision} on {run.device}")
    there = run.num_images - run.num_missing
    print(f"{run.num_images} images in {run.gallery.root}: {there} there already, {run.num_missing} to make")
    for note in run.notes:
        print(f"note: {note}")
    with tqdm(total=run.num_missing * config.num_denoising_steps, unit="step", disable=None) as bar:
        for made in run.images(on_step=bar.update):
            bar.set_postfix_str(f"{made.recipe.prompt[:40]}, seed {made.recipe.seed}")
            if made.withheld:
                bar.write(
                    f"{run.gallery.path(made.recipe)} is black: the base model's safety checker withheld the image"
                )
    for folder in run.folders:
        print(folder)


def concept_files(config: InferenceConfig, scratch: Path) -> dict[str, ConceptFiles]:
    """The files of every concept by its name, `{}` for the one without."""
    found: dict[str, ConceptFiles] = {}
    problems: list[str] = []
    for name, place in (config.concepts or {}).items():
        try:
            found[name] = files_at(place)
        except UserError as error:
            problems.append(f"concepts.{name}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    return {SLOT: one_concept(config, scratch), **found} if config.has_one_concept else found


def one_concept(config: InferenceConfig, scratch: Path) -> ConceptFiles:
    """The file(s) of the concept that is `{}`: explicit paths win over a folder and an iteration."""
    if config.image is not None:
        return ConceptFiles(encoded(config, config.image, scratch / "encoded.safetensors"))
    if config.concept is not None:
        return explicit_files(config.concept, None)
    return chosen_files(config.input_dir, config.iteration, config.mapper_checkpoint_path, config.learned_embeds_path)


def encoded(config: InferenceConfig, image: Path, path: Path) -> Path:
    """`path`, where the picture's concept now is."""
    from neti.models.methods.elite.config import EncodeConfig
    from neti.models.methods.elite.encode import encode_picture

    given = {key: getattr(config, key) for key in ("encoder", "strength", "pretrained_model_name_or_path")}
    options = {key: value for key, value in given.items() if value is not None}
    encode_picture(EncodeConfig(image, config.mask, **options)).save(path)
    return path


if __name__ == "__main__":
    sys.exit(main())
