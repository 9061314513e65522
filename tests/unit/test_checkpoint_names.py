"""Tables may have any name: it comes back from a checkpoint, and is no path anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.checkpoint.merged import CheckpointReader
from persia_hpc.checkpoint.tables import groups_of, open_shard
from persia_hpc.cli import main
from persia_hpc.config import load_config
from persia_hpc.errors import DataError, UserError
from tests.support.checkpoints import change_shard, sign
from tests.support.tiny import tiny_config, write_tiny

NAMES = ("a/b", ".", "100%2F", " é\n")  # of the four features' tables


def config(data: str, names: tuple[str, ...] = NAMES, **changes: Any) -> dict[str, Any]:
    made = tiny_config(data, **changes)
    made["features"] = {
        f: {"table": n} for f, n in zip(("item", "user", "tags", "history"), names, strict=True)
    }
    made["tables"] = {name: {"dim": 4, "capacity": "1 MiB", "buckets": 4} for name in names}
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("data") / "train.h5", 160)


@pytest.fixture
def run(data: str, tmp_path: Path) -> Path:
    ph.train(config(data, run_dir=str(tmp_path / "run")), quiet=True)
    return tmp_path / "run"


def test_tables_of_any_name_are_saved_read_and_resumed(
    run: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checkpoint", "verify", str(run)]) == 0
    assert set(ph.load(run).tables) == set(NAMES)
    assert main(["checkpoint", "diff", str(run), str(run)]) == 0
    out = tmp_path / "exported" / "deep"
    assert main(["checkpoint", "export", str(run), "--table", *NAMES, "--out", str(out)]) == 0
    assert len(list(out.iterdir())) == len(NAMES)
    assert list((tmp_path / "exported").iterdir()) == [out]
    capsys.readouterr()
    again = config(data, run_dir=str(run), **{"train.epochs": 2, "checkpoint": {"resume": True}})
    assert ph.train(again, quiet=True)["steps"] == 10
    other = config(data, run_dir=str(tmp_path / "other"), checkpoint={"init_from": str(run)})
    assert ph.train(other, quiet=True)["steps"] == 5


def test_older_files_have_a_group_for_each_part_of_a_name(run: Path) -> None:
    directory = (run / "latest").resolve()
    before = ph.load(directory).rows("a/b", np.arange(30))
    assert before.any()

    def nest(shard: h5py.File) -> None:
        del shard["a%2Fb"].attrs["table"]
        shard.create_group("a")
        shard.move("a%2Fb", "a/b")

    change_shard(directory, nest)
    np.testing.assert_array_equal(ph.load(directory).rows("a/b", np.arange(30)), before)
    assert main(["checkpoint", "verify", str(directory)]) == 0
    with CheckpointReader(directory) as reader:
        assert set(reader.tables) == set(NAMES)


@pytest.mark.parametrize("name", ["a\0b", "a\udc80"])
def test_a_name_that_no_file_can_hold_is_refused_before_anything_starts(name: str, data: str) -> None:
    with pytest.raises(UserError, match="can't hold this name"):
        load_config(config(data, (name, "b", "c", "d")))


def outside(shard: h5py.File, kind: str, path: Path) -> None:
    group = shard["a%2Fb"]
    rows = group["rows"][:]
    del group["rows"]
    if kind == "a link":
        group["rows"] = h5py.ExternalLink(str(path), "rows")
    elif kind == "external storage":
        group.create_dataset("rows", rows.shape, rows.dtype, external=[(str(path), 0, rows.nbytes)])
    elif kind == "a virtual dataset":
        layout = h5py.VirtualLayout(rows.shape, rows.dtype)
        layout[:] = h5py.VirtualSource(str(path), "rows", rows.shape)
        group.create_virtual_dataset("rows", layout)
    else:
        group.create_dataset("rows", rows.shape, rows.dtype, chunks=(1, rows.shape[1]))  # all zeros


@pytest.mark.parametrize("kind", ["a link", "external storage", "a virtual dataset", "nothing"])
def test_rows_that_lie_elsewhere_or_nowhere_are_refused(kind: str, run: Path, tmp_path: Path) -> None:
    directory = (run / "latest").resolve()
    shard = directory / "server-0000.h5"
    with h5py.File(tmp_path / "other.h5", "w") as other, h5py.File(shard) as file:
        other["rows"] = file["a%2Fb/rows"][:]
    with h5py.File(shard, "r+") as file:
        outside(file, kind, tmp_path / "other.h5")
    sign(directory, "server-0000.h5")
    with pytest.raises(DataError, match=r"server-0000\.h5"), open_shard(shard) as file:
        groups_of(file)
    for read in (ph.load, CheckpointReader):
        with pytest.raises(DataError, match=r"server-0000\.h5"):
            read(directory)
    assert main(["checkpoint", "verify", str(directory)]) == 3
