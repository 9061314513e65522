"""The consumer's end of a ring (protocol: docs/rma_protocol.md)."""

from __future__ import annotations

from functools import partial
from typing import Any

from persia_hpc._native import RingConsumer
from persia_hpc.errors import PersiaError
from persia_hpc.transport.records import Record, RingCounters
from persia_hpc.transport.remote_links import TailLink

REMOTE_TAIL_FRACTION = 8  # the tail is published each time this part of the ring was released
REMOTE_IDLE_POLLS = 16  # a tail update to another node costs tens of microseconds: only when surely idle


class RingReceiver:
    """The consumer's end; one thread uses it. Polling reads this rank's memory only, 8 bytes if empty.

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
        """Whether the producer's CLOSE was received: nothing follows."""
        return self.ring.closed

    @property
    def counters(self) -> RingCounters:
        """What came so far."""
        return RingCounters(self.ring.records, self.ring.bytes)

    @property
    def unread(self) -> bool:
        """Whether a record other than CLOSE waits, or was received in part."""
        return self.ring.unread

    def poll(self) -> Record | None:
        """The next record, or None. A record that comes in chunks is returned once it is whole.

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

    def invalidate(self) -> None:
        """Lets go of the window's memory, which is about to be freed; polling is an error from now on."""
        self.ring.close()

    def _release_remote(self, token: Any) -> None:
        self.ring.release(token)
        if self.ring.released - self._published >= self.ring.data.nbytes // REMOTE_TAIL_FRACTION:
            self._publish_tail()

    def _tell_when_idle(self) -> None:
        """A chunk was taken, or nothing came."""
        if self.ring.released - self._published >= self.ring.data.nbytes // REMOTE_TAIL_FRACTION:
            self._publish_tail()
        elif self.ring.released != self._published:
            self._idle_polls += 1
            if self.ring.closed or self._idle_polls >= REMOTE_IDLE_POLLS:
                self._publish_tail()

    def _publish_tail(self) -> None:
        assert self._link is not None
        self._idle_polls = 0
        self._published = self.ring.released
        self._link.publish(self._published)
