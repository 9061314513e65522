"""Worlds that can't carry a job are refused before anything waits for ever in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from persia_hpc.errors import UserError
from persia_hpc.topology.communicators import check_single_mpi_library
from tests.support.mpi import run_mpi

# What srun sets for the tasks of a step; SLURM_* of the machine the tests run on must not leak in.
STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
ALONE = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}


def verdict(programs: Path, num_ranks: int, **environment: str) -> list[str]:
    return run_mpi(num_ranks, programs / "refused_world.py", **environment).stdout.splitlines()


def test_a_world_that_fits_is_accepted(programs: Path) -> None:
    assert verdict(programs, 1, **ALONE) == ["accepted"]
    assert verdict(programs, 2, **{**STEP, "SLURM_NTASKS": "2"}) == ["accepted"] * 2


def test_too_few_threads_are_refused_by_every_rank(programs: Path) -> None:
    said = verdict(programs, 2, **ALONE, MPI4PY_RC_THREAD_LEVEL="serialized")
    assert said[0] == said[1]
    assert re.fullmatch(
        r"MPI started with thread level \d+, but MPI_THREAD_MULTIPLE \(\d+\) is needed; unset "
        r"MPI4PY_RC_THREAD_LEVEL, or use an MPI built with thread support",
        said[0],
    )


def test_silent_singletons_are_refused(programs: Path) -> None:
    (said,) = verdict(programs, 1, **STEP)
    assert re.fullmatch(
        r"srun started 4 tasks, but MPI sees a world of 1 rank \(silent singletons\): .*--mpi=pmi2 .*",
        said,
    )


MAPS = """\
55d0c0000000-55d0c0001000 r--p 00000000 08:01 11 /usr/bin/python3.11
7f0000000000-7f0000100000 r-xp 00000000 08:01 12 {first}
7f0000100000-7f0000200000 r--p 00100000 08:01 12 {first}
7f0000200000-7f0000300000 r-xp 00000000 08:01 13 /usr/lib/libmpi_cxx.so.40
7f0000300000-7f0000400000 r-xp 00000000 08:01 14 {second}
7f0000400000-7f0000500000 rw-p 00000000 00:00 0
"""


def test_two_mpi_libraries_in_one_process_are_refused(tmp_path: Path) -> None:
    mpich, openmpi = tmp_path / "libmpich.so.12.3.1", tmp_path / "libmpi.so.40"
    maps = tmp_path / "maps"
    for library in (mpich, openmpi):
        library.touch()
    maps.write_text(MAPS.format(first=mpich, second=openmpi))
    with pytest.raises(UserError, match="two MPI libraries are loaded in one process") as error:
        check_single_mpi_library(maps)
    assert f"{openmpi}, {mpich}" in str(error.value)
    assert "tools/build_horovod.sh" in str(error.value)


def test_one_mpi_library_under_two_names_is_accepted(tmp_path: Path) -> None:
    library, alias, maps = tmp_path / "libmpi.so.12.3.1", tmp_path / "libmpich.so.12", tmp_path / "maps"
    library.touch()
    alias.symlink_to(library)
    maps.write_text(MAPS.format(first=library, second=alias))
    check_single_mpi_library(maps)
    check_single_mpi_library(tmp_path / "no /proc here")
    check_single_mpi_library()
