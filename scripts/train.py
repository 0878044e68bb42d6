"""Train one concept: python scripts/train.py --config_path input_configs/train.yaml [--group.key value ...]

--help lists every key, docs/training.md explains them.
On two GPUs: accelerate launch --num_processes 2 scripts/train.py ...
"""

import sys

try:
    from neti.training.config.run import RunConfig
    from neti.utils.config.parsing import parse_config
    from neti.utils.errors import exit_on_user_error
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed; in the project's folder run: pip install -e .")


@exit_on_user_error
def main() -> int:
    config = parse_config(RunConfig, sys.argv[1:])
    from neti.training.coach.launch import (
        launch,  # takes seconds to import: not before the configuration is known to be good
    )

    return launch(config)


if __name__ == "__main__":
    sys.exit(main())
