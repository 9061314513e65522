import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persia_hpc.errors import DataError, UserError
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.source import open_source
from persia_hpc.samples.validity import InvalidRowError
from persia_hpc.samples.writer import DatasetWriter
from tests.support.mpi import environment
from tests.support.samples import SCHEMA, SCHEMA_OPTIONAL, as_lists, assert_equal, random_batch, write

reuse_folder = settings(
    max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@reuse_folder
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=4).filter(any),
    st.integers(1, 40),
    st.sampled_from(["lz4", "gzip", "none"]),
    st.booleans(),
    st.data(),
)
def test_what_was_written_in_any_batches_is_read_in_any_ranges(
    tmp_path: Path, sizes: list[int], chunk_rows: int, compression: str, optional: bool, data: st.DataObject
) -> None:
    batches = [random_batch(n, seed=i, optional=optional) for i, n in enumerate(sizes)]
    path = write(tmp_path / "a.h5", *batches, chunk_rows=chunk_rows, compression=compression)
    whole, n = SampleBatch.concatenate(batches), sum(sizes)
    source = open_source([path], binary_labels=True)
    assert source.schema == (SCHEMA_OPTIONAL if optional else SCHEMA)
    assert source.num_samples == n
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    for begin, end in zip([0, *cuts], [*cuts, n], strict=True):
        assert_equal(source.read(begin, end), whole.slice(begin, end))


@reuse_folder
@given(st.lists(st.integers(1, 20), min_size=2, max_size=4), st.integers(1, 70), st.data())
def test_several_files_read_as_one_and_the_limit_takes_the_first_rows(
    tmp_path: Path, sizes: list[int], limit: int, data: st.DataObject
) -> None:
    for old in tmp_path.glob("*.h5"):
        old.unlink()
    batches = [random_batch(n, seed=i) for i, n in enumerate(sizes)]
    paths = [write(tmp_path / f"part-{i}.h5", b, chunk_rows=8) for i, b in enumerate(batches)]
    whole = SampleBatch.concatenate(batches)
    source = open_source([str(tmp_path / "part-*.h5")], limit=limit)
    n = min(limit, sum(sizes))
    assert source.num_samples == n
    assert sum(rows for _, rows in source.files) == n
    assert [path for path, _ in source.files] == paths[: len(source.files)]
    begin = data.draw(st.integers(0, n))
    end = data.draw(st.integers(begin, n))
    assert_equal(source.read(begin, end), whole.slice(begin, end))
    with pytest.raises(ValueError, match="expected a range"):
        source.read(0, n + 1)


def test_features_are_read_as_chosen(tmp_path: Path) -> None:
    batch = random_batch(10)
    path = write(tmp_path / "a.h5", batch)
    assert list(open_source([path], features=["tags", "user"]).read(0, 10).ids) == ["tags", "user"]
    source = open_source([path], features=["tags"])
    assert source.schema.feature_names == ("tags",)
    assert list(source.read(2, 4).ids) == ["tags"]


