"""Criteo's layout against a parser in plain Python, whatever is in the text."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc import _native

Parsed = tuple[list[float], list[list[float]], list[list[int]], list[tuple[int, int, int]]]


def reference(text: bytes) -> Parsed:
    """Labels, dense, ids (by row), and of bad lines number, first byte and column."""
    labels, dense, ids, bad = [], [], [], []
    offset = 0
    for number, line in enumerate(text.split(b"\n")[:-1]):
        values = line.removesuffix(b"\r").split(b"\t")
        if values != [b""]:
            wrong = [k for k, value in enumerate(values) if not fits(k, value)]
            if len(values) != 40 or wrong:
                bad.append((number, offset, wrong[0] if len(values) == 40 else -1))
            else:
                labels.append(float(values[0]))
                dense.append([max(int(value or 0), 0) for value in values[1:14]])
                ids.append([int(value, 16) if value else 2**32 for value in values[14:]])
        offset += len(line) + 1
    return labels, dense, ids, bad


def fits(column: int, value: bytes) -> bool:
    if column > 13:
        return value == b"" or (bool(re.fullmatch(rb"[0-9a-fA-F]+", value)) and int(value, 16) < 2**32)
    number = int(value) if re.fullmatch(rb"-?[0-9]+", value) else None
    if column == 0:
        return number in (0, 1)
    return value == b"" or (number is not None and -(2**63) <= number < 2**63)


def parse(text: bytes, capacity: int = 100, max_bad: int = 100) -> tuple[Parsed, int]:
    """In as many calls as it takes, and the number of lines."""
    labels = np.full(capacity, np.nan, np.float32)
    dense = np.full((capacity, 13), np.nan, np.float32)
    ids = np.full((26, capacity + 3), 7, np.uint64)
    bad = np.full((max_bad, 3), 7, np.int64)
    found: Parsed = ([], [], [], [])
    rest = np.frombuffer(text, np.uint8)
    num_lines = begin = 0
    while len(rest):
        used, rows, lines, num_bad = _native.parse_criteo_lines(
            rest, labels=labels, dense=dense, ids=ids, begin=begin, bad=bad
        )
        first = len(text) - len(rest)
        found[3].extend((n + num_lines, at + first, c) for n, at, c in bad[:num_bad].tolist())
        num_lines += lines
        rest = rest[used:]
        begin += rows
        if begin == capacity or not len(rest):
            found[0].extend(labels[:begin].tolist())
            found[1].extend(dense[:begin].tolist())
            found[2].extend(ids[:, :begin].T.tolist())
            begin = 0
    return found, num_lines


def check(text: bytes, capacity: int = 100) -> None:
    (labels, dense, ids, bad), num_lines = parse(text, capacity)
    expected = reference(text)
    assert num_lines == text.count(b"\n")
    assert bad == expected[3]
    assert labels == expected[0]
    assert dense == np.asarray(expected[1], np.float32).tolist()
    assert ids == expected[2]


token = st.one_of(
    st.sampled_from(
        [
            b"",
            b"0",
            b"1",
            b"-0",
            b"-",
            b"+1",
            b" 1",
            b"1 ",
            b"0x1",
            b"-1",
            b"007",
            b"1e3",
            b"1.0",
            b"\0",
            b"\r",
        ]
        + [str(2**63 + i).encode() for i in (-1, 0)]
        + [str(-(2**63) - i).encode() for i in (0, 1)]
        + [b"1844674407370955161%d" % i for i in (5, 6)]
        + [b"0" * 30 + b"1", b"9" * 40, b"ffffffff", b"FFFFFFFF", b"100000000", b"0000000ff", b"fffffffff"]
        + [b"0123456g", b"g1234567", b"abc", b"-abc", b"12345678\0"]
    ),
    st.text(st.sampled_from("0189afAFgG- +.\0\r"), max_size=12).map(str.encode),
    st.integers(-(2**70), 2**70).map(lambda i: b"%d" % i),
    st.integers(0, 2**36).map(lambda i: b"%x" % i),
)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_lines=st.integers(1, 12),
    changes=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 39), token), max_size=8),
    structure=st.lists(
        st.tuples(st.integers(0, 11), st.sampled_from(["drop", "add", "blank", "cr", "blank cr"])), max_size=4
    ),
    capacity=st.integers(1, 14),
)
def test_equals_the_reference(seed, num_lines, changes, structure, capacity) -> None:
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(num_lines):
        values = [b"%d" % random.integers(2)]
        values += [b"%d" % (10 ** (random.random() * 12)) for _ in range(13)]
        values += [b"%08x" % random.integers(2**32) for _ in range(26)]
        lines.append([b"" if k and random.random() < 0.2 else value for k, value in enumerate(values)])
    for line, column, value in changes:
        if line < num_lines:
            lines[line][column] = value
    texts = [b"\t".join(values) for values in lines]
    for line, change in structure:
        if line < num_lines:
            old = texts[line]
            texts[line] = {
                "drop": old.rpartition(b"\t")[0],
                "add": old + b"\t",
                "blank": b"",
                "cr": old + b"\r",
                "blank cr": b"\r",
            }[change]
    check(b"\n".join(texts) + b"\n", capacity)


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("01fg-\t\t\t\n\r\0é"), max_size=300))
def test_any_text(text: str) -> None:
    check(text.encode() + b"\n")


def test_only_some_bad_lines_are_described() -> None:
    text = b"x\n" * 5
    labels, dense, ids = np.empty(1, np.float32), np.empty((1, 13), np.float32), np.empty((26, 1), np.uint64)
    bad = np.full((3, 3), 7, np.int64)
    found = _native.parse_criteo_lines(
        np.frombuffer(text, np.uint8), labels=labels, dense=dense, ids=ids, begin=0, bad=bad[:2]
    )
    assert found == (10, 0, 5, 5)
    assert bad.tolist() == [[0, 0, -1], [1, 2, -1], [7, 7, 7]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": np.frombuffer(b"1", np.uint8)}, "newline at its end"),
        ({"text": np.zeros(3, np.int8)}, "text: expected a C-contiguous uint8"),
        ({"dense": np.empty((2, 13), np.float32)}, "dense: expected .* shape \\[1, 13\\]"),
        ({"ids": np.empty((26, 0), np.uint64)}, "ids: expected .* shape \\[26, 1\\]"),
        ({"ids": np.empty((26, 1), np.int64)}, "ids: expected .* uint64"),
        ({"bad": np.empty((1, 2), np.int64)}, "bad: expected .* shape \\[M, 3\\]"),
        ({"begin": 2}, "begin: expected at most 1"),
        ({"labels": np.frombuffer(b"1234", np.float32)}, "labels: .* read-only"),
    ],
)
def test_arrays_that_dont_fit_are_refused(change, message) -> None:
    arguments = {
        "text": np.frombuffer(b"\n", np.uint8),
        "labels": np.empty(1, np.float32),
        "dense": np.empty((1, 13), np.float32),
        "ids": np.empty((26, 1), np.uint64),
        "begin": 0,
        "bad": np.empty((1, 3), np.int64),
    } | change
    with pytest.raises(ValueError, match=message):
        _native.parse_criteo_lines(arguments.pop("text"), **arguments)
