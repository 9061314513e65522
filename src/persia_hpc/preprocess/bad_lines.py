"""Lines of text inputs that aren't of the layout: left out, counted over all ranks, refused above a limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from persia_hpc.errors import UserError
from persia_hpc.preprocess.frames import BadRowsError
from persia_hpc.preprocess.lines import Piece
from persia_hpc.preprocess.team import Team

SHOWN = 5  # lines that are described
LEAVE_OUT = " (--max-bad-lines N leaves out up to N such lines, but not of a --part)"


@contextmanager
def option_named() -> Iterator[None]:
    """Whoever is told of a bad line is also told how to leave it out."""
    try:
        yield
    except BadRowsError as error:
        raise UserError(f"{error}{LEAVE_OUT}") from error


@dataclass
class InputLines:
    """The lines of one piece of input, as far as it was read. Files made of it keep this in an attribute,
    with the count null where nobody looked for bad lines.
    """

    count: int = 0  # blank ones too, but for a table's at the end of its file
    bad: int = 0  # left out
    first_bad: list[tuple[int, str]] = field(default_factory=list)  # SHOWN: line, from 1 in the piece; why

    def add(self, count: int, bad: int, described: Sequence[tuple[int, str]]) -> None:
        """`count` more lines, `bad` of them left out; `described`: those for `first_bad`, lines from 0."""
        self.first_bad += [(self.count + line + 1, why) for line, why in described]
        self.count += count
        self.bad += bad


class BadLines:
    """The bad lines that this rank knows of, in pieces of input that it or others have read."""

    def __init__(self, pieces: Sequence[Piece], limit: int) -> None:
        """`limit`: at most so many may be left out of all pieces together."""
        if limit < 0:
            raise UserError(f"--max-bad-lines: got {limit}, expected 0 or more")
        self.pieces = pieces
        self._limit = limit
        self._known: dict[int, InputLines] = {}

    def begin(self, piece: int) -> InputLines:
        """To be filled while the piece is read; what was known of it is forgotten."""
        self._known[piece] = InputLines()
        return self._known[piece]

    def setting(self, pieces: Sequence[int]) -> list[dict[str, Any]]:
        """What the attribute of a file made of these pieces says of them; `restore` reads it."""
        unknown = {**asdict(InputLines()), "count": None}
        lines = [asdict(self._known[i]) if i in self._known else unknown for i in pieces]
        return [
            {"file": self.pieces[i].path.name, "first_byte": self.pieces[i].begin, **found}
            for i, found in zip(pieces, lines, strict=True)
        ]

    def restore(self, pieces: Sequence[int], setting: Sequence[dict[str, Any]] | None) -> None:
        """Learn from the attribute of a finished file that was made of these pieces; None if it has none."""
        for i, stored in zip(pieces, setting or (), strict=setting is not None):
            if stored["count"] is None:
                continue
            described = [(line, why) for line, why in stored["first_bad"]]
            self._known[i] = InputLines(stored["count"], stored["bad"], described)

    @property
    def count(self) -> int:
        """Bad lines in all."""
        return sum(lines.bad for lines in self._known.values())

    def check(self) -> None:
        """Raise `UserError` above the limit, naming the first lines."""
        count = self.count
        if count > self._limit == 0:
            raise UserError(f"{self._first(1)[0]}{LEAVE_OUT}")
        if count > self._limit:
            problem = f"got {count} bad lines, expected at most {self._limit} (--max-bad-lines)"
            raise UserError("\n  ".join([f"{problem}; the first of them:", *self._first(SHOWN)]))

    def share(self, team: Team) -> None:
        """Learn what the other ranks know. Collective."""
        for known in team.gather(self._known):
            self._known.update(known)

    def report(self) -> list[str]:
        """Lines to print: nothing without bad lines, else how many and the first of them."""
        if not self.count:
            return []
        return [
            f"left out {self.count} bad lines, the first of them:",
            *(f"  {at}" for at in self._first(SHOWN)),
        ]

    def _first(self, count: int) -> list[str]:
        bad = ((i, line, why) for i in sorted(self._known) for line, why in self._known[i].first_bad)
        return [
            f"{self.pieces[i].path}:{self._before(i) + line}: {why}" for i, line, why in islice(bad, count)
        ]

    def _before(self, piece: int) -> int:
        """Lines of the file before the piece; read again, if others had the pieces there."""
        earlier = [i for i in range(piece) if self.pieces[i].path == self.pieces[piece].path]
        if all(i in self._known for i in earlier):
            return sum(self._known[i].count for i in earlier)
        return self.pieces[piece].first_line() - 1
