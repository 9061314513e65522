"""Defines what the roles say to each other about rows: a dataclass for each kind of record.

Every message has `pack`, which returns the fields and arrays of its record, and `unpack`, which reads them
back. Nothing else knows how a message lies in a record. `commands.py` has the commands of trainer 0.

Shape letters: B samples, N ids, U unique rows, U_g rows of a dim group, D_g its dim, T tables, P servers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, cast

from persia_hpc._native import Parts
from persia_hpc.arrays import Array
from persia_hpc.errors import PersiaError
from persia_hpc.protocol.row_batch import NO_WEIGHTS, RowBatch, pack_row_batch, unpack_row_batch
from persia_hpc.transport import records
from persia_hpc.transport.records import Record, Spec
from persia_hpc.transport.ring import RingSender, RingSenders

# An array; a sender may also give its pieces, which are joined in the record, and `send_each` a part to each.
Whole: TypeAlias = Array | list[Array]
Pieces: TypeAlias = Whole | Parts


class Kind(IntEnum):
    """Numbers the kinds of record."""

    # worker <-> server
    PULL = 1
    ROWS = 2
    PUSH = 3
    LOOKUP = 4
    LOOKUP_ROWS = 5
    # worker <-> trainer
    FEED = 6
    FEED_EVALUATE = 7
    GRADIENTS = 8
    # commands of trainer 0, passed on to servers where they matter, and the answers
    SEGMENT = 9
    SEGMENT_END = 10
    EVALUATE = 11
    CHECKPOINT = 12
    CHECKPOINT_DONE = 13
    STOP_REQUEST = 14
    ISSUED = 15
    STOP_AT = 16
    STOP_SIGNAL = 17
    CHECKPOINT_MARKED = 18
    PORTION = 19
    RESTORE = 20
    EXPORT = 21
    EXPORTED = 22
    # worker <-> server, worker <-> trainer
    PATCH = 23
    # worker <-> server
    WANT_FIRST = 24
    PUSH_FIRST = 25
    CLOSE = records.CLOSE  # of the ring itself


class Packed(NamedTuple):
    """Holds what a record is made of: the words of its header, and its arrays."""

    kind: Kind
    step: int = 0
    trainer: int = 0
    tag: int = 0  # a third number, whose meaning the message decides
    arrays: Sequence[Pieces] = ()


class Message(Protocol):
    """Describes what can be sent."""

    def pack(self) -> Packed:
        """Returns the fields and arrays of the message's record."""


def send(sender: RingSender, message: Message) -> None:
    """Sends a message, or queues it if there is no room. Its arrays must not change while it is queued."""
    kind, step, trainer, tag, arrays = message.pack()
    sender.post(kind, step=step, trainer=trainer, tag=tag, arrays=cast("Sequence[Whole]", arrays))


def send_each(senders: RingSenders, message: Message) -> None:
    """Sends each receiver its part of a message whose arrays are all `Parts`, or queues it as `send` does."""
    kind, step, trainer, tag, arrays = message.pack()
    senders.post(kind, step=step, trainer=trainer, tag=tag, arrays=cast("Sequence[Parts]", arrays))


def try_send(sender: RingSender, message: Message) -> bool:
    """Sends a message if there is room for it now; returns whether it was sent."""
    kind, step, trainer, tag, arrays = message.pack()
    whole = cast("Sequence[Whole]", arrays)
    return sender.try_post(kind, step=step, trainer=trainer, tag=tag, arrays=whole)


def try_reserve(sender: RingSender, message: Message, specs: Sequence[Spec]) -> list[Array] | None:
    """Makes room in the ring for a message whose arrays are written there, before `sender.commit()`.

    message: gives the header; its own arrays are left out. specs: dtype and shape of each array.
    Returns the arrays in the ring, or None if there is no room now.
    """
    kind, step, trainer, tag, _ = message.pack()
    return sender.try_reserve(kind, step=step, trainer=trainer, tag=tag, specs=specs)


def arrays_of(record: Record, kind: Kind, least: int = 0, most: int | None = None) -> list[Array]:
    """Returns a record's arrays, of which there must be least…most; exactly `least` if `most` is left out.

    Raises PersiaError if the record is of another kind, or has another number of arrays.
    """
    most = least if most is None else most
    if record.kind != kind or not least <= len(record.arrays) <= most:
        expected = str(least) if least == most else f"{least} to {most}"
        raise PersiaError(
            f"got a record of kind {record.kind} with {len(record.arrays)} arrays, expected kind {int(kind)} "
            f"({kind.name}) with {expected}"
        )
    return record.arrays


