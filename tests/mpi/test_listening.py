"""Ports of a job on one node: other hosts can reach none of its ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from persia_hpc.launch.environment import keep_to_loopback
from tests.support.mpi import run_mpi
from tests.support.tiny import tiny_config, write_tiny

SETTINGS = ("UCX_NET_DEVICES", "FI_TCP_IFACE", "FI_SOCKETS_IFACE", "OMPI_MCA_btl")


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="there is no /proc/net/tcp to look into")
def test_no_rank_listens_for_other_hosts(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SETTINGS:  # of the machine the tests run on
        monkeypatch.delenv(name, raising=False)
    data = write_tiny(tmp_path / "train.h5", 64)
    config = tiny_config(data, run_dir=str(tmp_path / "run"))
    out = run_mpi(3, programs / "listening.py", json.dumps(config)).stdout
    seen = json.loads(out.partition("LISTENING")[2].splitlines()[0])
    assert seen["ranks"] == 3
    assert seen["found"] == []


@pytest.mark.parametrize(
    ("environment", "local"),
    [
        ({"PMI_RANK": "0", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "4"}, True),
        ({"PMI_RANK": "0", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"}, False),
        ({"PMI_RANK": "0", "PMI_SIZE": "4"}, False),  # a launcher that doesn't say
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, True),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
            False,
        ),
        ({"PMI_RANK": "0", "SLURM_STEP_NUM_NODES": "1"}, True),
        ({"PMI_RANK": "0", "SLURM_STEP_NUM_NODES": "2"}, False),
        ({"PMI_RANK": "0", "SLURM_STEP_NUM_NODES": "1", "SLURM_HET_SIZE": "2"}, False),
        ({"SLURM_STEP_NUM_NODES": "1"}, False),  # no rank
    ],
)
def test_only_ranks_of_one_host_keep_to_it(environment: dict[str, str], local: bool) -> None:
    changed = {**environment, "FI_TCP_IFACE": "mine"}
    keep_to_loopback(changed)
    assert changed["FI_TCP_IFACE"] == "mine"  # what the user has set stays
    assert ("UCX_NET_DEVICES" in changed) is local
