"""Directories of checkpoints: what is removed is a run's own, links are not followed, nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

import persia_hpc as ph
from persia_hpc.checkpoint.files import (
    begin_checkpoint,
    discard_partial,
    make_newest,
    prune,
    remove_checkpoint,
    whole_checkpoints,
)
from persia_hpc.checkpoint.manifest import read_manifest
from tests.support.tiny import tiny_config, write_tiny


def fill(directory: Path, *names: str) -> Path:
    directory.mkdir(parents=True)
    for name in names or ("manifest.json", "dense.pt", "server-0000.h5"):
        (directory / name).write_text(name)
    return directory


def contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): os.readlink(path) if path.is_symlink() else path.read_text()
        for path in directory.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return fill(tmp_path / "archive" / "step-00000002")


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path, archive: Path) -> None:
    before = contents(archive)
    run = tmp_path / "run"
    for step in (2, 4, 6):
        fill(run / f"step-0000000{step}")
    shutil.rmtree(run / "step-00000002")
    (run / "step-00000002").symlink_to(archive)
    (run / "step-00000008.partial").symlink_to(archive)
    (run / "step-00000004" / "dense.pt").unlink()
    (run / "step-00000004" / "dense.pt").symlink_to(archive / "dense.pt")
    assert discard_partial(run) == []
    prune(run, keep=1, keep_every=0)
    assert [path.name for path in run.iterdir()] == ["step-00000006"]
    assert contents(archive) == before


def test_what_no_run_has_written_stays(tmp_path: Path, archive: Path) -> None:
    run = tmp_path / "run"
    (run / "step-00000004.partial").mkdir(parents=True)
    (run / "step-00000004.partial" / "sub").mkdir()
    (run / "step-00000004.partial" / "sub" / "mine").write_text("mine")
    (run / "step-00000006.partial").write_text("a file")
    (run / "step-anything.partial").symlink_to(archive)
    fill(run / "step-00000008.partial", "dense.pt", "server-0000.h5.json", "notes.txt")
    fill(run / "step-00000002", "manifest.json", "dense.pt", "mine.txt")
    told = discard_partial(run)
    assert [text.split(" stays")[0].rpartition("/")[2] for text in told] == [
        "step-00000004.partial",
        "step-00000006.partial",
        "step-00000008.partial",
        "step-anything.partial",
    ]
    remove_checkpoint(run / "step-00000002")
    assert contents(run) == {
        "step-00000002/mine.txt": "mine.txt",
        "step-00000004.partial/sub/mine": "mine",
        "step-00000006.partial": "a file",
        "step-00000008.partial/notes.txt": "notes.txt",
        "step-anything.partial": str(archive),
    }
    for step in (4, 6, 8):  # and is in nobody's way
        assert list(begin_checkpoint(run, step).iterdir()) == []
    assert contents(run) == {
        "step-00000002/mine.txt": "mine.txt",
        "step-00000004.partial.kept/sub/mine": "mine",
        "step-00000006.partial.kept": "a file",
        "step-00000008.partial.kept/notes.txt": "notes.txt",
        "step-anything.partial": str(archive),
    }


def test_a_checkpoint_without_its_manifest_is_kept(tmp_path: Path) -> None:
    for name in ("step-00000002.damaged", "step-00000004.removed.partial"):
        fill(tmp_path / name)
    fill(tmp_path / "step-00000002", "dense.pt", "server-0000.h5")
    (told,) = discard_partial(tmp_path)
    assert told.endswith("step-00000002 has no manifest.json: kept as step-00000002.damaged-2")
    assert sorted(contents(tmp_path)) == [
        *(f"step-00000002.damaged-2/{name}" for name in ("dense.pt", "server-0000.h5")),
        *(f"step-00000002.damaged/{name}" for name in ("dense.pt", "manifest.json", "server-0000.h5")),
    ]


def test_an_interrupted_removal_leaves_nothing_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "step-00000002")

    def fail(path: Path, *, missing_ok: bool = False) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as changed:
        changed.setattr(Path, "unlink", fail)
        with pytest.raises(OSError, match="No space"):
            remove_checkpoint(tmp_path / "step-00000002")
    assert whole_checkpoints(tmp_path) == []
    assert discard_partial(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_newer_ones_and_copies_in_the_place_of_links_are_kept(tmp_path: Path) -> None:
    for step in (2, 4):
        fill(tmp_path / f"step-0000000{step}")
    fill(tmp_path / "step-00000004.damaged", "dense.pt")
    fill(tmp_path / "latest", "dense.pt")  # as `cp -L` makes it
    fill(tmp_path / "latest.partial", "dense.pt")
    make_newest(tmp_path / "step-00000002")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("latest", "latest.kept", "latest.partial.kept"),
        *("step-00000002", "step-00000004.damaged", "step-00000004.damaged-2"),
    ]
    assert os.readlink(tmp_path / "latest") == "step-00000002"


def test_a_run_resumes_past_all_of_it(tmp_path: Path, archive: Path, capfd: pytest.CaptureFixture) -> None:
    """And says what it left; the checkpoint without its manifest is kept, and the one before it used."""
    before = contents(archive)
    data = write_tiny(tmp_path / "train.h5", 320)
    changes = {"run_dir": str(tmp_path / "run"), "checkpoint": {"every": 2, "keep": 9, "resume": True}}
    ph.train(tiny_config(data, **{"train.epochs": 1, **changes}), quiet=True)
    run = tmp_path / "run"
    (run / "step-00000010" / "manifest.json").unlink()
    (run / "step-00000012.partial").symlink_to(archive)
    (run / "step-00000014.partial").write_text("a file")
    shutil.rmtree(run / "step-00000004")
    (run / "step-00000004").symlink_to(archive)
    summary = ph.train(tiny_config(data, **{"train.epochs": 2, **changes}), quiet=True)
    assert (summary["steps"], summary["this_run"]["steps"]) == (20, 12)
    err = capfd.readouterr().err
    assert "step-00000010 has no manifest.json: kept as step-00000010.damaged" in err
    assert "step-00000014.partial stays" in err
    assert (run / "step-00000010.damaged" / "dense.pt").exists()
    assert (run / "step-00000014.partial.kept").read_text() == "a file"
    assert contents(archive) == before


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EMFILE])
def test_nothing_is_removed_while_a_base_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The manifest of an incremental checkpoint, unreadable for a moment, doesn't cost it its base."""
    data, run = write_tiny(tmp_path / "train.h5", 320), tmp_path / "run"
    kept = {"every": 2, "full_every": 2, "keep": 9}
    ph.train(tiny_config(data, run_dir=str(run), checkpoint=kept), quiet=True)
    newest = next(p for p in whole_checkpoints(run) if read_manifest(p)["base"] is not None)
    for path in whole_checkpoints(run):
        if path.name > newest.name:
            remove_checkpoint(path)
    before, read = whole_checkpoints(run), Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.parent == newest:
            raise OSError(number, os.strerror(number))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    prune(run, keep=1, keep_every=0)
    assert whole_checkpoints(run) == before
    monkeypatch.undo()
    prune(run, keep=1, keep_every=0)
    assert [path.name for path in whole_checkpoints(run)] == [newest.name, read_manifest(newest)["base"]]