def test_only_the_chosen_features_must_be_in_all_files(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", random_batch(3))
    other = DatasetSchema((FeatureSchema("user"),), SCHEMA.dense_names, SCHEMA.label_names)
    batch = random_batch(3)
    with DatasetWriter(tmp_path / "b.h5", other) as writer:
        writer.write(SampleBatch({"user": batch.ids["user"]}, batch.dense, batch.labels))
    pattern = [str(tmp_path / "*.h5")]
    assert open_source(pattern, features=["user"]).read(0, 6).ids["user"].values.tolist() == [0, 1, 2] * 2
    with pytest.raises(UserError, match=r"b.h5: got no feature 'tags'"):
        open_source(pattern)
    with pytest.raises(UserError, match=r"b.h5: got no feature 'tags'"):
        open_source(pattern, features=["tags"])
    with pytest.raises(UserError, match=r"b.h5: got no feature 'tags', but .*a.h5 has it"):
        open_source([str(tmp_path / "b.h5"), str(tmp_path / "a.h5")])


def test_no_dense_columns_and_ids_in_narrow_dtypes(tmp_path: Path) -> None:
    schema = DatasetSchema((FeatureSchema("a"), FeatureSchema("b", True)), (), ("x", "y"))
    batch = SampleBatch(
        {
            "a": IdColumn(np.array([0, 255, 7], np.uint64)),
            "b": IdColumn(np.array([65535, 1], np.uint64), np.array([0, 0, 2, 2], np.uint32)),
        },
        np.empty((3, 0), np.float32),
        np.array([[0, 1], [1, 1], [0, 0]], np.float32),
    )
    path = tmp_path / "a.h5"
    with DatasetWriter(path, schema, id_dtypes={"a": "uint8", "b": "uint16"}) as writer:
        writer.write(batch)
    with h5py.File(path) as file:
        assert file["ids/a"].dtype == np.uint8
        assert file["ids/b/values"].dtype == np.uint16
        assert "dense" not in file
    assert_equal(open_source([str(path)]).read(0, 3), batch)


def test_attributes_say_what_the_file_holds(tmp_path: Path) -> None:
    batch = random_batch(40, optional=True)
    batch.labels[:] = np.linspace(-1, 2, 40)[:, None]
    path = tmp_path / "a.h5"
    write(path, batch, check_binary_labels=False, source="survey", preprocessing={"min_count": 3})
    with h5py.File(path) as file:
        a = dict(file.attrs)
        assert a["schema_version"] == 1
        assert a["num_samples"] == 40
        assert list(a["feature_names"]) == [b"user", b"tags"]
        assert (a["label_min"][0], a["label_max"][0], a["label_binary"][0]) == (-1, 2, False)
        assert a["dense_finite"]
        assert (a["weight_min"], a["weight_max"]) == (batch.weight.min(), batch.weight.max())  # type: ignore
        assert a["source"] == b"survey"
        assert json.loads(a["preprocessing"]) == {"min_count": 3}
        every: list[h5py.Dataset] = []
        file.visititems(lambda _, item: every.append(item) if isinstance(item, h5py.Dataset) else None)
        assert len(every) == 8
        assert all(dataset.fletcher32 for dataset in every)


def test_a_file_made_by_hand_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.attrs["schema_version"] = 1
        file["ids/user"] = np.array([3, 1, 2], np.int64)
        file["ids/tags/values"] = np.array([9, 8], np.int32)
        file["ids/tags/offsets"] = np.array([0, 0, 1, 2])
        file["label"] = np.array([[0], [1], [1]], np.uint8)
        file["dense"] = np.array([[0.5], [1.5], [2.5]])
    source = open_source([str(path)], binary_labels=True)
    assert source.schema == DatasetSchema((FeatureSchema("tags", True), FeatureSchema("user")), ("dense_0",))
    batch = source.read(1, 3)
    batch.validate(source.schema)
    assert batch.ids["user"].values.tolist() == [1, 2]
    assert batch.ids["tags"].values.tolist() == [9, 8]
    assert batch.dense.tolist() == [[1.5], [2.5]]
    assert batch.labels.tolist() == [[1], [1]]


def test_the_writer_keeps_nothing_of_a_failed_file(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"

    def fail() -> None:
        with DatasetWriter(path, SCHEMA) as writer:
            writer.write(random_batch(5))
            (partial,) = os.listdir(tmp_path)
            assert partial.startswith("a.h5.")
            assert partial.endswith(".partial")  # data.follow passes over these
            raise RuntimeError("source broke")

    with pytest.raises(RuntimeError, match="source broke"):
        fail()
    assert os.listdir(tmp_path) == []
    with pytest.raises(UserError, match="got no samples"), DatasetWriter(path, SCHEMA):
        pass
    assert os.listdir(tmp_path) == []


def test_the_writer_replaces_an_older_file_only_when_done(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write(path, random_batch(5))
    with DatasetWriter(path, SCHEMA) as writer:
        writer.write(random_batch(7))
        assert open_source([str(path)]).num_samples == 5
    assert open_source([str(path)]).num_samples == 7
    assert os.listdir(tmp_path) == ["a.h5"]


WRITE = """
import sys
from tests.support.samples import random_batch, write
write(sys.argv[1], random_batch(7))
"""


def test_two_processes_that_write_the_same_file_leave_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with DatasetWriter(path, SCHEMA) as writer:
        writer.write(random_batch(5))
        other = [sys.executable, "-c", WRITE, str(path)]
        subprocess.run(other, check=True, env=environment())
        assert open_source([str(path)]).num_samples == 7
        writer.write(random_batch(6))
    assert open_source([str(path)]).num_samples == 11
    assert os.listdir(tmp_path) == ["a.h5"]


def test_the_writer_removes_what_dead_ones_left(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as dead:
        pass
    host, path = socket.gethostname(), tmp_path / "a.h5"
    left = f"a.h5.{host}.{dead.pid}.partial"
    kept = {
        f"a.h5.{host}.{os.getppid()}.partial",  # it lives
        f"a.h5.{host}-2.{dead.pid}.partial",  # it may live
        f"ba.h5.{host}.{dead.pid}.partial",
        f"a.h5.{host}.partial",
    }
    old = f"a.h5.{host}-3.{dead.pid}.partial"
    for name in (left, old, *kept):
        (tmp_path / name).touch()
    os.utime(tmp_path / old, (0, 0))
    write(path, random_batch(5))
    assert set(os.listdir(tmp_path)) == {*kept, "a.h5"}


VALUES = st.sampled_from([0.0, 1.0, 2.5, np.nan])


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=9), st.data())
@settings(deadline=None, max_examples=30)
def test_a_file_says_which_labels_are_known_and_their_range(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, float]], data: st.DataObject
) -> None:
    labels = np.array(rows, np.float32)
    cut = data.draw(st.integers(0, len(rows) - 1))
    schema = DatasetSchema((), label_names=("a", "b"), dense_names=("x",))
    path = tmp_path_factory.mktemp("known") / "a.h5"
    with DatasetWriter(path, schema, check_binary_labels=False) as writer:
        for part in (labels[:cut], labels[cut:]):
            writer.write(SampleBatch({}, np.zeros((len(part), 1), np.float32), part.copy()))
    for (known, least, most), column in zip(open_source([str(path)]).known_labels(), labels.T, strict=True):
        values = column[~np.isnan(column)]
        assert known == len(values)
        assert not known or (least, most) == (values.min(), values.max())


