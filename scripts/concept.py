"""Look into concept files and convert them.

python scripts/concept.py info concept-steps-1000.safetensors
python scripts/concept.py convert mapper-steps-1000.pt learned_embeds-steps-1000.bin concept-steps-1000.safetensors
python scripts/concept.py convert --dtype fp16 concept-steps-1000.safetensors small.safetensors
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import yaml

    from neti.models.concept_files import ConceptFiles, explicit_files
    from neti.utils.errors import UserError, exit_on_user_error
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run one subcommand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="print a concept file's metadata; its tensors are not read")
    info.add_argument("file", type=Path)
    convert = commands.add_parser("convert", help="write a concept, ours or the public code's, in our format")
    convert.add_argument("source", type=Path, help="a concept of this project, or mapper-steps-N.pt of the public code")
    convert.add_argument("embeds", type=Path, nargs="?", help="learned_embeds-steps-N.bin, with a mapper-steps-N.pt")
    convert.add_argument("output", type=Path, help="the .safetensors file to write; must not exist")
    convert.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32", help="fp16 halves the file")
    arguments = parser.parse_args(argv)
    if arguments.command == "info":
        print_info(arguments.file)
    else:
        write_converted(explicit_files(arguments.source, arguments.embeds), arguments.output, arguments.dtype)


def print_info(path: Path) -> None:
    """Print what the header of a concept file says, as YAML."""
    from neti.models.concept import Concept  # takes seconds (torch): `--help` and slips do without

    metadata = Concept.read_metadata(path)
    print(f"# {path}, {path.stat().st_size / 2**20:.2f} MiB")
    print(yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True), end="")


def write_converted(files: ConceptFiles, output: Path, dtype: str) -> None:
    """Write the concept of `files` to `output`, which must not exist yet."""
    import torch

    if output.suffix != ".safetensors":
        raise UserError(f"output {output} must end in .safetensors, as every concept file of this project does")
    if output.exists():
        raise UserError(f"output {output} exists and is left as it is: choose another name, or remove it first")
    concept = files.load()
    concept.save(output, torch.float16 if dtype == "fp16" else torch.float32)
    print(f"{output}: concept {concept.placeholder}, {output.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    sys.exit(main())
