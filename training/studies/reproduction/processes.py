"""One process among several: which it is, and how it becomes one that trains alone."""

from __future__ import annotations

import os
from dataclasses import dataclass

# What accelerate's and torchrun's launchers put into the environment. With these, every training would become one that
# is spread over all processes; here each process trains concepts of its own.
LAUNCHED = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
    "MASTER_ADDR",
    "MASTER_PORT",
)
LAUNCHED_PREFIXES = ("ACCELERATE_", "TORCHELASTIC_")


@dataclass(frozen=True)
class Process:
    """number: 0 .. count - 1, of all machines; local_number: of this machine's."""

    number: int = 0
    count: int = 1
    local_number: int = 0

    @property
    def is_first(self) -> bool:
        return self.number == 0

    def device(self, wanted: str, num_gpus: int) -> str:
        """The device that this process should take when the plan says `wanted`: `auto` gives each a GPU of its own."""
        if wanted == "auto" and num_gpus > 1:
            return f"cuda:{self.local_number % num_gpus}"
        return wanted


def leave_the_group() -> Process:
    """Who this process is among those that were launched together; afterwards it looks like one that runs alone."""
    number, count, local = (int(os.environ.get(name, default)) for name, default in _WHO.items())
    for name in [name for name in os.environ if name in LAUNCHED or name.startswith(LAUNCHED_PREFIXES)]:
        del os.environ[name]
    return Process(number, count, local)


_WHO = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
