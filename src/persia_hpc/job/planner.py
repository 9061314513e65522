"""Counts a configuration's data and times its model, so that the cost model can say what a cluster does."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from persia_hpc._native import keep_freed_memory
from persia_hpc.config import Config, load_config
from persia_hpc.config.types import ROLE_KEYS
from persia_hpc.cost_model.cluster import Cluster
from persia_hpc.cost_model.constants import DEFAULTS, load_constants
from persia_hpc.cost_model.costs import Costs, Dense, Job, count_costs
from persia_hpc.cost_model.memory import Memory, Room, fits
from persia_hpc.cost_model.predict import Prediction, predict
from persia_hpc.cost_model.report import Option, Report
from persia_hpc.cost_model.work import Counting, assumed_counts, batch_work
from persia_hpc.errors import UserError
from persia_hpc.runtime.node_memory import UNLIMITED
from persia_hpc.runtime.phases import LOCAL_STREAM
from persia_hpc.topology.roles import Role, make_plan

from .trial import Trial

TRIAL_SECONDS = 1.0  # of steps, for each of two batch sizes
WARM_UP = 3  # steps of a trial that don't count
WORTH = 1.05  # what a suggested rank must bring at least
MOST_RANKS = 4096


@dataclass(frozen=True)
class Given:
    """Holds what the user has said or measured; what is None is taken from defaults, counted or measured."""

    constants: Path | None = None
    run: Path | None = None
    dense_rate: float | None = None
    allreduce_rate: float | None = None  # bytes a second
    unique_share: float | None = None
    new_rows: float = 0.0

    def check(self, gpus: int) -> None:
        """Checks the numbers.

        Raises UserError for numbers that can't be, and for a GPU's speed, which can't be guessed.
        """
        if self.dense_rate is not None and not 0 < self.dense_rate < math.inf:
            raise UserError(f"--dense-rate {self.dense_rate:g}: expected samples per second, above 0")
        if self.allreduce_rate is not None and not 0 < self.allreduce_rate < math.inf:
            raise UserError(f"--allreduce-rate {self.allreduce_rate / 1e9:g}: expected GB/s, above 0")
        if self.unique_share is not None and not 0 < self.unique_share <= 1:
            raise UserError(f"--unique-share {self.unique_share:g}: expected a share, above 0 and at most 1")
        if not 0 <= self.new_rows <= 1:
            raise UserError(f"--new-rows {self.new_rows:g}: expected a share, 0 to 1")
        if gpus and self.dense_rate is None and self.run is None:
            raise UserError(
                f"--gpus {gpus}, but no --dense-rate: how fast the model is on them can't be measured here; "
                "give samples/s of one trainer (persia-hpc bench gpu), or --from a run on such a node"
            )


class Planner:
    """Predicts jobs of one configuration with any number of ranks."""

    def __init__(self, config: Config, cluster: Cluster, given: Given):
        """Counts data and times the model.

        Raises UserError for bad input.
        """
        given.check(cluster.gpus)
        self.config, self.cluster, self.given = config, cluster, given
        constants = DEFAULTS if given.constants is None else load_constants(given.constants)
        if given.allreduce_rate is not None:
            constants = dataclasses.replace(constants, allreduce_byte=1e9 / given.allreduce_rate)
        self.constants = constants
        # Of this process only: how many passes there are changes nothing, and the data may be short.
        endless = dataclasses.replace(config.train, epochs=1 << 30, max_steps=None)
        self.trial = Trial(dataclasses.replace(config, train=endless))
        self.count, self.counted = self._counting()
        self.ranks = config.ranks.counts(cluster.nodes)
        self._plan = cluster.place(config.ranks, self.ranks)  # before anything takes time
        self.factors: dict[tuple[str, str], float] = {}
        if given.run is not None:
            self.dense = self._from_run(given.run)
        elif given.dense_rate is not None:
            size = self.trial.parameter_bytes()
            threads = self._threads()
            self.dense = Dense(0.0, 1 / given.dense_rate, size, "--dense-rate", whole=True, threads=threads)
        else:
            self.dense = self._time_dense()
        self.dense = dataclasses.replace(self.dense, buckets=self.trial.bucket_bytes())

    def _counting(self) -> tuple[Counting, str]:
        num_samples, share = self.trial.sample.num_samples, self.given.unique_share
        if share is None:
            return self.trial.count, f"counted in the first {num_samples:,} samples"
        counts = self.trial.count(num_samples)
        ids = tuple(n / num_samples for n in counts.ids)
        counting = assumed_counts(self.trial.layout, ids, counts.stored / num_samples, share)
        return counting, f"{share:g} of the ids (--unique-share)"

    def job(self, counts: Mapping[str, int]) -> Job:
        """Returns the job with these ranks.

        Raises UserError if they have no place on the cluster.
        """
        samples = self.config.data.batch_size / counts["trainers"]
        trial = self.trial
        plan = self.cluster.place(self.config.ranks, counts)
        counted = self.count(max(1, round(samples)))
        work = batch_work(self.config, trial.layout, trial.schema, samples, counted)
        return Job(
            self.config,
            trial.layout,
            plan,
            work,
            self.dense,
            self.constants,
            parquet=bool(trial.row_groups),
            new_rows=self.given.new_rows,
            factors=self.factors,
        )

    def predict(self, counts: Mapping[str, int]) -> Prediction:
        """Returns what the cost model says of the job with these ranks."""
        return predict(self.job(counts), self.cluster)

    def options(self, counts: Mapping[str, int]) -> tuple[list[Option], dict[str, str]]:
        """Returns what one more rank of each role brings; for roles that can't have one, why not."""
        found, obstacles = [], {}
        per_node = self.config.ranks.per_node is not None
        for key in ROLE_KEYS:
            role = key[:-1]
            more = {**counts, key: counts[key] + (self.cluster.nodes if per_node else 1)}
            if sum(more.values()) > MOST_RANKS:
                obstacles[role] = f"there would be more than {MOST_RANKS} ranks"
            elif self.config.data.batch_size < more["trainers"]:
                obstacles[role] = "each needs a sample of data.batch_size"
            elif key == "trainers" and 0 < self.cluster.gpus * self.cluster.nodes < more[key]:
                obstacles[role] = "no GPU is left"
            else:
                job = self.job(more)
                if fits(job.plan, self._memory(job), self.cluster) is False:
                    obstacles[role] = "it doesn't fit into the memory of its node"
                    continue
                prediction = predict(job, self.cluster)
                found.append(Option(role, more, prediction.samples_per_second, prediction.bottleneck.name))
        return found, obstacles

    def suggest(self) -> dict[str, int]:
        """Returns the configuration's ranks and those worth adding: each time the one that brings most."""
        counts = dict(self.ranks)
        while True:
            now = self.predict(counts).samples_per_second
            best = max(self.options(counts)[0], key=lambda o: o.samples_per_second, default=None)
            if best is None or best.samples_per_second < WORTH * now:
                return counts
            counts = dict(best.counts)

    def report(self, counts: Mapping[str, int]) -> Report:
        """Returns all that the cost model says about the job with these ranks."""
        job = self.job(counts)
        prediction, memory = predict(job, self.cluster), self._memory(job)
        return Report(job, self.cluster, prediction, memory, *self.options(counts), self.counted)

    def _memory(self, job: Job) -> Memory:
        nodes = {member.node: self.cluster.node_memory(member.node) for member in job.plan.members}
        room = {node: UNLIMITED if known is None else known for node, known in nodes.items()}
        return self.trial.memory(job.plan, self.count, Room(room, room))

    def _threads(self) -> int:
        """Returns the model's threads on CPUs: as configured, or a trainer's fair share; 1 on GPUs."""
        if self.cluster.gpus:
            return 1
        node = self._plan.of(Role.TRAINER)[0].node
        here = sum(m.node == node for m in self._plan.members)
        return self.config.train.threads or max(1, self.cluster.node_cores(node) // here)

    def _time_dense(self) -> Dense:
        """Measures a trainer's batch and half of it, so that the part of a step that doesn't scale shows."""
        if (device := self.trial.session.device).type != "cpu":
            raise UserError(
                f"the trainer would compute on {device} here, and what it launches there can't be timed by "
                'phases; give --dense-rate (persia-hpc bench gpu), or for CPUs --set train.device="cpu"'
            )
        wanted, before = self._threads(), torch.get_num_threads()
        threads = min(wanted, len(os.sched_getaffinity(0)))  # more would only get in each other's way
        keep_freed_memory()  # as a trainer does
        torch.set_num_threads(threads)
        try:
            batch = max(1, self.config.data.batch_size // self.ranks["trainers"])
            size = min(batch, self.trial.sources["train"].num_samples)
            bytes_, half = self.trial.parameter_bytes(), max(1, size // 2)
            long, optimizer, backward, ahead = self._step_seconds(size)
            short = self._step_seconds(half)[0] if half < size else long
        finally:
            torch.set_num_threads(before)
        each = min(long / size, max(0.0, long - short) / (size - half) if half < size else long / size)
        source = f"timed here, batches of {half} and {size}, {threads} thread{'s' * (threads > 1)}"
        if threads < wanted:
            source += f" of the {wanted} that a trainer there would have"
        return Dense(
            long - size * each,
            each,
            bytes_,
            source,
            threads=threads,
            optimizer_seconds=optimizer,
            backward_share=backward / long,
            ahead_share=min(ahead / long, 1.0),
        )

    def _step_seconds(self, size: int) -> tuple[float, float, float, float]:
        """Returns median seconds of model, optimizer, and the model's backward, on `size` samples.

        The last are the mean seconds of what the model computes without rows, which are part of the first.
        """
        data = dataclasses.replace(self.trial.config.data, batch_size=size)
        trial = Trial(dataclasses.replace(self.trial.config, data=data))
        session, steps = trial.session, trial.steps(WARM_UP)[:0]
        end = time.perf_counter() + TRIAL_SECONDS
        while time.perf_counter() < end or len(steps) < WARM_UP:
            done = trial.steps(1)
            if session.schedules["train"].step(session.step_number).num_samples == size:  # no epoch's tail
                steps += done
        return (
            statistics.median(s["forward"] + s["backward"] for s in steps),
            statistics.median(s["optimizer"] for s in steps),
            statistics.median(s["backward"] for s in steps),
            session.intake.ahead_seconds / max(1, session.step_number),
        )

    def _from_run(self, run: Path) -> Dense:
        """Takes the dense model's time from an earlier run, and factors for the other phases."""
        summary = _summary(run)
        then = load_config(run / "config.toml")
        alike = ("tables", "features", "model", "wire")
        other = [name for name in alike if getattr(then, name) != getattr(self.config, name)]
        if other:
            raise UserError(
                f"--from {run}: its [{other[0]}] differs from the configuration's; expected a run of the "
                "same tables, features and model"
            )
        counts, steps = summary["roles"], summary["this_run"]["steps"]
        if not steps:
            raise UserError(f"--from {run}: it trained no step")
        try:
            samples = then.data.batch_size / counts["trainers"]
            seconds = {
                role: {phase: float(value["mean"] / steps) for phase, value in phases.items()}
                for role, phases in summary["phase_seconds"].items()
            }
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"--from {run}: its summary.json is damaged ({reason}); use another") from None
        trainer = seconds["trainer"]
        whole = self.cluster.gpus > 0  # a GPU's phases don't say where its time went, only their sum
        optimizer = 0.0 if whole else trainer["optimizer"]
        if whole:
            apart = ("wait", "push", "allreduce", *LOCAL_STREAM)  # the last of runs in one process
            step = trainer["total"] - sum(trainer.get(phase, 0.0) for phase in apart)
        else:
            step = trainer["forward"] + trainer["backward"]
        dense = Dense(
            0.0,
            step / samples,
            self.trial.parameter_bytes(),
            f"phases of {run}",
            whole=whole,
            threads=1 if whole else then.train.threads or self._threads(),
            optimizer_seconds=optimizer,
            backward_share=Dense.backward_share if whole or not step else trainer["backward"] / step,
        )
        if "embedding_worker" in seconds:
            plan = make_plan(counts, [0] * sum(counts.values()))
            trial = self.trial
            work = batch_work(then, trial.layout, trial.schema, samples, self.count(max(1, round(samples))))
            costs = count_costs(Job(then, trial.layout, plan, work, dense, self.constants))
            self.factors = _factors(costs, seconds)
        return dense


def _factors(costs: Costs, seconds: Mapping[str, Mapping[str, float]]) -> dict[tuple[str, str], float]:
    """Returns measured over modelled seconds, of the phases that a run accounts for."""
    return {
        (role, phase): seconds[role][phase] / modelled
        for role, phases in costs.seconds.items()
        for phase, modelled in phases.items()
        if role in seconds and phase in seconds[role] and modelled > 0 and phase != "allreduce"
    }


def _summary(run: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((run / "summary.json").read_text())
        _ = (
            values["phase_seconds"]["trainer"]["forward"]["mean"],
            values["roles"],
            values["this_run"]["steps"],
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"--from {run}: expected the run directory of a finished run, with summary.json and its "
            f"phase_seconds; got {type(error).__name__}: {error}"
        ) from None
    return values


def make_report(config: Config, cluster: Cluster, given: Given, *, suggest: bool) -> Report:
    """Returns the whole report of `persia-hpc plan`.

    Raises UserError for bad input.
    """
    planner = Planner(config, cluster, given)
    return planner.report(planner.suggest() if suggest else planner.ranks)
