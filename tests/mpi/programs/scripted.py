"""Runs whole jobs, one case after the other, with trainers that are scripted instead of torch.

argv[1]: JSON list of cases {servers, workers, trainers, config, gradient, jitter}; prints one JSON line a
case.
`gradient`: "smooth" (a function of rows, step and trainer) or "count" (SGD with lr 1 adds 1 in the trainer's
column).
`jitter`: seconds; every send and every poll may be delayed by up to as much, at random.
`far`: servers want some gradients first and in parts, as they do of workers on other nodes.
`late_step`: worker 1 asks for that step's rows only after all else stands still.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from persia_hpc.config import load_config
from persia_hpc.embedding_worker.serve import WorkerLoop
from persia_hpc.job import duties
from persia_hpc.job.agreement import meet
from persia_hpc.job.duties import ServerDuty, TrainerDuty, WorkerDuty
from persia_hpc.job.place import Place
from persia_hpc.job.rank import RankJob, StartingRank
from persia_hpc.job.task import Task
from persia_hpc.launch.run_dir import claimed_run_dir
from persia_hpc.parameter_server.serve import ServerLoop
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


class JitteredPlace(Place):
    """A place whose rings are as slow as a case says."""

    def __init__(self, seconds, **found):
        super().__init__(**found)
        object.__setattr__(self, "seconds", seconds)

    def make_plane(self, comm, channels):
        plane = super().make_plane(comm, channels)
        if not self.seconds:
            return plane
        return JitteredPlane(plane, random.Random(self.communicators.world.rank), self.seconds)


class ScriptedTrainer(TrainerDuty):
    """A trainer of a few lines."""

    def __init__(self, facts, place, case):
        super().__init__(facts, place, Task(quiet=True))
        self.case = case
        self.oracle: list[tuple[int, list[float]]] = []
        self.seen = Counter()

    def _gradients(self, row_batch):
        trainer = self.place.role_rank
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

    def prepare(self, start):
        pass

    def perform(self):
        place, layout, plan = self.place, self.facts.layout, self.place.communicators.plan
        me = place.role_rank
        role_comm = place.communicators.role_comm
        plane = place.feed_plane()
        stream = RingStream(
            plane,
            layout,
            FeedingWorkers(place.ranks_in_feed_plane(Role.EMBEDDING_WORKER), plan.workers_of_trainer[me], me),
            place.context(plane),
            fresh=self.facts.config.mode == "fresh",
        )
        schedule = self.facts.schedules["train"]
        stop_at = self.case.get("stop_at")
        steps = 0
        last = 0
        while last < schedule.num_steps:
            first, last = last + 1, schedule.next_drain(last + 1)
            stream.begin_segment(first, last, 1.0)
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
            stopped = role_comm.bcast(stream._stopping)
            if stopped:
                break
            if self.case.get("evaluate"):
                stream.begin_evaluation("valid", steps)
                for number in range(1, self.facts.schedules["valid"].num_steps + 1):
                    stream.next_evaluation(number).release()
        all_steps = role_comm.allgather(steps)
        assert len(set(all_steps)) == 1, f"trainers ended at different steps: {all_steps}"
        time.sleep(self.case.get("pause", 0.0))
        stream.close()
        plane.free()
        return Scripted({"steps": steps, "oracle": self.oracle})

    def _item_rows(self, batch):
        layout = self.facts.layout
        feature = [f.name for f in layout.features].index("item")
        begin, end = int(batch.feature_offsets[feature]), int(batch.feature_offsets[feature + 1])
        group = layout.tables[layout.features[feature].table].dim_group
        rows = batch.rows[group]
        return [rows[i].tolist() for i in sorted(set(batch.indices[begin:end].tolist()))]


class LateWorker(WorkerDuty):
    """Asks for the rows of one step only after all else stands still."""

    def __init__(self, facts, place, sources, late_step):
        super().__init__(facts, place, sources)
        self.late_step = late_step

    def perform(self):
        may_issue, since = WorkerLoop._may_issue, []

        def late(loop):
            current = loop.stretches.current
            if current is not None and current.requests and current.requests[0][0] == self.late_step:
                since.append(time.monotonic())
                if since[-1] - since[0] < 0.5:
                    return False
            return may_issue(loop)

        WorkerLoop._may_issue = late
        try:
            return super().perform()
        finally:
            WorkerLoop._may_issue = may_issue


class AskingLoop(ServerLoop):
    """Asks for gradients that patches wait for, as if workers were on other nodes."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._remote = True
        want = self.engine.want_first
        self.engine.want_first = lambda _: want(300.0)


class ExportingServer(ServerDuty):
    """A server that hands over its tables when it is done."""

    def perform(self):
        cpu = time.process_time()
        outcome = super().perform()
        engine = self.engine
        return Scripted(
            {
                "ledger": outcome.ledger,
                "histogram": outcome.histogram,
                "cpu_seconds": time.process_time() - cpu,
                "tables": {
                    layout.name: [table.export_bucket(b) for b in buckets] if table is not None else []
                    for layout, table, buckets in zip(
                        engine.layout.tables, engine.tables, engine.buckets, strict=True
                    )
                },
            }
        )


@dataclass
class Scripted:
    """What a rank hands over for `ScriptedJob._summarize`."""

    values: dict
    times: None = None


class ScriptedJob(RankJob):
    """The real job with a trainer of a few lines."""

    def __init__(self, case, world):
        self.case = case
        config = load_config(case["config"])
        self.held = ExitStack()  # to the end of the process
        run_dir = self.held.enter_context(claimed_run_dir(world, config.run_dir, resume=False))
        super().__init__(StartingRank(config, run_dir, world=world), Task(quiet=True))

    def make_place(self, **found):
        place = super().make_place(**found)
        return JitteredPlace(self.case.get("jitter"), **vars(place))

    def make_duty(self, facts, place, sources):
        me = self.communicators.me
        if me.role is Role.TRAINER:
            return ScriptedTrainer(facts, place, self.case)
        if me.role is Role.PARAMETER_SERVER:
            duties.ServerLoop = AskingLoop if self.case.get("far") else ServerLoop
            return ExportingServer(facts, place)
        if self.case.get("late_step") and me.role_rank == 1:
            return LateWorker(facts, place, sources, self.case["late_step"])
        return super().make_duty(facts, place, sources)

    def _summarize(self, outcome):
        everything = self.world.gather(outcome)
        if everything is None:
            return {}
        plan = self.communicators.plan
        servers = [everything[r].values for r in plan.ranks(Role.PARAMETER_SERVER)]
        trainers = [everything[r].values for r in plan.ranks(Role.TRAINER)]
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
        meet(world)  # ranks that a case has no use for would poll in Split, on cores that it needs
        size = case["servers"] + case["workers"] + case["trainers"]
        comm = world.Split(0 if world.rank < size else MPI.UNDEFINED, world.rank)
        if comm == MPI.COMM_NULL:
            continue
        result = ScriptedJob(case, comm).run()
        if comm.rank == 0:
            print(json.dumps(result), flush=True)
        comm.Free()


main()
