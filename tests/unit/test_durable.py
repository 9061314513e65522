"""Files are replaced whole, by one process or by many, and a failed write leaves the old one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from persia_hpc.durable import replace_whole, replacing


def test_a_failed_write_leaves_the_old_file_and_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    replace_whole(path, b"old")

    def fail(partial: Path) -> None:
        partial.write_bytes(b"ne")
        assert partial.parent == tmp_path  # a rename across file systems would not be atomic
        assert path.read_bytes() == b"old"
        raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"), replacing(path) as partial:
        fail(partial)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_bytes() == b"old"


def test_a_file_is_replaced_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with replacing(path) as partial:
        partial.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the name is on disk before the caller continues."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        done.append("directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def note_replace(old: Path, new: Path) -> None:
        done.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    replace_whole(tmp_path / "a", b"x")
    assert done == ["file", "rename", "directory"]
