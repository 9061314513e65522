"""The consumer's end of a ring (protocol: docs/rma_protocol.md)."""

from __future__ import annotations

from collections import deque

import numpy as np

from persia_hpc.errors import PersiaError
from persia_hpc.transport.links import TailLink, Words
from persia_hpc.transport.records import (
    HEADER,
    HEADER_BYTES,
    MAGIC,
    PADDING_FLAG,
    VERSION,
    Bytes,
    Kind,
    Record,
    RingCounters,
    aligned,
    aligned_empty,
    memory_of,
    parse_body,
)

TAIL_FRACTION = 8  # the tail is published each time this part of the ring was released
REMOTE_IDLE_POLLS = 16  # a tail update to another node costs tens of microseconds: only when surely idle


class RingReceiver:
    """The consumer's end; one thread uses it. Polling reads this rank's memory only, 8 bytes if empty."""

    def __init__(self, name: str, data: Bytes, words: Words, link: TailLink) -> None:
        self.name = name
        self.closed = False
        self.counters = RingCounters()
        self._data = data
        self._memory = memory_of(data)
        self._ring_bytes = data.nbytes
        self._words = words
        self._num_words = len(words)
        self._link = link
        self._idle_polls_before_tail = REMOTE_IDLE_POLLS if link.is_remote else 1
        self._next = 1  # sequence number of the next entry
        self._slot = 1 % self._num_words  # its word
        self._stale = 0  # what the word holds until the entry comes: the number one lap earlier
        self._head = 0
        self._released = 0
        self._published = 0
        self._idle_polls = 0
        self._held: deque[_Room] = deque()
        self._partial: Bytes | None = None  # the body of a record that comes in chunks
        self._partial_bytes = 0
        self._spare: Bytes | None = None

    def poll(self) -> Record | None:
        """The next record, or None. A record that comes in chunks is returned once it is whole.

        Raises PersiaError, naming the channel, if the ring holds what its producer can't have sent.
        """
        word = self._words[self._slot]
        if word == self._next:
            return self._take()
        if word != self._stale:
            raise PersiaError(
                f"ring {self.name}: got sequence word {word}, expected {self._next}, or {self._stale} "
                "before it: a record was lost or the window was overwritten"
            )
        if self._released != self._published:
            self._idle_polls += 1
            if self._idle_polls >= self._idle_polls_before_tail:
                self._publish_tail()
        return None

    @property
    def unread(self) -> bool:
        """Whether a record other than CLOSE waits, or was received in part."""
        if self._partial is not None:
            return True
        if self._words[self._slot] != self._next:
            return False
        header = self._read_header(self._head % self._ring_bytes)
        if header[8] == PADDING_FLAG:
            header = self._read_header(0)
        return bool(header[2] != Kind.CLOSE)

    def invalidate(self) -> None:
        """Lets go of the window's memory, which is about to be freed; polling is an error from now on."""
        self.closed = True
        self._data = np.empty(0, np.uint8)
        self._memory.release()
        self._words.release()

    def _take(self) -> Record | None:
        """The next record, from the entries that have come."""
        while True:
            self._link.acquire()
            position, header = self._next_entry()
            _, _, kind, _, step, tag, trainer, num_arrays, _, body_bytes, begin, num_bytes = header
            room = _Room(self, self._head)
            self._held.append(room)
            if num_bytes == body_bytes and self._partial is None:
                if kind == Kind.CLOSE:
                    self.closed = True
                    room.release()
                    self._publish_tail()
                    return None
                buffer, release = self._data, room.release
                break
            partial = self._assemble(position, begin, num_bytes, body_bytes)
            room.release()
            if self._partial_bytes == body_bytes:
                self._partial = None
                buffer, release, position = partial, _Loan(self, partial).release, 0
                break
            if self._words[self._slot] != self._next:
                return None
        try:
            arrays = parse_body(buffer, position, num_arrays, body_bytes)
        except PersiaError as error:
            raise PersiaError(f"ring {self.name}: entry {self._next - 1}: {error}") from None
        self.counters.records += 1
        return Record(kind, step, trainer, tag, arrays, release)

    def _next_entry(self) -> tuple[int, tuple[int, ...]]:
        """Where the next entry's bytes begin, and its header; moves on to the entry after it."""
        position = self._head % self._ring_bytes
        header = self._read_header(position)
        if header[8] == PADDING_FLAG:
            self._head += self._ring_bytes - position
            position = 0
            header = self._read_header(0)
        body_bytes, begin, num_bytes = header[9:]
        position += HEADER_BYTES
        if position + num_bytes > self._ring_bytes or begin + num_bytes > body_bytes:
            raise PersiaError(
                f"ring {self.name}: entry {self._next} claims bytes {begin}..{begin + num_bytes} of a body "
                f"of {body_bytes} at {position}, expected it within a ring of {self._ring_bytes} bytes"
            )
        size = HEADER_BYTES + aligned(num_bytes)
        self._head += size
        self.counters.bytes += size
        self._idle_polls = 0
        self._next += 1
        self._slot = self._next % self._num_words
        self._stale = max(self._next - self._num_words, 0)
        return position, header

    def _read_header(self, position: int) -> tuple[int, ...]:
        header = HEADER.unpack_from(self._memory, position)
        if header[0] != MAGIC or header[1] != VERSION or header[3] != self._next:
            raise PersiaError(
                f"ring {self.name}: got a header of magic {header[0]:#x}, version {header[1]}, "
                f"sequence {header[3]}, expected {MAGIC:#x}, {VERSION}, {self._next}: the ranks run "
                "different builds, a record was lost or the window was overwritten"
            )
        return header

    def _assemble(self, position: int, begin: int, num_bytes: int, body_bytes: int) -> Bytes:
        """Copies a chunk to the record's private memory."""
        if self._partial is None:
            spare, self._spare = self._spare, None
            self._partial = (
                spare if spare is not None and spare.nbytes >= body_bytes else aligned_empty(body_bytes)
            )
            self._partial_bytes = 0
        if begin != self._partial_bytes or self._partial.nbytes < body_bytes:
            raise PersiaError(
                f"ring {self.name}: entry {self._next - 1} goes on at byte {begin} of its record, "
                f"expected {self._partial_bytes}: a chunk was lost"
            )
        self._partial[begin : begin + num_bytes] = self._data[position : position + num_bytes]
        self._partial_bytes += num_bytes
        return self._partial

    def _note_release(self) -> None:
        while self._held and self._held[0].is_free:
            self._released = self._held.popleft().end
        if self._released - self._published >= self._ring_bytes // TAIL_FRACTION:
            self._publish_tail()

    def _publish_tail(self) -> None:
        self._idle_polls = 0
        if self._released != self._published:
            self._published = self._released
            self._link.publish(self._published)

    def _take_back(self, buffer: Bytes) -> None:
        if self._spare is None or self._spare.nbytes < buffer.nbytes:
            self._spare = buffer


class _Room:
    """An entry's room in the ring, up to position `end`."""

    __slots__ = ("end", "is_free", "receiver")

    def __init__(self, receiver: RingReceiver, end: int) -> None:
        self.receiver = receiver
        self.end = end
        self.is_free = False

    def release(self) -> None:
        self.is_free = True
        self.receiver._note_release()


class _Loan:
    """Private memory of an assembled record, kept for the next one: fresh pages cost more than the copy."""

    __slots__ = ("buffer", "receiver")

    def __init__(self, receiver: RingReceiver, buffer: Bytes) -> None:
        self.receiver = receiver
        self.buffer = buffer

    def release(self) -> None:
        self.receiver._take_back(self.buffer)
