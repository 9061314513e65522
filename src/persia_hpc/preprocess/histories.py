"""Finds what each user did before an event: the histories of samples, which share their offsets.

Shapes: E events in any order, S samples, H events of all histories together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from persia_hpc.samples.batch import IdColumn, Rows
from persia_hpc.samples.ids import Ids

# Width of a bucket of time in natural logarithms of seconds, as HSTU's research code has it.
GAP_STEP = 0.301


def ranges(begin: Rows, end: Rows) -> tuple[Rows, Rows]:
    """Returns the numbers of all ranges [begin, end) in succession, and how many each has.

    Shapes: begin and end [S]; returns [H] and [S].
    """
    lengths = end - begin
    before = np.cumsum(lengths) - lengths
    numbers = np.repeat(begin - before, lengths)
    numbers += np.arange(len(numbers))
    return numbers, lengths


def gap_ids(seconds: npt.NDArray[np.int64]) -> Ids:
    """Returns the bucket of each time between two events: the integer below ln(seconds) / 0.301, from 0.

    Shapes: [H].
    """
    return (np.log(np.maximum(seconds, 1)) / GAP_STEP).astype(np.uint64)


@dataclass(frozen=True)
class History:
    """Holds the events before each of S samples: their numbers [H], how many each sample has, and gaps.

    gaps: seconds since the user's event before that histories have, 0 for the first one of a user [H]
    """

    events: Rows
    lengths: Rows
    gaps: npt.NDArray[np.int64]

    def column(self, values: Ids) -> IdColumn:
        """Returns the column with the value of each event, of the values [E] of all events."""
        return IdColumn.from_lengths(values[self.events], self.lengths)

    def gap_column(self, *, seconds: bool) -> IdColumn:
        """Returns the column of the gaps' buckets, with `seconds` weighted by the gaps themselves."""
        weights = self.gaps.astype(np.float32) if seconds else None
        return IdColumn.from_lengths(gap_ids(self.gaps), self.lengths, weights)


class Timeline:
    """Orders events by user and time; those of one moment stay in the order in which they were given.

    order: number of the event in each place [E]
    begin: place of the first event of the same user, for each place [E]
    end: place behind the last one [E]
    """

    def __init__(
        self,
        users: Ids,
        time: npt.NDArray[np.int64],
        kept: npt.NDArray[np.bool_] | None = None,
        per_second: int = 1,
    ) -> None:
        """Orders the events.

        kept: which events histories have [E]; without it all
        per_second: how many units of `time` are a second
        """
        self.order: Rows = np.lexsort((time, users))
        ordered = users[self.order]
        first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
        counts = np.diff(np.append(first, len(ordered)))
        self.begin: Rows = np.repeat(first, counts)
        self.end: Rows = np.repeat(first + counts, counts)
        self._pool = np.arange(len(ordered)) if kept is None else np.flatnonzero(kept[self.order])
        seconds = time[self.order[self._pool]] // per_second
        self._gaps = np.diff(seconds, prepend=0)
        who = ordered[self._pool]
        self._gaps[np.concatenate([[True], who[1:] != who[:-1]])[: len(who)]] = 0

    def places(self) -> Rows:
        """Returns the place of each event [E]."""
        places = np.empty_like(self.order)
        places[self.order] = np.arange(len(places))
        return places

    def before(self, places: Rows, limit: int | None = None) -> History:
        """Returns what the user did before the events in these places [S], at most the last `limit` ones."""
        begin, end = (np.searchsorted(self._pool, some) for some in (self.begin[places], places))
        if limit is not None:
            begin = np.maximum(begin, end - limit)
        found, lengths = ranges(begin, end)
        return History(self.order[self._pool[found]], lengths, self._gaps[found])

    def held_out(self, count: int) -> list[Rows]:
        """Returns places by what they are for: training, then `count` later ones, the last one the test.

        The last event of each user is the test, the one before it (with a `count` of 2) is for validation,
        and the one before that for training, the history of which has all events before.
        A user with too few events for one of them is in the others only; a first event has no history and
        is nobody's.
        """
        last = np.unique(self.end) - 1 if len(self.end) else self.end
        parts = [last - back for back in range(count, -1, -1)]
        begin = self.begin[last]
        return [part[part > begin] for part in parts]
