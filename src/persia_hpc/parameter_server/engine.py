"""Implements a parameter server without any transport: tables, clock and ledger.

Shape letters: U rows of one request (all tables), U_g those of a dim group, D_g its dim, T tables.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from persia_hpc._native import Table
from persia_hpc.arrays import Array
from persia_hpc.config import Config
from persia_hpc.config.learning_rate import LearningRate
from persia_hpc.table_layout import Layout, native_config
from persia_hpc.topology.sharding import bucket_bounds

from .clock import Clock


@dataclass
class PendingPull:
    """Holds a pull of one (step, trainer), until its gradients have been applied.

    Shapes:
    keys: uint64 [U], this server's part of the batch, in table order. counts: uint32 [T], rows of each table.
    wanted: uint8 [U], 1 for rows that must travel; None if all must.
    slots: uint32 [U], where each row lies; None until the pull is answered.
    """

    step: int
    trainer: int
    keys: Array
    counts: Array
    worker: int = 0  # worker_rank of who asked
    wanted: Array | None = None
    slots: Array | None = None
    epochs: dict[int, int] = field(default_factory=dict)  # of each table, when it was pulled from


@dataclass
class Ledger:
    """Counts the outcomes of all pulled rows, and three more numbers.

    pulled = applied + evicted_in_flight + unadmitted + nonfinite + dropped. The last three fields are not
    part of this sum: `reused` rows are pulled rows that need not be sent, `evicted` rows left a table between
    steps, `evaluation` rows were looked up.
    """

    pulled_rows: int = 0
    applied_rows: int = 0
    evicted_in_flight_rows: int = 0
    unadmitted_rows: int = 0
    nonfinite_rows: int = 0
    dropped_rows: int = 0
    reused_rows: int = 0
    evicted_rows: int = 0
    evaluation_rows: int = 0


@dataclass
class _HeldPush:
    """Holds gradients that the clock doesn't let the server apply yet."""

    pull: PendingPull
    gradients: list[Array]


@dataclass
class SegmentTimes:
    """Holds the wall-clock seconds (time.time) of the last update of each segment, by its first step."""

    last_apply: dict[int, float] = field(default_factory=dict)


