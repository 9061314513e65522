"""The same rings between (virtual) nodes, over TCP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from persia_hpc.launch.doctor_mpi import check_mpi
from tests.mpi.ring_scripts import draw_scripts, storm
from tests.support.netns import Nodes, virtual_nodes


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with virtual_nodes(2, shared=[tmp_path_factory.getbasetemp()]) as running:
        yield running


def test_records_cross_the_network_intact(nodes: Nodes, programs: Path, tmp_path: Path) -> None:
    script_file = tmp_path / "scripts.json"
    script_file.write_text(json.dumps(draw_scripts(10)))
    before = sent_bytes(nodes)
    done = nodes.mpiexec(2, programs / "ring_scripts.py", str(script_file), "natural")
    result = json.loads(done.stdout)
    # Eight of twelve pairs of ranks are on two nodes; all pairs carry the same.
    assert sent_bytes(nodes) - before > result["bytes"] // 2, "what should cross the network did not"


def test_dense_gradients_are_summed_over_nodes(nodes: Nodes, programs: Path) -> None:
    """Within each node first; the same bits in every run and in whatever buckets."""
    runs = [nodes.mpiexec(2, programs / "dense_sums.py", "mpi").stdout for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(set(runs[0].splitlines())) == 3  # one for each format


def test_a_nodes_changes_get_to_the_other_node(nodes: Nodes, programs: Path) -> None:
    assert nodes.mpiexec(2, programs / "shared_vector.py", "0").stdout.count("done") == 4


def test_progress_thread_lets_a_computing_rank_receive(nodes: Nodes, programs: Path) -> None:
    seconds = float(nodes.mpiexec(1, programs / "computing_peer.py", "thread").stdout)
    assert seconds < 1.5, "the sender waited for a rank that computes for 3 s"


@pytest.mark.parametrize("fetched", ["carried", "whole", "pieces"])
def test_a_peer_outside_mpi_holds_up_nobody_else(nodes: Nodes, programs: Path, fetched: str) -> None:
    did = json.loads(nodes.mpiexec(2, programs / "sleeping_peer.py", fetched).stdout)
    assert did["waiting"] > 50, "the sleeper's ring was never full: the test isn't what it is for"
    assert did["echoed"] > 50, f"records hardly went on while one peer slept: {did}"
    assert did["longest_pass"] < 1.0, f"a pass waited for the sleeping peer: {did}"


def test_a_word_that_comes_before_its_payload_is_noticed(
    nodes: Nodes, programs: Path, tmp_path: Path
) -> None:
    script_file = tmp_path / "scripts.json"
    script_file.write_text(json.dumps([storm(200)]))
    done = nodes.mpiexec(1, programs / "ring_scripts.py", str(script_file), "early", check=False)
    assert done.returncode
    assert "content differs" in done.stderr or "got a header of magic" in done.stderr, done.stderr[-2000:]


def test_doctor_times_a_put_over_the_network(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**nodes.launching(1), "UCX_NET_DEVICES": "eth0"}.items():
        monkeypatch.setenv(name, value)
    before = sent_bytes(nodes)
    put = next(line for line in check_mpi(None) if line.what == "put")
    assert "between node0 and node1" in put.found
    assert sent_bytes(nodes) - before > 10 << 20  # ten times 1 MiB


def test_too_large_a_ring_is_refused_on_all_ranks(nodes: Nodes, programs: Path) -> None:
    assert "refused" in nodes.mpiexec(2, programs / "no_room.py").stdout


def sent_bytes(nodes: Nodes) -> int:
    """Bytes that all nodes have sent on their networks."""
    devices = "".join(nodes.run(node, "cat", "/proc/net/dev").stdout for node in range(len(nodes.addresses)))
    return sum(int(line.split()[9]) for line in devices.splitlines() if line.strip().startswith("eth0:"))
