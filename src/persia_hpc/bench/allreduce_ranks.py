"""Sums dense gradients over ranks as trainers do: `mpiexec -n 2 ... -m persia_hpc.bench.allreduce_ranks`.

Prints a line of JSON with the median seconds of a step's AllReduce for each size of the gradients in bytes,
and the mean CPU seconds for the smallest size.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import torch
from mpi4py import MPI
from torch import nn

from persia_hpc.config.types import TrainConfig
from persia_hpc.trainer.dense.allreduce import DenseReducer

SIZES = (1 << 10, 1 << 24)  # bytes: latency alone, and one bucket of a tower's size
STEPS = 60


def main() -> None:
    """Measures each size."""
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    reducer = DenseReducer(comm, TrainConfig.bucket_bytes)
    found: dict[str, Any] = {"seconds": {}}
    for size in SIZES:
        model = nn.ParameterList([nn.Parameter(torch.zeros(size // 4))])
        reducer.attach(model)
        seconds, cpu = [], time.process_time()
        for _ in range(STEPS):
            for parameter in model:
                parameter.grad = torch.ones_like(parameter)
            comm.Barrier()
            begin = time.perf_counter()
            reducer.reduce()
            seconds.append(time.perf_counter() - begin)
        found["seconds"][size] = statistics.median(seconds)
        if size == SIZES[0]:  # with more bytes they are what costs
            found["cpu_seconds"] = (time.process_time() - cpu) / STEPS
    reducer.close()
    if comm.rank == 0:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
