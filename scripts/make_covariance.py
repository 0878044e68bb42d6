"""Measure the second moments of a text encoder's outputs on a file of captions, which Perfusion compares keys by.

    python scripts/make_covariance.py --model CompVis/stable-diffusion-v1-4 --captions captions.txt \
      --output covariance_sd14.safetensors [--tokens nonpad] [--ridge 0] [--limit 100000] [--device auto]

One caption a line; 100,000 captions of photos, as of LAION, are what the method's authors took. The same command goes
on after an interruption. docs/perfusion.md says where captions come from. The miniature's own (it needs the font Noto
Color Emoji, Debian package fonts-noto-color-emoji):

    python scripts/make_covariance.py --model miniature --world 20000 --ridge 1e-3 \
      --output models/miniature/covariance.safetensors
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

try:
    from tqdm import tqdm

    from neti.utils.errors import ArgumentParser, UserError, exit_on_user_error
    from neti.utils.files import path_option, require_writable
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from neti.models.methods.perfusion.second_moments import Moments


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Check everything, load the text encoder, measure, write."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="hub name or folder of the model whose text encoder is measured")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--captions", type=path_option, help="text file, one caption a line")
    source.add_argument(
        "--convert", type=path_option, help="another tool's C (.pt) or C^-1 (.npy) of this text encoder instead"
    )
    source.add_argument("--world", type=int, metavar="N", help="N captions of the miniature's world instead")
    parser.add_argument("--output", type=path_option, required=True, help="a new .safetensors file")
    parser.add_argument("--tokens", choices=("nonpad", "all"), default="nonpad", help="all: padding counts too")
    parser.add_argument("--ridge", type=float, default=0.0, help="times the mean eigenvalue, added to the diagonal")
    parser.add_argument("--limit", type=int, help="read only so many captions")
    parser.add_argument("--batch_size", type=int, default=256, help="captions encoded at a time")
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N")
    arguments = parser.parse_args(argv)
    output: Path = arguments.output
    if output.suffix != ".safetensors":
        raise UserError(f"--output {output}: must end in .safetensors")
    if os.path.lexists(output):
        raise UserError(f"--output {output}: exists and is left as it is; choose another name, or remove it first")
    require_writable(output.parent, "the folder of --output")
    for name, least in (("ridge", 0), ("limit", 1), ("world", 1), ("batch_size", 1)):
        if (value := getattr(arguments, name)) is not None and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")

    from neti.models.backbone.backbone import Backbone
    from neti.models.methods.perfusion.second_moments import Captions, TokenRule, measure

    if arguments.convert:
        from neti.models.concepts.perfusion_files import read_covariance

        backbone = Backbone.from_pretrained(arguments.model, components=("text_encoder",))
        covariance = read_covariance(arguments.convert, backbone)
        covariance.save(output)
        print(f"done: {output}, {covariance.digest}; the file does not say which text encoder it was measured on")
        return
    file = write_world(arguments.world, output) if arguments.world else arguments.captions
    captions = Captions(file, arguments.limit)
    backbone = Backbone.from_pretrained(arguments.model, device=arguments.device, components=("text_encoder",))
    partial = output.with_suffix(".partial.safetensors")
    with tqdm(total=captions.count, unit="caption", disable=None) as bar:

        def show(moments: Moments) -> None:
            bar.update(moments.captions - bar.n)

        covariance = measure(
            backbone.text,
            arguments.model,
            captions,
            partial,
            tokens=TokenRule(arguments.tokens),
            ridge=arguments.ridge,
            batch_size=arguments.batch_size,
            on_batch=show,
        )
    covariance.save(output)
    partial.unlink(missing_ok=True)
    found, width = covariance.metadata, len(covariance.matrix)
    if arguments.world:
        file.unlink()
    if found["cut"]:
        print(f"note: {found['cut']} captions were longer than the model reads and were cut")
    if found["tokens"] < 100 * width:
        print(f"note: {found['tokens']} tokens are few for a width of {width}; take more captions if you can")
    print(f"done: {output}, {found['captions']} captions, {found['tokens']} tokens, {covariance.digest}")


def write_world(count: int, output: Path) -> Path:
    """Captions of the first scenes that the miniature was trained on, in a file beside the output."""
    import numpy as np

    from neti.training.miniature.pretraining.data import scenes
    from neti.training.miniature.world.captions import caption
    from neti.training.miniature.world.world import World

    try:
        world = World.create("cpu")
    except FileNotFoundError as error:
        raise UserError(str(error)) from None
    lines = [caption(scene, np.random.default_rng((7, 0, number))) for number, scene in enumerate(scenes(world, count))]
    path = output.with_suffix(".captions.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
