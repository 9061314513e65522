"""Files are replaced whole, by one process or by many, and a failed write leaves the old one."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import h5py
import numpy as np
import pytest

from persia_hpc.durable import ErrorKeeper, file_system, own_file, replace_whole, replacing
from persia_hpc.errors import PersiaError


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


def test_an_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    replace_whole(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(PersiaError, match="a: can't write it: No space left on device"):
        replace_whole(tmp_path / "a", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def write_hdf5(target: ErrorKeeper) -> None:
    with h5py.File(target, "w", libver=("v110", "v110")) as file:
        data = file.create_dataset("x", (0, 8), "f4", maxshape=(None, 8), chunks=(64, 8), fletcher32=True)
        for end in range(64, 6400, 64):
            data.resize(end, axis=0)
            data[end - 64 :] = np.full((64, 8), end, np.float32)
        file.attrs["end"] = 6400


def test_hdf5_writes_through_a_file_that_keeps_errors(tmp_path: Path) -> None:
    with ErrorKeeper(tmp_path / "a.h5") as target:
        write_hdf5(target)
        target.check()
    with h5py.File(tmp_path / "a.h5") as file:
        assert file.attrs["end"] == 6400
        assert np.array_equal(file["x"][:, 0], np.repeat(np.arange(64, 6400, 64), 64))


def test_hdf5_gets_over_a_write_that_fails() -> None:
    """It would end this process by a signal, if it saw the error."""
    with ErrorKeeper("/dev/full") as target:
        write_hdf5(target)
    with pytest.raises(OSError, match="No space left on device"):
        target.check()


def test_only_the_first_error_is_kept_and_nothing_is_written_after_it(
    tmp_path: Path,
) -> None:
    with ErrorKeeper(tmp_path / "a") as target:
        assert target.write(b"before") == 6
        target.error = OSError(errno.EIO, "broken")
        assert target.write(b"after") == 5
        target.seek(0)
        room = bytearray(b"x" * 9)
        assert target.readinto(room) == 9
        assert bytes(room) == b"before\0\0\0"
        with pytest.raises(OSError, match="broken"):
            target.check()
    assert (tmp_path / "a").read_bytes() == b"before"


@pytest.mark.parametrize("kind", ["fifo", "socket", "link to a fifo"])
def test_what_would_be_waited_for_is_no_file_to_own(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.mkfifo(tmp_path / "fifo")
        path.symlink_to(tmp_path / "fifo")
    own_file(path)
    assert not os.path.lexists(path)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/run", "ext4"),
        ("/data", "xfs"),
        ("/data2/x", "ext4"),
        ("/data/far away/run/step-00000001", "nfs4"),
        ("/data/far", "xfs"),
        ("/data/caf\udce9/x", "fuse.sshfs"),
        ("/over/x", "cifs"),
    ],
)
def test_a_path_has_the_file_system_of_the_innermost_mount(path: str, kind: str, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_bytes(
        b"/dev/vda / ext4 rw 0 0\n/dev/b /data xfs rw 0 0\nhost:/x /data/far\\040away nfs4 rw 0 0\n"
        b"h: /data/caf\xe9 fuse.sshfs rw 0 0\n/dev/c /over ext4 rw 0 0\n//h/s /over cifs rw 0 0\n"
    )
    assert file_system(path, mounts) == kind
    assert file_system(path, tmp_path / "absent") == ""
    assert file_system("/proc/self/status") == "proc"
