"""Learn, steer and compare concepts in a browser:

    python scripts/app.py [--outputs ./outputs] [--port 7860] [--auth name:password]

docs/app.md shows the page; all keys: --help.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

try:
    from neti.training.app.config import AppConfig
    from neti.utils.config.parsing import parse_config
    from neti.utils.errors import UserError, exit_on_user_error
except ModuleNotFoundError as missing:
    print(f"error: {missing}; run `pip install -e .` in the project's folder", file=sys.stderr)
    sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until Ctrl-C."""
    config = parse_config(AppConfig, sys.argv[1:] if argv is None else argv)
    try:
        from neti.training.app.serve import serve  # after the checks: torch and Gradio take seconds
    except ModuleNotFoundError as missing:
        raise UserError(f'{missing}; the page needs Gradio: pip install "neti[app]"') from None

    start = time.perf_counter()
    address = serve(config)
    print(
        f"the page is at {address} ({time.perf_counter() - start:.1f} s after the imports); Ctrl-C ends it", flush=True
    )
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    sys.exit(main())
