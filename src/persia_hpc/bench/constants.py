"""Measures the cost model's constants on this machine, in about half a minute, by the code that jobs run.

Trials train small models on synthetic data in this process, at shapes that tell the costs of ids, rows,
bytes, features and batches apart. The loops of a server and of a worker, fed from memory, show what batches,
tables and further servers cost. Two jobs under mpiexec, of tiny and of large batches, correct all that for
ranks with cores of their own, and show what a step costs them besides its work. Pairs of ranks show what
rings and AllReduce take.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from persia_hpc._native import keep_freed_memory
from persia_hpc.config import Config, load_config, to_toml
from persia_hpc.cost_model.constants import NAMES, Constants
from persia_hpc.cost_model.work import BatchWork, batch_work
from persia_hpc.job.sources import open_sources
from persia_hpc.job.trial import Trial, count_batches
from persia_hpc.launch.mpiexec import MPI_PYTHON, find_launcher
from persia_hpc.samples.reader import split_reader

from . import ring, table
from .allreduce import sums_of_two
from .constants_jobs import (
    LARGE_BATCH,
    LARGE_STEPS,
    SMALL_BATCH,
    SMALL_STEPS,
    correct,
    see_job,
)
from .measure import available_cores, machine
from .scale_server import measure_server
from .scale_worker import measure_worker
from .train_jobs import run_program, synthetic, w0_settings

SAMPLES, READ_SAMPLES = 1 << 16, 1 << 19  # the second is several windows, each decoded in every epoch
SECONDS = 1.2  # of a trial, beyond its first pass over the data
TINY_SAMPLES = 2048  # some 30 passes, so that hardly a row is new
MANY_TABLES, MANY_SERVERS, LOOP_IDS = 26, 17, 512
INSERTED_ROWS = 500_000
CROWDED_BATCH, MOST_CROWDED = 2048, 16
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Shape:
    """Describes a trial: `multi` of its `features` have several ids a sample."""

    features: int
    multi: int
    dim: int
    batch: int

    def settings(self, path: Path) -> dict[str, Any]:
        """Returns the trial's configuration: that of W0 except for the dim."""
        settings = w0_settings(path, self.batch, 1 << 40)
        settings["tables"]["default"]["dim"] = self.dim
        return settings


SHAPES = (Shape(26, 0, 16, 256), Shape(26, 0, 16, 4096), Shape(26, 0, 64, 2048), Shape(6, 3, 16, 4096))


@dataclasses.dataclass(frozen=True)
class Observation:
    """Holds the median seconds of a trial's steps by phase, and the work of such a step."""

    work: BatchWork
    seconds: Mapping[str, float]


def measure_constants(say: Say = lambda _: None) -> Constants:
    """Raises UserError inside MPI, PersiaError if a job fails; `say` gets stages."""
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            seen, paths, read = [], {}, {}
            for shape in SHAPES:
                kind = shape.features, shape.multi
                if kind not in paths:
                    name = f"{kind[0]}-{kind[1]}"
                    paths[kind] = synthetic(Path(folder) / name, SAMPLES, *kind)
                    read[kind] = synthetic(Path(folder) / f"{name}-read", READ_SAMPLES, *kind)
                say(f"trial: {shape}")
                seen.append(observe(shape, paths[kind], read[kind]))
            loops = _loops(say)
            fitted = fit(seen, loops["table_call"])
            found = {**loops, **fitted, **_rings(say), **_allreduce(say), **_inserts()}
            found |= _crowding(Path(folder), paths[26, 0], say)
            found |= {"worker_byte": 1.0, "trainer_byte": 1.0}  # from here on their proportion
            constants = Constants(machine=_machine(), **{**dict.fromkeys(NAMES, 0.0), **found})
            say("jobs of tiny and of large batches with 1 server, 1 worker, 1 trainer")
            tiny = synthetic(Path(folder) / "tiny", TINY_SAMPLES)
            small = see_job(Path(folder), tiny, SMALL_BATCH, SMALL_STEPS, constants)
            large = see_job(Path(folder), read[26, 0], LARGE_BATCH, LARGE_STEPS, constants)
            return correct(constants, small, large)
    finally:
        torch.set_num_threads(threads)


def _machine() -> str:
    facts = machine()
    return f"{facts['cpu']}, {facts['cores']} cores"


