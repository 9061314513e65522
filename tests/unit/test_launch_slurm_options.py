"""Options of sbatch for nodes without GPUs: all but what asks for these."""

from __future__ import annotations

import pytest

from persia_hpc.launch.slurm_options import without_gpus


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("--gres=nvme:1,gpu:2", ["--gres=nvme:1"]),
        ("--gres gpu:a100:2,nvme:1,gpu,lustre", ["--gres nvme:1,lustre"]),
        ("--gres gpu:1,gpu:h100:1", []),
        ("--tres-per-node=gres/gpu:2,gres/nvme:1", ["--tres-per-node=gres/nvme:1"]),
        ("--tres-bind=gres/gpu:map:0,1", []),
        ("--gres=shard:2", []),
        ("--gres=none", ["--gres=none"]),
        ("--gres-flags=enforce-binding", ["--gres-flags=enforce-binding"]),
        ("--mem-per-cpu=2G", ["--mem-per-cpu=2G"]),
    ],
)
def test_nodes_without_gpus_keep_the_other_resources(line: str, kept: list[str]) -> None:
    assert without_gpus([line]) == kept
