"""Carries rings between nodes: producers announce entries by small messages, consumers fetch them one-sided.

No call here waits for a peer (docs/rma_protocol.md says why, step by step).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from mpi4py import MPI

from persia_hpc.arrays import Bytes, Words
from persia_hpc.transport.remote_source import Lane, Ranges, RemoteSource

# A notice: what it is, the channel's number, the last entry or the tail, and where new entries lie in the
# ring: begin, end, begin, end (in at most two pieces, with the ring's end between them). Few bytes of entries
# follow in the same message: the request that fetches others waits on its connection behind all that this
# rank sends there, which over a slow link takes longer than the entries.
NOTICE_WORDS = 8
CARRIED_BYTES = 32 << 10  # at most
_ENTRIES, _TAIL, _CARRIED = 1, 2, 3


class DataLink(Protocol):
    """Lets a producer announce entries."""

    @property
    def ready(self) -> bool:
        """Returns whether `publish` may be called: the notice before has left."""

    def publish(self, first: int, last: int, ranges: Ranges) -> None:
        """Tells the consumer of the entries first..last, written to these ranges (begin, end) of the ring."""


class TailLink(Protocol):
    """Lets a consumer tell how many bytes it has released."""

    @property
    def rate(self) -> float:
        """Returns the bytes that come from the producer in a second, as far as is known."""

    def publish(self, tail: int) -> None:
        """Tells the producer the number of released bytes."""


class Notices:
    """Exchanges notices between the ranks of `comm`, and fetches entries from `win`; any thread may call it.

    Collective over `comm`: the constructor, `connect`, `settle` and `free`.
    """

    def __init__(self, comm: MPI.Intracomm, win: MPI.Win) -> None:
        self._comm = comm.Dup()  # nobody else's receive may take a notice
        self._win = win
        self._lock = threading.RLock()
        self._due: dict[RemoteTailLink, None] = {}  # in order, and each once
        self._fetching: dict[Lane, None] = {}
        self._lanes: dict[int, Lane] = {}  # by producer
        self._sources: dict[int, tuple[Lane, RemoteSource]] = {}  # by channel
        self._tails: dict[int, Words] = {}
        self._sent = np.zeros(comm.size, np.int64)
        self._got = np.zeros(comm.size, np.int64)
        self._message = np.zeros(8 * NOTICE_WORDS + CARRIED_BYTES, np.uint8)
        self._taking: tuple[int, MPI.Request] | None = None  # its sender

    def data_link(self, channel: int, consumer: int, data: Bytes, tail: Words) -> RemoteDataLink:
        """Returns the producer's link of a channel whose entries lie in `data`, in its window.

        What the consumer releases is stored in `tail`.
        """
        self._tails[channel] = tail
        return RemoteDataLink(Outbox(self, channel, consumer), data)

    def tail_link(
        self, channel: int, producer: int, source: int, data: Bytes, words: Words
    ) -> RemoteTailLink:
        """Returns the consumer's link of a channel whose entries lie from `source` in the producer's window.

        They are fetched to `data`, and then their sequence words are stored.
        """
        lane = self._lanes.setdefault(producer, Lane(self._win, producer))
        self._sources[channel] = lane, RemoteSource(source, data, words)
        return RemoteTailLink(Outbox(self, channel, producer), lane)

    def connect(self) -> None:
        """Fetches a little from everybody that this rank will fetch from.

        Open MPI looks a window up at the first access, and waits for its rank meanwhile.
        Collective over the ranks.
        """
        for lane, source in self._sources.values():
            lane.fetch(source, 0, [(0, 8)])
        for lane in self._lanes.values():
            while lane.busy:
                lane.finish()
        self._comm.Barrier()  # whoever leaves may be outside MPI for long

    def progress(self) -> bool:
        """Takes notices, starts and finishes fetches, sends what is due; returns whether anything moved."""
        with self._lock:
            moved = self._receive()
            for lane in tuple(self._fetching):
                moved |= lane.finish()
                if not lane.busy:
                    del self._fetching[lane]
            for link in tuple(self._due):
                moved |= link.send()
            return moved

    def _receive(self) -> bool:
        moved = False
        notice, carried = self._message[: 8 * NOTICE_WORDS], self._message[8 * NOTICE_WORDS :]
        while self._take():
            kind, channel, number, *bounds = notice.view(np.uint64).tolist()
            if kind == _TAIL:
                self._tails[channel][0] = number
            else:
                lane, source = self._sources[channel]
                ranges = [(begin, end) for begin, end in (bounds[:2], bounds[2:4]) if begin < end]
                if kind == _CARRIED:
                    lane.take(source, number, ranges, carried)
                else:
                    lane.fetch(source, number, ranges)
                    self._fetching[lane] = None
            moved = True
        return moved

    def _take(self) -> bool:
        """Returns whether another notice has come."""
        if self._taking is None:
            status = MPI.Status()
            # Not receives started in advance: with MPICH 5 over TCP (UCX), one from any source that is
            # started while several messages wait never gets any.
            message = self._comm.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)
            if message is None:
                return False
            self._taking = status.Get_source(), message.Irecv(self._message)
        sender, request = self._taking
        if not request.Test():
            return False
        self._taking = None
        self._got[sender] += 1
        return True

    def settle(self) -> None:
        """Returns when every notice that any rank has sent was taken, and what it announced was fetched.

        Collective over the ranks; nobody may post or release meanwhile.
        """
        while self._due:
            self.progress()
        expected = np.empty_like(self._sent)
        self._comm.Alltoall(self._sent, expected)
        while self._fetching or not np.array_equal(expected, self._got):
            self.progress()
        # Whoever leaves may be outside MPI for long, where nobody can fetch from it.
        self._comm.Barrier()

    def free(self) -> None:
        """Frees the communicator; after `settle` nothing is lost with it."""
        self._comm.Free()

    def due(self, link: RemoteTailLink, *, is_due: bool) -> None:
        """Notes that a link has, or no longer has, something to send."""
        if is_due:
            self._due[link] = None
        else:
            self._due.pop(link, None)

    def send(self, peer: int, message: Bytes) -> MPI.Request:
        """Starts sending a notice, which must stay as it is until the request is complete."""
        self._sent[peer] += 1
        return self._comm.Isend(message, peer)

    @property
    def lock(self) -> threading.RLock:
        """Returns what a thread holds while it changes anything here."""
        return self._lock

    def publish_stores(self) -> None:
        """Makes what this rank has stored in its window visible to those who fetch it."""
        self._win.Sync()


class Outbox:
    """Sends one channel's notices to one peer, one at a time: MPI reads it where it lies."""

    def __init__(self, notices: Notices, channel: int, peer: int) -> None:
        self.notices = notices
        self._channel = channel
        self._peer = peer
        self._message = np.empty(0, np.uint8)
        self._request: MPI.Request | None = None

    @property
    def free(self) -> bool:
        """Returns whether the notice before has left."""
        if self._request is not None and self._request.Test():
            self._request = None
        return self._request is None

    def send(self, kind: int, number: int, bounds: Sequence[int] = (), carried: Sequence[Bytes] = ()) -> None:
        """Sends a notice, and bytes with it."""
        notice = np.zeros(NOTICE_WORDS, np.uint64)
        fields = (kind, self._channel, number, *bounds)
        notice[: len(fields)] = fields
        self._message = np.concatenate([notice.view(np.uint8), *carried])
        self._request = self.notices.send(self._peer, self._message)


