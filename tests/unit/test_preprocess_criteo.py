"""Criteo: values, splits, rare ids, and bad lines by number."""

import itertools
import lzma
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.errors import UserError
from persia_hpc.preprocess.criteo import ids as criteo_ids
from persia_hpc.preprocess.criteo import parallel
from persia_hpc.preprocess.criteo import prepare as criteo
from persia_hpc.preprocess.team import Part
from persia_hpc.samples.source import open_source


def line(label=0, ints=("",) * 13, ids=("",) * 26):
    return "\t".join([str(label), *map(str, ints), *ids])


def prepare(tmp_path, lines, **options):
    (tmp_path / "a.tsv").write_text("".join(row + "\n" for row in lines))
    options = {"input": (str(tmp_path / "a.tsv"),), "train_fraction": 1.0} | options
    return criteo.prepare(criteo.CriteoOptions(tmp_path / "out", **options))


def read(tmp_path, pattern="train-*.h5"):
    source = open_source([str(tmp_path / "out" / pattern)])
    return source.read(0, source.num_samples)


cell = st.one_of(st.none(), st.integers(0, 2**32 - 1))
number = st.one_of(st.none(), st.integers(-5, 2**31))


@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(number, min_size=13, max_size=13), cell, cell),
        min_size=1,
        max_size=20,
    )
)
def test_values(tmp_path_factory, rows):
    tmp_path = tmp_path_factory.mktemp("criteo")
    text = lambda v, code: "" if v is None else format(v, code)  # noqa: E731
    prepare(
        tmp_path,
        [
            line(int(y), [text(v, "d") for v in ints], [text(first, "08x"), *[""] * 24, text(last, "x")])
            for y, ints, first, last in rows
        ],
    )
    batch = read(tmp_path)
    assert batch.labels[:, 0].tolist() == [y for y, *_ in rows]
    dense = np.asarray([[max(v or 0, 0) for v in ints] for _, ints, _, _ in rows], np.float32)
    np.testing.assert_array_equal(batch.dense, np.log1p(dense))
    for name, place in (("C1", 2), ("C26", 3)):
        assert batch.ids[name].values.tolist() == [
            2**32 if row[place] is None else row[place] for row in rows
        ]
    assert set(batch.ids["C2"].values.tolist()) == {2**32}


def test_later_files_take_the_frequent_ids_of_earlier_ones(tmp_path):
    rows = [line(ids=[word] * 26) for word in ("a", "a", "b")]
    later = [line(ids=[word] * 26) for word in ("b", "b", "a", "", "c")]
    for folder in ("day 0", "day 1", "day 2", "day 3"):
        (tmp_path / folder).mkdir()
    first = tmp_path / "day 0" / "out"
    prepare(first.parent, rows, min_count=2)
    assert read(first.parent).ids["C1"].values.tolist() == [10, 10, criteo_ids.RARE_ID]
    prepare(tmp_path / "day 1", later, encoding=first)
    prepare(tmp_path / "day 2", later, min_count=2)
    options = {"encoding": tmp_path / "day 1" / "out", "shard_bytes": 100}
    parallel.prepare(
        criteo.CriteoOptions(tmp_path / "day 3" / "out", (str(tmp_path / "day 1" / "a.tsv"),), **options),
        Part(0, 1),
    )
    rare, missing = criteo_ids.RARE_ID, criteo_ids.MISSING_ID
    for folder in ("day 1", "day 3"):
        for name in ("C1", "C26"):
            assert read(tmp_path / folder).ids[name].values.tolist() == [rare, rare, 10, missing, rare]
    digests = [
        open_source([str(tmp_path / f"day {day}" / "out" / "train-*.h5")]).schema.encoding for day in range(4)
    ]
    assert digests[0] == digests[1] == digests[3] != digests[2]
    with pytest.raises(UserError, match="--min-count 3: the encoding says 2"):
        prepare(tmp_path / "day 1", later, encoding=first, min_count=3)


