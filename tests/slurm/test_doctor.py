"""`persia-hpc doctor --srun` on two nodes: with the PMI of the MPI library, and with another."""

from __future__ import annotations

import json
from pathlib import Path

from tests.slurm.conftest import ended
from tests.support.slurm import Cluster


def verdict(cluster: Cluster, folder: Path, mpi: str) -> tuple[bool, dict[str, dict[str, str]]]:
    """What doctor says: whether all is well, and its lines by what they are about."""
    command = f"persia-hpc doctor --reducer mpi --srun {mpi} --json >{mpi}.json"
    options = ["--parsable", "-N2", "--ntasks-per-node=1", "--time=5", f"--wrap={command}"]
    job_id = cluster.run("sbatch", *options, cwd=folder).stdout.strip()
    ended(cluster, job_id, folder)
    told = json.loads((folder / f"{mpi}.json").read_text())
    return told["ok"], {check["what"]: check for check in told["checks"]}


def test_srun_and_the_mpi_library_are_tried_together(cluster: Cluster, tmp_path: Path) -> None:
    good, lines = verdict(cluster, tmp_path, "pmi2")
    assert good
    for what in ("PMI", "srun MPI", "srun threads", "srun RMA", "srun put", "srun pinning", "srun clocks"):
        assert lines[what]["level"] == "ok", lines[what]
    good, lines = verdict(cluster, tmp_path, "none")
    assert not good
    assert lines["PMI"]["level"] == "note"
    assert "srun would take none" in lines["PMI"]["found"]
    assert lines["srun ranks"]["level"] == "BAD"
    assert "each rank is alone" in lines["srun ranks"]["found"]
    assert lines["srun ranks"]["fix"] == "srun --mpi=pmi2"
