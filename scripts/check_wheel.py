"""Build the wheel, install it away from the sources, and import and use it: what a user of `pip install` gets.

python scripts/check_wheel.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

try:
    from neti.utils.errors import UserError, exit_on_user_error
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)

ROOT = Path(__file__).resolve().parents[1]
CHECK = """
import sys
from pathlib import Path
import neti.models, neti.training.coach.trainer, neti.training.miniature.world.world, neti.models.conditioning.prompts
from neti.models.backbone.backbone import Backbone
where = Path(neti.models.__file__).parent
assert str(where).startswith(sys.argv[1]), f"imported the sources in {where}, not the wheel"
assert (where / "py.typed").exists()
backbone = Backbone.from_pretrained("miniature")
print(f"the wheel works: {len(backbone.frame.layers)} cross-attention layers, text width {backbone.frame.text_width}")
"""


@exit_on_user_error
def main() -> None:
    """Build, install into a temporary folder without dependencies, import from there."""
    if sys.argv[1:]:
        raise UserError(f"check_wheel.py takes no arguments, but was given {sys.argv[1:]}")
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, str(ROOT)], check=True)
        (wheel,) = Path(folder).glob("neti-*.whl")
        site = Path(folder, "site")
        subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
        program = f"import sys; sys.path.insert(0, {str(site)!r})\n{CHECK}"
        subprocess.run([sys.executable, "-c", program, str(site)], check=True, cwd=folder)
        print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    sys.exit(main())
