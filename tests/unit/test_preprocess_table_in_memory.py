"""`ph.write_dataset`: what `preprocess table` makes of the same rows, from any kind of frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import persia_hpc as ph
from persia_hpc.errors import UserError
from persia_hpc.preprocess.table import in_memory, prepare
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.encoding import read_encoding
from persia_hpc.samples.source import open_source

SCHEMA = """
files = ["d.parquet"]
split.fractions.train = 1.0
weight = "w"
group = "g"
time = "t"
[labels.y]
[dense.x]
[ids.n]
[ids.s]
[ids.many]
"""


def read(path: Path) -> tuple[SampleBatch, str | None]:
    source = open_source([str(path)])
    return source.read(0, source.num_samples), source.schema.encoding


def assert_same(one: SampleBatch, other: SampleBatch) -> None:
    assert list(one.ids) == list(other.ids)
    for name, column in one.ids.items():
        np.testing.assert_array_equal(column.values, other.ids[name].values)
        np.testing.assert_equal(column.offsets, other.ids[name].offsets)
    for name in ("dense", "labels", "weight", "group", "time"):
        np.testing.assert_equal(getattr(one, name), getattr(other, name))


ROWS = st.fixed_dictionaries(
    {
        "n": st.integers(0, 2**63 - 1),
        "s": st.text(max_size=5) | st.none(),
        "many": st.lists(st.integers(0, 9), max_size=4),
        "x": st.floats(-(2.0**99), 2.0**99, width=32),
        "y": st.sampled_from([0, 1]),
        "w": st.floats(0, 10, width=32),
        "g": st.integers(0, 5),
        "t": st.integers(0, 2**40),
    }
)
TYPES = {"n": pl.Int64, "s": pl.String, "many": pl.List(pl.Int32), "x": pl.Float32, "y": pl.Int8}
TYPES |= {"w": pl.Float64, "g": pl.Int64, "t": pl.Int64}


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=40), at_once=st.integers(1, 50))
def test_a_frame_is_what_the_command_makes_of_its_rows(
    rows: list[dict[str, Any]], at_once: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("frame")
    frame = pl.DataFrame(rows, schema=TYPES)
    frame.write_parquet(folder / "d.parquet")
    (folder / "s.toml").write_text(SCHEMA)
    prepare.prepare(prepare.TableOptions(folder / "out", folder / "s.toml"))
    names = {
        "ids": ["n", "s", "many"],
        "labels": ["y"],
        "dense": ["x"],
        "weight": "w",
        "group": "g",
        "time": "t",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_memory, "ROWS", at_once)
        assert ph.write_dataset(frame, folder / "mine.h5", **names) == len(rows)
        ph.write_dataset(frame.lazy(), folder / "by_schema.h5", schema=folder / "s.toml")
    wanted, encoding = read(folder / "out" / "train.h5")
    for name in ("mine.h5", "by_schema.h5"):
        got, digest = read(folder / name)
        assert_same(got, wanted)
        assert digest == encoding


def test_a_single_name_is_one_column(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": [3, 1], "liked": [0, 1], "price": [0.5, 2.0]})
    ph.write_dataset(frame, tmp_path / "one.h5", ids="user", labels="liked", dense="price")
    ph.write_dataset(frame, tmp_path / "lists.h5", ids=["user"], labels=["liked"], dense=["price"])
    assert_same(read(tmp_path / "one.h5")[0], read(tmp_path / "lists.h5")[0])
    source = open_source([str(tmp_path / "one.h5")])
    assert (source.schema.label_names, source.schema.dense_names) == (("liked",), ("price",))
    with pytest.raises(UserError, match="the frame has no column 'users'"):
        ph.write_dataset(frame, tmp_path / "absent.h5", ids="users")


@pytest.mark.parametrize("kind", ["pandas", "pyarrow"])
def test_frames_of_others_are_as_good(kind: str, tmp_path: Path) -> None:
    frame = pl.DataFrame({"n": [3, 1, 2], "s": ["a", None, "c"], "many": [[1], [], [2, 3]], "y": [0, 1, 0]})
    pytest.importorskip("pyarrow")
    pytest.importorskip(kind)
    other = frame.to_pandas() if kind == "pandas" else frame.to_arrow()
    names = {"ids": ["n", "s", "many"], "labels": ["y"]}
    ph.write_dataset(frame, tmp_path / "polars.h5", **names)
    ph.write_dataset(other, tmp_path / "other.h5", **names)
    assert_same(read(tmp_path / "other.h5")[0], read(tmp_path / "polars.h5")[0])


def test_a_run_knows_what_texts_became(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame = pl.DataFrame({"user": [f"u{i % 7}" for i in range(60)], "y": [i % 2 for i in range(60)]})
    names = {"ids": ["user"], "labels": ["y"]}
    ph.write_dataset(frame, tmp_path / "train.h5", **names)
    ph.write_dataset(frame[:9], tmp_path / "test.h5", **names)
    assert not caplog.records
    config = {"data": {"train": str(tmp_path / "train.h5"), "batch_size": 20}, "model": {"class": "dcn_v2"}}
    ph.train({**config, "run_dir": str(tmp_path / "run")}, quiet=True)
    run = ph.load(tmp_path / "run")
    run.predict([str(tmp_path / "test.h5")], tmp_path / "scores.csv")
    scores = [float(line) for line in (tmp_path / "scores.csv").read_text().splitlines()[1:]]
    found = run.score({"user": frame["user"][:9].to_list()})[:, 0]
    assert found.tolist() == np.array(scores, np.float32).tolist()
    ph.write_dataset(frame, tmp_path / "other.h5", ids=["y"])  # has no texts
    assert not caplog.records
    ph.write_dataset(frame, tmp_path / "other.h5", ids=["y", "user"])
    assert "encoding.json is of other data, and stays" in caplog.text
    assert read_encoding(tmp_path)["ids"].keys() == {"user"}


@pytest.mark.parametrize("values", [[1, "a"], [-1, 2**63], [1j, 2], [[1], 2]])
def test_a_column_of_pandas_with_several_types_is_named(values: list[Any], tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"y": [0, 1], "u": pandas.Series(values, dtype=object)})
    with pytest.raises(UserError, match="the frame's column 'u' can't be read"):
        ph.write_dataset(frame, tmp_path / "d.h5", ids=["u"], labels=["y"])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({}, "ids: got nothing, expected names of columns"),
        ({"ids": ["u", "u"]}, "got 'u' twice"),
        ({"ids": ["u", 0]}, "got the column 0, expected names that are text"),
        ({"ids": ["user"]}, "the frame has no column 'user'; it has: u, y, x"),
        ({"ids": ["u"], "labels": ["x"]}, "the frame, row 2: x: got 0.5 (Float64), expected 0 or 1"),
        ({"ids": ["u"], "dense": ["y"], "weight": "x"}, "the frame, row 3: x: got -1.0 (Float64)"),
        ({"ids": ["x"]}, "x: got"),
    ],
)
def test_what_cannot_be_written_is_said(names: dict[str, Any], said: str, tmp_path: Path) -> None:
    frame = pl.DataFrame({"u": [1, 2, 3], "y": [0, 1, 1], "x": [1.0, 0.5, -1.0]})
    with pytest.raises(UserError) as caught:
        ph.write_dataset(frame, tmp_path / "d.h5", **names)
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("frame", [3, [1, 2], "clicks.csv", None])
def test_what_is_no_frame_is_said(frame: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a data frame of polars or pandas"):
        ph.write_dataset(frame, tmp_path / "d.h5", ids=["u"])


@pytest.mark.parametrize(
    "line", ['dense.x.transform = "standardize"', "ids.u.min_count = 2", "ids.u.vocabulary = true"]
)
def test_a_schema_that_learns_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(f"{line}\nids.v = 'u'\n")
    frame = pl.DataFrame({"u": [1, 2], "x": [1.0, 2.0]})
    with pytest.raises(UserError, match="learns from training rows, which one frame needn't be"):
        ph.write_dataset(frame, tmp_path / "d.h5", schema=tmp_path / "s.toml")
    with pytest.raises(UserError, match="got a schema and names of columns"):
        ph.write_dataset(frame, tmp_path / "d.h5", ids=["u"], schema=tmp_path / "s.toml")
