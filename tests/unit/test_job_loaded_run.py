"""Predictions take their place whole: a write that fails leaves an older file as it was."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.errors import PersiaError
from persia_hpc.job.predictions import write_hdf5
from persia_hpc.samples.source import open_source
from persia_hpc.trainer.session import Session
from tests.support.tiny import tiny_config, write_tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("run")
    data = write_tiny(folder / "train.h5", 60)
    ph.train(tiny_config(data, run_dir=str(folder / "run")), quiet=True)
    return folder / "run", data


@pytest.mark.parametrize("name", ["scores.csv", "scores.h5", "scores.parquet"])
def test_a_write_that_fails_leaves_the_older_file(
    name: str, run: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, out = ph.load(run[0]), tmp_path / name
    assert loaded.predict([run[1]], out) == 60
    before = out.read_bytes()
    whole = Session.predictions

    def breaks(self: Session, *arguments: Any) -> Iterator[Any]:
        yield next(iter(whole(self, *arguments)))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Session, "predictions", breaks)
    with pytest.raises(PersiaError, match=f"{name}: can't write it: No space left on device; .*as it was"):
        loaded.predict([run[1]], out)
    assert out.read_bytes() == before
    assert os.listdir(tmp_path) == [name]


def test_below_hdf5_a_failed_write_is_one_error() -> None:
    """HDF5 itself would end the process when it closes the file."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    scores = np.zeros((1, 1), np.float32)
    with pytest.raises(OSError, match="No space left on device"):
        write_hdf5(iter([({}, scores)]), full, ["label"], {})


@pytest.mark.parametrize("end", ["csv", "h5", "parquet"])
def test_columns_of_the_samples_stand_beside_their_predictions(end: str, tmp_path: Path) -> None:
    groups = [i // 7 - 3 for i in range(60)]
    data = write_tiny(tmp_path / "train.h5", 60, times=range(1000, 1060), groups=groups)
    changes = {"data.evaluate_batch_size": 17, "data.transform": "tests.support.transforms:high_ids"}
    ph.train(tiny_config(data, run_dir=str(tmp_path / "run"), **changes), quiet=True)
    run, out = ph.load(tmp_path / "run"), tmp_path / f"scores.{end}"
    assert run.predict([data], tmp_path / "plain.csv") == 60
    expected = np.loadtxt(tmp_path / "plain.csv", delimiter=",", skiprows=1, dtype=np.float32)
    command = ["predict", str(tmp_path / "run"), "--data", data, "--out", str(out)]
    assert main([*command, "--columns", "user", "time", "group", "item"]) == 0
    if end == "csv":
        assert out.read_text().splitlines()[0] == "user,time,group,item,label"
        found = np.loadtxt(out, delimiter=",", skiprows=1)
        columns = dict(zip(("user", "time", "group", "item"), found.T, strict=False))
        scores = found[:, 4].astype(np.float32)
    elif end == "h5":
        with h5py.File(out) as file:
            columns = {name: values[:] for name, values in file["columns"].items()}
            scores = file["probability"][:, 0]
        assert columns["user"].dtype == np.uint64
    else:
        frame = pl.read_parquet(out)
        assert frame.columns == ["user", "time", "group", "item", "label"]
        assert frame.schema["item"] == pl.UInt64
        columns = {name: frame[name].to_numpy() for name in frame.columns[:4]}
        scores = frame["label"].to_numpy()
    assert np.array_equal(scores, expected)
    samples = open_source([data]).read(0, 60)
    assert np.array_equal(columns["time"], np.arange(1000, 1060))
    assert np.array_equal(columns["group"], groups)
    for name in ("user", "item"):
        assert np.array_equal(columns[name], samples.ids[name].values)


def test_a_single_string_is_one_file_or_column(run: tuple[Path, str], tmp_path: Path) -> None:
    loaded = ph.load(run[0])
    assert loaded.predict(run[1], tmp_path / "one.csv", "item") == 60
    assert loaded.predict([run[1]], tmp_path / "list.csv", ["item"]) == 60
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "list.csv").read_text()
    found = [loaded.importance("train", repeats=1, only=only) for only in ("item", ["item"])]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["usr"], "--columns usr: expected features with one id, group or time, as the data have them: item"),
        (["tags"], "--columns tags: has several ids a sample"),
        (["time"], "--columns time: expected features"),
        (["item", "item"], "two columns of that name"),
    ],
)
def test_columns_that_are_none_are_refused(
    columns: list[str], message: str, run: tuple[Path, str], tmp_path: Path
) -> None:
    with pytest.raises(ph.UserError, match=message):
        ph.load(run[0]).predict([run[1]], tmp_path / "scores.csv", columns)
    assert not os.listdir(tmp_path)