class ParameterServer:
    """Holds one shard of all tables. It is not thread-safe; the caller decides the order of all calls."""

    def __init__(
        self,
        config: Config,
        layout: Layout,
        *,
        server_rank: int = 0,
        num_servers: int = 1,
        num_trainers: int = 1,
        num_steps: int = 1,
    ):
        """Makes empty tables; `num_steps` is of the whole training, since learning rates may depend on it."""
        self.layout = layout
        self.server_rank, self.num_servers = server_rank, num_servers
        self.tables: list[Table | None] = []
        self.buckets: list[range] = []  # of each table, those that this server owns
        for table in layout.tables:
            bounds = bucket_bounds(table.num_buckets, num_servers)
            first, end = bounds[server_rank], bounds[server_rank + 1]
            self.buckets.append(range(first, end))
            self.tables.append(Table(native_config(config, table, first, end)) if end > first else None)
        self._rates = [
            (table, float(spec.config.optimizer["lr"]), rate)
            for table, spec in zip(self.tables, layout.tables, strict=True)
            if (rate := LearningRate(spec.config.schedule, num_steps)).varies and table is not None
        ]
        sync = config.mode == "sync"
        self.clock = Clock(
            bound=config.pull_bound,
            exact=sync or config.exact,
            num_trainers=num_trainers,
            per_trainer=config.mode == "async",
        )
        self.whole_steps = sync or config.apply == "step"
        self.ledger = Ledger()
        self.times = SegmentTimes()
        self._waiting: list[PendingPull] = []
        self._in_flight: dict[tuple[int, int], PendingPull] = {}
        self._held: dict[int, dict[int, _HeldPush]] = {}

    def restore(self, step: int, ledger: Mapping[str, int], staleness: Mapping[str, int]) -> None:
        """Continues after `step` of an earlier run, whose tables are loaded, with that run's counters."""
        self.clock.restore(step, {int(k): v for k, v in staleness.items()})
        self.ledger = Ledger(**ledger)

    # ---- pulls

    def submit_pull(self, pull: PendingPull) -> None:
        """Accepts a pull, which becomes ready when the clock allows."""
        self._waiting.append(pull)

    def ready_pulls(self) -> Iterator[PendingPull]:
        """Yields pulls that may be answered now, in order of step.

        Each must be answered before the next is asked for.
        """
        self._waiting.sort(key=lambda p: (p.step, p.trainer))
        for pull in list(self._waiting):
            if self.clock.may_answer(pull.step, pull.trainer):
                self._waiting.remove(pull)
                yield pull

    def row_shapes(self, counts: Array, wanted: Array | None = None) -> list[tuple[int, int]]:
        """Returns [U_g, D_g] of the rows to be sent, for each dim group. Arguments: see `PendingPull`."""
        layout = self.layout
        if wanted is not None:
            ends = np.cumsum(counts, dtype=np.int64)
            parts = zip(ends - counts, ends, strict=True)
            counts = np.array([np.count_nonzero(wanted[begin:end]) for begin, end in parts])
        return [
            (sum(int(counts[t]) for t in layout.tables_of_dim_group(g)), dim)
            for g, dim in enumerate(layout.dim_groups)
        ]

    def answer(self, pull: PendingPull, out: Sequence[Array]) -> int:
        """Fills `out` with the wanted rows of each dim group; returns the staleness in steps.

        Shapes:
        out: for each dim group [U_g, D_g] in a wire format; see `row_shapes`.
        """
        pull.slots = np.empty(len(pull.keys), np.uint32)
        parts = self._parts(pull.keys, pull.counts, out, pull.slots, pull.wanted)
        for index, keys, rows, slots, wanted in parts:
            pull.epochs[index] = self._table(index).pull(keys, pull.step, rows, slots, wanted)
        self._in_flight[pull.step, pull.trainer] = pull
        self.ledger.pulled_rows += len(pull.keys)
        self.ledger.reused_rows += len(pull.keys) - sum(len(rows) for rows in out)
        return self.clock.answered(pull.step, pull.trainer)

    def lookup(self, keys: Array, counts: Array, out: Sequence[Array]) -> None:
        """Fills `out` for an evaluation: tables don't change, and rows never seen are zeros.

        Shapes:
        keys: uint64 [U]. counts: uint32 [T]. out: for each dim group [U_g, D_g] in a wire format.
        """
        for index, part, rows, *_ in self._parts(keys, counts, out, None):
            self._table(index).lookup(part, rows)
        self.ledger.evaluation_rows += len(keys)

    # ---- pushes

    def submit_push(self, step: int, trainer: int, gradients: list[Array]) -> None:
        """Applies the gradients of a pull at once, or holds them for `apply_ready` if the mode asks for that.

        Shapes:
        gradients: for each dim group [U_g, D_g] in a wire format.
        """
        pull = self._in_flight.pop((step, trainer))
        if not self.clock.exact and not self.whole_steps:
            self._apply_batch(pull, gradients)
            self._advance(step, [trainer])
            return
        self._held.setdefault(step, {})[trainer] = _HeldPush(pull, gradients)

    def detach_push(self, step: int, trainer: int) -> None:
        """Copies the gradients of a push if it is held, because the caller is about to reuse their memory."""
        push = self._held.get(step, {}).get(trainer)
        if push is not None:
            push.gradients = [g.copy() for g in push.gradients]

    def apply_ready(self) -> bool:
        """Applies held steps that the clock allows; returns whether there were any."""
        moved = False
        for step in sorted(self._held):
            pushes = self._held[step]
            if len(pushes) < self.clock.num_trainers or not self.clock.may_apply(step):
                if self.clock.exact:
                    break
                continue
            del self._held[step]
            ordered = [pushes[trainer] for trainer in sorted(pushes)]
            if self.whole_steps and len(ordered) > 1:
                self._apply_step(step, ordered)
            else:
                for push in ordered:
                    self._apply_batch(push.pull, push.gradients)
            self._advance(step, sorted(pushes))
            moved = True
        return moved

    def _set_rates(self, step: int) -> None:
        # The gradient's step counts: in `hybrid` the batches of several steps come in any order.
        for table, lr, rate in self._rates:
            table.set_lr(lr * rate.factor(step))

    def _apply_batch(self, pull: PendingPull, gradients: Sequence[Array]) -> None:
        self._set_rates(pull.step)
        for index, keys, grads, slots, _ in self._parts(pull.keys, pull.counts, gradients, pull.slots):
            self._count(self._table(index).push(keys, slots, grads, pull.step, pull.epochs[index]))

    def _apply_step(self, step: int, pushes: Sequence[_HeldPush]) -> None:
        self._set_rates(step)
        batches: dict[int, list[tuple[Array, Array, Array, int]]] = {}
        for push in pushes:
            pull = push.pull
            for index, keys, grads, slots, _ in self._parts(
                pull.keys, pull.counts, push.gradients, pull.slots
            ):
                batches.setdefault(index, []).append((keys, slots, grads, pull.epochs[index]))
        for index, parts in batches.items():
            self._count(self._table(index).push_step(parts, step))

    def _count(self, outcome: tuple[int, int, int, int]) -> None:
        applied, evicted, unadmitted, nonfinite = outcome
        self.ledger.applied_rows += applied
        self.ledger.evicted_in_flight_rows += evicted
        self.ledger.unadmitted_rows += unadmitted
        self.ledger.nonfinite_rows += nonfinite

    def _advance(self, step: int, trainers: Sequence[int]) -> None:
        first = self.clock.first
        if self.clock.pushed(step, trainers):
            # Only here, between steps, may rows go: in `exact` this point is the same in every run.
            for table in self.tables:
                if table is not None:
                    self.ledger.evicted_rows += table.evict(self.clock.applied)
        self.times.last_apply[first] = time.time()

    def waits_for(self) -> str | None:
        """Returns what must arrive before a pull or a held push can proceed; None if there are none."""
        clock = self.clock
        if not self._waiting and not self._held:
            return None
        waiting = ", ".join(f"step {p.step} of trainer {p.trainer}" for p in self._waiting[:4]) or "none"
        if clock.per_trainer and self._waiting:
            pull = min(self._waiting, key=lambda p: p.step)
            return (
                f"trainer {pull.trainer}'s gradients before its step {pull.step} (pulls that wait: {waiting})"
            )
        missing = [t for t in range(clock.num_trainers) if (clock.applied + 1, t) in self._in_flight]
        return (
            f"the gradients of step {clock.applied + 1}"
            + (f" of trainer {', '.join(map(str, missing))}" if missing else "")
            + f" (applied: {clock.applied}; pulls that wait: {waiting})"
        )

    # ---- common

    def _parts(
        self,
        keys: Array,
        counts: Array,
        groups: Sequence[Array],
        slots: Array | None,
        wanted: Array | None = None,
    ) -> Iterator[tuple[int, Array, Array, Array, Array | None]]:
        """Yields (table, keys, rows, slots, wanted) for each table that has keys in a request.

        rows: the table's part of its dim group's array in `groups`, which has only the wanted rows.
        """
        begin = 0
        group_begin = [0] * len(self.layout.dim_groups)
        for index, count in enumerate(counts.tolist()):
            if count == 0:
                continue
            group = self.layout.tables[index].dim_group
            at, part = group_begin[group], slice(begin, begin + count)
            group_begin[group] += count if wanted is None else int(np.count_nonzero(wanted[part]))
            yield (
                index,
                keys[part],
                groups[group][at : group_begin[group]],
                slots[part] if slots is not None else keys[:0],
                wanted[part] if wanted is not None else None,
            )
            begin += count

    def _table(self, index: int) -> Table:
        table = self.tables[index]
        assert table is not None, "a server without buckets of a table was asked for its rows"
        return table

    def statistics(self) -> dict[str, Any]:
        """Returns counters for summary.json at the end of a run: rows still in flight then were dropped."""
        tables = [t for t in self.tables if t is not None]
        lost = [
            *self._in_flight.values(),
            *(p.pull for pushes in self._held.values() for p in pushes.values()),
        ]
        rows = sum(t.num_rows for t in tables)
        return {
            "rows": rows,
            "bytes": sum(t.memory_bytes for t in tables),
            "row_bytes": sum(t.num_rows * t.row_bytes for t in tables),
            "ledger": {**vars(self.ledger), "dropped_rows": sum(len(pull.keys) for pull in lost)},
            "histogram": dict(self.clock.histogram),
            "last_apply": dict(self.times.last_apply),
        }
