"""Gradients that a patch waits for go first, in parts; the others when it has come or is long in coming."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from persia_hpc.embedding_worker.patches import USUAL_SECONDS
from persia_hpc.protocol.messages import Kind, Patch, WantFirst
from persia_hpc.transport.records import Record
from tests.support.fresh import World, config_of


class Senders:
    """Keeps what is sent to each server."""

    def __init__(self, servers: int) -> None:
        self.sent: list[list[tuple[int, list[np.ndarray]]]] = [[] for _ in range(servers)]
        self.senders = [Sender(each) for each in self.sent]

    def post(self, kind: int, *, arrays: Any, **_: int) -> None:
        for server, sender in enumerate(self.senders):
            sender.post(kind, arrays=[each.part(server) for each in arrays])

    def kinds(self) -> list[list[int]]:
        return [[kind for kind, _ in sent] for sent in self.sent]


class Sender:
    def __init__(self, sent: list[tuple[int, list[np.ndarray]]]) -> None:
        self.sent = sent

    def post(self, kind: int, *, arrays: Any, **_: int) -> None:
        self.sent.append((kind, [np.array(each) for each in arrays]))

    def progress(self) -> bool:
        return False


@pytest.mark.parametrize("come", ["patch", "time", "elsewhere", "wish too late"])
def test_others_wait_for_the_patch_but_not_for_long(come: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two servers the first wants a row of each dim group first, each in a part of its own."""
    now = 1.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    world = World(config_of("fresh", {}), servers=2, trainers=1, steps=2)
    batch = world.prepare((1, 0), [list(range(20)), list(range(10)), [1, 2]])
    if come != "elsewhere":
        following = world.prepare((2, 0), [[1], [2], [3]])
    gradients = [
        np.arange(3.0 * dim * n, dtype=np.float32).reshape(-1, dim)[:n]
        for dim, n in zip(world.worker.layout.dim_groups, np.diff(batch.dedup.group_offsets), strict=True)
    ]
    parts = world.worker.split_gradients(batch, gradients)
    whole = [[np.array(each.part(server)) for each in parts] for server in range(2)]
    wish = WantFirst(1, 0, np.array([0, len(whole[0][0]) + 1], np.uint32), np.array([1, 1], np.uint32))
    record = Record(Kind.WANT_FIRST, 1, 0, 0, [wish.positions, wish.counts])
    patches, senders = world.patches, Senders(2)
    patches.receive({} if come == "wish too late" else {(1, 0): batch}, 0, record)
    patches.push(senders, batch, parts)  # type: ignore[arg-type]
    if come == "wish too late":
        assert senders.kinds() == [[Kind.PUSH], [Kind.PUSH]]
        return
    if come != "elsewhere":
        assert senders.kinds() == [[Kind.PUSH_FIRST, Kind.PUSH_FIRST], [Kind.PUSH]]
        assert not patches.let_go()
    if come == "patch":
        for server in range(2):
            nothing = [np.empty((0, dim), np.float32) for dim in world.worker.layout.dim_groups]
            patches.take(following, server, Patch(2, 0, [np.empty(0, np.uint32) for _ in nothing], nothing))
    elif come == "time":
        now += 1.9 * USUAL_SECONDS
        assert not patches.let_go()
        now += 0.2 * USUAL_SECONDS
        assert patches.let_go()
    assert not patches.let_go()
    assert senders.kinds() == [[Kind.PUSH_FIRST, Kind.PUSH_FIRST, Kind.PUSH], [Kind.PUSH]]
    (_, first), (_, second), (_, others) = senders.sent[0]
    for group, (all_rows, at) in enumerate(zip(whole[0], ([0], [1]), strict=True)):
        np.testing.assert_array_equal((first, second)[group][group], all_rows[at])
        assert len((second, first)[group][group]) == 0
        np.testing.assert_array_equal(others[group], np.delete(all_rows, at, axis=0))
    for sent, expected in zip(senders.sent[1][0][1], whole[1], strict=True):
        np.testing.assert_array_equal(sent, expected)