@pytest.mark.parametrize("binary", [True, False])
def test_a_missing_label_is_kept_and_its_range_is_not_vouched_for(tmp_path: Path, binary: bool) -> None:
    batch = random_batch(40)
    batch.labels[7] = np.nan
    path = write(tmp_path / "a.h5", batch, check_binary_labels=binary)
    with h5py.File(path) as file:
        assert np.isnan(file.attrs["label_min"][0])
        assert np.isnan(file.attrs["label_max"][0])
        assert file.attrs["label_binary"][0]
        assert file.attrs["dense_finite"]
    for binary_labels in (True, False):
        assert_equal(open_source([path], binary_labels=binary_labels).read(0, 40), batch)
    with h5py.File(path, "r+") as file:
        file["label"][9] = np.inf
    with pytest.raises(DataError, match=r"row 9: got inf in label 'click'"):
        open_source([path]).read(0, 40)


def test_the_writer_copies_what_it_buffers(tmp_path: Path) -> None:
    batch, copy = random_batch(5), random_batch(5)
    with DatasetWriter(tmp_path / "a.h5", SCHEMA) as writer:
        writer.write(batch)
        batch.dense[:] = 7
        batch.ids["user"].values[:] = 7
    assert_equal(open_source([str(tmp_path / "a.h5")]).read(0, 5), copy)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dense", np.nan, "row 103: got nan in dense column 'y', expected a finite number"),
        ("dense", -np.inf, "row 103: got -inf in dense column 'y'"),
        ("labels", 2.0, "row 103: got 2.0 in label 'click', expected 0 or 1"),
        ("labels", np.inf, "row 103: got inf in label 'click', expected a finite number, or NaN"),
        ("weight", -1.0, "row 103: got weight -1.0"),
    ],
)
def test_the_writer_refuses_bad_values_with_their_row(
    tmp_path: Path, field: str, value: float, message: str
) -> None:
    good, bad = random_batch(100, optional=True), random_batch(10, seed=1, optional=True)
    array = getattr(bad, field)
    array[(3, -1) if array.ndim == 2 else 3] = value
    path = tmp_path / "a.h5"
    with DatasetWriter(path, SCHEMA_OPTIONAL) as writer:
        writer.write(good)
        with pytest.raises(InvalidRowError, match=message) as error:
            writer.write(bad)
        assert error.value.row == 103
    assert_equal(open_source([str(path)]).read(0, 100), good)