class RemoteDataLink:
    """Announces entries to a consumer on another node, or sends them with the notice. See `DataLink`."""

    def __init__(self, outbox: Outbox, data: Bytes) -> None:
        self._outbox = outbox
        self._data = data

    @property
    def ready(self) -> bool:
        """Returns whether the notice before has left."""
        with self._outbox.notices.lock:
            return self._outbox.free

    def publish(self, first: int, last: int, ranges: Ranges) -> None:
        """Sends the consumer a notice of the last entry and of all ranges, with their bytes if few."""
        notices = self._outbox.notices
        bounds = [bound for pair in ranges for bound in pair]
        few = sum(end - begin for begin, end in ranges) <= CARRIED_BYTES
        with notices.lock:
            if few:
                carried = [self._data[begin:end] for begin, end in ranges]
                self._outbox.send(_CARRIED, last, bounds, carried)
            else:
                notices.publish_stores()
                self._outbox.send(_ENTRIES, last, bounds)


class RemoteTailLink:
    """Tells a producer on another node what was released. See `TailLink`."""

    def __init__(self, outbox: Outbox, lane: Lane) -> None:
        self._outbox = outbox
        self._lane = lane
        self._tail = 0

    @property
    def rate(self) -> float:
        """Returns the bytes that come from the producer in a second, as far as is known."""
        return self._lane.rate

    def publish(self, tail: int) -> None:
        """Sends the number now, or as soon as the notice before has left; a later number replaces it."""
        with self._outbox.notices.lock:
            self._tail = tail
            self.send()

    def send(self) -> bool:
        """Sends the number if it can be sent; returns whether it was."""
        free = self._outbox.free
        if free:
            self._outbox.send(_TAIL, self._tail)
        self._outbox.notices.due(self, is_due=not free)
        return free
