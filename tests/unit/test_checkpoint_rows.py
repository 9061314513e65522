"""A start that lacks memory or open files ends: it takes no whole checkpoint for a damaged one."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.checkpoint import manifest, parts, rows
from persia_hpc.errors import EXIT_FAILURE, PersiaError
from tests.support.checkpoints import change_shard
from tests.support.tiny import tiny_config, write_tiny

SHORT: list[Exception] = [
    MemoryError("std::bad_alloc"),
    OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
    OSError("Unable to synchronously open file (file open failed: errno = 24, error message = 'Too many')"),
    RuntimeError("can't start new thread"),
    RuntimeError("Resource temporarily unavailable"),  # std::system_error of a thread
]
OURS: list[Exception] = [AssertionError("ours"), KeyError("ours"), TypeError("ours"), ValueError("ours")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    data = write_tiny(folder / "train.h5", 320)
    ph.train(tiny_config(data, run_dir=str(folder / "run"), checkpoint={"every": 4, "keep": 9}), quiet=True)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "run", tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def resume(trained: Path, run: Path) -> dict[str, Any]:
    again = {"run_dir": str(run), "checkpoint": {"every": 4, "keep": 9, "resume": True}, "train.epochs": 2}
    return ph.train(tiny_config(str(trained / "train.h5"), **again), quiet=True)


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("step-*"))


def fail_once(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, error: Exception) -> None:
    calls, real = [], getattr(module, name)

    def failing(*arguments: Any) -> Any:
        calls.append(name)
        if len(calls) == 1:
            raise error
        return real(*arguments)

    monkeypatch.setattr(module, name, failing)


# Reading a file for its checksum starts no thread, so it can't lack one.
@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        (module, name, error)
        for module, name in ((rows, "load_table"), (parts, "open_shard"), (manifest, "file_sha256"))
        for error in SHORT
        if name != "file_sha256" or not isinstance(error, RuntimeError)
    ],
)
def test_being_short_of_something_is_no_damage(
    trained: Path, run: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, error: Exception
) -> None:
    before = checkpoints(run)
    fail_once(monkeypatch, module, name, error)
    with pytest.raises(PersiaError, match="the checkpoint may be whole") as caught:
        resume(trained, run)
    assert caught.value.exit_code == EXIT_FAILURE
    assert checkpoints(run) == before


@pytest.mark.parametrize("error", OURS, ids=repr)
def test_a_fault_of_the_program_is_no_damage(
    trained: Path, run: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The files' checksums are right."""
    before = checkpoints(run)
    fail_once(monkeypatch, rows, "load_table", error)
    with pytest.raises(type(error), match="ours"):
        resume(trained, run)
    assert checkpoints(run) == before


@pytest.mark.parametrize("error", [OSError(errno.EIO, os.strerror(errno.EIO)), *OURS], ids=repr)
def test_what_goes_wrong_with_a_damaged_file_is_damage(
    trained: Path, run: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    newest = checkpoints(run)[-1]
    if error in OURS:
        path = run / newest / "server-0000.h5"
        with h5py.File(path) as shard:
            at = shard["item/keys"].id.get_offset()
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"!!!!")
    fail_once(monkeypatch, rows, "load_table", error)
    assert resume(trained, run)["status"] == "completed"
    assert f"{newest}.damaged" in checkpoints(run)


def put(group: h5py.Group, name: str, values: Any) -> None:
    del group[name]
    group[name] = values


@pytest.mark.parametrize(
    "change",
    [
        lambda group: group.attrs.update(complete=False),
        lambda group: group.attrs.pop("dim"),
        lambda group: group.pop("ages"),
        lambda group: put(group, "ages", np.full(len(group["ages"]), np.inf)),
        lambda group: put(group, "stamps", group["stamps"][:].astype(bytes)),
        lambda group: put(group, "keys", np.arange(len(group["keys"])) * 2.5),
    ],
    ids=["changes", "dim", "ages", "endless", "text", "float"],
)
def test_values_that_no_run_writes_are_damage(trained: Path, run: Path, change: Any) -> None:
    """With the right checksum."""
    newest = checkpoints(run)[-1]

    def changed(shard: h5py.File) -> None:
        for group in shard.values():
            change(group)

    change_shard(run / newest, changed)
    assert resume(trained, run)["status"] == "completed"
    assert f"{newest}.damaged" in checkpoints(run)
