"""Decides when a server may answer a pull and apply a push: all of the consistency rules are here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Holds a server's logical time: `applied` is the last step whose pushes from all trainers are applied.

    Let `a` be `applied`. The *staleness* of a pull of step t is t - 1 - a: the number of steps whose updates
    its rows miss if it is answered now. `bound` limits it, and one of three rules holds:

    - plain: a pull is answered when its staleness is at most `bound`. Pushes are applied at any time.
    - exact: a pull of step t is answered when a = max(t - 1 - bound, first - 1) and at no other time, where
      `first` is the first step of its segment. Step a + 1 is applied when all its pushes are there and every
      pull that must be answered at `a` has been answered. So pulls, updates and evictions have the same
      order in every run. `sync` is this rule with bound 0.
    - per_trainer (`async`): as plain, but `a` is the last step that the pull's own trainer has had applied
      without a gap before it. A trainer never waits for another's updates, and its rows may miss any number
      of those.

    A *mark* is a step that somebody wants to see the tables after: with its updates and none of later steps,
    which wait for it, in any mode.

    With `lookahead` > 0 (`fresh`) a pull may have a preliminary answer sooner, at a staleness up to that,
    which changes nothing. What the rules say holds for the final one.

    A segment has the steps first…last. Between segments no pull and no push is in flight.
    """

    bound: int
    exact: bool
    num_trainers: int
    per_trainer: bool = False
    lookahead: int = 0
    applied: int = 0
    mark: int | None = None  # no update of a later step is made before `take_mark`
    newest: int = 0  # the last step of which any update is made
    first: int = 0
    last: int = 0
    histogram: Counter[int] = field(default_factory=Counter)
    _next: tuple[int, int] | None = None
    _answered: Counter[int] = field(default_factory=Counter)
    _pushed: Counter[int] = field(default_factory=Counter)
    _own: dict[int, int] = field(default_factory=dict)  # per_trainer: its last step without a gap before it
    _early: set[tuple[int, int]] = field(default_factory=set)  # (trainer, step) behind such a gap

    def restore(self, step: int, histogram: Mapping[int, int]) -> None:
        """Continues after `step` of an earlier run, with how often each staleness occurred in it."""
        self.applied = self.newest = self.first = self.last = step
        self.histogram.update(histogram)

    def replaced(self) -> None:
        """Takes note that the rows are those of an earlier step now: a mark may be set at any."""
        self.mark, self.newest = None, 0

    def begin_segment(self, first: int, last: int) -> None:
        """Announces steps first…last, which begin once everything before them has been applied.

        A repetition changes nothing: every worker announces each segment, some of them while others still
        push gradients of the segment before.
        """
        if first > self.first:
            self._next = self._next or (first, last)
            self._enter_next()

    def shorten_segment(self, last: int) -> None:
        """Ends the announced segment with step `last` instead, because all ranks agreed to stop there.

        A slow worker may say so when the next segment has begun already; then nothing changes.
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

    def set_mark(self, step: int) -> bool:
        """Sets the mark, also instead of another; returns False, without one, if it is too late for it."""
        self.mark = step if self.newest <= step else None
        return self.mark is not None

    def take_mark(self) -> bool:
        """Returns whether the mark is reached; then there is none any more."""
        reached = self.mark is not None and self.applied >= self.mark
        if reached:
            self.mark = None
        return reached

    def staleness(self, step: int, trainer: int) -> int:
        """Returns the staleness of a trainer's pull of `step` if it is answered now."""
        return step - 1 - (self._own.get(trainer, self.first - 1) if self.per_trainer else self.applied)

    def may_answer(self, step: int, trainer: int) -> bool:
        """Returns whether a trainer's pull of `step` may be answered now."""
        if step > self.last:
            return False  # its segment has not begun: another worker still pushes the one before
        if self.exact:
            return self.applied == max(step - 1 - self.bound, self.first - 1)
        return self.staleness(step, trainer) <= self.bound

    def may_answer_early(self, step: int, trainer: int) -> bool:
        """Returns whether a trainer's pull of `step` may have a preliminary answer now."""
        return step <= self.last and self.staleness(step, trainer) <= self.lookahead

    def all_answered(self, step: int) -> bool:
        """Returns whether all trainers' pulls of a step are answered, of which not all is applied."""
        return self._answered[step] == self.num_trainers

    def answered(self, step: int, trainer: int) -> int:
        """Records that a pull is answered; returns its staleness in steps."""
        staleness = self.staleness(step, trainer)
        self.histogram[staleness] += 1
        self._answered[step] += 1
        return staleness

    def may_apply(self, step: int) -> bool:
        """Returns whether updates of `step` may be applied now."""
        if self.mark is not None and step > self.mark:
            return False
        if not self.exact:
            return True
        if step != self.applied + 1:
            return False
        horizon = min(step + self.bound, self.last)
        return all(map(self.all_answered, range(step, horizon + 1)))

    def begun(self, step: int) -> None:
        """Records that some updates of a step are made: no mark before it is possible any more."""
        self.newest = max(self.newest, step)

    def pushed(self, step: int, trainers: Collection[int]) -> bool:
        """Records that pushes of these trainers for `step` are applied; returns whether `applied` moved."""
        self._pushed[step] += len(trainers)
        self.begun(step)
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

    def waits_for(
        self, pulls: Sequence[tuple[int, int]], held: Collection[int], in_flight: Collection[tuple[int, int]]
    ) -> str:
        """Returns what must arrive before a pull or a held push can proceed.

        pulls: (step, trainer) of those that wait. held: the trainers whose pushes of the next step are here.
        in_flight: (step, trainer) of the pulls that are answered.
        """
        waiting = ", ".join(f"step {step} of trainer {trainer}" for step, trainer in pulls[:4]) or "none"
        if self.per_trainer and pulls:
            first, trainer = min(pulls, key=lambda pull: pull[0])
            return f"trainer {trainer}'s gradients before step {first} (pulls that wait: {waiting})"
        step = self.applied + 1
        missing = [t for t in range(self.num_trainers) if (step, t) in in_flight and t not in held]
        return (
            f"the gradients of step {step}"
            + (f" of trainer {', '.join(map(str, missing))}" if missing else "")
            + f" (applied: {self.applied}; pulls that wait: {waiting})"
        )
