"""Builds a plane: all the rings between the ranks of one communicator."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from persia_hpc._native import RingConsumer, RingProducer
from persia_hpc.arrays import Bytes, Words
from persia_hpc.errors import PersiaError, UserError
from persia_hpc.transport.records import RingCounters, aligned_empty
from persia_hpc.transport.remote_links import Notices
from persia_hpc.transport.ring import RingReceiver, RingSender
from persia_hpc.transport.window import Window, memory_problem, raise_together

from .placement import Channel, Placement, channel_problem, place

__all__ = ["Channel", "Plane"]


class Plane:
    """Holds the rings between the ranks of `comm`; all ranks pass the same channels.

    force_remote: use one-sided MPI between ranks of one node as well (tests). memory_grows: see
    `memory_problem`.

    Collective over `comm`: the constructor and `free`.
    Raises UserError, on all ranks alike, for bad or differing channels, too little memory, or an MPI with the
    wrong memory model.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        channels: Sequence[Channel],
        *,
        force_remote: bool = False,
        memory_grows: bool = False,
    ) -> None:
        self.comm = comm
        self._freed = False
        self._dirty: set[RingSender] = set()
        self._senders: dict[tuple[int, str], RingSender] = {}
        self._receivers: dict[tuple[int, str], RingReceiver] = {}
        _check_channels(comm, channels)
        rank = comm.rank
        node_comm = comm.Split_type(MPI.COMM_TYPE_SHARED)
        assert isinstance(node_comm, MPI.Intracomm)
        try:
            here: list[int] = node_comm.allgather(rank)
            nodes: list[int] = comm.allgather(min(here))
            node_rank = {peer: i for i, peer in enumerate(here)}
            placements, sizes = place(channels, nodes, force_remote)
            wanted, private = sizes.shared[rank], sizes.fetched[rank] + sizes.private[rank]
            problem = memory_problem(node_comm, wanted, private=private, memory_grows=memory_grows)
            try:
                self._private = aligned_empty(private)
            except MemoryError:
                problem = problem or (
                    f"could not allocate {private} bytes for the rings from other nodes on "
                    f"{socket.gethostname()}; lower transport.ring_bytes, or raise the limit of a process's "
                    "memory (ulimit -v)"
                )
            raise_together(comm, problem)
            # Sizes are known everywhere: all ranks of a communicator agree on whether they need the window.
            shared_sizes = [sizes.shared[peer] for peer in node_rank]
            self._shared = Window(node_comm, sizes.shared[rank], shared=True) if any(shared_sizes) else None
            raise_together(comm, self._shared.problem if self._shared else None)
            self._fetched = Window(comm, sizes.fetched[rank], shared=False) if any(sizes.fetched) else None
            raise_together(comm, self._fetched.problem if self._fetched else None)
            for window in self._windows:
                window.open()
        finally:
            node_comm.Free()
        self._private[:] = 0
        self._notices = None if self._fetched is None else Notices(comm, self._fetched.win)
        comm.Barrier()  # every rank's words are zero before the first is written
        self.remote = False
        for number, (channel, placement) in enumerate(zip(channels, placements, strict=True)):
            if rank not in (channel.producer, channel.consumer):
                continue
            self.remote |= not placement.shared
            if channel.producer == rank:
                self._senders[channel.consumer, channel.name] = self._make_sender(
                    number, channel, placement, node_rank
                )
            else:
                self._receivers[channel.producer, channel.name] = self._make_receiver(
                    number, channel, placement, node_rank
                )
        if self._notices is not None:
            self._notices.connect()

    @property
    def _windows(self) -> list[Window]:
        return [window for window in (self._shared, self._fetched) if window is not None]

    @property
    def memory(self) -> list[Bytes]:
        """Returns the memory of this rank in which the records that it receives lie."""
        shared = [] if self._shared is None else [self._shared.memory]
        return [memory for memory in (*shared, self._private) if len(memory)]

    def _make_sender(
        self, number: int, channel: Channel, placement: Placement, node_rank: dict[int, int]
    ) -> RingSender:
        consumer, num_words, num_bytes = channel.consumer, channel.num_words, channel.ring_bytes
        if placement.shared:
            assert self._shared is not None
            peer = self._shared.peer(node_rank[consumer])
            data = peer[placement.data : placement.data + num_bytes]
            tail = _words(self._shared.memory, placement.tail, 1)
            words, bell = _words(peer, placement.words, num_words), _words(peer, 0, 1)
            ring = RingProducer(data, tail=tail, words=words, bell=bell)
            return RingSender(channel.label, ring, None, self._dirty)
        assert self._fetched is not None
        assert self._notices is not None
        data = self._fetched.memory[placement.source : placement.source + num_bytes]
        tail = np.zeros(1, np.uint64)
        link = self._notices.data_link(number, consumer, data, tail)
        ring = RingProducer(data, tail=tail, words=None, bell=None)
        return RingSender(channel.label, ring, link, self._dirty)

    def _make_receiver(
        self, number: int, channel: Channel, placement: Placement, node_rank: dict[int, int]
    ) -> RingReceiver:
        tail = bell = link = None
        if placement.shared:
            assert self._shared is not None
            memory = self._shared.memory
            peer = self._shared.peer(node_rank[channel.producer])
            tail, bell = _words(peer, placement.tail, 1), _words(peer, 0, 1)
        else:
            memory = self._private
        data = memory[placement.data : placement.data + channel.ring_bytes]
        words = _words(memory, placement.words, channel.num_words)
        if not placement.shared:
            assert self._fetched is not None
            assert self._notices is not None
            source = self._fetched.offset(channel.producer, placement.source)
            link = self._notices.tail_link(number, channel.producer, source, data, words)
        return RingReceiver(channel.label, RingConsumer(data, words, tail=tail, bell=bell), link)

    @property
    def waited_for(self) -> tuple[list[RingProducer], list[RingConsumer], list[Words]]:
        """Returns what a `Waiter` watches: this rank's ring ends, and its bell if a peer can ring it."""
        bells = (
            []
            if self._shared is None or not len(self._shared.memory)
            else [_words(self._shared.memory, 0, 1)]
        )
        return [s.ring for s in self._senders.values()], [r.ring for r in self._receivers.values()], bells

    def sender(self, consumer: int, name: str) -> RingSender:
        """Returns the producer's end of this rank's channel `name` to rank `consumer`.

        Raises UserError if there is none.
        """
        if (consumer, name) not in self._senders:
            raise UserError(
                f"got channel {name!r} to rank {consumer}, expected one of {sorted(self._senders)}"
            )
        return self._senders[consumer, name]

    def receiver(self, producer: int, name: str) -> RingReceiver:
        """Returns the consumer's end of channel `name` from rank `producer` to this rank.

        Raises UserError if there is none.
        """
        if (producer, name) not in self._receivers:
            raise UserError(
                f"got channel {name!r} from rank {producer}, expected one of {sorted(self._receivers)}"
            )
        return self._receivers[producer, name]

    @property
    def pending(self) -> int:
        """Counts the records that this rank has posted and that their consumers can't see yet."""
        return sum(sender.pending for sender in self._dirty)

    def progress(self) -> bool:
        """Sends queued and held-back records as far as there is room; must be called in each pass of a loop.

        Returns whether anything moved. Waits for no ring and no peer. With peers on other nodes it also
        fetches what they have announced, and calls into MPI, without which they can't fetch from this rank.
        """
        moved = self.fetch()
        for sender in tuple(self._dirty):
            moved |= sender.progress()
        return moved

    def fetch(self) -> bool:
        """Fetches what peers on other nodes have announced; any thread may call it, at any time.

        Returns whether anything moved.
        """
        return self._notices is not None and self._notices.progress()

    def counters(self) -> dict[str, RingCounters]:
        """Returns the counters of each of this rank's ring ends, by the channel's name and ranks."""
        ends: list[RingSender | RingReceiver] = [*self._senders.values(), *self._receivers.values()]
        return {end.name: end.counters for end in ends}

    @property
    def fill(self) -> float:
        """Returns how full the fullest ring is that this rank writes to, from 0 to 1."""
        rings = [sender.ring for sender in self._senders.values()]
        return max((ring.used / len(ring.data) for ring in rings), default=0.0)

    def free(self) -> None:
        """Frees the windows; views of records that were not detached are invalid afterwards.

        Collective over the plane's ranks.
        Raises PersiaError on all ranks, and frees nothing, if any record is queued or unread: drain first.
        """
        if self._freed:
            return
        queued = [f"{s.pending} queued in {s.name}" for s in self._senders.values() if s.pending]
        _refuse_loss(self.comm, queued)
        if self._notices is not None:
            self._notices.settle()
        # Only now, with everything published, can each consumer tell what it hasn't read.
        _refuse_loss(self.comm, [f"unread in {r.name}" for r in self._receivers.values() if r.unread])
        self._freed = True
        for sender in self._senders.values():
            sender.invalidate()
        for receiver in self._receivers.values():
            receiver.invalidate()
        if self._notices is not None:
            self._notices.free()
            self._notices = None
        for window in self._windows:
            window.free()


def _words(memory: Bytes, offset: int, count: int) -> Words:
    return memory[offset : offset + 8 * count].view(np.uint64)


def _check_channels(comm: MPI.Intracomm, channels: Sequence[Channel]) -> None:
    """Checks that channels are good and the same on all ranks.

    Collective over `comm`.
    Raises the same UserError on all ranks if they are not.
    """
    digest = hashlib.sha256(repr(list(channels)).encode()).hexdigest()
    found: list[tuple[str, str | None]] = comm.allgather((digest, channel_problem(comm.size, channels)))
    differing = [rank for rank, (theirs, _) in enumerate(found) if theirs != found[0][0]]
    if differing:
        raise UserError(
            f"ranks {differing} passed other channels than rank 0; all ranks must pass the same list"
        )
    if found[0][1] is not None:
        raise UserError(found[0][1])


def _refuse_loss(comm: MPI.Intracomm, lost: list[str]) -> None:
    everywhere = [text for texts in comm.allgather(lost) for text in texts]
    if everywhere:
        raise PersiaError(
            f"Plane.free() would lose records: {'; '.join(everywhere)}; progress and poll first"
        )
