"""Look into concept files, convert other tools' files to them, and write embeddings for tools without NeTI.

python scripts/concept.py info concept-steps-1000.safetensors
python scripts/concept.py convert mapper-steps-1000.pt learned_embeds-steps-1000.bin concept-steps-1000.safetensors
python scripts/concept.py convert --dtype fp16 concept-steps-1000.safetensors small.safetensors
python scripts/concept.py convert --base_model CompVis/stable-diffusion-v1-4 learned_embeds.bin toy.safetensors
python scripts/concept.py convert --base_model CompVis/stable-diffusion-v1-4 --placeholder "<toy>" \
  --super_category toy perfusion.pt toy.safetensors
python scripts/concept.py export concept-steps-1000.safetensors learned_embeds.safetensors
python scripts/concept.py export --timestep 700 --per_layer concept-steps-1000.safetensors toy.safetensors
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import yaml

    from neti.models.concepts.files import explicit_files, files_at
    from neti.utils.config.values import name_or_path
    from neti.utils.errors import ArgumentParser, UserError, exit_on_user_error
    from neti.utils.files import path_option
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from neti.models.concepts.approximation import Loss
    from neti.models.concepts.concept import Concept
    from neti.models.methods.perfusion.covariance import Covariance

MAX_NAME = 255  # bytes, on most file systems
TIMESTEP = 500  # of an embedding for all timesteps


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run one subcommand."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="print a concept file's metadata; its tensors are not read")
    info.add_argument("file", type=path_option)
    convert = commands.add_parser("convert", help="write a concept, ours or another tool's, in our format")
    convert.add_argument(
        "source",
        type=path_option,
        help="our concept, mapper-steps-N.pt of the public code, or an embedding file",
    )
    convert.add_argument("embeds", type=path_option, nargs="?", help="learned_embeds-steps-N.bin, with a mapper file")
    convert.add_argument("output", type=path_option, help="the .safetensors file to write; must not exist")
    convert.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32", help="fp16 halves the file")
    convert.add_argument(
        "--base_model", type=name_or_path, help="what an embedding was trained on; its file does not say"
    )
    convert.add_argument("--placeholder", help="the word the embedding shall answer to, instead of its own")
    convert.add_argument("--super_category", help="the word for its kind, with a file of another tool's Perfusion")
    export = commands.add_parser(
        "export",
        help="write a concept as Textual Inversion embedding for other tools; where that loses something, measure what",
    )
    export.add_argument("concept", type=path_option)
    export.add_argument("output", type=path_option, help=".safetensors or .bin: diffusers and web UIs; .pt: web UIs")
    export.add_argument("--timestep", type=int, help=f"whose vectors are taken, 0..999 (default: {TIMESTEP})")
    export.add_argument(
        "--per_layer", action="store_true", help="one file per layer, OUTPUT-IN01 and so on, instead of their mean"
    )
    export.add_argument("--base_model", type=name_or_path, help="to measure the loss on (default: the concept's)")
    arguments = parser.parse_args(argv)
    if arguments.command == "info":
        print_info(arguments.file)
    elif arguments.command == "export":
        write_embeddings(arguments)
    else:
        write_converted(arguments)


def print_info(path: Path) -> None:
    """Print what the header of a concept file says, as YAML."""
    from neti.models.concepts.header import read_header

    header, entries = read_header(path)
    if header.frame is not None:
        entries["frame"]["layers"] = " ".join(layer.name for layer in header.sizes.layers)
    print(f"# {path}, {path.stat().st_size / 2**20:.2f} MiB")
    print(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=120), end="")


def write_converted(arguments: argparse.Namespace) -> None:
    """Write the concept in `arguments.source` to `arguments.output`, which must not exist yet."""
    import torch

    output: Path = arguments.output
    if output.suffix != ".safetensors":
        raise UserError(f"output {output} must end in .safetensors, as every concept file of this project does")
    refuse_existing(output)
    covariance_path = output.with_name(f"{output.stem}_covariance.safetensors")
    concept, covariance = load_source(arguments)
    if covariance is not None:
        refuse_existing(covariance_path)
        covariance.save(covariance_path)
    concept.save(output, torch.float16 if arguments.dtype == "fp16" else torch.float32)
    print(f"{output}: concept {concept.placeholder}, {output.stat().st_size / 2**20:.2f} MiB")
    if covariance is not None:
        print(f"{covariance_path}: the covariance it needs; keep it beside the concept, or where you draw from")


def load_source(arguments: argparse.Namespace) -> tuple[Concept, Covariance | None]:
    """The concept in a file of ours, in the public code's pair, or (with `base_model`) in an embedding file or one of
    another tool's Perfusion, which has its covariance inside."""
    source, embeds, base_model = arguments.source, arguments.embeds, arguments.base_model
    placeholder, category = arguments.placeholder, arguments.super_category
    if base_model is None and placeholder is None and (embeds is not None or source.suffix == ".safetensors"):
        return explicit_files(source, embeds).load(), None
    if base_model is None:
        raise UserError(
            f"{source}: is it mapper-steps-N.pt of the public code? Give its learned_embeds-steps-N.bin too. Is it a "
            "Textual Inversion embedding, or of another tool's Perfusion? Name its model with --base_model"
        )
    if embeds is not None:
        raise UserError(f"--base_model is for an embedding, which is one file; {source} and {embeds} are two")
    from neti.models.backbone.backbone import Backbone
    from neti.models.concepts.embeddings import load_embedding, read_content
    from neti.models.concepts.perfusion_files import BY_POSITION, convert_perfusion, is_perfusion

    content = read_content(source)
    if not is_perfusion(content):
        if category is not None:
            raise UserError("--super_category: is for the files of another tool's Perfusion, which do not name it")
        return load_embedding(source, Backbone.from_pretrained(base_model, components=()), placeholder), None
    if "target_output" in content:
        raise UserError(f"{source}: {BY_POSITION}")
    if placeholder is None or category is None:
        raise UserError(f"{source}: a file of another tool's Perfusion; give --placeholder and --super_category too")
    backbone = Backbone.from_pretrained(base_model, components=("text_encoder",))
    try:
        return convert_perfusion(content, backbone, placeholder, category)
    except (ValueError, TypeError, LookupError, RuntimeError) as error:  # whatever a file of another shape leads to
        raise UserError(f"{source}: {error}") from None


