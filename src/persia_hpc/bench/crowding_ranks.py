"""Trains on one core, alone and beside others: `mpiexec -n N ... -m ...crowding_ranks CONFIG`.

Prints a line of JSON: the CPU seconds of a step of rank 0 while the others sleep, and while all train. It is
CPU time, so that what the machine does besides counts less.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from mpi4py import MPI

from persia_hpc._native import keep_freed_memory
from persia_hpc.config import load_config
from persia_hpc.job.trial import Trial

SECONDS = 1.0
WARM_UP = 10  # steps


def main(config: str) -> None:
    """Measures both, in turns."""
    keep_freed_memory()
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    trial = Trial(load_config(Path(config)))
    trial.steps(WARM_UP)
    found: dict[str, list[float]] = {"alone": [], "beside": []}
    for name in ("alone", "beside", "alone", "beside"):
        comm.Barrier()
        end = time.perf_counter() + SECONDS
        if name == "alone" and comm.rank:
            time.sleep(SECONDS)
            continue
        while time.perf_counter() < end:
            begin = time.process_time()
            trial.steps(1)
            found[name].append(time.process_time() - begin)
    if comm.rank == 0:
        print(json.dumps({name: statistics.median(each) for name, each in found.items()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
