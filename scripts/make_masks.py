"""Write a mask for every photo of a folder: where the thing is that a word names, by the model CLIPSeg.

    python scripts/make_masks.py photos/my_mug mug [--model CIDAS/clipseg-rd64-refined] [--masks_dir photos/masks]

The masks lie beside the photos as name-masklabel.png, or in --masks_dir under the photos' names. Look at them, mend
them in any image editor, and train with --data.masks folder. A mask that was made elsewhere, or changed by hand, is
kept.
"""

from __future__ import annotations

import argparse
import sys

try:
    from neti.training.data.photos import find_images
    from neti.utils.devices import pick_device
    from neti.utils.errors import ArgumentParser, UserError, exit_on_user_error
    from neti.utils.files import path_option
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)

UNSURE = 0.5  # a surest point below this probability: the model does not see the thing


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Find the photos, load the model, write what is missing."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=path_option, help="the folder of photos")
    parser.add_argument("word", help="what to look for: the super category, such as mug")
    parser.add_argument("--model", default="CIDAS/clipseg-rd64-refined", help="hub name or folder of a CLIPSeg model")
    parser.add_argument(
        "--masks_dir", type=path_option, help="another folder for the masks; left out: beside the photos"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N")
    arguments = parser.parse_args(argv)

    if not arguments.word.strip():
        raise UserError("the word is empty; name the thing that the photos show, such as mug")
    photos, _ = find_images(arguments.folder)

    from neti.training.data.segmentation import Segmenter, foreign_masks, make_masks  # takes seconds (torch)

    stems = [photo.stem for photo in photos]
    if twins := [photo.name for photo in photos if stems.count(photo.stem) > 1]:
        raise UserError(f"{arguments.folder}: {', '.join(twins)} would share one mask; rename them apart")
    folder, beside = arguments.masks_dir or arguments.folder, arguments.masks_dir is None
    todo = []
    for photo in photos:
        if foreign := foreign_masks(photo, folder, beside=beside):
            print(f"{photo.name}: kept {foreign[0].name}, which was not made here or was changed since")
        else:
            todo.append(photo)
    if todo:
        segmenter = Segmenter.from_pretrained(arguments.model, pick_device(arguments.device, "--device"))
        for made in make_masks(segmenter, todo, arguments.word.strip(), folder, beside=beside):
            doubt = f"; it hardly sees a {arguments.word.strip()} there: look at it" if made.surest < UNSURE else ""
            print(f"{made.path}: {made.share:.0%} of the photo, surest point {made.surest:.2f}{doubt}", flush=True)
    where = "" if beside else f" --data.masks_dir {arguments.masks_dir}"
    print(f"done: train with --data.masks folder{where}")


if __name__ == "__main__":
    sys.exit(main())
