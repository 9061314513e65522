"""What the processes of a job import: nothing that takes long and that they have no use for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import Job, user_environment
from tests.support.tiny import tiny_config, write_tiny

# Tells at the end of each Python process of the job what it has imported.
LOOK = """
import atexit, json, os, sys
from pathlib import Path
def tell():
    rank = os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "parent"))
    Path(os.environ["IMPORTED"], f"{rank}.json").write_text(json.dumps(sorted(sys.modules)))
atexit.register(tell)
"""
NEVER = {"polars", "pandas", "pyarrow", "sympy", "sklearn", "scipy", "matplotlib", "torch._dynamo"}
DENSE = {"torch", "horovod"}
COMPILERS = {"torch._prims", "torch._meta_registrations"}
MPI = {"mpi4py.MPI"}
PROCESSES = {  # what each may not have, and must have
    "parent": (NEVER | DENSE | MPI | {"persia_hpc.job.rank", "persia_hpc.job.duties"}, set()),
    "0": (NEVER | DENSE, MPI),  # the server
    "1": (NEVER | DENSE, MPI),  # the worker
    "2": (NEVER | COMPILERS, MPI | {"torch"}),  # a trainer of a built-in model
    "3": (NEVER | COMPILERS, MPI | {"torch"}),
}


def run_job(folder: Path, processes: Iterable[str], **changes: Any) -> dict[str, set[str]]:
    """By process, the modules that it had imported when it ended."""
    (folder / "sitecustomize.py").write_text(LOOK)
    path = os.pathsep.join([str(folder), user_environment()["PYTHONPATH"]])
    data = write_tiny(folder / "train.h5", 64)
    config = tiny_config(data, **{"data.valid": data, "checkpoint.every": 4, **changes})
    job = Job(folder, config, {"PYTHONPATH": path, "IMPORTED": str(folder)})
    assert job.process.wait(timeout=240) == 0, job.process.communicate()[1]
    return {name: set(json.loads((folder / f"{name}.json").read_text())) for name in processes}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    changes = {"ranks.trainers": 2, "model": {"class": "tower"}}
    return run_job(tmp_path_factory.mktemp("start"), PROCESSES, **changes)


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_imports_what_it_needs_only(process: str, imported: dict[str, set[str]]) -> None:
    forbidden, needed = PROCESSES[process]
    assert imported[process] & forbidden == set()
    assert needed <= imported[process]


def test_code_of_a_users_finds_all_of_torch(tmp_path: Path) -> None:
    assert run_job(tmp_path, ["2"])["2"] >= COMPILERS  # its model is one
