"""Checks that MPI, mpi4py, Horovod and the C++ extension of this environment work together.

    mpiexec -n 2 .venv/bin/python tools/check_setup.py

Useful on a compute node too, where an MPI may behave otherwise than on the login node.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import horovod.torch as hvd
import torch
from mpi4py import MPI

from persia_hpc import _native


def main() -> str:
    """Collective over COMM_WORLD. Returns what is wrong, '' if nothing is."""
    world = MPI.COMM_WORLD
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        return (
            f"MPI gives thread level {MPI.Query_thread()}, THREAD_MULTIPLE ({MPI.THREAD_MULTIPLE}) is needed"
        )
    hvd.init(comm=world)
    total = hvd.allreduce(torch.tensor([float(world.rank + 1)]), op=hvd.Sum, name="check")
    hvd.shutdown()
    expected = world.size * (world.size + 1) / 2
    if total.item() != expected:
        return f"Horovod's allreduce over {world.size} ranks gave {total.item()}, expected {expected}"
    maps = Path("/proc/self/maps").read_text()
    loaded = {os.path.realpath(path) for path in re.findall(r"(/\S*/libmpi(?:ch)?\.so[.\d]*)", maps)}
    if len(loaded) != 1:
        return f"mpi4py and Horovod use different MPI libraries: {', '.join(sorted(loaded))}"
    if world.rank == 0:
        library = MPI.Get_library_version().splitlines()[0]
        print(f"{library}, {world.size} ranks, {loaded.pop()}, {_native.__file__}")
    return ""


if __name__ == "__main__":
    problem = main()
    if problem:
        sys.stderr.write(f"check_setup: {problem}\n")
        MPI.COMM_WORLD.Abort(1)
