"""Checks that MPI, mpi4py, Horovod (if it is there) and the C++ extension of this environment work together.

    mpiexec -n 2 .venv/bin/python tools/check_setup.py

Useful on a compute node too, where an MPI may behave otherwise than on the login node.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

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
    horovod = importlib.util.find_spec("horovod") is not None
    expected = world.size * (world.size + 1) / 2
    total = sum_by_horovod(world) if horovod else world.allreduce(float(world.rank + 1))
    if total != expected:
        name = "Horovod" if horovod else "MPI"
        return f"{name}'s allreduce over {world.size} ranks gave {total}, expected {expected}"
    maps = Path("/proc/self/maps").read_text()
    loaded = {os.path.realpath(path) for path in re.findall(r"(/\S*/libmpi(?:ch)?\.so[.\d]*)", maps)}
    if len(loaded) != 1:
        return f"mpi4py and Horovod use different MPI libraries: {', '.join(sorted(loaded))}"
    if world.rank == 0:
        library = MPI.Get_library_version().splitlines()[0]
        without = "" if horovod else ", no Horovod"
        print(f"{library}, {world.size} ranks, {loaded.pop()}, {_native.__file__}{without}")
    return ""


def sum_by_horovod(world: MPI.Intracomm) -> float:
    """Collective over the world. Returns the sum of rank + 1."""
    import horovod.torch as hvd

    hvd.init(comm=world)
    total = hvd.allreduce(torch.tensor([float(world.rank + 1)]), op=hvd.Sum, name="check")
    hvd.shutdown()
    return float(total.item())


if __name__ == "__main__":
    problem = main()
    if problem:
        sys.stderr.write(f"check_setup: {problem}\n")
        MPI.COMM_WORLD.Abort(1)
