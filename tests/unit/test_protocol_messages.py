"""Every message comes out of a ring as it went in; a record of another kind or form is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persia_hpc.errors import PersiaError
from persia_hpc.protocol import commands, messages
from persia_hpc.protocol.messages import Kind, send
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.samples.datafile import FileInfo
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.schedule import Schedule
from persia_hpc.serving.requests import ExportReport, ExportRequest
from persia_hpc.transport.records import Record
from tests.unit.test_transport_ring_ends import Ring

NUMBER = st.integers(0, 2**63)
TRAINER = st.integers(0, 2**32 - 1)
TEXT = st.text(max_size=20)
FLAG = st.booleans()


@st.composite
def array(draw: st.DrawFn, dtype: Any, *shape: int) -> np.ndarray:
    """An array of numbers that are unlike those of other arrays."""
    begin = draw(st.integers(0, 100))
    return (np.arange(np.prod(shape)) % 60 + begin).astype(dtype).reshape(shape)


@st.composite
def pieces(draw: st.DrawFn, dtype: Any, *shape: int) -> Any:
    """One array, or the pieces of one."""
    whole = draw(array(dtype, *shape))
    cut = draw(st.integers(0, len(whole)))
    return draw(st.sampled_from([whole, [whole[:cut], whole[cut:]]]))


@st.composite
def blocks(draw: st.DrawFn) -> list[Any]:
    """Rows of one to three dim groups, in different formats."""
    kinds = [(np.float32, 4), (np.float16, 3), (np.uint16, 7)]
    return [
        draw(array(dtype, draw(st.integers(0, 9)), dim)) for dtype, dim in kinds[: draw(st.integers(1, 3))]
    ]


@st.composite
def pulls(draw: st.DrawFn) -> messages.Pull:
    count = draw(st.integers(0, 9))
    wanted = draw(st.none() | pieces(np.uint8, count))
    keys, counts = draw(pieces(np.uint64, count)), draw(array(np.uint32, 3))
    return messages.Pull(draw(NUMBER), draw(TRAINER), keys, counts, wanted)


@st.composite
def exclusions(draw: st.DrawFn, samples: int) -> dict[str, np.ndarray]:
    if not draw(FLAG):
        return {}
    excluded = draw(array(np.uint64, draw(st.integers(0, 3))))
    return {"excluded": excluded, "excluded_offsets": draw(array(np.uint32, samples + 1))}


@st.composite
def row_batches(draw: st.DrawFn) -> RowBatch:
    samples, rows, ids = draw(st.integers(0, 4)), draw(st.integers(0, 5)), draw(st.integers(0, 9))
    groups = draw(blocks())
    ringed = draw(FLAG)
    return RowBatch(
        step=draw(NUMBER),
        trainer=draw(TRAINER),
        num_samples=samples,
        num_global=draw(st.integers(0, 2**40)),
        rows=groups,
        indices=draw(array(np.uint16, ids)),
        feature_offsets=draw(array(np.uint32, 4)),
        bag_offsets={name: draw(array(np.uint32, samples + 1)) for name in draw(st.sampled_from(["", "ab"]))},
        row_offsets=draw(array(np.uint32, rows + 1)),
        positions=draw(array(np.uint32, ids)),
        dim_group_offsets=draw(array(np.uint32, len(groups) + 1)),
        dense=draw(array(np.float32, samples, 2)),
        labels=draw(array(np.float32, samples, 1)),
        weight=draw(array(np.float32, samples)) if samples and draw(FLAG) else None,
        group=draw(array(np.int64, samples)) if samples and draw(FLAG) else None,
        slices=draw(array(np.uint64, 2, samples)) if draw(FLAG) else None,
        log_q=draw(array(np.float32, draw(st.integers(1, 4)))) if draw(FLAG) else None,
        item_keys=draw(array(np.uint64, draw(st.integers(1, 4)))) if draw(FLAG) else None,
        **draw(exclusions(samples)),
        staleness=draw(st.integers(0, 2**40)),
        places=draw(array(np.uint32, rows)) if ringed else None,
        rings=draw(array(np.int64, len(groups), 2)) if ringed else None,
        holder=draw(st.integers(0, 99)),
    )


@st.composite
def portions(draw: st.DrawFn) -> commands.Portion:
    schedule = Schedule(
        draw(NUMBER),
        draw(NUMBER),
        draw(NUMBER),
        draw(st.none() | NUMBER),
        draw(NUMBER),
        draw(NUMBER),
        growing=draw(FLAG),
        steps_before=draw(st.integers(0, 2**62)),
        epochs_before=draw(NUMBER),
    )
    feature = st.builds(FeatureSchema, TEXT, FLAG, st.none() | st.floats(0, 1e9))
    names = st.lists(TEXT, max_size=2).map(tuple)
    schema = st.builds(
        DatasetSchema, st.lists(feature, max_size=3).map(tuple), names, names, FLAG, FLAG, FLAG
    )
    path = TEXT | st.just("name of other bytes: \udcff")
    file = st.builds(FileInfo, path, NUMBER, schema, FLAG, FLAG, FLAG, FLAG)
    return commands.Portion(schedule, tuple(draw(st.lists(file, max_size=3))))


def of_step(message: Callable[[int], Any]) -> st.SearchStrategy[Any]:
    return NUMBER.map(message)


@st.composite
def patches(draw: st.DrawFn) -> messages.Patch:
    rows = draw(blocks())
    positions = [draw(pieces(np.uint32, len(each))) for each in rows]
    return messages.Patch(draw(NUMBER), draw(TRAINER), positions, rows, draw(NUMBER))


EVERY: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.PULL: pulls(),
    Kind.ROWS: st.builds(messages.Rows, NUMBER, TRAINER, NUMBER, blocks()),
    Kind.PATCH: patches(),
    Kind.PUSH: st.builds(
        messages.Push, NUMBER, TRAINER, st.lists(pieces(np.float32, 3, 2), min_size=1, max_size=3)
    ),
    Kind.PUSH_FIRST: st.builds(
        messages.PushFirst, NUMBER, TRAINER, st.lists(pieces(np.float32, 3, 2), min_size=1, max_size=3)
    ),
    Kind.WANT_FIRST: st.builds(messages.WantFirst, NUMBER, TRAINER, array(np.uint32, 5), array(np.uint32, 2)),
    Kind.LOOKUP: st.builds(
        messages.Lookup, NUMBER, TRAINER, NUMBER, pieces(np.uint64, 5), array(np.uint32, 2)
    ),
    Kind.LOOKUP_ROWS: st.builds(messages.LookupRows, NUMBER, TRAINER, NUMBER, blocks()),
    Kind.FEED: st.builds(messages.Feed, row_batches()),
    Kind.FEED_EVALUATE: st.builds(messages.FeedEvaluate, row_batches()),
    Kind.GRADIENTS: st.builds(messages.Gradients, NUMBER, TRAINER, blocks()),
    Kind.SEGMENT: st.builds(commands.Segment, NUMBER, NUMBER),
    Kind.SEGMENT_END: of_step(commands.SegmentEnd),
    Kind.EVALUATE: st.builds(commands.Evaluate, st.sampled_from(["train", "valid", "test"]), NUMBER),
    Kind.CHECKPOINT: st.builds(commands.Checkpoint, st.text(min_size=1) | st.just("\udcff"), NUMBER, NUMBER),
    Kind.RESTORE: st.builds(commands.Restore, st.text(min_size=1) | st.just("\udcff"), NUMBER),
    Kind.CHECKPOINT_MARKED: of_step(commands.CheckpointMarked),
    Kind.CHECKPOINT_DONE: of_step(commands.CheckpointDone),
    Kind.STOP_REQUEST: st.builds(commands.StopRequest),
    Kind.STOP_AT: of_step(commands.StopAt),
    Kind.STOP_SIGNAL: st.builds(commands.StopSignal, st.integers(1, 64)),
    Kind.ISSUED: of_step(commands.Issued),
    Kind.PORTION: portions(),
    Kind.EXPORT: st.builds(
        commands.Export,
        st.builds(ExportRequest, TEXT, NUMBER, NUMBER, TEXT | st.just("\udcff"), FLAG, NUMBER),
    ),
    Kind.EXPORTED: st.builds(
        commands.Exported,
        st.builds(ExportReport, TEXT, NUMBER, TEXT, NUMBER, NUMBER, TEXT, NUMBER, FLAG, NUMBER),
    ),
}
FED = (Kind.FEED, Kind.FEED_EVALUATE)


def unpack(message: Any, record: Record, multi: tuple[str, ...] = ()) -> Any:
    arguments = (multi,) if message.KIND in FED else ()
    return type(message).unpack(record, *arguments)


def same(got: Any, expected: Any) -> bool:
    """Compares whatever messages hold, arrays with their dtypes; pieces count as the array they make."""
    if isinstance(got, np.ndarray):
        whole = np.concatenate(expected) if isinstance(expected, list) else expected
        return got.dtype == whole.dtype and got.shape == whole.shape and got.tobytes() == whole.tobytes()
    if isinstance(expected, np.ndarray) or type(got) is not type(expected):
        return False
    if is_dataclass(got):
        names = [f.name for f in fields(got) if f.name != "record"]
        return all(same(getattr(got, name), getattr(expected, name)) for name in names)
    if isinstance(got, dict):
        return list(got) == list(expected) and all(same(got[key], expected[key]) for key in got)
    if isinstance(got, (list, tuple)):
        return len(got) == len(expected) and all(map(same, got, expected))
    return bool(got == expected)


def test_every_kind_is_tested() -> None:
    assert set(EVERY) == set(Kind) - {Kind.CLOSE}


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.name)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_message_comes_out_of_a_ring_as_it_went_in(kind: Kind, data: st.DataObject) -> None:
    message = data.draw(EVERY[kind])
    ring = Ring()
    send(ring.sender, message)
    while (record := ring.receiver.poll()) is None:  # a long one comes in pieces
        ring.sender.progress()
    assert record.kind == kind == message.KIND
    if kind in FED:
        batch = unpack(message, record, tuple(message.batch.bag_offsets))
        assert same(batch, message.batch)
        assert batch.record is record
        batch.release()
        assert record.arrays == []
    else:
        assert same(unpack(message, record), message)


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.name)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_another_kind_and_another_number_of_arrays_are_refused(kind: Kind, data: st.DataObject) -> None:
    message = data.draw(EVERY[kind])
    packed = message.pack()
    arrays = [np.concatenate(a) if isinstance(a, list) else a for a in packed.arrays]
    header = (packed.step, packed.trainer, packed.tag)
    other = data.draw(st.sampled_from(sorted(set(Kind) - {kind})))
    with pytest.raises(PersiaError, match=f"expected kind {int(kind)}"):
        unpack(message, Record(other, *header, list(arrays)))
    too_few = arrays[:1] if kind in (Kind.PULL, *FED) else []
    wrong = too_few if arrays else [np.zeros(1)]
    with pytest.raises(PersiaError, match="arrays, expected"):
        unpack(message, Record(kind, *header, list(wrong)))
    if kind in (Kind.PULL, Kind.LOOKUP, Kind.CHECKPOINT, Kind.PORTION):
        with pytest.raises(PersiaError, match="arrays, expected"):
            unpack(message, Record(kind, *header, [*arrays, *arrays]))
