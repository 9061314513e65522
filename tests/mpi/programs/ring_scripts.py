"""Runs scripts of records through real rings between all pairs of ranks and checks every byte that arrives.

    ring_scripts.py SCRIPTS.json shared|remote|pieces|natural|early

remote: between all ranks as between nodes. pieces: likewise, with entries fetched as over a slow link.
natural: as they lie. early: natural and broken on purpose: entries are shown to their consumer before they
were fetched.

A script has: "ring", an index into RINGS; "records", each with "arrays" [[dtype, rows, columns, parts]] and
"reserve" (whether to try that first); "pause", seconds between records; "hold", how many records the consumer
keeps before it releases any; "stall", seconds that the consumer sleeps per record; "seed".
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from persia_hpc.errors import UserError
from persia_hpc.transport import remote_links, remote_source
from persia_hpc.transport.plane import Channel, Plane
from persia_hpc.transport.progress import Waiter
from persia_hpc.transport.records import Record
from persia_hpc.transport.ring import RingReceiver, RingSender

RINGS = [4096, 16384, 65536]
SEED_STEP = 1_000_003


def content(script: dict[str, Any], index: int, producer: int, consumer: int) -> list[np.ndarray]:
    """The arrays of a record: random bytes that both sides can make."""
    rng = np.random.default_rng([script["seed"], index, producer, consumer])
    arrays = []
    for dtype, rows, columns, _ in script["records"][index]["arrays"]:
        shape = (rows,) if columns == 0 else (rows, columns)
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        arrays.append(np.frombuffer(rng.bytes(num_bytes), dtype).reshape(shape))
    return arrays


class Producer:
    """Posts all scripts' records for one peer; a generator so that several run by turns."""

    def __init__(
        self, rank: int, peer: int, senders: list[RingSender], scripts: list[dict[str, Any]]
    ) -> None:
        self.rank, self.peer, self.senders, self.scripts = rank, peer, senders, scripts
        self.steps = self._run()
        self.done = False

    def advance(self) -> bool:
        """Returns whether something was posted."""
        if self.done:
            return False
        moved = next(self.steps, None)
        self.done = moved is None
        return bool(moved)

    def _run(self) -> Iterator[bool]:
        for number, script in enumerate(self.scripts):
            sender = self.senders[script["ring"]]
            resume = 0.0
            for index, record in enumerate(script["records"]):
                while time.monotonic() < resume or sender.pending > 20:
                    yield False
                arrays = content(script, index, self.rank, self.peer)
                fields = (1 + index % 7, number, self.rank, index * SEED_STEP)
                if not (record["reserve"] and self._reserve(sender, fields, arrays)):
                    kind, step, trainer, tag = fields
                    parts = [
                        np.array_split(array, spec[3]) if spec[3] > 1 else array
                        for array, spec in zip(arrays, record["arrays"], strict=True)
                    ]
                    sender.post(kind, step=step, trainer=trainer, tag=tag, arrays=parts)
                resume = time.monotonic() + script["pause"]
                yield True

    @staticmethod
    def _reserve(sender: RingSender, fields: tuple[int, int, int, int], arrays: list[np.ndarray]) -> bool:
        views = sender.try_reserve(*fields, specs=[(array.dtype, array.shape) for array in arrays])
        if views is None:
            return False
        for view, array in zip(views, arrays, strict=True):
            view[...] = array
        sender.commit()
        return True


class Consumer:
    """Checks all scripts' records from one peer, releasing late and out of order."""

    def __init__(
        self, rank: int, peer: int, receivers: list[RingReceiver], scripts: list[dict[str, Any]]
    ) -> None:
        self.rank, self.peer, self.receivers, self.scripts = rank, peer, receivers, scripts
        self.expected = [(n, i) for n, script in enumerate(scripts) for i in range(len(script["records"]))]
        self.got = [0] * len(receivers)
        self.by_ring = [
            [e for e in self.expected if scripts[e[0]]["ring"] == ring] for ring in range(len(receivers))
        ]
        self.held: list[tuple[Record, list[np.ndarray]]] = []
        self.rng = np.random.default_rng([rank, peer])

    @property
    def done(self) -> bool:
        return sum(self.got) == len(self.expected) and not self.held

    def advance(self) -> bool:
        moved = False
        for ring, receiver in enumerate(self.receivers):
            record = receiver.poll()
            if record is None:
                continue
            moved = True
            number, index = self.by_ring[ring][self.got[ring]]
            self.got[ring] += 1
            script = self.scripts[number]
            arrays = content(script, index, self.peer, self.rank)
            fields = (record.kind, record.step, record.trainer, record.tag)
            assert fields == (1 + index % 7, number, self.peer, index * SEED_STEP), (fields, script, index)
            check(record, arrays, script)
            self.held.append((record, arrays))
            if script["stall"]:
                time.sleep(script["stall"])
            while len(self.held) > script["hold"]:
                self.release(script)
        if not moved and self.held:
            self.release(None)
        return moved

    def release(self, script: dict[str, Any] | None) -> None:
        record, arrays = self.held.pop(int(self.rng.integers(len(self.held))))
        check(record, arrays, script)  # still intact just before it is given back
        record.release()
        record.release()


