"""Implements both ends of a ring: one producer, one consumer, records in between (docs/rma_protocol.md)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from persia_hpc._native import Outgoing, Parts, RingConsumer, RingConsumers, RingProducer, Shares, post_each
from persia_hpc.arrays import Array
from persia_hpc.errors import PersiaError, UserError
from persia_hpc.transport.records import ALIGNMENT, CLOSE, Record, RingCounters, Spec
from persia_hpc.transport.remote_links import DataLink, TailLink

_T = TypeVar("_T")

HOLD_RECORDS = 8  # so many records at once are announced to another node before `progress()` is called
REMOTE_TAIL_FRACTION = 8  # the tail is published each time this part of the ring was released
REMOTE_IDLE_POLLS = 16  # a notice to another node costs microseconds: only when surely idle


class RingSender:
    """Is the producer's end, for one thread. Never blocks on a full ring: what finds no room is queued.

    link: announces what was written to another node; None where `ring` itself reaches the consumer's memory.
    dirty: the plane's senders that need progress.
    """

    def __init__(self, name: str, ring: RingProducer, link: DataLink | None, dirty: set[RingSender]) -> None:
        self.name = name
        self.ring = ring
        self._link = link
        self._dirty = dirty
        self._queue: deque[Outgoing] = deque()
        self._full_waits = 0
        self._announced = 0  # complete records that the consumer can see
        self._closed = False

    @property
    def pending(self) -> int:
        """Counts posted records that the consumer can't see yet: queued, or held back for `progress()`."""
        held = 0 if self._link is None else self.ring.records - self._announced
        return len(self._queue) + held

    @property
    def pending_bytes(self) -> int:
        """Counts the body bytes that have found no room yet."""
        return sum(record.unwritten_bytes for record in self._queue)

    @property
    def closed(self) -> bool:
        """Returns True after `close()`: nothing may be posted any more."""
        return self._closed

    @property
    def counters(self) -> RingCounters:
        """Returns the counters of what was sent so far."""
        return RingCounters(self.ring.records, self.ring.bytes, self._full_waits)

    def post(
        self,
        kind: int,
        *,
        step: int = 0,
        trainer: int = 0,
        tag: int = 0,
        arrays: Sequence[Array | list[Array]] = (),
    ) -> None:
        """Sends a record, or queues it if there is no room or something is queued already. Never waits.

        arrays: C-contiguous, one or two dimensions; an entry that is a list is sent as the concatenation of
        its arrays along axis 0. Queued arrays are referenced: they must not change while `pending` > 0. To a
        consumer on another node up to 8 records are held back until `progress()`.

        Raises UserError for arrays or fields that a record can't carry, and after `close()`.
        """
        self._check_open()
        self._post(self._outgoing(kind, step, trainer, tag, arrays))

    def try_post(
        self,
        kind: int,
        *,
        step: int = 0,
        trainer: int = 0,
        tag: int = 0,
        arrays: Sequence[Array | list[Array]] = (),
    ) -> bool:
        """Sends a record if all of it has room now as one entry; else does nothing and returns False.

        After True the arrays may change: nothing refers to them any more.

        Raises UserError as `post` does.
        """
        self._check_open()
        if self._queue:
            return False
        record = self._outgoing(kind, step, trainer, tag, arrays)
        return record.unwritten_bytes + ALIGNMENT <= self.ring.max_entry and self._write(record)

    def close(self) -> None:
        """Posts the CLOSE record: the receiver is `closed` once it has got everything before it."""
        self.post(CLOSE)
        self._closed = True

    def progress(self) -> bool:
        """Moves queued records into the ring as far as there is room and announces held-back ones.

        Returns whether anything moved.
        """
        head = self.ring.head
        while self._queue and self._write(self._queue[0]):
            self._queue.popleft()
        moved = self._publish() or self.ring.head != head
        if not self.pending:
            self._dirty.discard(self)
        return moved

    def try_reserve(
        self, kind: int, step: int, trainer: int, tag: int, specs: Sequence[Spec]
    ) -> list[Array] | None:
        """Reserves room for a record whose arrays (dtype, shape) the caller fills in place, then `commit()`.

        Returns None if there is no room now, if something is queued, or if the record needs several chunks:
        then `post` it. The views lie where the consumer reads or fetches, and hold old bytes.

        Raises UserError for arrays or fields that a record can't carry, and after `close()`.
        """
        self._check_open()
        if self._queue:
            return None
        try:
            return self.ring.reserve(kind, step, trainer, tag, specs)
        except ValueError as error:
            raise UserError(f"ring {self.name}: {error}") from error

    def commit(self) -> None:
        """Sends the record reserved by `try_reserve`.

        Raises UserError without a reservation.
        """
        if not self.ring.reserved:
            raise UserError(f"ring {self.name}: commit() without a reservation; call try_reserve() first")
        self.ring.commit()
        if self._link is not None:
            self._hold_back()

    def try_write(self, write: Callable[[RingProducer], bool]) -> bool:
        """Lets `write` put one record into the ring in a call of its own, unless something is queued.

        Returns what it returns: False if the record has no room now, or needs several chunks.
        Raises UserError after `close()`.
        """
        self._check_open()
        if self._queue or not write(self.ring):
            return False
        if self._link is not None:
            self._hold_back()
        return True

    def cancel(self) -> None:
        """Drops a reservation: nothing is sent."""
        self.ring.cancel()

    def invalidate(self) -> None:
        """Lets go of the window's memory, which is about to be freed; posting is an error from now on."""
        self._closed = True
        self.ring.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UserError(f"ring {self.name}: posting after close(); close a ring after its last record")
        if self.ring.reserved:
            raise UserError(f"ring {self.name}: a reservation is open; commit() or cancel() it first")

    def _post(self, record: Outgoing) -> None:
        if self._queue or not self._write(record):
            self._full_waits += 1
            self._queue.append(record)
            self._dirty.add(self)

    def _outgoing(
        self, kind: int, step: int, trainer: int, tag: int, arrays: Sequence[Array | list[Array]]
    ) -> Outgoing:
        try:
            return Outgoing(kind, step, trainer, tag, arrays)
        except ValueError as error:
            raise UserError(f"ring {self.name}: {error}") from error

    def _write(self, record: Outgoing) -> bool:
        """Writes what fits; returns True once the record is complete."""
        if self._link is None:
            return self.ring.write(record)
        while True:  # an entry a turn: the consumer may read the first while the others are written
            head = self.ring.head
            complete = self.ring.write(record)
            if self.ring.head == head:
                return False
            self._hold_back()
            if complete:
                return True

    def _hold_back(self) -> None:
        enough = self.ring.held_entries >= HOLD_RECORDS or self.ring.held_bytes >= self.ring.max_entry
        if not (enough and self._publish()):
            self._dirty.add(self)

    def _publish(self) -> bool:
        if self._link is None or self.ring.held_entries == 0 or not self._link.ready:
            return False
        self._link.publish(*self.ring.take_held())
        self._announced = self.ring.records
        return True


