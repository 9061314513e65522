"""Measures real jobs that train W0, beside the trainer alone (the limit), plain PyTorch and other systems.

W0: 26 one-hot Zipf(1.2) features over 1 M ids each, 13 dense, dim 16, DLRM 64-16 / 64-1, row-wise Adagrad
0.05, Adam 1e-3. Samples per second of the second half of each run (a second pass over the data: the rows
are there); "whole run" counts the first half too, in which rows are created. Everything runs in processes
of its own, in turns. "unbound" has `ranks.bind_cores = false`, and is left out where no rank would be bound
anyway; "bf16" has `train.amp = "bf16"`, and is left out where the processor doesn't multiply it. The
dense-only limits are bound to one core with one thread.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from persia_hpc._native import has_bf16
from persia_hpc.config import load_config
from persia_hpc.launch.mpiexec import MPI_PYTHON
from persia_hpc.topology.cores import allowed_cpus, decide
from persia_hpc.topology.roles import Role

from .measure import Result, Timing, available_cores, summarize
from .train_jobs import prepare_data, run_job, run_local, run_program, w0_settings

SUMMARY = "end to end, beside the dense part alone, plain PyTorch, TorchRec and Paddle"
EXAMPLES = """\
examples:
  persia-hpc bench train --data build/w0 --json train.json
  make bench-peers && persia-hpc bench train --data build/w0 --batch 2048 --trace trace.json"""

DENSE_PHASES = ("forward", "backward", "optimizer")
# Each has an environment in --peers and a program in benchmarks/peers.
PEERS = {
    "TorchRec, 2 ranks": ("torchrec-venv", "torchrec_w0.py"),
    "Paddle, 1 server + 1 trainer": ("paddle-venv", "paddle_w0.py"),
}
UNBOUND, NARROW = "1+1+1 unbound", "one process, bf16"
Rates = dict[str, list[float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.set_defaults(repeats=3)  # of seconds each
    parser.add_argument(
        "--data", type=Path, help="where the data are made, or lie already (default: a temporary folder)"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[2048, 16384], help="global batch sizes")
    parser.add_argument(
        "--samples", type=int, default=1 << 20, help="trained on in a run; the data are half as many"
    )
    parser.add_argument(
        "--peers",
        type=Path,
        default=Path("build"),
        help="where `make bench-peers`, in the repository, made their environments (default: build)",
    )
    parser.add_argument("--trace", type=Path, help="writes a timeline of 5 steps of 1+1+1 there")


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Jobs of several shapes, then the trainer alone, for each batch size."""
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder)
        path = prepare_data(data, options.samples // 2)
        for batch in options.batch:
            yield from _measure_batch(options, data, path, Path(folder), batch)


def _measure_batch(
    options: argparse.Namespace, data: Path, path: Path, folder: Path, batch: int
) -> Iterator[Result]:
    cores = available_cores()
    settings = {n: w0_settings(path, batch, options.samples, trainers=n) for n in (1, 2)}
    traced = {**settings[1], "train": {**settings[1]["train"], "trace": 5}}
    unbound = {**settings[1], "ranks": {**settings[1]["ranks"], "bind_cores": False}}
    narrow = {**settings[1], "train": {**settings[1]["train"], "amp": "bf16"}}
    jobs: dict[str, Callable[[], dict[str, Any]]] = {
        "1+1+1": lambda: run_job(folder, traced if options.trace else settings[1]),
        UNBOUND: lambda: run_job(folder, unbound),
        "1+1+2": lambda: run_job(folder, settings[2]),
        "one process": lambda: run_local(folder, settings[1]),
        NARROW: lambda: run_local(folder, narrow),
    }
    if not has_bf16():
        del jobs[NARROW]
    rank = (0, tuple(cores), set(cores) == allowed_cpus())
    bound = decide(load_config(settings[1]), list(Role), [rank] * len(Role)).cpus is not None
    if not bound:
        del jobs[UNBOUND]
    size = ["--data", str(data), "--batch", str(batch), "--samples", str(options.samples // 4)]
    program = [*MPI_PYTHON, "-m", "persia_hpc.bench.train_dense"]
    limits: dict[str, Callable[[], dict[str, Any]]] = {
        name: lambda case=case, threads=threads, core=core: run_program(  # type: ignore[misc]
            [*program, case, *size, "--threads", str(threads)], core
        )
        for name, case, threads, core in (
            ("plain PyTorch", "torch", len(cores), None),
            ("dense-only", "session", 1, cores[-1]),
            ("PyTorch dense-only, our model", "model", 1, cores[-1]),
            ("PyTorch dense-only, textbook", "textbook", 1, cores[-1]),
        )
    }
    peers = peer_commands(options.peers)
    limits |= {name: partial(run_program, [*peer, *size]) for name, peer in peers.items()}
    rates: Rates = {name: [] for name in (*jobs, *limits)}
    whole: Rates = {name: [] for name in jobs}
    last: dict[str, dict[str, Any]] = {}
    for _ in range(options.repeats):
        for name, job in jobs.items():
            last[name] = summary = job()
            rates[name].append(summary["steady"]["samples_per_second"])
            whole[name].append(summary["samples_per_second"])
            if options.trace and name == "1+1+1":
                shutil.copy(folder / "run" / "trace.json", options.trace)
        for name, limit in limits.items():
            rates[name].append(limit()["samples_per_second"])
    found = {name: summarize(values) for name, values in rates.items()}
    dense = [name for name in limits if "dense-only" in name]
    ends = [name for name in limits if name not in dense]
    for name in jobs:
        beside = [*ends, *dense] if name == "1+1+1" else ends
        notes = {"whole run": summarize(whole[name]).median, **shares(last[name]["phase_seconds"])}
        if name == "1+1+1" and not bound:
            notes[f"\n    {UNBOUND}:"] = "not measured, because no rank is bound to cores here"
        yield _result(name, batch, found, beside, notes)
    absent = [name for name in PEERS if name not in peers]
    notes = {"not measured (make bench-peers)": "; ".join(absent)} if absent else {}
    yield _result("dense-only", batch, found, dense[1:], notes)


def _result(
    name: str, batch: int, found: Mapping[str, Timing], beside: list[str], notes: Mapping[str, Any]
) -> Result:
    limits = {limit: found[limit] for limit in beside}
    case = {"job": name, "batch": batch}
    return Result(case, "samples/s", found[name], limits, higher_is_better=True, notes=notes)


def peer_commands(folder: Path) -> dict[str, list[str]]:
    """Returns the commands that start W0 in other systems, as far as they are installed.

    Their programs are part of the repository only.
    """
    commands = {}
    for name, (venv, file) in PEERS.items():
        program = Path("benchmarks/peers") / file
        if (folder / venv / "done").exists() and program.exists():
            commands[name] = [str(folder / venv / "bin" / "python"), str(program)]
    return commands


def shares(phase_seconds: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, str]:
    """Returns a line for each role on where its time goes; forward, backward and optimizer are "dense"."""
    lines = {}
    for role, phases in phase_seconds.items():
        seconds = {phase: value["mean"] for phase, value in phases.items()}
        total = seconds.pop("total") or 1.0
        if role == "trainer":
            seconds["dense"] = sum(seconds.pop(phase) for phase in DENSE_PHASES)
        parts = (f"{phase} {value / total:.0%}" for phase, value in seconds.items() if value)
        lines[f"\n    {role}:"] = ", ".join(parts)
    return lines
