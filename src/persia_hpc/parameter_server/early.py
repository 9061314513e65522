"""Remembers what was sent ahead of its step, for the patches that follow (`fresh`).

Shape letters: U_g rows of a dim group in one request, D_g its dim, M_g those of them that have changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from persia_hpc._native import PendingPull
from persia_hpc.arrays import Array


@dataclass(frozen=True, eq=False)
class RowPatch:
    """Holds what must be written over the rows of an early answer.

    Shapes:
    positions: for each dim group uint32 [M_g], in the rows of the answer. rows: [M_g, D_g] in a wire format.
    """

    positions: list[Array]
    rows: list[Array]

    @classmethod
    def of(cls, groups: Iterable[tuple[Array, Array]]) -> RowPatch:
        """Returns the patch of (positions, rows) of each dim group."""
        positions, rows = zip(*groups, strict=True)
        return cls(list(positions), list(rows))

    @property
    def num_rows(self) -> int:
        """Returns how many rows have changed."""
        return sum(map(len, self.positions))


class EarlyRows:
    """Holds the rows with which pulls were answered early, until their patches are made."""

    def __init__(self) -> None:
        self._sent: dict[tuple[int, int], tuple[Sequence[Array], int]] = {}

    def __contains__(self, pull: PendingPull) -> bool:
        return (pull.step, pull.trainer) in self._sent

    def keep(self, pull: PendingPull, rows: Sequence[Array], since: int) -> None:
        """Remembers an early answer, whose arrays nobody may change. since: the step of which rows are."""
        self._sent[pull.step, pull.trainer] = rows, since

    def take(self, pull: PendingPull) -> tuple[Sequence[Array], int]:
        """Returns and forgets the rows of an early answer, and the step after which they were taken."""
        return self._sent.pop((pull.step, pull.trainer))
