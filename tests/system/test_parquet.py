"""Training on Parquet files as they are equals training on HDF5 files, interrupted or not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.errors import DataError, UserError
from persia_hpc.preprocess.table.prepare import TableOptions, prepare
from tests.support.cases import run_cases, settings
from tests.support.jobs import write_config
from tests.support.parquet import SCHEMA, frame_of, write_parquet
from tests.support.tiny import run_digest, tiny_batch, tiny_config, write_tiny

SAMPLES = 330


class Interrupt(ph.Callback):
    """Stops the run after some step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: Any) -> None:
        if run.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_tiny(path / "train.h5", SAMPLES)
    write_parquet(path, SAMPLES)
    return path


def config(folder: Path, run_dir: Path, *, parquet: bool, **changes: Any) -> dict[str, Any]:
    data = str(folder / ("day_*.parquet" if parquet else "train.h5"))
    schema = {"data.schema": str(folder / "schema.toml")} if parquet else {}
    return tiny_config(
        data, **{"run_dir": str(run_dir), "train.epochs": 2, "data.valid": [data], **schema, **changes}
    )


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("hdf5") / "run"
    ph.train(config(folder, run_dir, parquet=False), quiet=True)
    return run_dir


def test_parquet_trains_like_hdf5_also_interrupted_in_mid_file(
    folder: Path, reference: Path, tmp_path: Path
) -> None:
    first = ph.train(config(folder, tmp_path / "run", parquet=True), callbacks=[Interrupt(8)], quiet=True)
    assert first["status"] == "interrupted"
    resumed = config(folder, tmp_path / "run", parquet=True, **{"checkpoint.resume": True})
    second = ph.train(resumed, quiet=True)
    assert second["status"] == "completed"
    assert run_digest(tmp_path / "run") == run_digest(reference)
    expected = json.loads((reference / "summary.json").read_text())
    assert second["valid"] == expected["valid"]


def test_any_number_of_workers_reads_parquet_alike(folder: Path, reference: Path, tmp_path: Path) -> None:
    data = (str(folder / "day_*.parquet"),) * 2
    schema = {"data.schema": str(folder / "schema.toml")}
    cases = [settings(data, tmp_path / str(workers), 1, workers, 1, **schema) for workers in (1, 2)]
    assert run_cases(*cases) == [run_digest(reference)] * 2


def test_a_changed_file_is_noticed_on_resume(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "data")
    data, run = tmp_path / "data", tmp_path / "run"
    ph.train(config(data, run, parquet=True), callbacks=[Interrupt(8)], quiet=True)
    again = config(data, run, parquet=True, **{"checkpoint.resume": True})
    frame = frame_of(tiny_batch(SAMPLES))[160:]
    path = data / "day_2.parquet"
    frame.write_parquet(path, row_group_size=32)  # the same samples would come in another order
    with pytest.raises(UserError, match="row groups"):
        ph.train(again, quiet=True)
    frame.with_columns(pl.col("x1") * 2).write_parquet(path, row_group_size=16)
    with pytest.raises(UserError, match=r"samples 144 to 164, .*other values"):
        ph.train(again, quiet=True)
    frame[:-1].write_parquet(path, row_group_size=16)
    with pytest.raises(UserError, match="330 there, 329 here"):
        ph.train(again, quiet=True)
    frame.write_parquet(path, row_group_size=16, compression="gzip")
    assert ph.train(again, quiet=True)["status"] == "completed"


def test_a_trained_run_scores_parquet(folder: Path, reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ph.train(config(folder, run, parquet=True), quiet=True)
    frame_of(tiny_batch(SAMPLES)).drop("label").write_parquet(tmp_path / "new.parquet", row_group_size=50)
    split = "split = { fractions = { test = 1.0 } }\n"
    (tmp_path / "later.toml").write_text(f'files = ["{folder}/day_*.parquet"]\n{split}{SCHEMA}')
    prepare(TableOptions(tmp_path / "later", tmp_path / "later.toml", encoding=run))
    scores = []
    for name, data, of in (
        ("a", tmp_path / "new.parquet", run),
        ("b", tmp_path / "later" / "test.h5", run),
        ("c", folder / "train.h5", reference),
        ("d", tmp_path / "new.parquet", reference),
    ):
        out = tmp_path / f"{name}.csv"
        other = [] if of == run else ["--schema", str(folder / "schema.toml")]
        assert main(["predict", str(of), "--data", str(data), *other, "--out", str(out)]) == 0
        scores.append(np.loadtxt(out, skiprows=1))
    np.testing.assert_array_equal(scores[0], scores[2])
    np.testing.assert_array_equal(scores[1], scores[2])
    np.testing.assert_array_equal(scores[3], scores[2])
    found = ph.load(run).evaluate("valid")
    assert found == ph.load(reference).evaluate("valid")


def test_commands_take_parquet(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pattern, schema = str(folder / "day_*.parquet"), str(folder / "schema.toml")
    shown = []
    for arguments in ([pattern, "--schema", schema], [str(folder / "train.h5")]):
        assert main(["inspect", *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        shown.append([line for line in lines if not line.startswith("encoding")])
    assert shown[0] == shown[1]
    path = write_config(tmp_path / "a.toml", config(folder, tmp_path / "run", parquet=True))
    assert main(["train", str(path), "--dry-run"]) == 0
    assert "330" in capsys.readouterr().out
    assert main(["plan", str(path), "--dense-rate", "1000"]) == 0
    capsys.readouterr()
    assert main(["inspect", pattern]) == 2
    assert "--schema" in capsys.readouterr().err


def test_portions_of_parquet_come_in_order_of_time(tmp_path: Path) -> None:
    """As they do from HDF5: rows of several files of a portion by time, resumed in the middle."""
    digests = []
    for kind in ("h5", "parquet"):
        incoming = tmp_path / kind / "in"
        incoming.mkdir(parents=True)
        for seed, times in enumerate((range(0, 200, 2), range(1, 241, 2))):
            path = incoming / f"{seed}.{kind}"
            write_tiny(tmp_path / f"{seed}.h5", len(times), seed=seed, times=times)
            if kind == "h5":
                shutil.copy(tmp_path / f"{seed}.h5", path)
            else:
                frame = frame_of(tiny_batch(len(times), seed=seed))
                frame.with_columns(at=pl.Series(times)).write_parquet(path, row_group_size=30)
        (incoming / "_END").touch()
        schema = tmp_path / kind / "schema.toml"
        schema.write_text('time = "at"\n' + SCHEMA)
        changes = {"data.follow": True, "data.shuffle": False, "run_dir": str(tmp_path / kind / "run")}
        if kind == "parquet":
            changes["data.schema"] = str(schema)
        job = tiny_config(str(incoming / f"*.{kind}"), **changes)
        first = ph.train(job, callbacks=[Interrupt(3)], quiet=True)
        assert first["status"] == "interrupted"
        job["checkpoint"] = {"resume": True}
        assert ph.train(job, quiet=True)["follow"]["portions"] == 1
        digests.append(run_digest(tmp_path / kind / "run"))
    assert digests[0] == digests[1]


def test_damage_found_while_reading_ends_the_run_in_one_line(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "data")
    frame = frame_of(tiny_batch(SAMPLES))[160:]
    frame[100, "x2"] = float("nan")
    frame.write_parquet(tmp_path / "data" / "day_2.parquet", row_group_size=16)
    with pytest.raises(
        DataError, match=r"day_2\.parquet, row 101: x2: got nan \(Float32\), expected a finite"
    ):
        ph.train(config(tmp_path / "data", tmp_path / "run", parquet=True), quiet=True)