def write_embeddings(arguments: argparse.Namespace) -> None:
    """Write a concept as an embedding file: as it is if it is one vector, else approximately, saying what is lost."""
    from neti.models.concepts.approximation import what_varies
    from neti.models.concepts.embeddings import check_output, save_embedding

    output: Path = arguments.output
    check_output(output)
    concept = files_at(arguments.concept).load()
    over_layers, over_time = what_varies(concept)
    for option, given, needed in (
        ("--timestep", arguments.timestep is not None, over_time),
        ("--per_layer", arguments.per_layer, over_layers),
        ("--base_model", arguments.base_model is not None, over_layers or over_time),
    ):
        if given and not needed:
            raise UserError(f"{option}: makes no difference to {arguments.concept}, a {concept.method.name} concept")
    if over_layers or over_time:
        write_approximation(arguments, concept)
    else:
        refuse_existing(output)
        save_embedding(concept, output)
        print(f"{output}: {embedding_in_words(concept)}; nothing is lost")


def write_approximation(arguments: argparse.Namespace, concept: Concept) -> None:
    """Write a concept as one embedding or one per layer, and print what it loses by that."""
    from neti.models.backbone.backbone import Backbone
    from neti.models.concepts.approximation import layer_embeddings, mean_embedding, measure_losses
    from neti.models.concepts.embeddings import save_embedding
    from neti.utils.devices import pick_device

    output: Path = arguments.output
    timestep = TIMESTEP if arguments.timestep is None else arguments.timestep
    base_model = arguments.base_model or concept.base_model(arguments.concept, "--base_model")
    sizes = Backbone.from_pretrained(base_model, components=())
    concept.check_fits(sizes, source=str(arguments.concept))
    embeddings = {output: mean_embedding(concept, timestep)}
    if arguments.per_layer:
        by_layer = layer_embeddings(concept, timestep, sizes.frame.place_names)
        embeddings = {output.with_stem(f"{output.stem}-{name}"): one for name, one in by_layer.items()}
    for path in embeddings:
        refuse_existing(path)

    backbone = Backbone.from_pretrained(base_model, components=("text_encoder", "unet"), device=pick_device("auto"))
    losses = measure_losses(backbone, concept, timestep, one_vector=not arguments.per_layer)
    for path, embedding in embeddings.items():
        save_embedding(embedding, path)
        print(f"{path}: {embedding_in_words(embedding)}")
    print(describe(losses, concept, base_model))


def embedding_in_words(concept: Concept) -> str:
    """What is in an embedding file."""
    method = concept.method
    vectors = f"{method.positions} x " if method.positions > 1 else ""
    return f"embedding {concept.placeholder} of {vectors}{method.frame.text_width} numbers"


def describe(losses: dict[str, Loss], concept: Concept, base_model: str) -> str:
    """What an export loses, as text for a person."""
    if not losses:
        return "nothing is lost, as long as every layer is given its own embedding"
    timesteps = next(iter(losses.values())).by_timestep
    lines = [
        f"What is lost, measured on {base_model}: distance of the U-Net's noise prediction from the concept's own,",
        f"where that for the plain word {concept.super_category!r} is 1; 0 would be the concept itself.",
        f"{'timestep':30}" + "".join(f"{timestep:>7}" for timestep in timesteps) + "    all",
    ]
    for number, (step, loss) in enumerate(losses.items()):
        cells = [*loss.by_timestep.values(), loss.overall]
        lines.append(f"{'+ ' if number else ''}{step}".ljust(30) + "".join(f"{value:7.2f}" for value in cells))
    return "\n".join(lines)


def refuse_existing(output: Path) -> None:
    """UserError if something is at `output` already, or could never be."""
    if len(os.fsencode(output.name)) > MAX_NAME:
        raise UserError(f"output {output} has a name of more than {MAX_NAME} bytes, which no file can have: shorten it")
    if os.path.lexists(output):
        raise UserError(f"output {output} exists and is left as it is: choose another name, or remove it first")


if __name__ == "__main__":
    sys.exit(main())
