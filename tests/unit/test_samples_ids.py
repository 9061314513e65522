"""Ids: stable hashes, filters, and what texts became by the encoding of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.cli import main
from persia_hpc.errors import UserError
from persia_hpc.samples.encoding import read_encoding
from persia_hpc.samples.ids import MISSING_ID, RARE_ID, IdFilter, TextIds, as_ids, hash_strings
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.samples.source import open_source

U64 = st.integers(0, 2**64 - 1)


def test_hashes_never_change():
    # Trained tables hold these ids: another value here makes every saved table useless.
    assert hash_strings(["", "Private", "日本"]).tolist() == GOLDEN


GOLDEN = [13020603013274838756, 16039343762203315972, 4223062404410717160]


@settings(max_examples=50, deadline=None)
@given(st.lists(U64, unique=True), st.lists(U64), st.booleans())
def test_filter(known, ids, renumber):
    ids += [*known[:3], MISSING_ID]
    filtered = IdFilter(
        np.asarray(known, np.uint64), other=RARE_ID, never_other=[MISSING_ID], renumber=renumber
    )
    numbers = {MISSING_ID: MISSING_ID} | {k: i + 1 if renumber else k for i, k in enumerate(known)}
    assert filtered(np.asarray(ids, np.uint64)).tolist() == [numbers.get(i, RARE_ID) for i in ids]


@given(st.lists(st.integers(-(2**63), 2**64 - 1)))
def test_integers_of_any_size_are_ids(values: list[int]) -> None:
    """NumPy alone makes floats of 1 and 2^63 + 1, which lack the last digits."""
    assert as_ids(values).tolist() == [value % 2**64 for value in values]
    assert as_ids(np.array(values, np.object_)).tolist() == [value % 2**64 for value in values]


@pytest.mark.parametrize(
    "values",
    [
        *([1.0], [1, 1.5], np.array([3.0]), ["17"], np.array(["17"]), ["17", 17], [True], [None]),
        *([2**64], [-(2**63) - 1], [10**5000], [[1], [2, 3]], [np.zeros((2, 3)), np.zeros((2, 4))], [b"1"]),
    ],
)
def test_what_is_no_integer_is_no_id(values: Any) -> None:
    with pytest.raises(UserError, match=r"ids: got .*, expected integers of 64 bits"):
        as_ids(values)


SCHEMA = """
files = ["table.csv"]
missing = ["?"]
[labels]
click = {}
[ids]
plain = { type = "string" }
frequent = { type = "string", min_count = 2 }
numbered = { type = "string", vocabulary = true }
number = {}
[split]
by = "order"
fractions = { train = 1.0 }
"""


def test_texts_become_the_ids_of_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = {
        "plain": ["a", " b", "?", "a"],
        "frequent": ["x", "y", "x", "?"],
        "numbered": ["n", "m", "n", "k"],
        "number": [1, 2, 3, 4],
        "click": [0, 1, 0, 1],
    }
    pl.DataFrame(rows).write_csv("table.csv")
    Path("schema.toml").write_text(SCHEMA)
    assert main(["preprocess", "table", "schema.toml", "--out", "out"]) == 0
    source = open_source(["out/train.h5"])
    batch = source.read(0, 4)
    texts = TextIds.of_run(source.schema, tmp_path / "out")
    for name in ("plain", "frequent", "numbered"):
        assert texts(name, [str(value) for value in rows[name]]).tolist() == batch.ids[name].values.tolist()
    assert MISSING_ID in batch.ids["plain"].values
    assert RARE_ID in batch.ids["frequent"].values
    assert texts("numbered", ["never"]).tolist() == [0]
    with pytest.raises(UserError, match=r"features\.number: got the text '7', expected integers"):
        texts("number", ["7"])
    with pytest.raises(UserError, match="isn't kept with the run"):
        TextIds.of_run(source.schema, tmp_path)("plain", ["a"])
    other = {**read_encoding(tmp_path / "out"), "dataset": "criteo"}
    with pytest.raises(UserError, match="'criteo' has its own rules"):
        TextIds(source.schema.encoding, other)("plain", ["a"])


def test_texts_of_data_without_an_encoding_are_hashed(tmp_path: Path) -> None:
    texts = TextIds.of_run(DatasetSchema(()), tmp_path)
    assert texts("any", ["a", ""]).tolist() == hash_strings(["a", ""]).tolist()
