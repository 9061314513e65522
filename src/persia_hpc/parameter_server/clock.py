"""When a server may answer a pull and apply a push: all of the consistency rules (design, section 7)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Clock:
    """A server's logical time: `applied` is the last step whose pushes from all trainers have been applied.

    The rules, for a pull of step t with `bound` = the number of steps whose updates it may miss:
      plain   answered when t - 1 - applied <= bound;
      exact   answered precisely at applied = max(t - 1 - bound, start of segment), and step a + 1 is applied
      only
              after every pull that belongs to applied = a has been answered. So the order of pulls, updates
              and evictions is the same in every run.
    `sync` is `exact` with bound 0. Steps of a segment are first…last; between segments nothing is in flight.
    """

    bound: int
    exact: bool
    num_trainers: int
    applied: int = 0
    first: int = 0
    last: int = 0
    histogram: Counter[int] = field(default_factory=Counter)
    _next: tuple[int, int] | None = None
    _answered: Counter[int] = field(default_factory=Counter)
    _pushed: Counter[int] = field(default_factory=Counter)

    def begin_segment(self, first: int, last: int) -> None:
        """Announces steps first…last; they begin once everything before has been applied.

        Idempotent, since every worker announces each segment, and some while others still push the one
        before.
        """
        if first > self.first:
            self._next = self._next or (first, last)
            self._enter_next()

    def shorten_segment(self, last: int) -> None:
        """The announced segment ends already with step `last` (a stop that all ranks agreed on).

        Of several workers a slow one may say so when the next segment has begun.
        """
        if last < self.first:
            return
        if self._next and last >= self._next[0]:
            self._next = (self._next[0], last)
        elif last <= self.last:  # else of a segment that no worker has announced yet
            self.last = last

    def _enter_next(self) -> None:
        if self._next and self._next[0] == self.applied + 1:
            (self.first, self.last), self._next = self._next, None

    def may_answer(self, step: int) -> bool:
        """Whether a pull of `step` may be answered now."""
        if step > self.last:
            return False  # its segment has not begun: another worker still pushes the one before
        if self.exact:
            return self.applied == max(step - 1 - self.bound, self.first - 1)
        return step - 1 - self.applied <= self.bound

    def answered(self, step: int) -> int:
        """Records an answered pull; returns its staleness in steps."""
        staleness = step - 1 - self.applied
        self.histogram[staleness] += 1
        self._answered[step] += 1
        return staleness

    def may_apply(self, step: int) -> bool:
        """Whether updates of `step` may touch the rows now (asked for whole steps when `exact`)."""
        if not self.exact:
            return True
        if step != self.applied + 1:
            return False
        horizon = min(step + self.bound, self.last)
        return all(self._answered[s] == self.num_trainers for s in range(step, horizon + 1))

    def pushed(self, step: int, count: int = 1) -> bool:
        """Records `count` applied pushes of a step; True when `applied` moved."""
        self._pushed[step] += count
        before = self.applied
        while self._pushed[self.applied + 1] == self.num_trainers:
            self.applied += 1
            del self._pushed[self.applied]
            self._answered.pop(self.applied, None)
        self._enter_next()
        return self.applied > before
