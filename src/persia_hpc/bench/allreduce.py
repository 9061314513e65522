"""Measures what summing dense gradients takes between two trainers of this node, and while they idle.

Starts two ranks itself for each reducer (train.reducer) and wire format (train.dense_wire). A step is the
call that follows backward, with nothing hidden by it; beside it, in turns, a bare MPI_Allreduce of as many
fp32.
`idle` is the share of a core that a trainer takes while it waits for data.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

from persia_hpc.errors import UserError
from persia_hpc.launch.environment import inside_mpi
from persia_hpc.launch.mpiexec import MPI_PYTHON, find_launcher

from .measure import Result, summarize
from .train_jobs import run_program

SUMMARY = "sums of dense gradients between two trainers"
EXAMPLES = "example: persia-hpc bench allreduce --reducers mpi --wires fp32 bf16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    reducers = ["mpi", *(["horovod"] if importlib.util.find_spec("horovod") is not None else [])]
    parser.add_argument("--reducers", nargs="+", choices=("horovod", "mpi"), default=reducers)
    parser.add_argument("--wires", nargs="+", choices=("fp32", "bf16", "fp16"), default=["fp32"])


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Raises UserError inside MPI, PersiaError if the ranks fail. `--repeats` counts runs of 60 steps."""
    if inside_mpi():
        raise UserError(
            "bench allreduce was started by an MPI launcher, and starts two ranks itself; run it without one"
        )
    cases = [(reducer, wire) for reducer in options.reducers for wire in options.wires]
    turns = [[sums_of_two(*case) for case in cases] for _ in range(options.repeats)]
    for (reducer, wire), runs in zip(cases, zip(*turns, strict=True), strict=True):
        case = {"reducer": reducer, "wire": wire}
        for size in runs[0]["seconds"]:
            ours, bare = ([1e6 * s for run in runs for s in run[name][size]] for name in ("seconds", "bare"))
            limits = {"bare MPI_Allreduce": summarize(bare)}
            yield Result({**case, "bytes": int(size)}, "us", summarize(ours), limits)
        idle = summarize([100 * run["idle"] for run in runs])
        yield Result({**case, "idle": "waiting for data"}, "% of a core", idle)


def sums_of_two(reducer: str, wire: str = "fp32") -> dict[str, Any]:
    """Returns what two ranks measure; see `allreduce_ranks`.

    Raises PersiaError if they fail.
    """
    launcher = find_launcher()
    program = [*MPI_PYTHON, "-m", "persia_hpc.bench.allreduce_ranks", reducer, wire]
    environment = {**launcher.environment(os.environ), "OMP_NUM_THREADS": "1"}
    return run_program(launcher.command(2, program), environment=environment)
