"""Ctrl-C (SIGINT) and a scheduler's SIGTERM: finish the step, save, then leave."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ECHO_SECONDS = 2.0


class GracefulStop:
    """Context manager that turns the first signal into a request, read from `received`; the second acts at once.

    `torchrun` forwards a Ctrl-C that the terminal already sent to every process, so an echo within two seconds of the
    first signal does not count as the second.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0

    def __enter__(self) -> GracefulStop:
        self._previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            self._received_at = time.monotonic()
        elif time.monotonic() - self._received_at > _ECHO_SECONDS:
            raise KeyboardInterrupt
