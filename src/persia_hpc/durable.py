"""Writes files so that they outlive a crash."""

from __future__ import annotations

import glob
import io
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import PersiaError

PARTIAL = ".partial"
LEFT_SECONDS = 86_400  # a partial file of another host without a write for this long has no writer any more


def file_system(path: str | os.PathLike[str], mounts: Path = Path("/proc/self/mounts")) -> str:
    """Returns the type of the file system that a path is on, such as "ext4"; "" if the system doesn't say."""
    kinds = {}
    with suppress(OSError):
        for line in mounts.read_bytes().splitlines():
            _, point, kind, *_ = line.split(b" ")
            named = re.sub(rb"\\([0-7]{3})", lambda digits: bytes([int(digits[1], 8)]), point)
            kinds[Path(os.fsdecode(named))] = kind.decode()  # the last one mounted there is on top
    real = Path(path).resolve()
    return next((kinds[at] for at in (real, *real.parents) if at in kinds), "")


def sync_path(path: str | Path) -> None:
    """Makes what was written to a file durable, or, of a directory, what was created or renamed in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def partial_of(path: str | Path) -> str:
    """Returns where this process writes the file until it is complete; no other process writes there."""
    return f"{path}.{socket.gethostname()}.{os.getpid()}{PARTIAL}"


class ErrorKeeper(io.FileIO):
    """Is a file that HDF5 writes through, whose writes seem to succeed: what failed first is kept.

    HDF5 doesn't get over a write that fails: closing the file then ends the process by a signal.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Writes all of the data, or none any more after an error."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        while len(rest) and self.error is None:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self.error = error
        return size

    def truncate(self, size: int | None = None, /) -> int:
        """Changes the length."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def readinto(self, buffer: Any, /) -> int:
        """Reads back what HDF5 has written: zeros where that failed."""
        count = super().readinto(buffer) or 0
        if self.error is None:
            return count
        view = memoryview(buffer).cast("B")
        view[count:] = bytes(len(view) - count)
        return len(view)

    def check(self) -> None:
        """Raises the OSError that was kept, if there is one."""
        if self.error is not None:
            raise self.error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the path of a file to write, which then takes the place of `path`, unless writing fails.

    Readers never see an incomplete file; but only `replace_whole` makes it survive a crash.
    """
    partial = Path(partial_of(path))
    partial.unlink(missing_ok=True)  # of a process with the same number, or a link to somewhere
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with suppress(OSError):  # the error that is under way says more
            partial.unlink(missing_ok=True)


def replace_whole(path: Path, data: bytes) -> None:
    """Writes the file so that after a crash it is either complete or as it was before.

    Raises PersiaError if it can't be written.
    """
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_path(path.parent)
    except OSError as error:
        raise PersiaError(
            f"{path}: can't write it: {error.strerror}; make room, or repair the disk"
        ) from error


def own_file(path: Path) -> None:
    """Replaces a link by a copy of its file, so that changing the file in place changes no other.

    A link to anything but a file is removed, and so is a FIFO or socket: to open it would take for ever.
    """
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    link = stat.S_ISLNK(info.st_mode)
    if (link and not path.is_file()) or stat.S_ISFIFO(info.st_mode) or stat.S_ISSOCK(info.st_mode):
        path.unlink()
    elif link or (stat.S_ISREG(info.st_mode) and info.st_nlink > 1):
        with replacing(path) as partial:
            shutil.copyfile(path, partial)


def remove_left_partials(path: str | Path) -> None:
    """Removes partial files of this path whose writers have died, as far as this host can tell."""
    for found in glob.glob(f"{glob.escape(str(path))}.*{PARTIAL}"):
        host, _, pid = found[len(str(path)) + 1 : -len(PARTIAL)].rpartition(".")
        if not pid.isdigit():
            continue
        with suppress(OSError):  # somebody else removed it
            dead = host == socket.gethostname() and not _lives(int(pid))
            if dead or time.time() - os.stat(found).st_mtime > LEFT_SECONDS:
                os.unlink(found)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
