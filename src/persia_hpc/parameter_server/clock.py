"""When a server may answer a pull and apply a push: all of the consistency rules (design, section 7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
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
      per_trainer (`async`) answered when t - 1 - (that trainer's last applied step) <= bound: nobody
      waits for another trainer's updates, which a row may miss without limit.
    `sync` is `exact` with bound 0. Steps of a segment are first…last; between segments nothing is in flight.
    """

    bound: int
    exact: bool
    num_trainers: int
    per_trainer: bool = False
    applied: int = 0
    first: int = 0
    last: int = 0
    histogram: Counter[int] = field(default_factory=Counter)
    _next: tuple[int, int] | None = None
    _answered: Counter[int] = field(default_factory=Counter)
    _pushed: Counter[int] = field(default_factory=Counter)
    _own: dict[int, int] = field(default_factory=dict)  # per_trainer: its last step without a gap before it
    _early: set[tuple[int, int]] = field(default_factory=set)  # (trainer, step) behind such a gap

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
            self._own.clear()  # all have applied everything before

    def staleness(self, step: int, trainer: int) -> int:
        """Steps whose updates a pull that is answered now may miss; `per_trainer`: that trainer's own."""
        return step - 1 - (self._own.get(trainer, self.first - 1) if self.per_trainer else self.applied)

    def may_answer(self, step: int, trainer: int) -> bool:
        """Whether a trainer's pull of `step` may be answered now."""
        if step > self.last:
            return False  # its segment has not begun: another worker still pushes the one before
        if self.exact:
            return self.applied == max(step - 1 - self.bound, self.first - 1)
        return self.staleness(step, trainer) <= self.bound

    def answered(self, step: int, trainer: int) -> int:
        """Records an answered pull; returns its staleness in steps."""
        staleness = self.staleness(step, trainer)
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

    def pushed(self, step: int, trainers: Collection[int]) -> bool:
        """Records applied pushes of a step, of these trainers; True when `applied` moved."""
        self._pushed[step] += len(trainers)
        if self.per_trainer:
            self._early.update((trainer, step) for trainer in trainers)
            for trainer in trainers:
                own = self._own.get(trainer, self.first - 1)
                while (trainer, own + 1) in self._early:
                    own += 1
                    self._early.remove((trainer, own))
                self._own[trainer] = own
        before = self.applied
        while self._pushed[self.applied + 1] == self.num_trainers:
            self.applied += 1
            del self._pushed[self.applied]
            self._answered.pop(self.applied, None)
        self._enter_next()
        return self.applied > before
