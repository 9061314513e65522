"""Sums dense gradients over ranks as trainers do: `mpiexec -n 2 ... -m ...allreduce_ranks REDUCER WIRE`.

Prints a line of JSON: for each size of the gradients in bytes the seconds of each step's sum and, in turns
with it, of a bare MPI_Allreduce; the CPU seconds of a sum of the smallest size; and the share of a core that
a rank takes while it waits for nothing.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from mpi4py import MPI
from torch import nn

from persia_hpc.config.types import TrainConfig, TransportConfig
from persia_hpc.runtime.watchdog import Watchdog
from persia_hpc.trainer.dense.allreduce import make_dense_reducer
from persia_hpc.trainer.dense.reducers import make_sums
from persia_hpc.trainer.serve import MpiPeers

SIZES = (1 << 10, 120_000, 1 << 24)  # bytes: latency alone, W0's network, and one bucket of a tower's size
STEPS = 60
IDLE_SECONDS = 1.0


def main(name: str, wire: str) -> None:
    """Measures each size."""
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    train = TrainConfig(reducer=name, dense_wire=wire)
    peers = MpiPeers(comm, Watchdog("bench", TransportConfig()))
    reducer = make_dense_reducer(train, make_sums(train, comm), peers)
    found: dict[str, Any] = {"seconds": {}, "bare": {}, "cpu_seconds": 0.0}
    for size in SIZES:
        model = nn.ParameterList([nn.Parameter(torch.zeros(size // 4))])
        reducer.attach(model)
        seconds: list[float] = []
        bare: list[float] = []
        array = torch.ones(size // 4).numpy()
        for step in range(STEPS):
            for parameter in model:
                parameter.grad = torch.ones_like(parameter)
            comm.Barrier()
            cpu, begin = time.process_time(), time.perf_counter()
            reducer.reduce()
            seconds.append(time.perf_counter() - begin)
            if size == SIZES[0]:  # with more bytes they are what costs
                found["cpu_seconds"] += (time.process_time() - cpu) / STEPS
            comm.Barrier()
            begin = time.perf_counter()
            comm.Allreduce(MPI.IN_PLACE, array)
            bare.append(time.perf_counter() - begin)
            array.fill(step)
        found["seconds"][size], found["bare"][size] = seconds, bare
    comm.Barrier()
    cpu, begin = time.process_time(), time.perf_counter()
    time.sleep(IDLE_SECONDS)
    idle = (time.process_time() - cpu) / (time.perf_counter() - begin)
    found["idle"] = comm.allreduce(idle, MPI.MAX)
    reducer.close()
    if comm.rank == 0:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
