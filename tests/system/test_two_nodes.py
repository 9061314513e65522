"""The whole system on two (virtual) nodes, over TCP: the same result, bit for bit, as on one node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.mpi import run_mpi
from tests.support.netns import virtual_nodes
from tests.support.tiny import run_digest, tiny_config, write_tiny

PROGRAMS = Path(__file__).with_name("programs")
ROLES = ("parameter_server", "embedding_worker", "trainer")


def test_two_nodes_train_what_one_node_trains(tmp_path: Path) -> None:
    data, valid = write_tiny(tmp_path / "train.h5", 333), write_tiny(tmp_path / "valid.h5", 150, seed=1)

    def settings(name: str) -> dict[str, Any]:
        changes = {
            "ranks": {"parameter_servers": 2, "embedding_workers": 2, "trainers": 2},
            "data.valid": [valid],
            "run_dir": str(tmp_path / name),
        }
        return tiny_config(data, **changes)

    with virtual_nodes(2, shared=[tmp_path]) as nodes:
        nodes.mpiexec(3, PROGRAMS / "train_cases.py", json.dumps([settings("two")]), timeout=240)
    run_mpi(6, PROGRAMS / "train_cases.py", json.dumps([settings("one")]), timeout=240)
    ranks = [json.loads(path.read_text()) for path in (tmp_path / "two" / "ranks").glob("*.json")]
    spread = {role: {rank["host"] for rank in ranks if rank["role"] == role} for role in ROLES}
    assert spread == {role: {"node0", "node1"} for role in ROLES}
    assert run_digest(tmp_path / "two") == run_digest(tmp_path / "one")
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert two["valid"] == one["valid"]
    assert two["embedding"]["applied_rows"] == two["embedding"]["pulled_rows"] > 0
