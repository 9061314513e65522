"""Misuse and damage between real ranks: each must end in a clear error on all ranks, not in a hang."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from mpi4py import MPI

from persia_hpc.arrays import Bytes
from persia_hpc.errors import PersiaError, UserError
from persia_hpc.transport import plane as plane_module
from persia_hpc.transport.plane import Channel, Plane
from persia_hpc.transport.progress import Waiter
from persia_hpc.transport.records import Record
from persia_hpc.transport.ring import RingReceiver

comm = MPI.COMM_WORLD
rank = comm.rank
FORCE_REMOTE = sys.argv[1] == "remote"
NAMED: list[str] = []  # the faults that have ended in their error, in order
ROUND = [Channel(i, (i + 1) % comm.size, "next", 4096) for i in range(comm.size)]


def expect(error: type[Exception], *words: str, call: Callable[[], object]) -> None:
    with pytest.raises(error) as raised:
        call()
    missing = [word for word in words if word not in str(raised.value)]
    assert not missing, f"{missing} not in: {raised.value}"
    NAMED.append(words[-1])


def receive(plane: Plane, receiver: RingReceiver) -> Record:
    waiter = Waiter(plane)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        record = receiver.poll()
        if record is not None:
            return record
        plane.progress()
        waiter.idle()
    raise AssertionError("nothing came in 20 s")


def plane_of(channels: list[Channel]) -> Plane:
    return Plane(comm, channels, force_remote=FORCE_REMOTE)


def refused_channels() -> None:
    for channels, words in (
        ([Channel(0, 0, "self", 4096)], ["'self'", "one rank"]),
        ([Channel(0, comm.size, "far", 4096)], ["'far'", f"0..{comm.size - 1}"]),
        ([Channel(0, 1, "small", 4000)], ["'small'", "4000", "4096"]),
        ([Channel(0, 1, "odd", 4096 + 64)], ["'odd'", "multiple of 256"]),
        ([Channel(0, 1, "twice", 4096), Channel(0, 1, "twice", 8192)], ["'twice'", "listed twice"]),
        (
            [Channel(0, 1, "huge", 2**50)],
            # Data and words; between nodes the producer has the data as well.
            [f"need {str(2**50 * (17 if FORCE_REMOTE else 9) // 8)[:10]}", "bytes of memory", "ring_bytes"],
        ),
        ([Channel(0, 1, "unlike", 4096 + 256 * (rank == 1))], ["ranks [1]", "same list"]),
    ):
        expect(UserError, *words, call=lambda channels=channels: plane_of(channels))


def no_private_memory() -> None:
    def fail(num_bytes: int) -> Bytes:
        raise MemoryError

    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(plane_module, "aligned_empty", fail)
        expect(UserError, "could not allocate", "lower transport", call=lambda: plane_of(ROUND))


def free_refuses_to_lose() -> None:
    plane = plane_of(ROUND)
    expect(UserError, "'other'", "next", call=lambda: plane.sender((rank + 1) % comm.size, "other"))
    expect(UserError, "'next'", call=lambda: plane.receiver(rank, "next"))
    sender = plane.sender((rank + 1) % comm.size, "next")
    receiver = plane.receiver((rank - 1) % comm.size, "next")
    if rank == 0:
        for i in range(12):  # more than the ring holds: some stay queued
            sender.post(1, step=i, arrays=[np.full(1000, i, np.uint8)])
        assert sender.pending
        assert sender.pending_bytes
    expect(PersiaError, "queued in 'next' (rank 0 to 1)", call=plane.free)
    if rank == 1:
        for i in range(11):
            record = receive(plane, receiver)
            assert record.step == i
            assert set(record.arrays[0]) == {i}
            record.release()
    while plane.pending:
        plane.progress()
    expect(PersiaError, "unread in 'next' (rank 0 to 1)", call=plane.free)
    if rank == 1:
        receive(plane, receiver).detach()
    plane.free()
    plane.free()
    expect(UserError, "after close()", call=lambda: sender.post(1))


def damage_is_named() -> None:
    plane = plane_of(ROUND)
    sender = plane.sender((rank + 1) % comm.size, "next")
    receiver = plane.receiver((rank - 1) % comm.size, "next")
    for step in range(3):
        sender.post(1, step=step)
    plane.progress()
    receive(plane, receiver).release()
    comm.Barrier()
    # As if record 2 had been lost: its word holds what a later lap would write.
    words, right = receiver.ring.words, receiver.ring.words[2]
    words[2] = 2 + len(words)
    expect(
        PersiaError, receiver.name, f"got sequence word {2 + len(words)}", "expected 2", call=receiver.poll
    )
    words[2] = right
    for offset, word in ((0, "magic"), (4, "version"), (8, "sequence")):
        position = 64 + offset
        receiver.ring.data[position] ^= 0xFF
        expect(PersiaError, receiver.name, word, "expected 0x50485243, 1, 2", call=receiver.poll)
        receiver.ring.data[position] ^= 0xFF
    assert receive(plane, receiver).step == 1
    assert receive(plane, receiver).step == 2
    comm.Barrier()
    plane.free()


refused_channels()
no_private_memory()
free_refuses_to_lose()
damage_is_named()
comm.Barrier()
if rank == 0:
    print("faults:", *NAMED, sep="\n")
