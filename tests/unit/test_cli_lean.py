"""Without hdf5plugin, polars, Horovod and matplotlib all works but what says that it needs one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from persia_hpc.samples.source import open_source
from tests.support.jobs import write_config
from tests.support.tiny import tiny_config, write_tiny

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("programs") / "lean.py"
SYNTHETIC = ["preprocess", "synthetic", "--rows", "300", "--valid-rows", "60", "--test-rows", "60"]
BENCH = ["bench", "gpu", "--device", "cpu", "--repeats", "1", "--batches", "64", "--features", "2"]
# Who may fail to import: what parses and writes tables.
TABLES = ("persia_hpc.preprocess.", "persia_hpc.checkpoint.export", "persia_hpc.samples.parquet")
WITHOUT_TABLES = ("cli", "criteo.synthetic", "label_rates", "outputs", "pieces", "sources", "synthetic")

WORKING = ("help", "preprocess help", "bench help", "synthetic", "train", "evaluate", "predict", "verify")
WORKING += ("bench gpu", "bench read")
NEEDING = {
    "adult": "polars",
    "demo": "polars",
    "table": "polars",
    "inspect": "polars",
    "init": "polars",
    "export": "polars",
    "lz4": "hdf5plugin",
}
NEEDING["parquet"] = "polars"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lean")


@pytest.fixture(scope="module")
def lean(folder: Path) -> tuple[dict[str, str], dict[str, tuple[int, str]]]:
    """(what could not be imported and for want of what; how each command ended)."""
    compressed = write_tiny(folder / "lz4.h5", 20)
    (folder / "fake.parquet").write_bytes(b"PAR1")
    parquet = tiny_config(str(folder / "fake.parquet"), **{"data.schema": "schema.toml"})
    train = tiny_config(str(folder / "data" / "train-*.h5"))
    train["features"], train["tables"] = {}, {"default": {"dim": 4, "capacity": "1 MiB"}}
    for split in ("valid", "test"):
        train["data"][split] = [str(folder / "data" / f"{split}.h5")]
    train["model"] = {"class": "dlrm"}
    run = str(folder / "run")
    once = ["--one-process", "--quiet"]
    commands = {
        "help": ["--help"],
        "preprocess help": ["preprocess", "--help"],
        "bench help": ["bench", "--help"],
        "synthetic": [*SYNTHETIC, "--features", "3", "--dense", "2", "--out", str(folder / "data")],
        "train": ["train", str(write_config(folder / "a.toml", train)), *once, "--run-dir", run],
        "evaluate": ["evaluate", run, "--split", "test"],
        "predict": ["predict", run, "--data", str(folder / "data" / "test.h5"), "--out", f"{run}/p.h5"],
        "verify": ["checkpoint", "verify", run],
        "bench gpu": [*BENCH, "--ids-per-sample", "1", "--dims", "4", "--wires", "fp16"],
        "bench read": ["bench", "read", "--repeats", "1", "--samples", "3000"],
        "adult": ["preprocess", "adult", "--out", str(folder / "adult")],
        "demo": ["demo", "--out", str(folder / "demo"), "--one-process"],
        "table": ["preprocess", "table", "a.toml", "--out", str(folder / "table")],
        "inspect": ["inspect", str(folder / "data" / "test.h5")],
        "init": ["init", str(folder / "data" / "test.h5"), "--out", str(folder / "init.toml")],
        "export": ["checkpoint", "export", run, "--out", str(folder / "t.parquet")],
        "lz4": ["train", str(write_config(folder / "b.toml", tiny_config(compressed))), *once],
        "parquet": ["train", str(write_config(folder / "c.toml", parquet)), *once],
    }
    path = [
        *(str(ROOT / part) for part in ("tests/support/lean", "", "src")),
        os.environ.get("PYTHONPATH", ""),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), json.dumps(list(commands.values()))],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    failed, ended = json.loads(done.stdout.splitlines()[-1])
    return failed, dict(zip(commands, map(tuple, ended), strict=True))


def test_only_what_parses_and_writes_tables_needs_more_than_is_there(lean: Any) -> None:
    failed, _ = lean
    assert {name for name in failed if not name.startswith(TABLES)} == set()
    assert {name.removeprefix(TABLES[0]) for name in failed} & set(WITHOUT_TABLES) == set()
    assert set(failed.values()) == {"polars"}  # which also says that the packages were hidden


@pytest.mark.parametrize("command", WORKING)
def test_commands_work_without_them(lean: Any, command: str) -> None:
    assert lean[1][command][0] == 0, lean[1][command][1]


@pytest.mark.parametrize(("command", "package"), NEEDING.items())
def test_what_needs_one_says_so_in_one_line(lean: Any, command: str, package: str) -> None:
    code, said = lean[1][command]
    assert code == 2
    assert said.count("\n") == 1
    assert said.startswith("persia-hpc: error: ")
    assert f"needs the Python package {package}, which isn't here: pip install {package}" in said


def test_polars_without_its_compiled_part_is_one_line(tmp_path: Path) -> None:
    """It imports then, and fails where it is used."""
    (tmp_path / "_polars_runtime_32").mkdir()
    (tmp_path / "_polars_runtime_32" / "__init__.py").write_text("raise ImportError")
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "persia_hpc.cli", "preprocess", "adult", "--out", str(tmp_path / "adult")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "the compiled part of the Python package polars, which isn't here" in done.stderr


def test_files_are_then_made_with_what_hdf5_has_and_read_by_all(lean: Any, folder: Path) -> None:
    assert lean[1]["synthetic"][0] == 0
    path = str(folder / "data" / "test.h5")
    with h5py.File(path) as file:
        for name in ("label", "dense", *(f"ids/{f}" for f in file["ids"])):
            assert (file[name].compression, file[name].compression_opts) == ("gzip", 0), name
    batch = open_source([path]).read(0, 60)
    assert np.isin(batch.labels, (0, 1)).all()
