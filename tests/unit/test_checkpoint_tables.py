"""A shard that takes rows from elsewhere, or that has rows never written, is refused by all who open it."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.errors import DataError
from tests.support.checkpoints import change_shard, persia


@pytest.fixture
def checkpoint(runs: Path, tmp_path: Path) -> Path:
    shutil.copytree(runs / "a", tmp_path / "a", symlinks=True)
    with h5py.File(tmp_path / "a" / "other.h5", "w") as other:
        other["rows"] = np.ones((10_000, 4), np.float32)
    return (tmp_path / "a" / "latest").resolve()


def linked(shard: h5py.File) -> None:
    del shard["item/rows"]
    shard["item/rows"] = h5py.ExternalLink("../other.h5", "/rows")


def linked_table(shard: h5py.File) -> None:
    shard["zz"] = h5py.ExternalLink("../other.h5", "/")


def virtual(shard: h5py.File) -> None:
    old = shard["item/rows"]
    layout = h5py.VirtualLayout(old.shape, old.dtype)
    del shard["item/rows"]
    shard.create_virtual_dataset("item/rows", layout)


def external(shard: h5py.File) -> None:
    shape = shard["item/rows"].shape
    del shard["item/rows"]
    storage = [("../other.h5", 0, int(np.prod(shape)) * 4)]
    shard.create_dataset("item/rows", shape, np.float32, external=storage)


def unwritten(shard: h5py.File) -> None:
    shape = shard["item/rows"].shape
    del shard["item/rows"]
    shard.create_dataset("item/rows", shape, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (linked, "/item/rows: got a link into another file"),
        (linked_table, "/zz: got a link into another file"),
        (virtual, "/item/rows: got a virtual dataset"),
        (external, "/item/rows: got external storage"),
        (unwritten, "/item/rows: got a dataset of shape .* with nothing written"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_such_a_shard_is_refused(
    checkpoint: Path,
    change: Callable[[h5py.File], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change_shard(checkpoint, change)  # with the checksum in the manifest
    said = f"{checkpoint / 'server-0000.h5'}: {message}.*; use an older checkpoint$"
    with pytest.raises(DataError, match=said):
        ph.load(checkpoint)
    out = checkpoint.parent / "item.parquet"
    code, _, error = persia(capsys, "export", checkpoint, "--table", "item", "--out", out)
    assert (code, out.exists()) == (3, False)
    assert re.fullmatch(f"persia-hpc: error: {said}", error.strip())
    for action, expected in (("verify", 3), ("ls", 0)):
        code, text, _ = persia(capsys, action, checkpoint)
        assert code == expected
        assert message.partition(" of shape")[0] in text


def put(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda shard: shard["item"].attrs.__setitem__(name, value)


def replaced(value: Any) -> Callable[[h5py.File], None]:
    def change(shard: h5py.File) -> None:
        del shard["item/rows"]
        if value is None:
            shard.create_group("item/rows")
        else:
            shard["item/rows"] = value

    return change


WRONG = {
    "infinite": put("dim", np.inf),
    "huge": put("num_buckets", 2**62),
    "text": put("dim", "4"),
    "list": put("optimizer", [1, 2]),
    "number": put("complete", 2.0),
    "no table": lambda shard: shard.__setitem__("zz", np.zeros(3)),
    "a group of rows": replaced(None),
    "words": replaced(["a", "b"]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_no_run_writes_is_one_line(
    checkpoint: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change_shard(checkpoint, WRONG[kind])
    with pytest.raises(DataError, match=rf"^{checkpoint}(/server-0000.h5)?: .*; use an older checkpoint$"):
        ph.load(checkpoint)
    out = checkpoint.parent / "item.parquet"
    for action in (
        ("ls", checkpoint),
        ("verify", checkpoint),
        ("diff", checkpoint, checkpoint),
        ("export", checkpoint, "--table", "item", "--out", out),
    ):
        code, text, error = persia(capsys, *action)
        assert code == (0 if action[0] == "ls" else 3)
        assert "got " in text + error or "can't be read" in text + error