def test_the_writer_refuses_ids_wider_than_their_dtype(tmp_path: Path) -> None:
    batch = random_batch(10)
    column = batch.ids["tags"]
    assert column.offsets is not None
    row = int(np.searchsorted(column.offsets, 2, side="right")) - 1
    column.values[:] = 5
    column.values[2] = 2**16
    with pytest.raises(InvalidRowError, match=f"row {row}: got id 65536 in feature 'tags', .* at most 65535"):
        write(tmp_path / "a.h5", batch, id_dtypes={"tags": "uint16"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id_dtypes": {"user": "int32"}}, "id dtype of user: got 'int32', expected one of uint8"),
        ({"id_dtypes": {"nobody": "uint8"}}, "got feature 'nobody', expected one of user, tags"),
        ({"compression": "zip"}, "compression: got 'zip', expected one of lz4, gzip, none"),
        ({"chunk_rows": 0}, "chunk_rows: got 0"),
    ],
)
def test_the_writer_refuses_bad_arguments(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write(tmp_path / "a.h5", random_batch(3), **arguments)


def test_the_writer_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't write there"):
        write(tmp_path / "nowhere" / "a.h5", random_batch(3))


def test_threads_and_a_forked_child_read_the_same(tmp_path: Path) -> None:
    batch = random_batch(500)
    source = open_source([write(tmp_path / "a.h5", batch, chunk_rows=32)])
    source.read(0, 10)
    failures: list[BaseException] = []

    def read(begin: int) -> None:
        try:
            for at in range(begin, 480, 7):
                assert_equal(source.read(at, at + 20), batch.slice(at, at + 20))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert failures == []
    child = os.fork()
    if child == 0:
        ok = source.read(100, 400).ids["user"].values.tolist() == list(range(100, 400))
        os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert_equal(source.read(0, 500), batch)


@pytest.mark.parametrize("locking", [False, True, None, "best-effort"])
def test_a_file_opened_elsewhere_in_the_process_can_be_read(
    tmp_path: Path, locking: bool | str | None
) -> None:
    batch = random_batch(5)
    path = write(tmp_path / "a.h5", batch)
    with h5py.File(path, "r", locking=locking):
        assert_equal(open_source([path]).read(0, 5), batch)


def test_the_examples_of_the_documentation_make_the_same_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "dataset_format.md").read_text()
    by_hand, *others = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(others) == 2  # of a frame, and by the writer
    names: dict[str, object] = {}
    exec(by_hand, names)
    first = open_source(["clicks.h5"], binary_labels=True)
    got = first.read(0, 3)
    for other in others:
        exec(other, names)
        second = open_source(["clicks.h5"], binary_labels=True)
        assert first.schema == second.schema
        assert_equal(got, second.read(0, 3))
    assert as_lists(got.ids["history"]) == [[501, 502], [], [777]]


def test_no_string_lies_where_hdf5_has_no_checksum(tmp_path: Path) -> None:
    """Its global heap (signature GCOL) has none: damage there renamed columns, or HDF5 read for ever."""
    names = ("é", "a" * 300, *(f"x{i}" for i in range(3000)))
    path = tmp_path / "a.h5"
    schema = DatasetSchema((FeatureSchema("user", False),), names)
    batch = SampleBatch(
        {"user": IdColumn(np.arange(3, dtype=np.uint64))},
        np.zeros((3, len(names)), np.float32),
        np.ones((3, 1), np.float32),
    )
    with DatasetWriter(path, schema, preprocessing={"x": "y" * 100_000}) as writer:
        writer.write(batch)
    assert b"GCOL" not in path.read_bytes()
    assert open_source([str(path)]).schema.dense_names == names