class RingSenders:
    """Sends one record to each of several rings, in one call: the embedding worker's rings to all servers."""

    def __init__(self, senders: Sequence[RingSender]) -> None:
        self.senders = senders

    def post(self, kind: int, *, step: int, trainer: int, tag: int, arrays: Sequence[Parts]) -> None:
        """Does what `RingSender.post` does, for each ring with its part of each array.

        Raises UserError as `RingSender.post` does.
        """
        rings = [
            sender.ring if sender._link is None and not sender._queue and not sender._closed else None
            for sender in self.senders
        ]
        try:
            left = post_each(rings, kind, step, trainer, tag, arrays)
        except ValueError as error:
            raise UserError(f"ring {self.senders[0].name} and others: {error}") from error
        for i, record in left:
            sender = self.senders[i]
            sender._check_open()
            sender._post(record)


class RingReceiver:
    """Is the consumer's end, for one thread. Polling reads this rank's memory only, 8 bytes if empty.

    link: tells a producer on another node what was released; None where `ring` itself reaches its memory.
    """

    def __init__(self, name: str, ring: RingConsumer, link: TailLink | None) -> None:
        self.name = name
        self.ring = ring
        self._link = link
        self._published = 0
        self._idle_polls = 0
        self._release = ring.release if link is None else self._release_remote

    @property
    def closed(self) -> bool:
        """Returns whether the producer's CLOSE was received: nothing follows."""
        return self.ring.closed

    @property
    def counters(self) -> RingCounters:
        """Returns the counters of what was received so far."""
        return RingCounters(self.ring.records, self.ring.bytes)

    @property
    def unread(self) -> bool:
        """Returns whether a record other than CLOSE waits, or was received in part."""
        return self.ring.unread

    def poll(self) -> Record | None:
        """Returns the next record, or None. A record that comes in chunks is returned once it is whole.

        Raises PersiaError, naming the channel, if the ring holds what its producer can't have sent.
        """
        try:
            found = self.ring.poll()
        except RuntimeError as error:
            raise PersiaError(f"ring {self.name}: {error}") from None
        if found is None:
            if self._link is not None:
                self._tell_when_idle()
            return None
        self._idle_polls = 0
        kind, step, trainer, tag, arrays, token = found
        return Record(kind, step, trainer, tag, arrays, partial(self._release, token))

    def take(self, read: Callable[[RingConsumer], _T | None]) -> _T | None:
        """Lets `read` take the next record in a call of its own; None if it doesn't: then `poll`.

        Raises PersiaError as `poll` does.
        """
        try:
            taken = read(self.ring)
        except (RuntimeError, ValueError) as error:
            raise PersiaError(f"ring {self.name}: {error}") from None
        if taken is not None and self._link is not None:
            self._idle_polls = 0
            self._publish_much()
        return taken

    def invalidate(self) -> None:
        """Lets go of the window's memory, which is about to be freed; polling is an error from now on."""
        self.ring.close()

    @property
    def remote(self) -> bool:
        """Returns whether the producer is on another node: then polls in vain have work to do."""
        return self._link is not None

    @property
    def rate(self) -> float:
        """Returns the bytes that come in a second, as far as is known; without end within a node."""
        return math.inf if self._link is None else self._link.rate

    def _release_remote(self, token: Any) -> None:
        self.ring.release(token)
        self._publish_much()

    def _publish_much(self) -> bool:
        """Publishes the released bytes if they are many; returns whether they are."""
        much = self.ring.released - self._published >= self.ring.data.nbytes // REMOTE_TAIL_FRACTION
        if much:
            self._publish_tail()
        return much

    def _tell_when_idle(self) -> None:
        """Publishes the released bytes when a poll found no record: nothing came, or only a chunk."""
        if not self._publish_much() and self.ring.released != self._published:
            self._idle_polls += 1
            if self.ring.closed or self._idle_polls >= REMOTE_IDLE_POLLS:
                self._publish_tail()

    def _publish_tail(self) -> None:
        assert self._link is not None
        self._idle_polls = 0
        self._published = self.ring.released
        self._link.publish(self._published)


