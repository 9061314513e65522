"""Defines the commands that trainer 0 gives to workers and servers, and what is reported back to it.

Segments, stops and checkpoints are described in docs/data_flow.md, "Who drives".
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from persia_hpc.arrays import Array
from persia_hpc.protocol.messages import Kind, Packed, arrays_of
from persia_hpc.samples.datafile import FileInfo
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.schedule import Schedule
from persia_hpc.serving.requests import ExportReport, ExportRequest
from persia_hpc.transport.records import Record

SPLITS = ("train", "valid", "test", "items")  # a record names a split by its place here

OfStep = TypeVar("OfStep", bound="_OfStep")


@dataclass(frozen=True)
class Segment:
    """Announces that the steps first…last follow: from trainer 0 to workers, from each worker to servers.

    rate_factor: of the tables' learning rates in these steps, beside their schedules.
    """

    KIND: ClassVar[Kind] = Kind.SEGMENT
    first: int
    last: int
    rate_factor: float = 1.0

    def pack(self) -> Packed:
        """Returns the fields and arrays of the record."""
        return Packed(self.KIND, self.first, tag=self.last, arrays=[np.array([self.rate_factor])])

    @classmethod
    def unpack(cls, record: Record) -> Segment:
        """Returns the message in a record."""
        (factor,) = arrays_of(record, cls.KIND, 1)
        return cls(record.step, record.tag, float(factor[0]))


@dataclass(frozen=True)
class Evaluate:
    """Tells workers to evaluate a split, one of `SPLITS`, with rows that have the updates of `step`."""

    KIND: ClassVar[Kind] = Kind.EVALUATE
    split: str
    step: int

    def pack(self) -> Packed:
        """Returns the fields of the record."""
        return Packed(self.KIND, self.step, tag=SPLITS.index(self.split))

    @classmethod
    def unpack(cls, record: Record) -> Evaluate:
        """Returns the message in a record."""
        arrays_of(record, cls.KIND)
        return cls(SPLITS[record.tag], record.step)


@dataclass(frozen=True)
class Portion:
    """Tells workers the files that are trained on next, and their schedule (`data.follow`)."""

    KIND: ClassVar[Kind] = Kind.PORTION
    schedule: Schedule
    files: tuple[FileInfo, ...]

    def pack(self) -> Packed:
        """Returns the fields and arrays of the record: the message as JSON."""
        text = json.dumps(asdict(self))
        return Packed(self.KIND, self.schedule.steps_before + 1, arrays=[_bytes_of(text)])

    @classmethod
    def unpack(cls, record: Record) -> Portion:
        """Returns the message in a record."""
        (text,) = arrays_of(record, cls.KIND, 1)
        found = json.loads(_text_of(text))
        return cls(Schedule(**found["schedule"]), tuple(_file_info(file) for file in found["files"]))


@dataclass(frozen=True)
class Checkpoint:
    """Tells servers, by way of worker 0, to write their rows as they are after `step`.

    path: the checkpoint's directory on the way to a worker, a server's own file on the way to that server.
    base_step: only what has changed since that step is written; 0 for everything.
    """

    KIND: ClassVar[Kind] = Kind.CHECKPOINT
    path: str
    step: int
    base_step: int

    def pack(self) -> Packed:
        """Returns the fields and arrays of the record."""
        return Packed(self.KIND, self.step, tag=self.base_step, arrays=[_bytes_of(self.path)])

    @classmethod
    def unpack(cls, record: Record) -> Checkpoint:
        """Returns the message in a record."""
        (path,) = arrays_of(record, cls.KIND, 1)
        return cls(_text_of(path), record.step, record.tag)


@dataclass(frozen=True)
class Restore:
    """Tells servers, by way of worker 0, to replace their rows by those of a checkpoint of the run.

    They have them as they are after `step`. Each answers with `CheckpointMarked` when it is done.
    """

    KIND: ClassVar[Kind] = Kind.RESTORE
    path: str
    step: int

    def pack(self) -> Packed:
        """Returns the fields and arrays of the record."""
        return Packed(self.KIND, self.step, arrays=[_bytes_of(self.path)])

    @classmethod
    def unpack(cls, record: Record) -> Restore:
        """Returns the message in a record."""
        (path,) = arrays_of(record, cls.KIND, 1)
        return cls(_text_of(path), record.step)


@dataclass(frozen=True)
class Export:
    """Tells servers, by way of worker 0, to write a version or a base for a service.

    Each answers with `Exported` when it has written, or when it is too late for the version's step.
    """

    KIND: ClassVar[Kind] = Kind.EXPORT
    request: ExportRequest

    @property
    def step(self) -> int:
        """Returns the step after which rows are taken."""
        return self.request.step

    def pack(self) -> Packed:
        """Returns the fields and arrays of the record: the request as JSON."""
        return Packed(self.KIND, self.step, arrays=[_bytes_of(json.dumps(asdict(self.request)))])

    @classmethod
    def unpack(cls, record: Record) -> Export:
        """Returns the message in a record."""
        (text,) = arrays_of(record, cls.KIND, 1)
        return cls(ExportRequest(**json.loads(_text_of(text))))


@dataclass(frozen=True)
class Exported:
    """Reports, from each server by way of worker 0, what it has written of a version or a base."""

    KIND: ClassVar[Kind] = Kind.EXPORTED
    report: ExportReport

    def pack(self) -> Packed:
        """Returns the fields and arrays of the record: the report as JSON."""
        return Packed(self.KIND, arrays=[_bytes_of(json.dumps(asdict(self.report)))])

    @classmethod
    def unpack(cls, record: Record) -> Exported:
        """Returns the message in a record."""
        (text,) = arrays_of(record, cls.KIND, 1)
        return cls(ExportReport(**json.loads(_text_of(text))))


@dataclass(frozen=True)
class StopRequest:
    """Asks workers to go no further than they must; each answers with `Issued`."""

    KIND: ClassVar[Kind] = Kind.STOP_REQUEST

    def pack(self) -> Packed:
        """Returns the fields of the record."""
        return Packed(self.KIND)

    @classmethod
    def unpack(cls, record: Record) -> StopRequest:
        """Returns the message in a record."""
        arrays_of(record, cls.KIND)
        return cls()


@dataclass(frozen=True)
class StopSignal:
    """Tells trainer 0 that a rank got a signal that asks the run to stop; `signal` is its number."""

    KIND: ClassVar[Kind] = Kind.STOP_SIGNAL
    signal: int

    def pack(self) -> Packed:
        """Returns the fields of the record."""
        return Packed(self.KIND, tag=self.signal)

    @classmethod
    def unpack(cls, record: Record) -> StopSignal:
        """Returns the message in a record."""
        arrays_of(record, cls.KIND)
        return cls(record.tag)


@dataclass(frozen=True)
class _OfStep:
    """Holds what messages have in common that say nothing but a step."""

    KIND: ClassVar[Kind]
    step: int

    def pack(self) -> Packed:
        """Returns the fields of the record."""
        return Packed(self.KIND, self.step)

    @classmethod
    def unpack(cls: type[OfStep], record: Record) -> OfStep:
        """Returns the message in a record."""
        arrays_of(record, cls.KIND)
        return cls(record.step)


class Issued(_OfStep):
    """Answers `StopRequest`: the worker will ask for no step beyond `step`, and can reach it."""

    KIND: ClassVar[Kind] = Kind.ISSUED


class StopAt(_OfStep):
    """Tells workers that the run stops after `step`: the largest that any of them has `Issued`."""

    KIND: ClassVar[Kind] = Kind.STOP_AT


class SegmentEnd(_OfStep):
    """Tells servers and trainers that the segment ends with `step`, sooner than announced."""

    KIND: ClassVar[Kind] = Kind.SEGMENT_END


class CheckpointMarked(_OfStep):
    """Reports that rows may change: those of the checkpoint after `step` are kept aside, or are restored."""

    KIND: ClassVar[Kind] = Kind.CHECKPOINT_MARKED


class CheckpointDone(_OfStep):
    """Reports that the files of the checkpoint after `step` are written."""

    KIND: ClassVar[Kind] = Kind.CHECKPOINT_DONE


def _bytes_of(text: str) -> Array:
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)


def _text_of(array: Array) -> str:
    return array.tobytes().decode("utf-8", "surrogateescape")


def _file_info(fields: dict[str, Any]) -> FileInfo:
    schema = dict(fields["schema"])
    features = tuple(FeatureSchema(**feature) for feature in schema.pop("features"))
    names: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in schema.items()
    }
    known = tuple(tuple(label) for label in fields["known_labels"])
    tuples = {"known_labels": known, "row_groups": tuple(fields["row_groups"])}
    return FileInfo(**{**fields, **tuples, "schema": DatasetSchema(features, **names)})