GOOD = line(1, range(13), ["0a1b2c3d"] * 26)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (GOOD.replace("1", "2", 1), r"a\.tsv:3: label: got '2', expected 0 or 1"),
        (GOOD.replace("1", "", 1), r"a\.tsv:3: label: got no value, expected 0 or 1"),
        (GOOD.replace("\t7\t", "\tx\t"), r"a\.tsv:3: I8: got 'x', expected an integer"),
        (GOOD.replace("\t7\t", "\tnan\t"), r"a\.tsv:3: I8: got 'nan', expected an integer"),
        (GOOD + "\t", r"a\.tsv:3: got 41 columns, expected 40 separated by tab"),
        (GOOD[2:], r"a\.tsv:3: got 39 columns, expected 40"),
        (GOOD[:-1] + "z", r"a\.tsv:3: C26: got '0a1b2c3z', expected a 32-bit hexadecimal number"),
        (GOOD[:-8] + "1a1b2c3d0", r"a\.tsv:3: C26: got '1a1b2c3d0', expected a 32-bit hexadecimal number"),
    ],
)
def test_bad_lines_are_named(tmp_path, bad, message):
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, [GOOD, "", bad, GOOD])


def numbered(count):
    return [line(i % 2, [i, *[""] * 12], [format(i, "x"), *[""] * 25]) for i in range(count)]


@pytest.mark.parametrize(("rows", "shards", "valid"), [*itertools.product([None, 57], [1, 3], [0.0, 0.1])])
def test_splits_partition_the_rows_in_order(tmp_path, rows, shards, valid):
    reports = prepare(
        tmp_path, numbered(100), rows=rows, shards=shards, train_fraction=0.7, valid_fraction=valid
    )
    used = rows or 100
    names = [f"train-{i:03d}.h5" for i in range(shards)] + (["valid.h5"] if valid else []) + ["test.h5"]
    assert [report.path.name for report in reports] == names
    ids = [read(tmp_path, name).ids["C1"].values for name in names]
    assert np.concatenate(ids).tolist() == list(range(used))
    assert sum(len(i) for i in ids[:shards]) == round(used * 0.7)
    assert max(len(i) for i in ids[:shards]) - min(len(i) for i in ids[:shards]) <= 1
    assert [report.num_rows for report in reports] == [len(i) for i in ids]


def test_rare_ids_share_one(tmp_path):
    """Counts come from the training rows: 1 twice there; 2 once there and once in the test."""
    rows = [line(0, ids=[i, *[""] * 25]) for i in ("1", "2", "1", "", "", "2", "1", "3", "", "")]
    prepare(tmp_path, rows, train_fraction=0.5, min_count=2)
    missing, rare = criteo_ids.MISSING_ID, criteo_ids.RARE_ID
    assert read(tmp_path).ids["C1"].values.tolist() == [1, rare, 1, missing, missing]
    assert read(tmp_path, "test.h5").ids["C1"].values.tolist() == [rare, 1, rare, missing, missing]


def test_first_rows_of_the_real_data(tmp_path):
    path = Path(os.environ.get("PERSIA_HPC_DATA", "")) / "criteo_137k" / "criteo_137k.tsv.xz"
    if "PERSIA_HPC_DATA" not in os.environ or not path.is_file():
        pytest.skip("criteo_137k isn't in $PERSIA_HPC_DATA (its terms forbid shipping it)")
    reports = criteo.prepare(criteo.CriteoOptions(tmp_path / "out", (str(path),), rows=2000))
    assert [report.num_rows for report in reports] == [1800, 200]
    batch = read(tmp_path)
    with lzma.open(path, "rt") as file:
        rows = [text.rstrip("\n").split("\t") for text in itertools.islice(file, 1800)]
    assert batch.labels[:, 0].tolist() == [int(row[0]) for row in rows]
    for k in range(26):
        assert batch.ids[f"C{k + 1}"].values.tolist() == [int(row[14 + k] or "100000000", 16) for row in rows]
    dense = np.log1p(np.asarray([[max(int(v or 0), 0) for v in row[1:14]] for row in rows], np.float32))
    np.testing.assert_array_equal(batch.dense, dense)
