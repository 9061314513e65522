"""slurm/preprocess.sbatch as a job array and as ranks: a file of each file, which training opens as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from persia_hpc.samples.source import open_source
from tests.slurm.conftest import ended, said
from tests.support.mpi import REPOSITORY
from tests.support.slurm import Cluster

SCRIPT = str(REPOSITORY / "slurm" / "preprocess.sbatch")
LINES = 50


@pytest.fixture
def raw(tmp_path: Path) -> list[str]:
    """Three files in Criteo's layout; I1 is the number of the line in all of them."""
    rng = np.random.default_rng(5)
    for file in range(3):
        lines = []
        for line in range(LINES):
            ids = [f"{i:08x}" for i in rng.integers(0, 1000, 26)]
            row = [str(line % 2), str(file * LINES + line), *["1"] * 12, *ids]
            lines.append("\t".join(row) + "\n")
        (tmp_path / f"day_{file}.txt").write_text("".join(lines))
    return ["day_*.txt", "out"]


def check(folder: Path) -> None:
    source = open_source([str(folder / "out/part-*/train-000.h5")])
    assert source.num_samples == 3 * LINES
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["part-00000", "part-00001", "part-00002"]


def test_array_has_a_file_a_task(cluster: Cluster, raw: list[str], tmp_path: Path) -> None:
    options = ["--parsable", "--array=0-2", "--cpus-per-task=1"]
    job_id = cluster.run("sbatch", *options, SCRIPT, *raw, cwd=tmp_path).stdout.strip()
    assert ended(cluster, job_id, tmp_path) == {"COMPLETED"}, said(tmp_path)
    check(tmp_path)
    # Submitted again, also with more tasks than files, nothing is made anew.
    made = [p.stat().st_mtime_ns for p in sorted(tmp_path.glob("out/part-*/train-000.h5"))]
    options = ["--parsable", "--array=2-3", "--cpus-per-task=1"]
    job_id = cluster.run("sbatch", *options, SCRIPT, *raw, cwd=tmp_path).stdout.strip()
    assert ended(cluster, job_id, tmp_path) == {"COMPLETED", "FAILED"}, said(tmp_path)
    assert "this is task 3, but 'day_*.txt' names 3 files" in said(tmp_path)
    assert [p.stat().st_mtime_ns for p in sorted(tmp_path.glob("out/part-*/train-000.h5"))] == made


def test_ranks_have_a_file_each(cluster: Cluster, raw: list[str], tmp_path: Path) -> None:
    cluster.run("srun", "-n3", "-c1", "--mpi=none", "bash", SCRIPT, *raw, cwd=tmp_path)
    check(tmp_path)


def test_without_an_array_it_is_refused(cluster: Cluster, raw: list[str], tmp_path: Path) -> None:
    options = ["--parsable", "--cpus-per-task=1", "--output=%x-%j.out"]
    job_id = cluster.run("sbatch", *options, SCRIPT, *raw, cwd=tmp_path).stdout.strip()
    assert ended(cluster, job_id, tmp_path) == {"FAILED"}
    assert "submit it with --array" in said(tmp_path)
