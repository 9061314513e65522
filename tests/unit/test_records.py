"""Layout of a record's body: what is written is read back, whatever the arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from persia_hpc.errors import PersiaError, UserError
from persia_hpc.transport.records import (
    HEADER_BYTES,
    Record,
    aligned,
    aligned_empty,
    body_layout,
    check_fields,
    parse_body,
    spec_of,
    views_at,
)

DTYPES = ["bool", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]
SPECS = st.lists(
    st.tuples(st.sampled_from(DTYPES), npst.array_shapes(min_dims=1, max_dims=2, min_side=0)), max_size=9
)


@given(SPECS, st.integers(0, 5))
def test_body_gives_back_the_arrays_that_were_written(
    specs: list[tuple[str, tuple[int, ...]]], begin: int
) -> None:
    begin *= 64
    directory, offsets, body_bytes = body_layout(specs)
    assert body_bytes % 64 == 0
    buffer = aligned_empty(begin + body_bytes)
    buffer[:] = 0xEE
    buffer[begin : begin + len(directory)] = np.frombuffer(directory, np.uint8)
    expected = []
    for number, view in enumerate(views_at(buffer, begin, specs, offsets)):
        raw = np.random.default_rng(number).bytes(view.nbytes)
        expected.append(raw)
        view[...] = np.frombuffer(raw, view.dtype).reshape(view.shape)
    arrays = parse_body(buffer, begin, len(specs), body_bytes)
    assert [(array.dtype, array.shape) for array in arrays] == [
        (np.dtype(dtype), shape) for dtype, shape in specs
    ]
    assert [array.tobytes() for array in arrays] == expected
    assert all(array.ctypes.data % 64 == 0 for array in arrays if array.size)
    assert all(np.shares_memory(array, buffer) for array in arrays if array.size)


@given(st.integers(0, 10**9))
def test_aligned_is_the_next_multiple_of_64(num_bytes: int) -> None:
    assert aligned(num_bytes) % 64 == 0
    assert 0 <= aligned(num_bytes) - num_bytes < 64


@given(st.lists(npst.arrays("f4", st.tuples(st.integers(0, 5), st.just(3))), min_size=1, max_size=5))
def test_a_list_of_arrays_has_the_spec_of_its_concatenation(parts: list[np.ndarray]) -> None:
    whole = np.concatenate(parts)
    dtype, shape = spec_of(parts)
    assert (dtype, tuple(shape)) == (whole.dtype, whole.shape)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (np.zeros((4, 4), np.float32)[:, ::2], "float32[4, 2] (not C-contiguous)"),
        ([1, 2], "got int"),
        ("text", "got str"),
        ([], "empty list"),
        ([np.zeros(2), np.zeros(2, np.float32)], "float64[2] and float32[2]"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], "float64[2, 3] and float64[2, 4]"),
        ([np.zeros(3), np.zeros((3, 1))], "float64[3] and float64[3, 1]"),
    ],
)
def test_what_records_do_not_carry_is_refused_by_name(entry: object, words: str) -> None:
    with pytest.raises(UserError) as refused:
        spec_of(entry)  # type: ignore[arg-type]
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ((np.complex64, (3,)), "got complex64"),
        ((np.dtype(">f4"), (3,)), "got >f4"),
        ((np.float32, ()), "shape ()"),
        ((np.float32, (2, 3, 4)), "shape (2, 3, 4)"),
    ],
)
def test_dtypes_and_shapes_are_checked(spec: tuple[object, tuple[int, ...]], words: str) -> None:
    with pytest.raises(UserError) as refused:
        body_layout([spec])  # type: ignore[list-item]
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "fields", [(-1, 0, 0, 0), (1 << 16, 0, 0, 0), (1, 1 << 64, 0, 0), (1, 0, 1 << 32, 0), (1, 0, 0, -1)]
)
def test_fields_out_of_range_are_refused(fields: tuple[int, int, int, int]) -> None:
    with pytest.raises(UserError, match="without sign"):
        check_fields(*fields)


@given(st.integers(0, 23), st.integers(1, 255))
def test_a_damaged_directory_never_reads_beyond_the_body(position: int, flip: int) -> None:
    directory, _, body_bytes = body_layout([("f4", (5, 4))])
    buffer = aligned_empty(body_bytes)
    buffer[:24] = np.frombuffer(directory, np.uint8)
    buffer[position] ^= flip
    try:
        arrays = parse_body(buffer, 0, 1, body_bytes)
    except PersiaError:
        return
    begin, end = buffer.ctypes.data, buffer.ctypes.data + body_bytes
    assert all(begin <= array.ctypes.data and array.ctypes.data + array.nbytes <= end for array in arrays)


def test_detached_arrays_outlive_the_room_and_release_happens_once() -> None:
    memory = np.arange(4.0)
    releases = []
    record = Record(1, 2, 3, 4, [memory[:2]], lambda: releases.append(1))
    assert record.detach() is record
    memory[:] = -1
    record.detach()
    assert record.arrays[0].tolist() == [0.0, 1.0]
    record.release()
    assert releases == [1]
    assert record.arrays == []
    assert HEADER_BYTES == 64
