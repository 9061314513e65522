"""Leaves out lines of text inputs that don't fit the layout; counts them over all ranks, up to a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from persia_hpc.errors import UserError
from persia_hpc.preprocess.frames import BadRowsError
from persia_hpc.preprocess.lines import Piece, TextBlock
from persia_hpc.preprocess.team import Team

Result = TypeVar("Result")

SHOWN = 5  # lines that are described
LEAVE_OUT = " (--max-bad-lines N leaves out up to N such lines, but not of a --part)"


@contextmanager
def option_named() -> Iterator[None]:
    """Adds the option that leaves bad lines out to the error message about a bad line.

    Raises UserError in place of the BadRowsError that the block raises.
    """
    try:
        yield
    except BadRowsError as error:
        raise UserError(f"{error}{LEAVE_OUT}") from error


def good_rows(block: TextBlock, use: Callable[[TextBlock], Result]) -> tuple[Result | None, dict[range, str]]:
    """Returns what `use` makes of a block's good rows (None without any), and what is wrong with the others.

    use: raises BadRowsError for rows that it can't use; then it is called again, without them.
    The bad rows are named by the lines that they occupy.
    """
    problems: dict[range, str] = {}
    while block.num_rows:
        try:
            return use(block), problems
        except BadRowsError as error:
            problems |= dict(error.problems)
            block = block.without({line for taken, _ in error.problems for line in taken})
    return None, problems


@dataclass
class InputLines:
    """Counts the lines of one piece of input, as far as it has been read.

    Files made of the piece store these fields in an attribute, with `count` null where the input was not
    checked for bad lines.
    """

    count: int = 0  # blank ones too, but for a table's at the end of its file
    bad: int = 0  # left out
    first_bad: list[tuple[int, str]] = field(default_factory=list)  # SHOWN: line, from 1 in the piece; why

    def add(self, count: int, bad: int, described: Sequence[tuple[int, str]]) -> None:
        """Adds `count` more lines, of which `bad` were left out.

        described: the lines to append to `first_bad`, numbered from 0 within the added ones, with the problem
        """
        self.first_bad += [(self.count + line + 1, why) for line, why in described]
        self.count += count
        self.bad += bad


class BadLines:
    """Holds what this rank knows of the bad lines in the pieces of input, whichever rank read them."""

    def __init__(self, pieces: Sequence[Piece], limit: int) -> None:
        """Starts with nothing known.

        limit: the most lines that may be left out of all pieces together
        Raises UserError for a negative limit.
        """
        if limit < 0:
            raise UserError(f"--max-bad-lines: got {limit}, expected 0 or more")
        self.pieces = pieces
        self._limit = limit
        self._known: dict[int, InputLines] = {}

    def begin(self, piece: int) -> InputLines:
        """Forgets what was known of the piece and returns an empty record to fill while the piece is read."""
        self._known[piece] = InputLines()
        return self._known[piece]

    def note(self, piece: int, block: TextBlock, problems: Mapping[range, str]) -> set[int]:
        """Notes what is wrong with rows of the piece's next block; returns the lines to leave out.

        Raises UserError as soon as there are too many.
        """
        lines = self._known.setdefault(piece, InputLines())
        left_out = {line for taken in problems for line in taken}
        lines.bad += len(left_out)  # an unbalanced quote may take many lines with it
        described = sorted((taken.start, why) for taken, why in problems.items())
        lines.first_bad = [*lines.first_bad, *described][:SHOWN]
        lines.count = block.line(block.num_rows - 1)
        self.check()
        return left_out

    def good(self, path: Path, block: TextBlock, use: Callable[[TextBlock], Result]) -> Result | None:
        """Returns what `use` makes of the good rows of a file's block, as `good_rows` does; notes the others.

        path: of a piece that is a whole file
        Raises UserError as soon as there are too many bad lines.
        """
        made, problems = good_rows(block, use)
        self.note(next(i for i, piece in enumerate(self.pieces) if piece.path == path), block, problems)
        return made

    def recut(self, pieces: Sequence[Piece]) -> None:
        """Takes pieces whose cuts have been mended."""
        self.pieces = pieces

    def setting(self, pieces: Sequence[int]) -> list[dict[str, Any]]:
        """Returns what a file made of these pieces stores about their lines; `restore` reads it."""
        unknown = {**asdict(InputLines()), "count": None}
        lines = [asdict(self._known[i]) if i in self._known else unknown for i in pieces]
        return [
            {"file": self.pieces[i].path.name, "first_byte": self.pieces[i].begin, **found}
            for i, found in zip(pieces, lines, strict=True)
        ]

    def restore(self, pieces: Sequence[int], setting: Sequence[dict[str, Any]] | None) -> None:
        """Takes over what a finished file made of these pieces stored about their lines.

        setting: value of the file's attribute; None if it has none
        """
        for i, stored in zip(pieces, setting or (), strict=setting is not None):
            if stored["count"] is None:
                continue
            described = [(line, why) for line, why in stored["first_bad"]]
            self._known[i] = InputLines(stored["count"], stored["bad"], described)

    @property
    def count(self) -> int:
        """Is the number of bad lines in all known pieces."""
        return sum(lines.bad for lines in self._known.values())

    def check(self) -> None:
        """Checks the number of bad lines against the limit.

        Raises UserError above the limit; it names the first bad lines.
        """
        count = self.count
        if count > self._limit == 0:
            raise UserError(f"{self._first(1)[0]}{LEAVE_OUT}")
        if count > self._limit:
            problem = f"got {count} bad lines, expected at most {self._limit} (--max-bad-lines)"
            raise UserError("\n  ".join([f"{problem}; the first of them:", *self._first(SHOWN)]))

    def share(self, team: Team) -> None:
        """Merges what all ranks of the team know into each rank's record.

        Collective over `team`.
        """
        for known in team.gather(self._known):
            self._known.update(known)

    def report(self) -> list[str]:
        """Returns the lines to print: none without bad lines, else their number and the first of them."""
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
        """Returns how many lines of the file come before the piece.

        It reads them again if other ranks had the earlier pieces.
        """
        earlier = [i for i in range(piece) if self.pieces[i].path == self.pieces[piece].path]
        if all(i in self._known for i in earlier):
            return sum(self._known[i].count for i in earlier)
        return self.pieces[piece].first_line() - 1
