"""The whole system on two (virtual) nodes over TCP, one of which is cut off or dies: the job ends by itself,
says why, and goes on, on two nodes or on one, to the same result bit for bit.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.chaos import check_checkpoints
from tests.support.jobs import Job, wait_for
from tests.support.netns import Nodes, virtual_nodes
from tests.support.tiny import run_digest, tiny_config, write_tiny

STEPS = 120
GIVE_UP_SECONDS = 5.0
RANK_PROGRAM = "persia_hpc.job.rank_main"


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    data = write_tiny(tmp_path / "train.h5", 400)
    return tiny_config(
        data,
        **{
            "ranks": {"parameter_servers": 2, "embedding_workers": 2, "trainers": 2},
            "train.epochs": 100,
            "train.max_steps": STEPS,
            "model.class": "tests.support.models:Slow",
            "checkpoint": {"every": 20, "resume": True},
            "transport": {"stall_seconds": 1.0, "give_up_seconds": GIVE_UP_SECONDS},
        },
    )


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with virtual_nodes(2, shared=[tmp_path]) as started:
        yield started


def wait_until_saved(job: Job) -> None:
    """Returns when this job has written a checkpoint."""
    latest = job.run_dir / "latest"
    before = latest.resolve() if latest.is_symlink() else None

    def saved() -> bool:
        assert job.process.poll() is None, f"ended early\n{job.end()}"
        return latest.is_symlink() and latest.resolve() != before

    wait_for(saved, 120)


def end_of(job: Job) -> tuple[int, str]:
    begin = time.monotonic()
    code, _, err = job.end(60)
    assert time.monotonic() - begin < GIVE_UP_SECONDS + 30, err
    assert "Traceback" not in err, err
    check_checkpoints(job.run_dir)
    return code, err


def test_a_node_is_cut_off_and_one_dies(config: dict[str, Any], nodes: Nodes, tmp_path: Path) -> None:
    env = nodes.launching(3)
    jobs = []
    try:
        jobs.append(Job(tmp_path, config, env))
        wait_until_saved(jobs[-1])
        assert {rank.host for rank in jobs[-1].ranks().values()} == {"node0", "node1"}
        nodes.link(1, "down")
        code, err = end_of(jobs[-1])
        assert code == 1, err
        waited = r"\w+ \w*? ?\d has waited (\d+) s for .*"
        assert re.search(rf"^persia-hpc: {waited}", err, re.MULTILINE), err
        last = re.fullmatch(
            rf"persia-hpc: rank \d \(\w+ \d, pid \d+\) failed: {waited}; gave up .*; the job was ended",
            err.splitlines()[-1],
        )
        assert last, err
        assert GIVE_UP_SECONDS <= float(last[1]) < 2 * GIVE_UP_SECONDS + 5
        for node in (0, 1):  # also the ranks that nobody could tell
            wait_for(lambda node=node: not nodes.processes(node, RANK_PROGRAM), 20)
        nodes.link(1, "up")
        jobs.append(Job(tmp_path, config, env))
        wait_until_saved(jobs[-1])
        nodes.kill(1)
        code, err = end_of(jobs[-1])
        assert code not in (0, 2, 75), err
        assert re.match(r"persia-hpc: .*node may have died", err.splitlines()[-1]), err
        wait_for(lambda: not nodes.processes(0, RANK_PROGRAM), 20)
        jobs.append(Job(tmp_path, config))
        code, err = jobs[-1].end()[::2]
        assert code == 0, err
        assert "goes on from" in err
        (tmp_path / "whole").mkdir()
        jobs.append(Job(tmp_path / "whole", config))
        assert jobs[-1].end()[0] == 0
    finally:
        for job in jobs:
            job.clean_up()
    assert run_digest(jobs[-2].run_dir) == run_digest(jobs[-1].run_dir)
