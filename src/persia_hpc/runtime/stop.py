"""Keeps signals that ask a run to stop until the run can be stopped cleanly."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Makes SIGINT, SIGTERM and SIGUSR1 only leave their number in `number`, as long as its context is open.

    A second SIGINT ends the process at once, as usual. Outside of the main thread, where Python can't handle
    signals, this does nothing.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._keep_number) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def ask(self) -> None:
        """Asks the run to stop as SIGTERM does, if no signal has yet."""
        if self.number is None:
            self.number = signal.SIGTERM

    def _keep_number(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.number is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number = number
