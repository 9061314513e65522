"""slurm/preprocess.sbatch as a job array: its tasks make the shards of one data set."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from persia_hpc.samples.source import open_source
from tests.slurm.conftest import ended, said
from tests.support.mpi import REPOSITORY
from tests.support.slurm import Cluster

SCRIPT = str(REPOSITORY / "slurm" / "preprocess.sbatch")
LINES = 50
OPTIONS = ["--parsable", "--cpus-per-task=1"]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Three files in Criteo's layout; I1 is the number of the line in all of them."""
    rng = np.random.default_rng(5)
    for file in range(3):
        lines = []
        for line in range(LINES):
            ids = [f"{i:08x}" for i in rng.integers(0, 1000, 26)]
            row = [str(line % 2), str(file * LINES + line), *["1"] * 12, *ids]
            lines.append("\t".join(row) + "\n")
        (tmp_path / f"day_{file}.txt").write_text("".join(lines))
    return [SCRIPT, "criteo", "--input", "day_*.txt", "--out", "out", "--shard-bytes", "6000"]


@pytest.mark.parametrize(("first", "last", "count"), [(1, 3, 3), (0, 6, 4)])
def test_an_array_that_leaves_parts_out_is_refused(first: int, last: int, count: int) -> None:
    env = {
        **os.environ,
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_ARRAY_TASK_ID": str(last),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_MAX": str(last),
        "SLURM_ARRAY_TASK_COUNT": str(count),
    }
    env.pop("PARTS", None)
    done = subprocess.run(["bash", SCRIPT, "criteo"], env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 2
    assert f"got the {count} tasks {first} to {last}" in done.stderr


def test_array_makes_all_shards(cluster: Cluster, command: list[str], tmp_path: Path) -> None:
    job_id = cluster.run("sbatch", *OPTIONS, "--array=0-2", *command, cwd=tmp_path).stdout.strip()
    assert ended(cluster, job_id, tmp_path) == {"COMPLETED"}, said(tmp_path)
    source = open_source([str(tmp_path / "out/train-*.h5")])
    dense = source.read(0, source.num_samples).dense[:, 0]
    np.testing.assert_array_equal(np.rint(np.expm1(dense)), np.arange(3 * LINES))
    # Tasks submitted again, not all at once, make what is missing and nothing else.
    made = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("out/*.h5")}
    assert len(made) > 6
    (tmp_path / "out" / "train-00001.h5").unlink()
    for tasks in ("0-1", "2"):
        again = ["sbatch", *OPTIONS, f"--array={tasks}", "--export=ALL,PARTS=3", *command]
        job_id = cluster.run(*again, cwd=tmp_path).stdout.strip()
        assert ended(cluster, job_id, tmp_path) == {"COMPLETED"}, said(tmp_path)
    now = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("out/*.h5")}
    assert {name for name in made if made[name] != now.get(name)} == {"train-00001.h5"}


def test_what_needs_all_rows_is_refused(cluster: Cluster, command: list[str], tmp_path: Path) -> None:
    command = [*OPTIONS, "--array=0", *command, "--min-count", "2"]
    job_id = cluster.run("sbatch", *command, cwd=tmp_path).stdout.strip()
    assert ended(cluster, job_id, tmp_path) == {"FAILED"}
    assert "--min-count needs all rows of the input" in said(tmp_path)


def test_without_an_array_it_is_refused(cluster: Cluster, command: list[str], tmp_path: Path) -> None:
    job_id = cluster.run("sbatch", *OPTIONS, "--output=%x-%j.out", *command, cwd=tmp_path).stdout.strip()
    assert ended(cluster, job_id, tmp_path) == {"FAILED"}
    assert "submit it with --array" in said(tmp_path)