def check(record: Record, arrays: list[np.ndarray], script: dict[str, Any] | None) -> None:
    assert len(record.arrays) == len(arrays), (record, script)
    for got, expected in zip(record.arrays, arrays, strict=True):
        assert got.dtype == expected.dtype, (record, script)
        assert got.shape == expected.shape, (record, script)
        assert got.tobytes() == expected.tobytes(), f"content differs: {record} {json.dumps(script)}"
        assert got.size == 0 or got.ctypes.data % 64 == 0, (record, script)


class Early(remote_links.Lane):
    """Doesn't wait for what it fetches."""

    def finish(self) -> bool:
        for piece in self._under_way:
            piece.request = MPI.REQUEST_NULL
        return super().finish()


def main() -> None:
    path = sys.argv[2]
    if path == "early":
        remote_links.Lane = Early  # type: ignore[misc]
    # Of entries on their way to another node some come with their notice.
    remote_links.CARRIED_BYTES = {"early": 0, "pieces": 300}.get(path, 3000)
    if path == "pieces":
        remote_source.PIECE_SECONDS, remote_source.LEAST_PIECE_BYTES = 1e-9, 1000
    scripts = json.loads(Path(sys.argv[1]).read_text())
    comm = MPI.COMM_WORLD
    rank = comm.rank
    peers = [peer for peer in range(comm.size) if peer != rank]
    channels = [
        Channel(producer, consumer, f"r{ring_bytes}", ring_bytes)
        for producer in range(comm.size)
        for consumer in range(comm.size)
        for ring_bytes in RINGS
        if producer != consumer
    ]
    plane = Plane(comm, channels, force_remote=path in ("remote", "pieces"))
    assert plane.remote == (
        path in ("remote", "pieces") or len(set(comm.allgather(MPI.Get_processor_name()))) > 1
    )
    waiter = Waiter(plane)
    senders = {peer: [plane.sender(peer, f"r{ring_bytes}") for ring_bytes in RINGS] for peer in peers}
    receivers = {peer: [plane.receiver(peer, f"r{ring_bytes}") for ring_bytes in RINGS] for peer in peers}
    producers = [Producer(rank, peer, senders[peer], scripts) for peer in peers]
    consumers = [Consumer(rank, peer, receivers[peer], scripts) for peer in peers]
    deadline = time.monotonic() + 90

    def wait(moved: bool) -> None:
        assert time.monotonic() < deadline, (
            f"rank {rank} made no headway: {[c.got for c in consumers]} {plane.pending}"
        )
        if plane.progress() or moved:
            waiter.busy()
        else:
            waiter.idle()

    while not all(worker.done for worker in [*producers, *consumers]) or plane.pending:
        wait(sum(worker.advance() for worker in [*producers, *consumers]) > 0)

    mine = {sender.name: sender.counters for ring in senders.values() for sender in ring}
    everyone = {name: counters for part in comm.allgather(mine) for name, counters in part.items()}
    for receiver in [receiver for ring in receivers.values() for receiver in ring]:
        counters = everyone[receiver.name]
        assert (receiver.counters.records, receiver.counters.bytes) == (counters.records, counters.bytes), (
            receiver.name
        )
        assert not receiver.closed
    for sender in [sender for ring in senders.values() for sender in ring]:
        sender.close()
        with pytest.raises(UserError, match=re.escape(sender.name)):
            sender.post(1)
    waiting = [receiver for ring in receivers.values() for receiver in ring]
    while waiting or plane.pending:
        for receiver in waiting:
            assert receiver.poll() is None
        waiting = [receiver for receiver in waiting if not receiver.closed]
        wait(False)
    full_waits = comm.allreduce(sum(counters.full_waits for counters in mine.values()))
    num_bytes = comm.allreduce(sum(counters.bytes for counters in mine.values()))
    plane.free()
    if rank == 0:
        print(json.dumps({"full_waits": full_waits, "bytes": num_bytes}))


main()