MANY = 1 << 16  # a record's header counts fewer arrays


@dataclass(frozen=True, eq=False)
class Pull:
    """Asks a server for rows of one (step, trainer), to be trained on.

    Shapes:
    keys: uint64 [U], the server's part of the batch, in table order. counts: uint32 [T], rows of each table.
    wanted: uint8 [U], 1 for rows that must travel; None if all must.
    """

    KIND: ClassVar[Kind] = Kind.PULL
    step: int
    trainer: int
    keys: Pieces
    counts: Any  # an array, or `Parts`
    wanted: Pieces | None = None

    def pack(self) -> Packed:
        """Returns the fields and arrays of the record."""
        arrays = [self.keys, self.counts]
        if self.wanted is not None:
            arrays.append(self.wanted)
        return Packed(self.KIND, self.step, self.trainer, arrays=arrays)

    @classmethod
    def unpack(cls, record: Record) -> Pull:
        """Returns the message in a record."""
        arrays = arrays_of(record, cls.KIND, 2, 3)
        return cls(record.step, record.trainer, arrays[0], arrays[1], arrays[2] if len(arrays) > 2 else None)


@dataclass(frozen=True, eq=False)
class Rows:
    """Answers a `Pull`. `staleness`: the number of steps whose updates the rows may miss.

    Shapes:
    rows: for each dim group its wanted rows, [U_g, D_g] in a wire format.
    """

    KIND: ClassVar[Kind] = Kind.ROWS
    step: int
    trainer: int
    staleness: int
    rows: Sequence[Array] = ()

    def pack(self) -> Packed:
        """Returns the fields and arrays of the record."""
        return Packed(self.KIND, self.step, self.trainer, self.staleness, self.rows)

    @classmethod
    def unpack(cls, record: Record) -> Rows:
        """Returns the message in a record."""
        return cls(record.step, record.trainer, record.tag, arrays_of(record, cls.KIND, 1, MANY))


@dataclass(frozen=True, eq=False)
class Patch:
    """Brings the rows of an early answer that have changed since; the last one says that all are final.

    From a server to a worker, for its part of a batch, and from the worker to the trainer for the whole.
    left: how many others of the batch follow.

    Shapes:
    positions: for each dim group uint32 [M_g], the places of rows among those of the answer or batch.
    rows: for each dim group [M_g, D_g] in a wire format.
    """

    KIND: ClassVar[Kind] = Kind.PATCH
    step: int
    trainer: int
    positions: Sequence[Whole]
    rows: Sequence[Whole]
    left: int = 0

    def pack(self) -> Packed:
        """Returns the fields and arrays of the record."""
        return Packed(self.KIND, self.step, self.trainer, self.left, [*self.positions, *self.rows])

    @classmethod
    def unpack(cls, record: Record) -> Patch:
        """Returns the message in a record."""
        arrays = arrays_of(record, cls.KIND, 2, MANY)
        half = len(arrays) // 2
        return cls(record.step, record.trainer, arrays[:half], arrays[half:], record.tag)


@dataclass(frozen=True, eq=False)
class Push:
    """Brings a server the gradients of the rows of one `Pull`.

    Shapes:
    gradients: for each dim group the server's part, [U_g, D_g] in a wire format.
    """

    KIND: ClassVar[Kind] = Kind.PUSH
    step: int
    trainer: int
    gradients: Sequence[Pieces]

    def pack(self) -> Packed:
        """Returns the fields and arrays of the record."""
        return Packed(self.KIND, self.step, self.trainer, arrays=self.gradients)

    @classmethod
    def unpack(cls, record: Record) -> Push:
        """Returns the message in a record."""
        return cls(record.step, record.trainer, arrays_of(record, cls.KIND, 1, MANY))


