"""An export directory: what is removed is what no kept version needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from persia_hpc.serving.directory import ExportDirectory
from persia_hpc.serving.manifest import write_manifest
from persia_hpc.serving.names import MANIFEST, base_name, version_name


@pytest.fixture
def directory(tmp_path: Path) -> ExportDirectory:
    """Versions 2 to 6, of which 5 and 6 are based on base 4, those before on base 1."""
    directory = ExportDirectory(tmp_path / "export")
    for base in (1, 4):
        directory.begin(base_name(base))
        directory.finish(base_name(base))
    for number in range(2, 7):
        values = {"export": directory.export, "version": number, "step": number, "time": 1.5, "files": {}}
        path = directory.begin(version_name(number))
        write_manifest(path, {**values, "base": 1 if number < 5 else 4})
        directory.finish(version_name(number))
    return directory


def names(directory: ExportDirectory) -> set[str]:
    return {path.name for path in directory.path.glob("*-*")}


def test_keeps_what_kept_versions_need(directory: ExportDirectory) -> None:
    before = names(directory)
    directory.prune([4, 5, 6])
    assert names(directory) == before
    directory.prune([5, 6])
    assert names(directory) == {base_name(4), version_name(5), version_name(6)}


@pytest.mark.parametrize("times", [1, 99])
def test_discards_what_servers_still_begin_to_write(
    directory: ExportDirectory, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """times: how often a file appears just before the folder is to go."""
    path, left, rmdir = directory.begin(base_name(6)), [times], os.rmdir

    def write_first(*arguments: Any, **options: Any) -> None:
        if left[0]:
            left[0] -= 1
            (path / "server-0000.rows").touch()
        rmdir(*arguments, **options)

    monkeypatch.setattr(os, "rmdir", write_first)
    if times == 1:
        directory.discard(base_name(6))
        assert not path.exists()
    else:
        with pytest.raises(OSError, match="not empty"):
            directory.discard(base_name(6))


def test_a_version_that_is_not_there_needs_nothing(directory: ExportDirectory) -> None:
    (directory.path / version_name(4) / MANIFEST).unlink()
    directory.prune([4, 5, 6])
    assert names(directory) == {base_name(4), version_name(5), version_name(6)}


def test_removes_nothing_while_a_kept_version_cannot_be_read(directory: ExportDirectory) -> None:
    """As on a file system of the network that fails for a moment."""
    before = names(directory)
    manifest = directory.path / version_name(4) / MANIFEST
    content = manifest.read_bytes()
    manifest.unlink()
    manifest.mkdir()  # EISDIR, also for root
    directory.prune([4, 5, 6])
    assert names(directory) == before
    manifest.rmdir()
    manifest.write_bytes(content[:-9])
    directory.prune([4, 5, 6])
    assert names(directory) == before
