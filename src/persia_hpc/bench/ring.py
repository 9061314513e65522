"""Measures record rings between two ranks of this node: bandwidth, round trips, and the cost of waiting.

Starts its two ranks itself, each on a core of its own if there are two. The records are taken and given back,
not read; memcpy copies the same pieces of memory, which no cache holds, on the sender's core. A round trip is
there and back: `spinning` polls without a break, `asleep` lets both ranks sleep until they are woken.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

from persia_hpc.errors import PersiaError, UserError
from persia_hpc.launch.environment import inside_mpi
from persia_hpc.launch.mpiexec import MPI_PYTHON, find_launcher

from .measure import Result, summarize

SUMMARY = "record rings between two ranks"
EXAMPLES = "example: persia-hpc bench ring --repeats 20"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options: none of its own."""


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Raises UserError inside MPI, PersiaError if the ranks fail; what they say goes to stderr."""
    if inside_mpi():
        raise UserError(
            "bench ring was started by an MPI launcher, and starts two ranks itself; run it without one"
        )
    launcher = find_launcher()
    program = [*MPI_PYTHON, "-m", "persia_hpc.bench.ring_ranks", str(options.repeats)]
    environment = {**launcher.environment(os.environ), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        launcher.command(2, program),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as ranks:
        assert ranks.stdout is not None
        for line in ranks.stdout:
            found: dict[str, Any] = json.loads(line)
            timings = {name: summarize(values) for name, values in found["limits"].items()}
            yield Result(
                found["case"],
                found["unit"],
                summarize(found["ours"]),
                timings,
                higher_is_better=found.get("higher_is_better", False),
            )
    if ranks.returncode != 0:
        raise PersiaError(f"the ranks of the benchmark ended with exit code {ranks.returncode}; see above")
