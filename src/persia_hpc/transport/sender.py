"""The producer's end of a ring (protocol: docs/rma_protocol.md).

`_head` and `_tail` are byte counts that only grow; modulo the ring's size they say where the bytes lie.
An *entry* is a header and a body, or one chunk of a body.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from persia_hpc.errors import UserError
from persia_hpc.transport.links import DataLink, Words
from persia_hpc.transport.records import (
    HEADER,
    HEADER_BYTES,
    MAGIC,
    PADDING_FLAG,
    VERSION,
    Array,
    Bytes,
    Kind,
    RingCounters,
    Spec,
    aligned,
    body_layout,
    check_fields,
    memory_of,
    spec_of,
    views_at,
)

CHUNK_FRACTION = 4  # an entry is at most this part of the ring, so that production and consumption overlap
HOLD_RECORDS = 8  # records that one head update to another node announces
_LARGE_BYTES = 65536  # numpy copies without the interpreter lock, a memoryview is faster on small pieces


class Outgoing:
    """A record on its way out: its fields, the pieces of its body and how much of that was written."""

    __slots__ = ("body_bytes", "kind", "num_arrays", "pieces", "step", "tag", "trainer", "written")

    def __init__(
        self, kind: int, step: int, trainer: int, tag: int, arrays: Sequence[Array | list[Array]]
    ) -> None:
        check_fields(kind, step, trainer, tag)
        self.kind, self.step, self.trainer, self.tag = kind, step, trainer, tag
        self.num_arrays = len(arrays)
        self.written = -1  # nothing yet: an empty body still needs one entry
        self.body_bytes = 0
        self.pieces: list[tuple[int, memoryview]] = []
        if not arrays:
            return
        directory, offsets, self.body_bytes = body_layout([spec_of(entry) for entry in arrays])
        self.pieces.append((0, memoryview(directory)))
        for offset, entry in zip(offsets, arrays, strict=True):
            for part in entry if isinstance(entry, list) else (entry,):
                if part.size:
                    self.pieces.append((offset, memory_of(part)))
                    offset += part.nbytes


class RingSender:
    """The producer's end; one thread uses it. Never blocks on a full ring: what finds no room is queued."""

    def __init__(self, name: str, data: Bytes, link: DataLink, tail: Words, dirty: set[RingSender]) -> None:
        self.name = name
        self.counters = RingCounters()
        self._data = data
        self._memory = memory_of(data)
        self._ring_bytes = data.nbytes
        self._max_entry = data.nbytes // CHUNK_FRACTION
        self._link = link
        self._tail_word = tail
        self._dirty = dirty  # the plane's senders that need progress
        self._head = 0
        self._tail = 0
        self._sequence = 0  # of the last entry written
        self._published = 0  # of the last entry announced to the consumer
        self._held_records = 0  # complete, among the entries not announced
        self._ranges: list[tuple[int, int]] = []  # bytes of the entries not announced
        self._queue: deque[Outgoing] = deque()
        self._reserved: tuple[int, int] | None = None  # position and bytes of the entry
        self._closed = False

    @property
    def pending(self) -> int:
        """Records posted that the consumer can't see yet: queued, or held back for the next `progress()`."""
        return len(self._queue) + self._held_records

    @property
    def pending_bytes(self) -> int:
        """Body bytes that have found no room yet."""
        return sum(entry.body_bytes - max(entry.written, 0) for entry in self._queue)

    @property
    def closed(self) -> bool:
        """True after `close()`: nothing may be posted any more."""
        return self._closed

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
        its arrays along axis 0. Queued arrays are referenced: they must not change while `pending` > 0.
        To a consumer on another node up to 8 records are held back until `progress()`.
        Raises UserError for arrays or fields that a record can't carry, and after `close()`.
        """
        self._check_open()
        self._post(Outgoing(kind, step, trainer, tag, arrays))

    def close(self) -> None:
        """Posts the CLOSE record: the receiver is `closed` once it has got everything before it."""
        self._check_open()
        self._post(Outgoing(Kind.CLOSE, 0, 0, 0, ()))
        self._closed = True

    def progress(self) -> bool:
        """Moves queued records into the ring as far as there is room and announces held-back ones.

        Returns whether anything moved.
        """
        before = self._published
        while self._queue and self._write(self._queue[0]):
            self._queue.popleft()
        self._publish()
        if not self._queue:
            self._dirty.discard(self)
        return self._published != before

    def try_reserve(
        self, kind: int, step: int, trainer: int, tag: int, specs: Sequence[Spec]
    ) -> list[Array] | None:
        """Room for a record whose arrays (dtype, shape) the caller fills in place, then `commit()`.

        None if there is no room now, if something is queued, or if the record would travel in chunks: then
        `post` it. The views lie in the consumer's memory or in what is Put from, and hold old bytes.
        """
        self._check_open()
        check_fields(kind, step, trainer, tag)
        directory, offsets, body_bytes = body_layout(specs)
        size = HEADER_BYTES + body_bytes
        if self._queue or size > self._max_entry or not self._has_room(size):
            return None
        position = self._position_for(size)
        HEADER.pack_into(
            *(self._memory, position, MAGIC, VERSION, kind, self._sequence + 1, step, tag, trainer),
            *(len(specs), 0, body_bytes, 0, body_bytes),
        )
        begin = position + HEADER_BYTES
        self._memory[begin : begin + len(directory)] = directory
        self._reserved = (position, size)
        return views_at(self._data, begin, specs, offsets)

    def commit(self) -> None:
        """Sends the record reserved by `try_reserve`."""
        if self._reserved is None:
            raise UserError(f"ring {self.name}: commit() without a reservation; call try_reserve() first")
        (position, size), self._reserved = self._reserved, None
        self._finish_entry(position, size, is_last=True)

    def cancel(self) -> None:
        """Drops a reservation: nothing is sent."""
        self._reserved = None

    def invalidate(self) -> None:
        """Lets go of the window's memory, which is about to be freed; posting is an error from now on."""
        self._closed = True
        self._data = np.empty(0, np.uint8)
        self._memory.release()
        self._tail_word.release()

    def _check_open(self) -> None:
        if self._closed:
            raise UserError(f"ring {self.name}: posting after close(); close a ring after its last record")
        if self._reserved is not None:
            raise UserError(f"ring {self.name}: a reservation is open; commit() or cancel() it first")

    def _post(self, entry: Outgoing) -> None:
        if self._queue or not self._write(entry):
            self.counters.full_waits += 1
            self._queue.append(entry)
            self._dirty.add(self)

    def _write(self, entry: Outgoing) -> bool:
        """Writes what fits; True once the record is complete."""
        body_bytes = entry.body_bytes
        while entry.written < body_bytes:
            begin = max(entry.written, 0)
            num_bytes = min(body_bytes - begin, self._max_entry - HEADER_BYTES)
            size = HEADER_BYTES + aligned(num_bytes)
            if not self._has_room(size):
                return False
            position = self._position_for(size)
            HEADER.pack_into(
                *(
                    self._memory,
                    position,
                    MAGIC,
                    VERSION,
                    entry.kind,
                    self._sequence + 1,
                    entry.step,
                    entry.tag,
                ),
                *(entry.trainer, entry.num_arrays, 0, body_bytes, begin, num_bytes),
            )
            self._copy_body(entry, begin, begin + num_bytes, position + HEADER_BYTES)
            entry.written = begin + num_bytes
            self._finish_entry(position, size, is_last=entry.written == body_bytes)
        return True

    def _copy_body(self, entry: Outgoing, begin: int, end: int, position: int) -> None:
        memory = self._memory
        shift = position - begin
        for offset, piece in entry.pieces:
            last = offset + piece.nbytes
            if offset < begin or last > end:
                piece = piece[max(begin - offset, 0) : max(end - offset, 0)]
                offset = max(offset, begin)
                last = offset + piece.nbytes
            if piece.nbytes < _LARGE_BYTES:
                memory[offset + shift : last + shift] = piece
            else:
                self._data[offset + shift : last + shift] = np.frombuffer(piece, np.uint8)

    def _has_room(self, size: int) -> bool:
        """Whether an entry fits, with padding at the wrap; reads the tail only when it must."""
        to_wrap = self._ring_bytes - self._head % self._ring_bytes
        end = self._head + size + (to_wrap if size > to_wrap else 0)
        if end - self._tail > self._ring_bytes:
            self._tail = self._tail_word[0]
        return end - self._tail <= self._ring_bytes

    def _position_for(self, size: int) -> int:
        """Where the entry goes; at the wrap a padding header sends the consumer to the ring's start."""
        position = self._head % self._ring_bytes
        if position + size <= self._ring_bytes:
            return position
        HEADER.pack_into(
            *(self._memory, position, MAGIC, VERSION, 0, self._sequence + 1),
            *(0, 0, 0, 0, PADDING_FLAG, 0, 0, 0),
        )
        if self._link.holds_back:
            self._add_range(position, HEADER_BYTES)
        self._head += self._ring_bytes - position
        return 0

    def _finish_entry(self, position: int, size: int, *, is_last: bool) -> None:
        self._head += size
        self._sequence += 1
        self.counters.bytes += size
        self.counters.records += is_last
        if not self._link.holds_back:
            self._link.publish(self._sequence, self._sequence, ())
            self._published = self._sequence
            return
        self._held_records += is_last
        self._add_range(position, size)
        held_bytes = sum(end - begin for begin, end in self._ranges)
        if self._sequence - self._published >= HOLD_RECORDS or held_bytes >= self._max_entry:
            self._publish()
        else:
            self._dirty.add(self)

    def _add_range(self, position: int, size: int) -> None:
        if self._ranges and self._ranges[-1][1] == position:
            self._ranges[-1] = (self._ranges[-1][0], position + size)
        else:
            self._ranges.append((position, position + size))

    def _publish(self) -> None:
        if self._sequence != self._published:
            self._link.publish(self._published + 1, self._sequence, self._ranges)
            self._published = self._sequence
            self._held_records = 0
            self._ranges.clear()
