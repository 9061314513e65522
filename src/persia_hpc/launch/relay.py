"""Passes the launcher's output on to the screen, without the launcher's own noise.

Text is passed line by line, so that lines of two ranks never mix. A progress bar ends its updates with a
carriage return or not at all: it is passed when nothing follows. What is held back lies in
RUN/logs/launcher.log.
"""

from __future__ import annotations

import re
from typing import IO, BinaryIO

from persia_hpc.printable import lose_reader

_RULE = re.compile(rb"^(-{40,}|={40,})\s*$")
_TEXT_AND_RULE = re.compile(rb"(.*[^-=\s])(-{70,}\s*)$", re.DOTALL)  # Open MPI 5 cuts a rank off in its line
_BLOCK_LINES = 40
# What launchers say when a rank fails. The supervisor says it better, and last.
_NOISE = re.compile(
    rb"BAD TERMINATION OF ONE OF YOUR|^YOUR APPLICATION TERMINATED WITH"
    rb"|^This typically refers to a problem with your|^Please see the FAQ page for debugging"
    rb"|^Abort\(-?\d+\) on node \d+|MPI_ABORT was invoked on rank"
    rb"|noticed that process rank \d+ with PID|Primary job  terminated normally|^\[proxy:|^\[mpiexec@"
    rb"|detected that one or more processes exited with non-zero|has exited due to process rank"
    rb"|Process received signal|^srun: error:|^slurmstepd: error:|^srun: Job step aborted"
)
_EXITED_ON_SIGNAL = re.compile(rb"process rank (\d+) with PID \d+ on node \S+ exited on signal (\d+)")
_BAD_TERMINATION = re.compile(rb"PID (\d+) RUNNING AT (\S+)\s+=\s+EXIT CODE: (\d+)")
_ABORTED = re.compile(
    rb"Abort\((\d+)\) on node \d+ \(rank (\d+) in comm 0\)"
    rb"|MPI_ABORT was invoked on rank (\d+)[^!]*?(?:with errorcode|Errorcode:) (\d+)"
)

_LOST_PROXY = b"control_cb ("  # "[mpiexec@host] control_cb (FILE:LINE): assert (!closed) failed"


class Relay:
    """Relays one output stream of the launcher. `screen` gets the ranks' text, `log` the launcher's."""

    def __init__(self, screen: BinaryIO, log: IO[bytes]) -> None:
        self._screen = screen
        self._log = log
        self._partial = b""
        self._block: list[bytes] = []
        self._blank = b""
        self._at_line_start = True
        self.launcher_text = b""
        self.errors: list[bytes] = []  # what ranks say with their last breath; the supervisor says it last

    def feed(self, data: bytes) -> None:
        """Takes what was read from the launcher."""
        *lines, self._partial = re.split(rb"(?<=[\n\r])", self._partial + data)
        for line in lines:
            self._line(line)

    def idle(self) -> None:
        """Shows an unfinished line, such as a progress bar, when nothing more has come for a moment."""
        if self._partial and not self._block and not _RULE.match(self._partial):
            self._show(self._partial)
            self._partial = b""

    def finish(self, new_line: bool = True) -> None:
        """Ends the stream; moves the cursor to a new line if a progress bar stands there."""
        if self._partial:
            self._line(self._partial)
            self._partial = b""
        self._end_block()
        self._show(b"")
        if new_line and not self._at_line_start:
            self._write(b"\n")

    def clear_line(self) -> None:
        """Clears the screen's line of what stands there: a progress bar, which comes again, or an echo."""
        self._at_line_start = True
        self._print(b"\r\x1b[K")

    def exit_signal(self, world_rank: int, pid: int) -> int | None:
        """Returns the signal that ended a rank according to the launcher, None if it names none."""
        for rank, signal in _EXITED_ON_SIGNAL.findall(self.launcher_text):
            if int(rank) == world_rank:
                return int(signal)
        for dead, _, code in _BAD_TERMINATION.findall(self.launcher_text):
            if int(dead) == pid and b"EXIT STRING: " in self.launcher_text:
                named = re.search(rb"EXIT STRING: .*\(signal (\d+)\)", self.launcher_text)
                return int(named.group(1)) if named and named.group(1) == code else None
        return None

    def aborted(self, code: int) -> int | None:
        """Returns the rank that called MPI_Abort with `code` according to the launcher, None without one."""
        for first, rank, other, given in _ABORTED.findall(self.launcher_text):
            if code in (int(first or -1), int(given or -1)):
                return int(rank or other)
        return None

    def lost_proxy(self) -> bool:
        """Says whether MPICH's launcher has lost the process that starts a node's ranks, or its node."""
        return _LOST_PROXY in self.launcher_text

    def _line(self, line: bytes) -> None:
        text = line.strip()
        torn = _TEXT_AND_RULE.match(line)
        if torn:
            self._line(torn.group(1) + b"\n")
            self._line(torn.group(2))
        elif self._block:
            self._block.append(line)
            if _RULE.match(text) or len(self._block) > _BLOCK_LINES:
                self._end_block()
        elif _RULE.match(text):
            self._block.append(line)
        elif _NOISE.search(text):
            self._blank = b""
            self._hold_back(line)
        elif text.startswith(b"persia-hpc: error:"):
            self.errors.append(text)
            self._log.write(line)
        elif line == b"\n":  # launchers put blank lines around what they say
            self._show(b"")
            self._blank = line
        else:
            self._show(line)

    def _end_block(self) -> None:
        whole = b"".join(self._block)
        self._block = []
        if _NOISE.search(whole) or any(_NOISE.search(line) for line in whole.splitlines()):
            self._blank = b""
            self._hold_back(whole)
        elif whole:
            self._show(whole)

    def _show(self, data: bytes) -> None:
        self._write(self._blank + data)
        self._blank = b""

    def _hold_back(self, data: bytes) -> None:
        self.launcher_text += data
        self._log.write(data)

    def _write(self, data: bytes) -> None:
        if data:
            self._at_line_start = data.endswith(b"\n")
            self._print(data)

    def _print(self, data: bytes) -> None:
        try:
            self._screen.write(data)
            self._screen.flush()
        except OSError as error:  # `… | head`: the job is worth more than who looks at it
            lose_reader(self._screen, error)
