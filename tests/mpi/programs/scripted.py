"""Runs whole jobs, one case after the other, with trainers that are scripted instead of torch.

argv[1]: JSON list of cases {servers, workers, trainers, config, gradient, jitter}; prints one JSON line a
case.
`gradient`: "smooth" (a function of rows, step and trainer) or "count" (SGD with lr 1 adds 1 in the trainer's
column).
`jitter`: seconds; every send and every poll may be delayed by up to as much, at random.
`late_step`: worker 1 asks for that step's rows only after all else stands still.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter

import numpy as np
from mpi4py import MPI

from persia_hpc.config import load_config
from persia_hpc.embedding_worker.serve import WorkerLoop
from persia_hpc.job.rank import RankJob
from persia_hpc.topology.roles import Role
from persia_hpc.trainer.serve import FeedingWorkers, RingStream
from tests.support.tiny import digest


class Jittered:
    """A sender or receiver whose sends and polls take a random time."""

    def __init__(self, ring, rng, seconds):
        self._ring, self._rng, self._seconds = ring, rng, seconds

    def _delay(self):
        if self._rng.random() < 0.3:
            time.sleep(self._rng.random() * self._seconds)

    def post(self, *args, **kwargs):
        self._delay()
        self._ring.post(*args, **kwargs)

    def poll(self):
        record = self._ring.poll()
        if record is not None:
            self._delay()
        return record

    def commit(self):
        self._delay()
        self._ring.commit()

    def __getattr__(self, name):
        return getattr(self._ring, name)


class JitteredPlane:
    def __init__(self, plane, rng, seconds):
        self._plane, self._rng, self._seconds = plane, rng, seconds

    def sender(self, *args):
        return Jittered(self._plane.sender(*args), self._rng, self._seconds)

    def receiver(self, *args):
        return Jittered(self._plane.receiver(*args), self._rng, self._seconds)

    def __getattr__(self, name):
        return getattr(self._plane, name)


class ScriptedJob(RankJob):
    """The real job with a trainer of a few lines."""

    def __init__(self, case, world):
        self.case = case
        super().__init__(load_config(case["config"]), world=world, quiet=True)
        self.oracle: list[tuple[int, list[float]]] = []
        self.seen = Counter()

    def _plane(self, comm, channels):
        plane = super()._plane(comm, channels)
        if not self.case.get("jitter"):
            return plane
        return JitteredPlane(plane, random.Random(self.world.rank), self.case["jitter"])

    def _gradients(self, row_batch):
        trainer = self.groups.me.role_rank
        if self.case["gradient"] == "smooth":
            wave = np.float32(np.sin(row_batch.step + 10 * trainer))
            return [
                (0.1 * r.astype(np.float32) + wave / np.float32(7)).astype(np.float32) for r in row_batch.rows
            ]
        out = []
        for rows in row_batch.rows:
            grads = np.zeros(rows.shape, np.float32)
            grads[:, trainer] = -1.0
            out.append(grads)
        return out

    def _train(self, start, main, callbacks, loggers):
        groups, plan = self.groups, self.groups.plan
        me = groups.me.role_rank
        yield
        from persia_hpc.topology.channels import feed_channels

        plane = self._plane(groups.feed_plane, feed_channels(plan, self.ring_bytes))
        stream = RingStream(
            plane,
            self.layout,
            FeedingWorkers(
                self._ranks(Role.EMBEDDING_WORKER, groups.feed_rank), plan.workers_of_trainer[me], me
            ),
            self._context(plane),
        )
        schedule = self.schedules["train"]
        stop_at = self.case.get("stop_at")
        steps = 0
        last = 0
        while last < schedule.num_steps:
            first, last = last + 1, schedule.next_drain(last + 1)
            stream.begin_segment(first, last)
            for step in range(first, last + 1):
                batch = stream.next_batch(step)
                if batch is None:
                    break
                if self.case["gradient"] == "count" and batch.num_samples:
                    # Feature "item" holds the same ids in every sample: rows of the first samples' ids.
                    for row in self._item_rows(batch):
                        self.oracle.append((step, row))
                self.seen[batch.num_samples] += 1
                gradients = self._gradients(batch)
                stream.push(batch, gradients)
                steps = step
                if stop_at == step and me == 0:
                    stream.request_stop()
            stream.end_segment()
            stopped = groups.role_comm.bcast(stream._stopping)
            if stopped:
                break
            if self.case.get("evaluate"):
                stream.begin_evaluation("valid", steps)
                for number in range(1, self.schedules["valid"].num_steps + 1):
                    stream.next_evaluation(number).release()
        all_steps = groups.role_comm.allgather(steps)
        assert len(set(all_steps)) == 1, f"trainers ended at different steps: {all_steps}"
        time.sleep(self.case.get("pause", 0.0))
        stream.close()
        plane.free()
        result = {
            "steps": steps,
            "samples": 0,
            "first_step": 0,
            "first_samples": 0,
            "stop_reason": None,
            "interrupted": False,
            "evaluate_seconds": 0.0,
            "checkpoints": {},
            "results": {},
        }
        return {**result, "wait": {"batch": 0.0}, "oracle": self.oracle}, None

    def _item_rows(self, batch):
        feature = [f.name for f in self.layout.features].index("item")
        begin, end = int(batch.feature_offsets[feature]), int(batch.feature_offsets[feature + 1])
        group = self.layout.tables[self.layout.features[feature].table].dim_group
        rows = batch.rows[group]
        return [rows[i].tolist() for i in sorted(set(batch.indices[begin:end].tolist()))]

    def _work(self, sources):
        if not self.case.get("late_step") or self.groups.me.role_rank != 1:
            return (yield from super()._work(sources))
        may_issue, since = WorkerLoop._may_issue, []

        def late(loop):
            if (
                loop.stretches.current is not None
                and loop.stretches.current.requests
                and loop.stretches.current.requests[0][0] == self.case["late_step"]
            ):
                since.append(time.monotonic())
                if since[-1] - since[0] < 0.5:
                    return False
            return may_issue(loop)

        WorkerLoop._may_issue = late
        try:
            return (yield from super()._work(sources))
        finally:
            WorkerLoop._may_issue = may_issue

    def _serve_rows(self, start):
        made = []
        import persia_hpc.job.rank as rank_module

        original = rank_module.ParameterServer

        def remember(*args, **kwargs):
            made.append(original(*args, **kwargs))
            return made[-1]

        rank_module.ParameterServer = remember
        try:
            generator = super()._serve_rows(start)
            next(generator)
        finally:
            rank_module.ParameterServer = original
        yield
        cpu = time.process_time()
        try:
            next(generator)
        except StopIteration as end:
            statistics, finish = end.value
        statistics["cpu_seconds"] = time.process_time() - cpu
        engine = made[0]
        statistics["tables"] = {
            layout.name: [table.export_bucket(b) for b in buckets] if table is not None else []
            for layout, table, buckets in zip(
                engine.layout.tables, engine.tables, engine.buckets, strict=True
            )
        }
        return statistics, finish

    def _summarize(self, statistics, finish):
        everything = self.world.gather(statistics)
        if everything is None:
            return {}
        plan = self.groups.plan
        servers = [everything[r] for r in plan.ranks(Role.PARAMETER_SERVER)]
        trainers = [everything[r] for r in plan.ranks(Role.TRAINER)]
        merged = {}
        for name in servers[0]["tables"]:
            parts = [p for s in servers for p in s["tables"][name]]
            merged[name] = tuple(
                np.concatenate([p[field] for p in parts]) for field in ("keys", "rows", "state", "stamps")
            )
        ledger = Counter()
        for server in servers:
            ledger.update(server["ledger"])
        return {
            "digest": digest(merged),
            "rows": {name: len(arrays[0]) for name, arrays in merged.items()},
            "ledger": dict(ledger),
            "histogram": [s["histogram"] for s in servers],
            "oracle": [t["oracle"] for t in trainers],
            "steps": trainers[0]["steps"],
            "server_cpu_seconds": max(s["cpu_seconds"] for s in servers),
        }


def main():
    world = MPI.COMM_WORLD
    for case in json.loads(sys.argv[1]):
        size = case["servers"] + case["workers"] + case["trainers"]
        comm = world.Split(0 if world.rank < size else MPI.UNDEFINED, world.rank)
        if comm == MPI.COMM_NULL:
            continue
        result = ScriptedJob(case, comm).run(None, (), ())
        if comm.rank == 0:
            print(json.dumps(result), flush=True)
        comm.Free()


main()
