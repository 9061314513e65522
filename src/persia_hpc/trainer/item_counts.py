"""Counts the items that a trainer learns, for the correction of "in_batch_softmax" by how popular they are.

A trainer counts what its own batches have, step by step: so what it knows does not depend on the number of
servers and workers, and nothing has to be sent. Trainers draw from the same data, so shares are alike.
Counts may age: all are halved every so many steps, as in TinyLFU (Einziger, Friedman and Manes, ACM
Transactions on Storage 13, 2017). Yi et al. (RecSys 2019) age the mean gap between an item's steps instead:
b <- (1 - alpha) b + alpha gap, p = 1 / b. There each item remembers its own last 1 / alpha sightings.

N items, M items that are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persia_hpc.arrays import Array

UNIT = 2.0**-20  # of counts that were halved: so sums of them are exact, and what is older is forgotten


class ItemCounts:
    """Holds how often each item was learned, by the items' keys.

    In parts of sorted keys, each more than twice as large as the next one: what is added is sorted with parts
    of its own size, so that a million items cost a step no more than a thousand. A key's count is the sum
    over the parts that have it.
    """

    def __init__(self, halve_every: int = 0) -> None:
        """halve_every: so many steps, after which all counts are halved; 0: never."""
        self._parts: list[tuple[Array, Array]] = []  # keys uint64 and counts float64
        self._total = 0.0  # of all counts
        self._halve_every = halve_every
        self._step: int | None = None  # the last one that was counted

    def add(self, keys: Array, counts: Array, step: int = 0) -> None:
        """Counts items that were met so many times more, in a step.

        Shapes: keys uint64 [M], each once, and counts [M].
        """
        if self._halve_every and self._step is not None:
            self._halve(step // self._halve_every - self._step // self._halve_every)
        self._step = step
        if not len(keys):
            return
        self._total += float(counts.sum())
        self._parts.append(_summed([(keys, counts)]))
        while len(self._parts) > 1 and len(self._parts[-2][0]) <= 2 * len(self._parts[-1][0]):
            self._parts[-2:] = [_summed(self._parts[-2:])]

    def _halve(self, times: int) -> None:
        """Halves all counts so many times; forgets items whose counts get smaller than `UNIT`."""
        if times < 1:
            return
        keys, counts = _summed(self._parts)
        counts = np.floor(np.ldexp(counts / UNIT, -times)) * UNIT
        kept = counts > 0
        self._parts = [(keys[kept], counts[kept])] if kept.any() else []
        self._total = float(counts.sum())

    def log_q(self, keys: Array) -> Array:
        """Returns the logarithms of items' shares in all that was counted; -inf for those that weren't.

        Shapes: uint64 [M] in, float32 [M] out.
        """
        counts = np.zeros(len(keys))
        for known, times in self._parts:
            places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            counts += np.where(known[places] == keys, times[places], 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Array = np.log(counts / self._total).astype(np.float32)
        return found

    def state(self) -> dict[str, Tensor]:
        """Returns what a checkpoint keeps: keys, as int64 of the same bits, counts [N], and the step."""
        keys, counts = _summed(self._parts)
        made = {"keys": torch.from_numpy(keys.view(np.int64)), "counts": torch.from_numpy(counts)}
        return made if self._step is None else {**made, "step": torch.tensor(self._step)}

    def restore(self, states: Sequence[Mapping[str, Any]], trainer_rank: int, num_trainers: int) -> None:
        """Takes over this trainer's counts; with another number of trainers than then, its part of all.

        states: `state` of each trainer then.
        """
        own = [states[trainer_rank]] if len(states) == num_trainers else states
        steps = [int(state["step"]) for state in own if "step" in state]  # older checkpoints have none
        self._step = max(steps, default=None)
        parts = [self._aged(state) for state in own]
        keys, counts = _summed(parts)
        share = 1.0 if len(states) == num_trainers else 1 / num_trainers
        self._parts = [(keys, counts * share)] if len(keys) else []
        self._total = float(counts.sum()) * share

    def _aged(self, state: Mapping[str, Any]) -> tuple[Array, Array]:
        """Returns a trainer's keys and counts as of this step, up to which it may have had no samples."""
        part = ItemCounts(self._halve_every)
        part._parts = [(state["keys"].numpy().view(np.uint64), state["counts"].double().numpy())]
        if "step" in state and self._halve_every and self._step is not None:
            part._halve(self._step // self._halve_every - int(state["step"]) // self._halve_every)
        return _summed(part._parts)


def _summed(parts: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Returns the sorted keys of all parts and the sums of their counts."""
    if not parts:
        return np.empty(0, np.uint64), np.empty(0)
    keys, places = np.unique(np.concatenate([keys for keys, _ in parts]), return_inverse=True)
    return keys, np.bincount(places, np.concatenate([counts for _, counts in parts]), len(keys))
