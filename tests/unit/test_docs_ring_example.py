"""The example of docs/rma_protocol.md, played with the real ends of a ring: the page says what happens."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persia_hpc._native import Outgoing, RingConsumer, RingProducer
from persia_hpc.transport.records import aligned_empty

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rma_protocol.md"
RING_BYTES = 1024
HEADER = struct.Struct("=IHHQQQIHHQQQ")  # EntryHeader of native/include/persia/ring.h
MAGIC = 0x50485243


def tables() -> dict[str, list[dict[str, str]]]:
    """The example's tables by the name of their first column; each row by column."""
    section = PAGE.read_text().partition("## An example")[2].partition("\n## ")[0]
    found = {}
    for text in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
        found[lines[0][0]] = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    return found


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


class Ring:
    """Both ends of a ring within one node, and the records that the example sends through it."""

    def __init__(self) -> None:
        self.data = aligned_empty(RING_BYTES)
        self.data[:] = 0
        self.words = np.zeros(RING_BYTES // 64, np.uint64)
        self.tail, bell = np.zeros(1, np.uint64), np.zeros(1, np.uint64)
        self.producer = RingProducer(self.data, self.tail, self.words, bell)
        self.consumer = RingConsumer(self.data, self.words, self.tail, bell.copy())
        self.arrays = {
            row["record"]: np.arange(numbers(row["array"])[0], dtype=np.float32) + ord(row["record"])
            for row in tables()["record"]
        }
        self.posted: dict[str, Outgoing] = {}
        self.tokens: dict[str, Any] = {}

    def do(self, step: str) -> None:
        """Takes one step of the page's second table."""
        words = step.replace(":", "").split()
        if words[0] == "post":
            outgoing = self.posted.setdefault(words[1], Outgoing(1, 0, 0, 0, [self.arrays[words[1]]]))
            assert self.producer.write(outgoing) == (words[2:] != ["no", "room"])
        elif words[0] == "poll":
            record = self.consumer.poll()
            assert record is not None
            assert np.array_equal(record[4][0], self.arrays[words[2]])
            self.tokens[words[2]] = record[5]
        else:
            self.consumer.release(self.tokens[words[1]])

    def header(self, position: int) -> tuple[int, ...]:
        return HEADER.unpack_from(self.data.tobytes(), position)


@pytest.fixture
def ring() -> Ring:
    return Ring()


def test_head_tail_and_words_are_those_of_the_page(ring: Ring) -> None:
    for row in tables()["step"]:
        before = ring.data.copy()
        ring.do(row["step"])
        assert ring.producer.head == int(row["head"]), row["step"]
        assert ring.tail[0] == int(row["tail word"]), row["step"]
        assert ring.words[1:5].tolist() == numbers(row["words 1, 2, 3, 4"]), row["step"]
        assert not ring.words[5:].any()
        assert ring.words[0] == 0
        ranges = numbers(row["written at"])
        places = list(zip(ranges[::2], ranges[1::2], strict=True))
        inside = np.zeros(RING_BYTES, bool)
        for begin, end in places:
            inside[begin:end] = True
            assert ring.header(begin)[0] == MAGIC, f"{row['step']}: no entry at {begin}"
        assert not (ring.data != before)[~inside].any(), f"{row['step']}: wrote elsewhere"
    assert set(ring.tokens) == {"A", "B", "C"}, "the page follows all three records to their ends"


def test_headers_are_those_of_the_page(ring: Ring) -> None:
    for row in tables()["step"]:
        ring.do(row["step"])
        if row["step"] == "post C again":
            break
    rows = tables()["position"]
    assert [int(row["position"]) for row in rows] == [0, 256, 640, 960]
    for row in rows:
        _, _, _, sequence, _, _, _, _, flags, body, begin, size = ring.header(int(row["position"]))
        columns = ("sequence", "flags", "body bytes", "chunk begin", "chunk bytes")
        assert [sequence, flags, body, begin, size] == [int(row[name]) for name in columns]


def test_sizes_of_bodies_and_entries_are_those_of_the_page(ring: Ring) -> None:
    assert ring.producer.max_entry == 384
    for row in tables()["record"]:
        array = ring.arrays[row["record"]]
        assert array.nbytes == numbers(row["array"])[1]
        assert Outgoing(1, 0, 0, 0, [array]).unwritten_bytes == int(row["body bytes"])