def observe(shape: Shape, path: Path, read: Path) -> Observation:
    """Trains a shape on samples whose rows are all there, and reads batches of it out of a larger file."""
    trial = Trial(load_config(shape.settings(path)))
    sample = trial.sources["train"].read(0, SAMPLES)
    counts = count_batches(trial.stream.worker, sample, shape.batch)
    trial.steps(SAMPLES // shape.batch)
    steps: list[dict[str, float]] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        steps += trial.steps(8)
    seconds = {phase: statistics.median(step[phase] for step in steps) for phase in steps[0]}
    seconds["read"] = _read_seconds(load_config(shape.settings(read)))
    return Observation(batch_work(trial.config, trial.layout, trial.schema, shape.batch, counts), seconds)


def _read_seconds(config: Config) -> float:
    """Returns the mean seconds in which a batch is read; most come at once, when a window is due."""
    source = open_sources(config)["train"]
    reader, size = split_reader(config, "train", source), config.data.batch_size
    for epoch in (0, 1):
        begin = time.perf_counter()
        batches = range(0, source.num_samples, size)
        for first in batches:
            reader.read(epoch, first, min(first + size, source.num_samples))
    return (time.perf_counter() - begin) / len(batches)


def fit(seen: Sequence[Observation], table_call: float = 0.0) -> dict[str, float]:
    """Returns the non-negative constants that fit the trials' phases with the least relative error.

    table_call: nanoseconds of each table's part of a pull and of a push, known already.
    """
    terms: dict[str, dict[str, Callable[[BatchWork], float]]] = {
        "read": {"read_batch": lambda w: 1.0, "read_value": lambda w: w.values},
        "dedup": {"dedup_feature": lambda w: w.num_features, "dedup_id": lambda w: w.ids},
        "pull": {"pull_row": lambda w: w.rows, "pull_byte": lambda w: w.stored_bytes},
        "push": {"push_row": lambda w: w.rows, "push_byte": lambda w: w.updated_bytes},
        "pool": {
            "pool_feature": lambda w: w.num_features,
            "pool_id": lambda w: w.ids,
            "pool_byte": lambda w: w.pooled_bytes,
        },
    }
    found: dict[str, float] = {}
    for phase, each in terms.items():
        calls = table_call if phase in ("pull", "push") else 0.0
        known = np.array([o.work.num_tables * calls for o in seen])
        goal = np.array([1e9 * o.seconds[phase] for o in seen])
        matrix = np.array([[term(o.work) for term in each.values()] for o in seen])
        values = non_negative(matrix / goal[:, None], np.maximum(goal - known, 0.0) / goal)
        found |= dict(zip(each, values.tolist(), strict=True))
    return found


def non_negative(matrix: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Returns x [n] with the least |matrix x - goal| among those without a negative entry.

    The best solution has some entries at 0 and is the plain least-squares one in the others: all are tried.

    Shapes: `matrix` [m, n], of few columns; `goal` [m].
    """
    columns = matrix.shape[1]
    best, least = np.zeros(columns), float(np.square(goal).sum())
    for chosen in range(1, 1 << columns):
        used = [i for i in range(columns) if chosen >> i & 1]
        x = np.zeros(columns)
        x[used] = np.linalg.lstsq(matrix[:, used], goal, rcond=None)[0]
        error = float(np.square(matrix @ x - goal).sum())
        if (x >= 0).all() and error < least:
            best, least = x, error
    return best


def _loops(say: Say) -> dict[str, float]:
    """Returns what a batch costs a busy server, each of its tables, and a worker for each further server."""
    say("the loops of a server and of a worker")

    def batch(tables: int) -> float:  # beyond its rows, of which both cases have as many
        result = measure_server(tables, tables, 5, ids=LOOP_IDS, workers=8)
        return 1e3 * max(0.0, float(result.notes["beyond us"]))

    def request(servers: int) -> float:
        result = measure_worker(MANY_TABLES, servers, 5, ids=LOOP_IDS)
        return 1e3 * result.ours.median

    one, many = batch(1), batch(MANY_TABLES)
    call = max(0.0, many - one) / (2 * MANY_TABLES - 2)
    further = max(0.0, request(MANY_SERVERS) - request(1)) / (MANY_SERVERS - 1)
    return {"table_call": call, "server_batch": max(0.0, one - 2 * call), "worker_record": further}


def _rings(say: Say) -> dict[str, float]:
    say("rings between two ranks")
    found: dict[str, float] = {}
    for result in ring.measure(argparse.Namespace(repeats=3)):
        if result.case.get("bytes") == 1 << 20:
            found["copy_byte"] = 1 / result.ours.median
        if result.case.get("round trip") == "asleep":
            found["wake"] = 1e3 * result.ours.median / 2
    return found


def _allreduce(say: Say) -> dict[str, float]:
    say("AllReduce of two ranks")
    shared = sums_of_two("mpi")
    horovod = sums_of_two("horovod") if importlib.util.find_spec("horovod") is not None else shared
    times = sorted((int(size), statistics.median(each)) for size, each in horovod["seconds"].items())
    (_, short), (size, long) = times[0], times[-1]
    return {
        "allreduce_step": 1e9 * short,
        "allreduce_cpu": 1e9 * horovod["cpu_seconds"],
        "allreduce_byte": 1e9 * max(0.0, long - short) / size,
        "node_sum": 1e9 * statistics.median(min(shared["seconds"].values(), key=statistics.median)),
    }


def _crowding(folder: Path, path: Path, say: Say) -> dict[str, float]:
    """Returns how much longer a microsecond of a core takes while others train as well."""
    ranks = min(len(available_cores()), MOST_CROWDED)
    if ranks == 1:
        return {"crowded": 0.0}
    say(f"the same training on {ranks} cores at once")
    config = folder / "crowding.toml"
    config.write_text(to_toml(load_config(w0_settings(path, CROWDED_BATCH, 1 << 40)).resolved()))
    launcher = find_launcher()
    program = [*MPI_PYTHON, "-m", "persia_hpc.bench.crowding_ranks", str(config)]
    environment = {**launcher.environment(os.environ), "OMP_NUM_THREADS": "1"}
    seconds = run_program(launcher.command(ranks, program), environment=environment)
    return {"crowded": 1e3 * max(0.0, seconds["beside"] / seconds["alone"] - 1)}


def _inserts() -> dict[str, float]:
    parser = argparse.ArgumentParser()  # for the defaults of all its options
    table.add_arguments(parser)
    options = parser.parse_args(
        ["--rows", str(INSERTED_ROWS), "--dims", "16", "--optimizers", "rowwise_adagrad"],
        argparse.Namespace(repeats=1),
    )
    return {"insert_row": next(table.measure(options)).ours.median}