class RingReceivers:
    """Polls several rings, of which few have something: those from all servers to an embedding worker."""

    def __init__(self, receivers: Sequence[RingReceiver]) -> None:
        self._receivers = receivers
        self._remote = [i for i, receiver in enumerate(receivers) if receiver.remote]
        self._rings = RingConsumers([receiver.ring for receiver in receivers])

    def poll(self) -> Iterator[tuple[int, Record]]:
        """Yields all records that are there, each with the position of its ring.

        Raises PersiaError as `RingReceiver.poll` does.
        """
        for i in self._remote:
            while (record := self._receivers[i].poll()) is not None:
                yield i, record
        i = self._rings.next(0)
        while i < len(self._receivers):
            if (record := self._receivers[i].poll()) is not None:
                yield i, record
            i = self._rings.next(i)

    def with_news(self) -> Iterator[int]:
        """Yields the positions of rings that may have something, each once: the caller empties it."""
        for i in self._remote:
            yield i
        i = self._rings.next(0)
        while i < len(self._receivers):
            if not self._receivers[i].remote:
                yield i
            i = self._rings.next(i + 1)

    def fill(
        self,
        kind: int,
        *,
        step: int,
        trainer: int,
        tag: int | None,
        shares: Shares,
        rows: Sequence[Array],
        before: Array | None,
    ) -> tuple[list[int], int]:
        """Takes the next records with these fields (tag None: any), and copies their rows to their places.

        Only records that are whole and come from this node; `poll` returns the others. Returns the positions
        of their rings and the largest tag.

        Raises PersiaError for rows of other sizes, and as `RingReceiver.poll` does.
        """
        try:
            return self._rings.fill(kind, step, trainer, tag, shares, rows, before)
        except (RuntimeError, ValueError) as error:
            raise PersiaError(f"ring {self._receivers[0].name} or one like it: {error}") from None
