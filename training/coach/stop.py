"""Ctrl-C, a scheduler's signals and a watcher's wish: finish the step, save, then leave."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

# Asked to end: by Ctrl-C, by `kill` or a scheduler, by a closed terminal, by SLURM some time before its limit
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
_ECHO_SECONDS = 2.0


class GracefulStop:
    """Context manager that turns the first signal into a request, kept in `received`; a second Ctrl-C acts at once.

    wish: asked at every step and every denoising step whether to stop, which counts as Ctrl-C. Outside the main thread,
    where Python allows no signal handlers, it is the only way. `torchrun` forwards a Ctrl-C that the terminal already
    sent to every process, so an echo within two seconds of the first does not count as the second.
    """

    def __init__(self, wish: Callable[[], bool] = lambda: False) -> None:
        self.received: int | None = None
        self._wish = wish
        self._received_at = 0.0

    def asked(self) -> bool:
        """Whether to stop."""
        if self.received is None and self._wish():
            self.received = signal.SIGINT
        return self.received is not None

    def __enter__(self) -> GracefulStop:
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # under `nohup` a closed terminal is to mean nothing
                self._previous[number] = signal.signal(number, self._on_signal)
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
        elif number == signal.SIGINT and time.monotonic() - self._received_at > _ECHO_SECONDS:
            raise KeyboardInterrupt
