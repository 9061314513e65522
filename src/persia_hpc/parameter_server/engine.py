"""Implements a parameter server without any transport: tables, clock and ledger.

Shape letters: U rows of one request (all tables), U_g those of a dim group, D_g its dim, T tables.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from persia_hpc._native import DiskError, PendingPull, RingConsumer, RingProducer, Table, TableSet
from persia_hpc.arrays import Array
from persia_hpc.checkpoint.cold import ColdFiles
from persia_hpc.config import Config
from persia_hpc.printable import say
from persia_hpc.protocol.wire import WIRES
from persia_hpc.runtime.telemetry import Counts
from persia_hpc.table_layout import Layout, native_config
from persia_hpc.topology.sharding import bucket_bounds

from .clock import Clock
from .disk import DiskTraffic, make_table
from .early import EarlyPulls, RowPatch, Stage
from .first import FirstPushes, Portion, Push, Wish
from .ledger import Ledger, SegmentTimes
from .rates import Rates


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
        threads: int = 1,
    ):
        """Makes empty tables; `num_steps` is of the whole training, since learning rates may depend on it.

        threads: that share the tables of a large pull or push, unless `server_threads` share each table.
        """
        self._threads = threads
        self.layout = layout
        self.server_rank, self.num_servers = server_rank, num_servers
        self._config = config
        self.buckets: list[range] = []  # of each table, those that this server owns
        for table in layout.tables:
            bounds = bucket_bounds(table.num_buckets, num_servers)
            self.buckets.append(range(bounds[server_rank], bounds[server_rank + 1]))
        self.ledger = Ledger()
        self.disk_problem: str | None = None  # for which the run must end
        self.empty()
        self._rates = Rates(layout, num_steps)
        sync = config.synchronous
        self.clock = Clock(
            bound=config.pull_bound,
            exact=sync or config.exact,
            num_trainers=num_trainers,
            per_trainer=config.mode == "async",
            lookahead=config.lookahead if config.mode == "fresh" else 0,
        )
        self.whole_steps = sync or config.apply == "step"
        self.times = SegmentTimes()
        self._waiting: list[PendingPull] = []
        self._early = EarlyPulls(num_trainers)
        self._begun = 0  # the step whose marked rows are updated already
        self._in_flight: dict[tuple[int, int], PendingPull] = {}
        self._held: dict[int, dict[int, list[Array]]] = {}  # gradients by step and trainer

    def empty(self) -> None:
        """Makes empty tables, after those that there are have gone; what was counted stays."""
        self.tables: list[Table | None] = []
        self.firsts, self.cold_files = FirstPushes(), ColdFiles()
        self._set = TableSet([], [], [])
        for table, owned in zip(self.layout.tables, self.buckets, strict=True):
            native = native_config(self._config, table, owned.start, owned.stop)
            self.tables.append(make_table(table, native) if owned else None)
        self._disk = DiskTraffic(self.layout.tables, self.tables)
        self._set = TableSet(
            self.tables,
            self.layout.dim_group_of_table,
            self.layout.dim_groups,
            threads=self._threads,
            ahead=self._config.mode == "fresh",
        )

    def restore(self, step: int, ledger: Mapping[str, int], staleness: Mapping[str, int]) -> None:
        """Continues after `step` of an earlier run, whose tables are loaded, with that run's counters."""
        self.clock.restore(step, {int(k): v for k, v in staleness.items()})
        self.ledger = Ledger(**ledger)

    def loaded(self) -> None:
        """Is called when tables have been loaded: rows that went to disk meanwhile are no step's."""
        self._disk.since()

    def begin_segment(self, first: int, last: int, rate_factor: float = 1.0) -> None:
        """Announces steps first…last, in which learning rates are `rate_factor` times what schedules say.

        A repetition changes nothing: see `Clock.begin_segment`.
        """
        self._rates.begin(first, rate_factor)
        self.clock.begin_segment(first, last)

    # ---- pulls

    def take_pull(self, ring: RingConsumer, kind: int) -> PendingPull | None:
        """Takes the next record of a ring, and returns its pull; None if it isn't a whole one of `kind`."""
        return self._set.take_pull(ring, kind)

    def submit_pull(self, pull: PendingPull) -> None:
        """Accepts a pull, which becomes ready when the clock allows."""
        self.disk_problem = self.disk_problem or self._disk.problem  # steps go on that need room
        self._waiting.append(pull)
        if self._disk.used and not self.clock.may_answer(pull.step, pull.trainer):  # else it is read at once
            self._set.ask_disk(pull)

    def ready_pulls(self) -> list[PendingPull]:
        """Returns the pulls that must be answered now, in order of step, and forgets them."""
        if not self._waiting:
            return []
        ready: list[PendingPull] = []
        waiting: list[PendingPull] = []
        for pull in self._waiting:
            may_answer = self.clock.may_answer(pull.step, pull.trainer)
            (ready if may_answer else waiting).append(pull)
        self._waiting = waiting
        ready.sort(key=lambda pull: (pull.step, pull.trainer))
        self._early.mark(ready, self._set)  # before any of them is made
        return ready

    def early_pulls(self) -> list[PendingPull]:
        """Returns the pulls that may be answered early now and were not yet; they go on waiting."""
        may, applied = self.clock.may_answer_early, self.clock.applied
        due = self.firsts.expected(applied + 1)  # a patch, which a slow link isn't to carry beside later rows
        waiting = [p for p in self._waiting if p not in self._early and may(p.step, p.trainer)]
        return [p for p in waiting if p.step <= applied + 2] if due else waiting

    def answer_early(self, pull: PendingPull, out: Sequence[Array]) -> None:
        """Fills `out` with the rows as they are now, without changing anything; a patch gives the rest.

        Rows that don't exist yet are as they would begin.

        Shapes:
        out: see `answer`.
        """
        self._set.look_ahead(pull, out, self.clock.applied)
        self._early.set(pull, Stage.SENT)
        self.ledger.early_rows += len(pull)

    def mark_next(self) -> bool:
        """Finds out which early rows of the step after the next updates will change; False if not now.

        It takes a look at each of them, for which there is time while trainers compute.
        """
        step = self.clock.applied + 2
        if not self.clock.all_answered(step - 1):
            return False
        return self._early.mark((pull for pull in self._waiting if pull.step == step), self._set)

    def want_first(self, most_bytes: float) -> list[Wish]:
        """Returns of which rows of a step's pulls patches wait for the gradients; see `FirstPushes`.

        most_bytes: about so much shall come together.
        """
        found = self.firsts.next_pulls(self.clock, self._waiting, self._in_flight)
        if found is None:
            return []
        # None if gradients are here, or patches wait for others too: where rows have been evicted, of early
        # answers as well, it is known when their step has begun.
        step = found[0][0].step
        sure = self.ledger.evicted_rows == 0 or self.clock.all_answered(step)
        if not sure or self._early.lost(step + 1) or step in self._held or not self._set.calm():
            return []
        row_bytes = WIRES[self._config.wire.gradients].row_bytes(max(self.layout.dim_groups))
        return self.firsts.want(*found, max(1.0, most_bytes / row_bytes))

    def final_rows(self) -> list[Portion]:
        """Returns which early rows of the step after the next updates can't change any more."""
        step = self.clock.applied + 1
        pulls = self._early.sure(self._waiting, step + 1)
        several = self.clock.lookahead > 1  # else all that differ have been changed by the next updates
        return self.firsts.final(step, pulls) if several and pulls and self._set.calm() else []

    def apply_marked(self) -> list[Portion]:
        """Updates rows that patches wait for, ahead of `apply_ready`, where no other row will differ.

        Returns what may be sent now of which patches. Their pulls are to be finished in their turn.
        """
        step = self.clock.applied + 1
        some = self.firsts.whole(step)
        if not (some or self._is_whole(step)) or not self.clock.may_apply(step):
            return []
        pulls = self._early.sure(self._waiting, step + 1)
        # In parts only with all trainers' pulls, so that each has the patches of all parts.
        if len(pulls) < (self.clock.num_trainers if some else 1) or not self._set.calm():
            return []
        if some:
            pushes, portions = self.firsts.take(step, pulls)
            self._apply(step, pushes)
            self.clock.begun(step)
        else:
            self._apply(step, self._pushes(step), marked=True)
            self._begun, portions = step, [Portion(pull) for pull in pulls]
        for portion in portions:
            if portion.left == 0:
                self._early.set(portion.pull, Stage.PATCHED)
        return portions

    def is_early(self, pull: PendingPull) -> bool:
        """Returns whether a pull has an early answer, so that it needs `finish` and no answer."""
        return pull in self._early

    def finish(self, pull: PendingPull) -> bool:
        """Does what `answer` does for a pull with an early answer; returns whether its patch must be sent."""
        self._set.pull_again(pull)
        self._answered(pull, len(pull))
        return self._early.take(pull) is not Stage.PATCHED

    def patch(self, portion: Portion, wire: str) -> RowPatch:
        """Returns the rows that differ from the early answer."""
        patch = RowPatch.of(self._set.differing(portion.pull, wire, portion.chosen))
        self.ledger.patched_rows += patch.num_rows
        return patch

    def patch_in(self, ring: RingProducer, portion: Portion, kind: int, wire: str) -> bool:
        """Writes what `patch` returns to a ring; False, having done nothing, if there is no room for it."""
        tag, chosen = portion.left, portion.chosen
        sent = self._set.send_differing(portion.pull, ring, kind, wire, tag, chosen)
        self.ledger.patched_rows += sent or 0
        return sent is not None

    def row_shapes(self, counts: Array, wanted: Array | None = None) -> list[tuple[int, int]]:
        """Returns [U_g, D_g] of the rows to be sent, for each dim group. Arguments: see `PendingPull`."""
        return list(zip(self._set.row_counts(counts, wanted), self.layout.dim_groups, strict=True))

    def answer(self, pull: PendingPull, out: Sequence[Array]) -> int:
        """Fills `out` with the wanted rows of each dim group; returns the staleness in steps.

        Shapes:
        out: for each dim group [U_g, D_g] in a wire format; see `row_shapes`.
        """
        self._set.pull(pull, out)
        return self._answered(pull, sum(len(rows) for rows in out))

    def answer_in(self, ring: RingProducer, pull: PendingPull, kind: int, wire: str) -> bool:
        """Answers a pull by a record of `kind` in a ring, whose tag is the staleness in steps.

        Returns False, having done nothing, if the ring has no room for it in one piece.
        """
        staleness = self.clock.staleness(pull.step, pull.trainer)
        sent = self._set.answer(pull, ring, kind, staleness, wire)
        if sent is None:
            return False
        self._answered(pull, sent)
        return True

    def _answered(self, pull: PendingPull, sent: int) -> int:
        step, trainer, rows = pull.step, pull.trainer, len(pull)
        self._in_flight[step, trainer] = pull
        self.ledger.pulled_rows += rows
        self.ledger.reused_rows += rows - sent
        return self.clock.answered(step, trainer)

    def lookup(self, keys: Array, counts: Array, out: Sequence[Array]) -> None:
        """Fills `out` for an evaluation: tables don't change, and rows never seen are zeros.

        Shapes:
        keys: uint64 [U]. counts: uint32 [T]. out: for each dim group [U_g, D_g] in a wire format.
        """
        self._set.lookup(keys, counts, out)
        self.ledger.evaluation_rows += len(keys)

    # ---- pushes

    def submit_push(self, step: int, trainer: int, gradients: list[Array]) -> None:
        """Applies the gradients of a pull at once, or holds them for `apply_ready` if they have to wait.

        Shapes:
        gradients: for each dim group [U_g, D_g] in a wire format.
        """
        if self.may_apply_at_once(step):
            self._apply(step, [(self._in_flight.pop((step, trainer)), gradients)])
            self._advance(step, [trainer])
            return
        self._held.setdefault(step, {})[trainer] = gradients

    @property
    def applies_at_once(self) -> bool:
        """Returns whether the mode never holds a push."""
        return not self.clock.exact and not self.whole_steps

    def may_apply_at_once(self, step: int) -> bool:
        """Returns whether a push of `step` need not be held."""
        return self.applies_at_once and self.clock.may_apply(step)

    def apply_next(self, ring: RingConsumer, step: int, trainer: int) -> None:
        """Applies the gradients that are the next record of a ring, and need not be held."""
        pull = self._in_flight.pop((step, trainer))
        self._rates.set(self._set, step)
        self.ledger.count(*self._set.push_next(ring, pull))
        self._advance(step, [trainer])

    def detach_push(self, step: int, trainer: int) -> None:
        """Copies the gradients of a push if it is held, because the caller is about to reuse their memory."""
        pushes = self._held.get(step, {})
        if trainer in pushes:
            pushes[trainer] = [g.copy() for g in pushes[trainer]]

    def apply_ready(self) -> bool:
        """Applies held steps that the clock allows; returns whether there were any."""
        moved = False
        for step in sorted(self._held):
            there = self.applies_at_once or self._is_whole(step)
            if not there or not self.clock.may_apply(step):
                if self.clock.exact:
                    break
                continue
            ordered = self._pushes(step)
            trainers = sorted(self._held.pop(step))
            for trainer in trainers:
                del self._in_flight[step, trainer]
            marked = False if step == self._begun else None
            for together in [ordered] if self.whole_steps else [[push] for push in ordered]:
                self._apply(step, together, marked)
            self._advance(step, trainers)
            moved = True
        return moved

    def _is_whole(self, step: int) -> bool:
        return len(self._held.get(step, ())) == self.clock.num_trainers

    def _pushes(self, step: int) -> list[Push]:
        held = [(self._in_flight[step, t], gradients) for t, gradients in sorted(self._held[step].items())]
        return [push for each in held for push in self.firsts.with_others(*each)]

    def _apply(self, step: int, pushes: Sequence[Push], marked: bool | None = None) -> None:
        """Makes one update per row with the gradients of all pushes. marked: see `TableSet.push`."""
        self._rates.set(self._set, step)
        self.ledger.count(*self._set.push(pushes, step, marked))

    def _advance(self, step: int, trainers: Sequence[int]) -> None:
        first = self.clock.first
        if self.clock.pushed(step, trainers):
            # Only here, between steps, may rows go: in `exact` this point is the same in every run.
            self.ledger.evicted_rows += self._set.evict(self.clock.applied)
            self.ledger.count_disk(*self._disk.since())
        self.times.last_apply[first] = time.time()

    def check_disk(self) -> None:
        """Raises DiskError if the run had to end because of a disk; else says what disk takes no more."""
        if self.disk_problem is not None:
            raise DiskError(self.disk_problem)
        if self._disk.problem is not None:
            say(f"{self._disk.problem}; no step had to ask for rows any more; rows that it can't take stayed")

    def waits_for(self) -> str | None:
        """Returns what must arrive before a pull or a held push can proceed; None if there are none."""
        if not self._waiting and not self._held:
            return None
        pulls = [(pull.step, pull.trainer) for pull in self._waiting]
        return self.clock.waits_for(pulls, self._held.get(self.clock.applied + 1, ()), self._in_flight)

    def counts(self) -> Counts:
        """Returns what the server has counted up to now, for telemetry."""
        tables = [t for t in self.tables if t is not None]
        pulls = sum(self.clock.histogram.values())
        gauges = {
            "rows": sum(t.num_rows for t in tables),
            "table_bytes": sum(t.memory_bytes for t in tables),
            "disk_rows": self._disk.rows(),
            "disk_bytes": self._disk.bytes(),
            "waiting_pulls": len(self._waiting),
            "held_pushes": sum(map(len, self._held.values())),
            "max_staleness": max(self.clock.histogram, default=0),
        }
        stale = sum(staleness * count for staleness, count in self.clock.histogram.items())
        return Counts(
            self.clock.applied, gauges, {"pulls": pulls, "pulls_staleness": stale, **vars(self.ledger)}
        )

    def statistics(self) -> dict[str, Any]:
        """Returns counters for summary.json at the end of a run: rows still in flight then were dropped."""
        tables = [t for t in self.tables if t is not None]
        rows = sum(t.num_rows for t in tables)
        return {
            "rows": rows,
            "bytes": sum(t.memory_bytes for t in tables),
            "row_bytes": sum((t.num_rows - t.cold_rows) * t.row_bytes for t in tables),
            "disk_rows": self._disk.rows(),
            "disk_bytes": self._disk.bytes(),
            "ledger": {**vars(self.ledger), "dropped_rows": sum(map(len, self._in_flight.values()))},
            "histogram": dict(self.clock.histogram),
            "last_apply": dict(self.times.last_apply),
        }
