"""Follows pulls that are answered ahead of their step, and later patched (`fresh`).

Shape letters: D_g the dim of a dim group, M_g its rows in one request that have changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from persia_hpc._native import PendingPull, TableSet
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


class Stage(IntEnum):
    """Says how far a pull with an early answer has come."""

    SENT = 1  # with rows as they were then
    MARKED = 2  # it is known which of them updates will change, and some have gone
    SURE = 3  # the same, but all are there: no others will differ if tables are calm
    PATCHED = 4  # those have been sent


class EarlyPulls:
    """Holds the stages of pulls, from the early answer until they are made for good."""

    def __init__(self, num_trainers: int) -> None:
        self._alone = num_trainers == 1
        self._stages: dict[tuple[int, int], Stage] = {}

    def __contains__(self, pull: PendingPull) -> bool:
        return (pull.step, pull.trainer) in self._stages

    def set(self, pull: PendingPull, stage: Stage) -> None:
        """Records that a pull is at `stage`."""
        self._stages[pull.step, pull.trainer] = stage

    def take(self, pull: PendingPull) -> Stage:
        """Returns the stage of a pull, and forgets it."""
        return self._stages.pop((pull.step, pull.trainer))

    def sure(self, pulls: Iterable[PendingPull], step: int) -> list[PendingPull]:
        """Returns the pulls of a step of which it is known what will differ."""
        return [p for p in pulls if p.step == step and self._stages.get((step, p.trainer)) is Stage.SURE]

    def lost(self, step: int) -> bool:
        """Returns whether a row of an early answer for this step is known to have gone since."""
        return any(stage is Stage.MARKED and of == step for (of, _), stage in self._stages.items())

    def mark(self, pulls: Iterable[PendingPull], tables: TableSet) -> bool:
        """Notes in pulls which of their rows will change, where that isn't done; returns whether it was."""
        marked = False
        for pull in pulls:
            if self._stages.get((pull.step, pull.trainer)) is Stage.SENT:
                self.set(pull, Stage.SURE if tables.mark_differing(pull, alone=self._alone) else Stage.MARKED)
                marked = True
        return marked
