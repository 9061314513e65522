"""Has the gradients that patches wait for come first, in parts (`fresh`).

Shape letters: U rows of a pull, M those of a part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from persia_hpc._native import PendingPull
from persia_hpc.arrays import Array

from .clock import Clock

if TYPE_CHECKING:
    from persia_hpc.protocol.messages import WantFirst

Push: TypeAlias = tuple[PendingPull, Sequence[Array]]  # with its gradients

MOST_PARTS = 8  # of the gradients of a pull that come first
WANTED_AHEAD = 2  # steps after the last that is applied, of which gradients are wanted
BITS = (14, 22)  # at least and at most, of a hash of rows: what has these stays in the second cache
_MIX = np.uint64(0x9E3779B97F4A7C15)  # spreads keys over all numbers


@dataclass(frozen=True)
class Share:
    """Says which keys belong together where a step's changes are made in parts: it depends on nothing else.

    number: 0 to of - 1.
    """

    number: int
    of: int

    @property
    def left(self) -> int:
        """Returns how many parts follow this one."""
        return self.of - 1 - self.number

    def has(self, keys: Array) -> Array:
        """Returns a 1 for each of the keys that belong to this part.

        Shapes:
        uint64 [U] to uint8 [U].
        """
        mixed = (keys * _MIX) >> np.uint64(48)
        ones: Array = ((mixed * np.uint64(self.of)) >> np.uint64(16) == self.number).view(np.uint8)
        return ones


@dataclass(frozen=True, eq=False)
class Portion:
    """Says of which rows of a pull a patch may be sent, and how many others follow.

    Shapes:
    chosen: uint8 [U]; None for all.
    """

    pull: PendingPull
    chosen: Array | None = None
    left: int = 0


@dataclass(frozen=True, eq=False)
class Wish:
    """Says which gradients of a pull shall come first.

    Shapes:
    places: for each part uint32 [M], in the pull.
    """

    pull: PendingPull
    places: list[Array]

    def message(self) -> WantFirst:
        """Returns what tells the worker."""
        from persia_hpc.protocol.messages import WantFirst  # with MPI, which one process has no need of

        counts = np.array([len(part) for part in self.places], np.uint32)
        return WantFirst(self.pull.step, self.pull.trainer, np.concatenate(self.places), counts)


@dataclass(eq=False)
class _Split:
    """Holds a pull whose gradients come in parts, and those that have come.

    Shapes:
    masks: for each part that comes first uint8 [U].
    """

    pull: PendingPull
    masks: list[Array]
    gradients: list[list[Array]] = field(default_factory=list)

    def push(self, number: int) -> Push:
        """Returns a part with its gradients; the pull must be answered."""
        return self.pull.part(self.masks[number]), self.gradients[number]

    def others(self) -> PendingPull:
        """Returns the pull of the rows that no part has."""
        return self.pull.part(1 - np.bitwise_or.reduce(self.masks))


@dataclass(eq=False)
class _Step:
    """Holds what comes first of one step, and how much of it is applied, and patched in the step after it.

    Shapes:
    waits: by trainer which rows of the next step's pull this one has, uint8 [U].
    """

    num_parts: int
    splits: dict[int, _Split]  # by trainer
    waits: dict[int, Array]
    applied: int = 0  # parts
    patched: set[int] = field(default_factory=set)  # trainers that have the patch of rows that don't wait

    def next_share(self) -> Share:
        """Returns which keys the next part has, and counts it as applied."""
        self.applied += 1
        return Share(self.applied - 1, self.num_parts)


class FirstPushes:
    """Holds the gradients that patches wait for, where they come ahead of the others of their pulls.

    They come in parts, each of which has the same keys of all trainers, so that a part can be applied, and
    patches of its keys be sent, before the next is there.
    """

    def __init__(self) -> None:
        self.newest = 0  # the last step that anything was wanted of
        self._steps: dict[int, _Step] = {}

    def next_pulls(
        self, clock: Clock, waiting: Iterable[PendingPull], in_flight: Mapping[tuple[int, int], PendingPull]
    ) -> tuple[list[PendingPull], list[PendingPull]] | None:
        """Returns the pulls of the next step to want anything of, and of that after it, if all are there."""
        step = max(self.newest, clock.applied) + 1
        if step > clock.applied + WANTED_AHEAD or step + 1 > clock.last:
            return None
        later = [pull for pull in waiting if pull.step == step + 1]
        pulls = [pull for pull in (*in_flight.values(), *waiting) if pull.step == step]
        return (pulls, later) if min(len(pulls), len(later)) == clock.num_trainers else None

    def want(
        self, pulls: Sequence[PendingPull], later: Sequence[PendingPull], most_rows: float
    ) -> list[Wish]:
        """Chooses the rows of a step's pulls that the next step's have too, in parts of about `most_rows`."""
        self.newest = pulls[0].step
        self._steps = {s: of for s, of in self._steps.items() if s >= self.newest - WANTED_AHEAD}
        chosen = recurring(pulls, later)
        most = max(int(mask.sum()) for mask in chosen)
        num_parts = min(max(1, math.ceil(most / most_rows)), MOST_PARTS)
        shares = [Share(number, num_parts) for number in range(num_parts)]
        splits = {
            pull.trainer: _Split(pull, [mask & share.has(pull.keys) for share in shares])
            for pull, mask in zip(pulls, chosen, strict=True)
        }
        waits = dict(zip((pull.trainer for pull in later), recurring(later, pulls), strict=True))
        self._steps[self.newest] = _Step(num_parts, splits, waits)
        return [
            Wish(s.pull, [np.flatnonzero(mask).astype(np.uint32) for mask in s.masks])
            for s in splits.values()
        ]

    def add(self, step: int, trainer: int, gradients: Sequence[Array]) -> None:
        """Takes the gradients of the next part of a pull's chosen rows, which are copied."""
        self._steps[step].splits[trainer].gradients.append([np.array(each) for each in gradients])

    def whole(self, step: int) -> bool:
        """Returns whether the next part of a step has come from all trainers."""
        if not self.expected(step):
            return False
        of = self._steps[step]
        return all(len(split.gradients) > of.applied for split in of.splits.values())

    def take(self, step: int, later: Sequence[PendingPull]) -> tuple[list[Push], list[Portion]]:
        """Returns the pushes of a step's next part, in order of trainer, and what they make final.

        later: the next step's pulls.
        """
        of = self._steps[step]
        share = of.next_share()
        pushes = [split.push(share.number) for _, split in sorted(of.splits.items())]
        portions = []
        for pull in later:
            chosen = share.has(pull.keys) & of.waits[pull.trainer]
            if pull.trainer not in of.patched:
                of.patched.add(pull.trainer)
                chosen |= 1 - of.waits[pull.trainer]
            portions.append(Portion(pull, chosen, share.left))
        return pushes, portions

    def final(self, step: int, later: Iterable[PendingPull]) -> list[Portion]:
        """Returns what needs no gradients of a step in the next step's pulls, each time once."""
        of = self._steps.get(step)
        if of is None or of.applied:
            return []
        pulls = [pull for pull in later if pull.trainer not in of.patched]
        of.patched.update(pull.trainer for pull in pulls)
        return [Portion(pull, 1 - of.waits[pull.trainer], of.num_parts) for pull in pulls]

    def expected(self, step: int) -> bool:
        """Returns whether any chosen rows of a step are still to be updated."""
        of = self._steps.get(step)
        return of is not None and of.applied < of.num_parts

    def with_others(self, pull: PendingPull, gradients: Sequence[Array]) -> list[Push]:
        """Returns what is to be applied when `gradients` have come: of all rows, or of those not chosen."""
        of = self._steps.get(pull.step)
        if of is None or not of.splits[pull.trainer].gradients:
            return [(pull, gradients)]
        split = of.splits[pull.trainer]
        ahead = [split.push(number) for number in range(of.applied, of.num_parts)]
        return [*ahead, (split.others(), gradients)]


def recurring(pulls: Sequence[PendingPull], later: Sequence[PendingPull]) -> list[Array]:
    """Returns which rows of pulls some later pull has too, and perhaps a few others.

    Shapes:
    uint8 [U] of each.
    """
    hashes = [_mixed(pull) for pull in later]
    least, most = BITS
    bits = min(max((64 * sum(map(len, hashes))).bit_length(), least), most)  # few hashes are of two rows
    shift, there = np.uint64(64 - bits), np.zeros(1 << bits, np.uint8)
    for each in hashes:
        there[each >> shift] = 1
    return [there[_mixed(pull) >> shift] for pull in pulls]


def _mixed(pull: PendingPull) -> Array:
    """Returns a number for each table's key, uint64 [U], whose high bits depend on all of both."""
    mixed = pull.keys * _MIX + np.repeat(np.arange(len(pull.counts), dtype=np.uint64), pull.counts)
    for shift in (32, 29):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= _MIX
    return mixed
