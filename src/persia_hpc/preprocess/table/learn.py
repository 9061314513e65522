"""Learns from the training rows of a table: means and deviations, frequent ids, vocabularies.

Shapes: N rows of one frame.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.columns import spelled
from persia_hpc.preprocess.frames import Frame
from persia_hpc.preprocess.ids import IdCounts, merged_counts
from persia_hpc.preprocess.team import Team
from persia_hpc.samples.ids import MISSING_ID, id_filter

from .convert import Converter, Learned, Moments

PIECE_VALUES = 1 << 40  # ids of one feature in one piece: fewer


class Learning:
    """Holds what one rank has learned; the joint result depends on the pieces, not on who takes which."""

    def __init__(self, converter: Converter) -> None:
        """Starts with nothing learned.

        Raises UserError if there is something to learn, but no training rows.
        """
        self._converter = converter
        schema = converter.schema
        self._standardized = [n for n, entry in schema.dense.items() if "standardize" in entry.transform]
        self._counts = {
            name: IdCounts() for name, entry in schema.ids.items() if entry.min_count > 1 or entry.vocabulary
        }
        # Sums of floating-point numbers depend on their order: a piece is summed by itself.
        self._moments: dict[int, dict[str, Moments]] = {}
        self._used: dict[tuple[int, str], int] = {}
        if self.needed and "train" not in schema.split.names:
            raise UserError(
                "standardize, min_count and vocabulary learn from training rows: got a split without any, "
                "expected one with `train`"
            )

    @property
    def needed(self) -> bool:
        """Tells whether any column needs something learned."""
        return bool(self._standardized or self._counts)

    def add(self, source: Frame, rows: npt.NDArray[np.bool_], piece: int = 0) -> None:
        """Learns from the training rows of the frame, given as a mask [N].

        A rank must take its pieces in rising order.
        Raises UserError for a value that the schema doesn't allow.
        """
        schema = self._converter.schema
        moments = self._moments.setdefault(piece, {name: Moments() for name in self._standardized})
        for name in self._standardized:
            moments[name].add(self._converter.dense(source, schema.dense[name], None)[rows])
        for name, counts in self._counts.items():
            column, values = self._converter.ids(source, name)
            keep = rows if column.offsets is None else np.repeat(rows, np.diff(column.offsets))
            keep = keep & (column.values != MISSING_ID)
            ids = column.values[keep]
            used = self._used.get((piece, name), 0)
            self._used[piece, name] = used + len(ids)
            text = None
            if schema.ids[name].vocabulary:
                text = spelled(values.filter(pl.Series(keep)), self._converter.id_types[name])
            counts.add(ids, text, first=piece * PIECE_VALUES + used)

    def finish(self, team: Team) -> Learned:
        """Returns what all ranks together have learned, on every rank.

        Collective over `team`.
        """
        schema = self._converter.schema
        pieces = {piece: moments for part in team.gather(self._moments) for piece, moments in part.items()}
        learned = Learned({name: Moments() for name in self._standardized})
        for piece in sorted(pieces):
            for name, moments in learned.moments.items():
                moments.merge(pieces[piece][name])
        for name, counts in self._counts.items():
            entry = schema.ids[name]
            frame = merged_counts(counts.frame(1), entry.min_count, team, values=entry.vocabulary)
            learned.filters[name] = id_filter(frame["id"].to_numpy(), vocabulary=entry.vocabulary)
            if entry.vocabulary:
                numbers = pl.Series("id", np.arange(1, frame.height + 1, dtype=np.uint64))
                learned.vocabularies[name] = frame.select(numbers, "value", "count")
        return learned
