"""Follows pulls that are answered ahead of their step, and later patched (`fresh`).

Shape letters: D_g the dim of a dim group, M_g its rows in one request that have changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import numpy as np

from persia_hpc._native import PendingPull, TableSet
from persia_hpc.arrays import Array

Push: TypeAlias = tuple[PendingPull, Sequence[Array]]  # with its gradients


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
    MARKED = 2  # it is known which of them updates will change
    SURE = 3  # and no others will differ if tables are calm
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

    def mark(self, pulls: Iterable[PendingPull], tables: TableSet) -> bool:
        """Notes in pulls which of their rows will change, where that isn't done; returns whether it was."""
        marked = False
        for pull in pulls:
            if self._stages.get((pull.step, pull.trainer)) is Stage.SENT:
                self.set(pull, Stage.SURE if tables.mark_differing(pull, alone=self._alone) else Stage.MARKED)
                marked = True
        return marked


class FirstPushes:
    """Holds the gradients that patches wait for, where they come ahead of the others of their pulls.

    They are of one step, the next to be applied.
    """

    def __init__(self) -> None:
        self._step = 0
        self._parts: dict[int, tuple[PendingPull, PendingPull]] = {}  # by trainer: those first, the others
        self._gradients: dict[int, list[Array]] = {}  # of those that have come
        self._applied = False

    def want(self, pulls: Iterable[PendingPull], tables: TableSet) -> list[tuple[PendingPull, Array]]:
        """Chooses the marked rows of a step's pulls; returns their places in each.

        Shapes:
        uint32 [M] of each pull.
        """
        self._parts, self._gradients, self._applied = {}, {}, False
        found = []
        for pull in pulls:
            marked = tables.marked(pull)
            self._step = pull.step
            self._parts[pull.trainer] = pull.part(marked), pull.part(1 - marked)
            found.append((pull, np.flatnonzero(marked).astype(np.uint32)))
        return found

    def add(self, step: int, trainer: int, gradients: Sequence[Array]) -> None:
        """Takes the gradients of a pull's chosen rows, which are copied."""
        assert step == self._step
        self._gradients[trainer] = [np.array(each) for each in gradients]

    def whole(self, step: int) -> list[Push]:
        """Returns the pushes of chosen rows, in order of trainer, if those of all trainers have come."""
        if step != self._step or self._applied or self._gradients.keys() != self._parts.keys():
            return []
        return [(self._parts[t][0], gradients) for t, gradients in sorted(self._gradients.items())]

    def expected(self, step: int) -> bool:
        """Returns whether a step's chosen rows are to be updated next."""
        return step == self._step and bool(self._parts) and not self._applied

    def applied(self) -> None:
        """Takes note that the updates of chosen rows are made."""
        self._applied = True

    def with_others(self, pull: PendingPull, gradients: Sequence[Array]) -> list[Push]:
        """Returns what is to be applied when `gradients` have come: of all rows, or of those not chosen."""
        if pull.step != self._step or pull.trainer not in self._gradients:
            return [(pull, gradients)]
        first, others = self._parts[pull.trainer]
        ahead = [] if self._applied else [(first, self._gradients[pull.trainer])]
        return [*ahead, (others, gradients)]
