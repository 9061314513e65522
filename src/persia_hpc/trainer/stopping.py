"""Ends a run early: trainer 0 hears of signals and requests, and all trainers agree."""

from __future__ import annotations

import signal

from .exporting import Exporter
from .interfaces import BatchStream, Peers
from .run_state import RunState
from .saving import Saver


class Stopping:
    """Decides on trainer 0 that a segment or the run ends early, and tells the others."""

    def __init__(
        self,
        state: RunState,
        stream: BatchStream,
        peers: Peers,
        saver: Saver | None,
        exporter: Exporter | None,
    ) -> None:
        self._state = state
        self._stream = stream
        self._peers = peers
        self._saver = saver
        self._exporter = exporter
        self._draining = False  # the segment is to end early, for a checkpoint or a version

    def request_stop(self, reason: str) -> None:
        """Ends the run soon, at a step that all ranks agree on; does nothing on other trainers than 0."""
        if self._peers.rank != 0:
            return
        self._state.stop_reason = reason
        if self._state.segment_last is not None:
            self._stream.request_stop()

    def listen(self, *, waiting: bool = False) -> None:
        """Takes note, on trainer 0, of signals and of what is written; begins a version if it may now.

        waiting: every step that can be trained has been, on all trainers.
        """
        if self._peers.rank != 0:
            return
        state = self._state
        number = self._stream.stop_signal()
        if number is not None and state.stop_reason is None:
            state.interrupted = number
            self.request_stop(signal.Signals(number).name)
        overdue = False
        if self._saver is not None:
            self._saver.poll()
            overdue = self._saver.overdue()
        if self._exporter is not None:
            overdue |= self._export(self._exporter, waiting)
        if overdue and state.segment_last is not None and not self._draining:
            self._draining = True
            self._stream.request_stop()

    def _export(self, exporter: Exporter, waiting: bool) -> bool:
        """Begins a version if it may now; returns whether that can only be when no gradient is in flight."""
        state = self._state
        exporter.reach(state.step)
        exporter.poll(state.step)
        if not exporter.overdue() or (waiting and not state.step):
            return False
        if self._stream.alone or waiting:
            exporter.advance(state.step)
            return False
        return state.segment_last is None or not exporter.announce(state.step)

    def agree_on_stop(self) -> None:
        """Gives every trainer trainer 0's reason to stop; between segments it begins a version if one is due.

        Collective over trainers.
        """
        self.listen()
        state, exporter = self._state, self._exporter
        if exporter is not None and state.segment_last is None and exporter.waits:
            exporter.advance(state.step)  # before the others go on
        told = self._peers.broadcast((state.stop_reason, state.interrupted))
        state.stop_reason, state.interrupted = told

    def checkpoint_is_due(self) -> bool:
        """Returns whether a checkpoint is to be written now, between two segments."""
        self._draining = False
        state = self._state
        return self._saver is not None and self._saver.due(state.step, state.schedules["train"])
