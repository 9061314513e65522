"""Encodings: their digests, files that name them, and files without labels."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persia_hpc.errors import DataError, UserError
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.datafile import OpenFile, scan
from persia_hpc.samples.encoding import (
    ENCODING_FILE,
    encoding_digest,
    keep_encoding,
    read_encoding,
    sealed,
    write_encoding,
)
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.source import open_source
from persia_hpc.samples.writer import DatasetWriter
from tests.support.samples import assert_equal
from tests.support.tiny import tiny_batch, write_tiny

A, B = "a" * 64, "b" * 64
NAMES = DatasetSchema((FeatureSchema("tags", True), FeatureSchema("user")), ("x",), ())

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), JSON, min_size=1))
def test_a_digest_is_of_the_content_and_outlives_the_file(content: dict[str, Any]) -> None:
    backwards = dict(reversed(list(content.items())))
    assert encoding_digest(content) == encoding_digest(backwards)
    assert encoding_digest(content) == encoding_digest(json.loads(json.dumps(content)))
    assert encoding_digest(content) != encoding_digest({**content, "one more": 1})


def test_an_encoding_is_read_from_its_file_or_folder(tmp_path: Path) -> None:
    written = sealed({"dataset": "table", "ids": {"u": {"type": "string"}}})
    write_encoding(tmp_path, written)
    assert read_encoding(tmp_path) == read_encoding(tmp_path / ENCODING_FILE) == written
    assert sealed(written) == written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "isn't an encoding"),
        ("[1]", "isn't an encoding"),
        ("{}", "isn't an encoding"),
        ("[" * 100_000, "isn't an encoding"),
        (json.dumps({**sealed({"ids": 1}), "ids": 2}), "isn't as `preprocess` wrote it"),
        (json.dumps({"digest": encoding_digest({"version": 9}), "version": 9}), "encoding version 9"),
    ],
)
def test_another_file_is_no_encoding(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / ENCODING_FILE).write_text(text)
    with pytest.raises(UserError, match=message):
        read_encoding(tmp_path)


def test_a_folder_without_an_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"encoding\.json: can't be read .*; expected a folder of data"):
        read_encoding(tmp_path)


def test_a_run_keeps_the_encoding_of_its_data_only(tmp_path: Path) -> None:
    mine, other = sealed({"dataset": "table"}), sealed({"dataset": "adult"})
    for name, encoding in (("first", other), ("second[1]", mine)):
        (tmp_path / name).mkdir()
        write_encoding(tmp_path / name, encoding)
        write_tiny(tmp_path / name / "train.h5", 3)
    run = tmp_path / "run"
    run.mkdir()
    keep_encoding([str(tmp_path / "first" / "*.h5")], mine["digest"], run)
    keep_encoding([str(tmp_path / "*" / "train.h5")], None, run)
    assert not list(run.iterdir())
    keep_encoding([str(tmp_path / "f*" / "*.h5"), str(tmp_path / "second[1]" / "*.h5")], mine["digest"], run)
    assert read_encoding(run) == mine


def test_files_of_different_encodings_are_refused_by_name(tmp_path: Path) -> None:
    paths = [
        write_tiny(tmp_path / f"{i}.h5", 3, encoding=encoding) for i, encoding in enumerate([None, A, A, B])
    ]
    assert open_source(paths[1:3]).schema.encoding == A
    expected = rf"3\.h5: got encoding {B[:12]}, expected {A[:12]} as of .*1\.h5.*--encoding DIR"
    for some in (paths[1:], paths):
        with pytest.raises(UserError, match=expected):
            open_source(some)


def test_files_that_name_no_encoding_go_together_and_a_mix_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [write_tiny(tmp_path / f"{i}.h5", 3, encoding=e) for i, e in enumerate([None, None, A])]
    with caplog.at_level(logging.WARNING, "persia_hpc"):
        assert open_source(paths[:2]).schema.encoding is None
        assert not caplog.records
        assert open_source(paths).schema.encoding == A
    assert f"{paths[0]} (and 1 more) names no encoding, {paths[2]} does" in caplog.text


def unlabelled(path: Path, rows: int = 5, **changes: Any) -> SampleBatch:
    lengths = np.arange(rows)
    batch = SampleBatch(
        {
            "tags": IdColumn.from_lengths(np.arange(lengths.sum(), dtype=np.uint64), lengths),
            "user": IdColumn(np.arange(rows, dtype=np.uint64)),
        },
        np.ones((rows, 1), np.float32),
        np.empty((rows, 0), np.float32),
    )
    with DatasetWriter(path, dataclasses.replace(NAMES, **changes)) as writer:
        writer.write(batch)
    return batch


def test_samples_without_labels_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    batch = unlabelled(path)
    with h5py.File(path) as file:
        assert "label" not in file
    source = open_source([str(path)])
    assert source.schema.label_names == ()
    assert_equal(source.read(0, 5), batch)
    assert source.read(1, 3).labels.shape == (2, 0)


def test_labels_and_their_lack_differ_in_labels_only(tmp_path: Path) -> None:
    paths = [write_tiny(tmp_path / f"{i}.h5", 9, labels=i == 0) for i in range(2)]
    batch = tiny_batch(9)
    got = open_source(paths[1:]).read(0, 9)
    assert_equal(dataclasses.replace(got, labels=batch.labels), batch)
    with pytest.raises(UserError, match=r"got labels \[\], expected \['label'\]"):
        open_source(paths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.attrs.__delitem__("num_samples"), "not a persia-hpc dataset.*num_samples"),
        (lambda f: f.attrs.__setitem__("label_names", ["click"]), "not a persia-hpc dataset"),
        (lambda f: f.attrs.__setitem__("num_samples", 4), "expected 5, one more than .*num_samples"),
        (lambda f: f.attrs.__setitem__("num_samples", 0), "zero samples"),
        (lambda f: f.__delitem__("dense"), "expected 0, one for each column"),
    ],
)
def test_damage_of_a_file_without_labels_is_found(tmp_path: Path, change: Any, message: str) -> None:
    unlabelled(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        change(file)
    with pytest.raises(UserError, match=message):
        scan(str(tmp_path / "a.h5"))


def test_a_file_with_a_count_and_nothing_else_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("ids")
        file.attrs["schema_version"], file.attrs["num_samples"] = 1, 1 << 40
    with pytest.raises(UserError, match="neither features nor columns"):
        scan(str(tmp_path / "a.h5"))


def test_a_replaced_file_without_labels_is_found(tmp_path: Path) -> None:
    unlabelled(tmp_path / "a.h5")
    info = scan(str(tmp_path / "a.h5"))
    OpenFile(info, info.schema.features, True, 1 << 20).close()
    unlabelled(tmp_path / "a.h5", 6)
    with pytest.raises(DataError, match="got 6 rows, expected rows 0 to 5"):
        OpenFile(info, info.schema.features, True, 1 << 20)