@dataclass(frozen=True, eq=False)
class WantFirst:
    """Tells a worker which gradients of a pull's rows a patch of the next step waits for (`fresh`).

    They are wanted in parts, each in a record of its own.

    Shapes:
    positions: uint32 [M], the places of rows in the pull, in order within a part. counts: uint32 [J], how
    many each part has.
    """

    KIND: ClassVar[Kind] = Kind.WANT_FIRST
    step: int
    trainer: int
    positions: Array
    counts: Array

    def pack(self) -> Packed:
        """Returns the fields and arrays of the record."""
        return Packed(self.KIND, self.step, self.trainer, arrays=[self.positions, self.counts])

    @classmethod
    def unpack(cls, record: Record) -> WantFirst:
        """Returns the message in a record."""
        return cls(record.step, record.trainer, *arrays_of(record, cls.KIND, 2))


@dataclass(frozen=True, eq=False)
class PushFirst(Push):
    """Brings a part of the gradients that a `WantFirst` has asked for.

    The other parts and a `Push` with all other gradients follow.
    """

    KIND: ClassVar[Kind] = Kind.PUSH_FIRST


@dataclass(frozen=True, eq=False)
class Lookup:
    """Asks a server for rows of one batch of an evaluation; nothing is inserted.

    step: the step whose updates the rows must have. number: of the batch in the evaluation, counted from 1.

    Shapes:
    keys: uint64 [U] and counts: uint32 [T], as in `Pull`.
    """

    KIND: ClassVar[Kind] = Kind.LOOKUP
    step: int
    trainer: int
    number: int
    keys: Pieces
    counts: Any  # an array, or `Parts`

    def pack(self) -> Packed:
        """Returns the fields and arrays of the record."""
        return Packed(self.KIND, self.step, self.trainer, self.number, [self.keys, self.counts])

    @classmethod
    def unpack(cls, record: Record) -> Lookup:
        """Returns the message in a record."""
        keys, counts = arrays_of(record, cls.KIND, 2)
        return cls(record.step, record.trainer, record.tag, keys, counts)


@dataclass(frozen=True, eq=False)
class LookupRows:
    """Answers a `Lookup`, whose step, trainer and number it repeats.

    Shapes:
    rows: for each dim group [U_g, D_g] in a wire format; zeros for keys that the server has never seen.
    """

    KIND: ClassVar[Kind] = Kind.LOOKUP_ROWS
    step: int
    trainer: int
    number: int
    rows: Sequence[Array] = ()

    def pack(self) -> Packed:
        """Returns the fields and arrays of the record."""
        return Packed(self.KIND, self.step, self.trainer, self.number, self.rows)

    @classmethod
    def unpack(cls, record: Record) -> LookupRows:
        """Returns the message in a record."""
        return cls(record.step, record.trainer, record.tag, arrays_of(record, cls.KIND, 1, MANY))


@dataclass(frozen=True, eq=False)
class Feed:
    """Brings a trainer its batch of a training step. See `RowBatch` for the arrays."""

    KIND: ClassVar[Kind] = Kind.FEED
    batch: RowBatch

    def pack(self) -> Packed:
        """Returns the fields and arrays of the record."""
        return Packed(self.KIND, self.batch.step, self.batch.trainer, arrays=pack_row_batch(self.batch))

    @classmethod
    def unpack(
        cls, record: Record, multi: Sequence[str], weighted: Mapping[str, int] = NO_WEIGHTS
    ) -> RowBatch:
        """Returns the batch in a record, which the batch's `release` gives back.

        multi: names of the features whose bag offsets travel, `Layout.bags`. weighted: `Layout.weighted`.
        """
        arrays = arrays_of(record, cls.KIND, 1, MANY)
        return unpack_row_batch(record.step, record.trainer, arrays, multi, record, weighted)


@dataclass(frozen=True, eq=False)
class FeedEvaluate(Feed):
    """Brings a trainer its batch of an evaluation. The batch's `step` is its number in the evaluation."""

    KIND: ClassVar[Kind] = Kind.FEED_EVALUATE


@dataclass(frozen=True, eq=False)
class Gradients:
    """Brings a worker the gradients of the rows of a batch.

    Shapes:
    gradients: for each dim group [U_g, D_g] in a wire format.
    """

    KIND: ClassVar[Kind] = Kind.GRADIENTS
    step: int
    trainer: int
    gradients: Sequence[Array]

    def pack(self) -> Packed:
        """Returns the fields and arrays of the record."""
        return Packed(self.KIND, self.step, self.trainer, arrays=self.gradients)

    @classmethod
    def unpack(cls, record: Record) -> Gradients:
        """Returns the message in a record."""
        return cls(record.step, record.trainer, arrays_of(record, cls.KIND, 1, MANY))
