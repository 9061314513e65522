"""How a rank died is known although its parent reaps it at once."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import pytest

from persia_hpc.launch.deaths import DeathWatch, lost_output
from persia_hpc.launch.environment import SUPERVISED
from persia_hpc.launch.registry import RankRecord, beacon_path, process_stat, read_ranks, register_rank

RELEASE = tuple(int(part) for part in platform.release().split(".")[:2])


@pytest.mark.skipif(RELEASE < (6, 15), reason="older kernels forget how a reaped process died")
@pytest.mark.parametrize(("number", "exit_code"), [(9, None), (15, None), (None, 7)])
def test_reaped_processes(number: int | None, exit_code: int | None) -> None:
    watch = DeathWatch()
    for rank in range(20):
        gate, opened = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.read(gate, 1)
            if number is not None:
                os.kill(os.getpid(), number)
            os._exit(exit_code or 0)
        stat = process_stat(pid)
        assert stat is not None
        watch.watch(RankRecord(rank, pid, "", "", stat.start_ticks))
        os.write(opened, b"x")
        os.waitpid(pid, 0)
        os.close(gate)
        os.close(opened)
    limit = time.monotonic() + 10
    while len(watch.deaths) < 20 and time.monotonic() < limit:
        time.sleep(0.01)
    watch.close()
    assert [(d.signal, d.exit_code) for d in watch.deaths] == [(number, exit_code)] * 20


def test_what_a_launcher_killed_is_not_taken_for_the_first_to_die(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dying rank closes its files before its end is seen; the launcher may kill the others in between."""
    monkeypatch.setenv(SUPERVISED, "1")
    watch = DeathWatch()
    gates, pids = [], []
    for rank in range(3):
        gate, opened = os.pipe()
        beacon = beacon_path(tmp_path, rank)
        pid = os.fork()
        if pid == 0:
            register_rank(tmp_path, rank)
            os.read(gate, 1)
            os.closerange(400, 600)  # as the kernel does: the beacon first, and then time passes
            os.read(gate, 1)
            os.kill(os.getpid(), 9)
        limit = time.monotonic() + 10
        while (record := read_ranks(tmp_path).get(rank)) is None and time.monotonic() < limit:
            time.sleep(0.01)
        assert record is not None
        watch.watch(record, beacon)
        os.close(gate)
        gates.append(opened)
        pids.append(pid)
    os.write(gates[1], b"x")
    time.sleep(0.05)
    os.kill(pids[0], 9)
    os.kill(pids[2], 9)
    time.sleep(0.1)
    assert watch.deaths == []  # that of the first is still to come
    os.write(gates[1], b"x")
    limit = time.monotonic() + 10
    while len(watch.deaths) < 3 and time.monotonic() < limit:
        time.sleep(0.01)
    watch.close()
    for pid, gate in zip(pids, gates, strict=True):
        os.waitpid(pid, 0)
        os.close(gate)
    assert watch.deaths[0].rank.world_rank == 1
    assert {d.rank.world_rank for d in watch.deaths} == {0, 1, 2}


def test_only_the_output_of_this_node_is_lost_with_its_launcher(tmp_path: Path) -> None:
    register_rank(tmp_path, 2)
    here = read_ranks(tmp_path)[2]
    assert "it prints no longer arrives" in lost_output(7, [here])
    there = RankRecord(0, 5, "another-host", "", 0)
    said = lost_output(7, [there, here])
    assert "(pid 7) was killed" in said
    assert "what this node's ranks (2) print no longer arrives" in said


def test_a_watch_ends_at_once() -> None:
    seconds = []
    for _ in range(5):
        watch = DeathWatch()
        time.sleep(0.01)  # it waits by now
        begin = time.monotonic()
        watch.close()
        seconds.append(time.monotonic() - begin)
    assert min(seconds) < 0.02
