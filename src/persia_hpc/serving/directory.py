"""Creates, completes and removes versions and bases in an export directory.

Whatever is named `version-NNNNNNNN` or `base-NNNNNNNN` is whole: it is written under a name of its own and
renamed. Nothing is fsynced: after a crash of the machine checksums tell, and a run that goes on begins with a
new base.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from persia_hpc.errors import DataError, UserError

from .manifest import read_version
from .names import (
    LATEST,
    LOCK,
    PARTIAL,
    is_ours,
    number_of,
    version_name,
)

_REMOVED = ".removed"
_TRIES = 5  # a server begins one file, so the next one is most likely the last


class ExportDirectory:
    """Is the directory that a run exports to, held for this run alone while it lives."""

    def __init__(self, path: Path) -> None:
        """Makes the directory if need be, and removes what an earlier run has left half-written.

        Raises UserError if it can't be written, holds something else, or another run exports to it.
        """
        self.path = path
        self.export = uuid.uuid4().hex  # another each time: whoever has the directory begins with a new base
        try:
            path.mkdir(parents=True, exist_ok=True)
            if other := [entry.name for entry in sorted(path.iterdir()) if not is_ours(entry.name)]:
                raise UserError(
                    f"export.dir {path}: {other[0]!r} is there, which no export is made of; name a folder of "
                    "its own, or move that away"
                )
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            self._lock: int | None = lock
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                raise UserError(
                    f"export.dir {path}: another run exports to it; name another folder, or end that run"
                ) from None
            except OSError:
                pass  # a file system without locks
            for entry in path.iterdir():
                if entry.name.endswith((PARTIAL, _REMOVED)):
                    _remove(entry)
        except OSError as error:
            raise UserError(
                f"export.dir {path}: can't write there ({error.strerror}); name another folder, or make it "
                "writable"
            ) from error

    def next_number(self) -> int:
        """Returns the number of the next version: greater than any that is there."""
        return max((number_of(p) for p in self._versions()), default=0) + 1

    def _versions(self) -> list[Path]:
        return [p for p in self.path.glob("version-*") if p.name == version_name(number_of(p))]

    def free_bytes(self) -> int:
        """Returns how much of its file system is free for this user; 0 where that can't be asked."""
        try:
            room = os.statvfs(self.path)
        except OSError:
            return 0
        return room.f_bavail * room.f_frsize

    def begin(self, name: str) -> Path:
        """Makes the directory in which a version or base is written until it is whole."""
        path = self.path / (name + PARTIAL)
        _remove(path)
        path.mkdir()
        return path

    def finish(self, name: str) -> None:
        """Gives a version or base that is whole its name."""
        target = self.path / name
        _remove(target)
        (self.path / (name + PARTIAL)).rename(target)

    def discard(self, name: str) -> None:
        """Removes a version or base that couldn't be finished.

        Servers may still begin files there, so that the folder isn't empty when it goes: it is tried again.
        """
        for left in reversed(range(_TRIES)):
            try:
                _remove(self.path / (name + PARTIAL))
                return
            except OSError:
                if not left:
                    raise

    def point(self, number: int) -> None:
        """Makes a version the newest: readers take it from now on."""
        aside = self.path / (LATEST + PARTIAL)
        aside.unlink(missing_ok=True)
        aside.symlink_to(version_name(number))
        aside.replace(self.path / LATEST)

    def prune(self, kept: Iterable[int]) -> None:
        """Removes versions and bases that no kept version needs, if these are the newest.

        Nothing if it can't be read what one of them needs.
        """
        bases = []
        try:
            for number in kept:
                with contextlib.suppress(FileNotFoundError):  # its number was left out, or it was removed
                    bases.append(read_version(self.path / version_name(number))["base"])
        except (OSError, DataError, UserError):
            return
        oldest = min(bases, default=0)
        for path in self.path.iterdir():
            kind, _, text = path.name.partition("-")
            end = {"base": oldest, "version": oldest + 1}.get(kind, 0)
            if text.isdigit() and int(text) < end:
                _remove(path)

    def close(self) -> None:
        """Lets others have the directory; may be called again."""
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None


class Progress:
    """Tells readers, through a mapped file, how far training is."""

    def __init__(self, path: Path) -> None:
        self._file = None
        with contextlib.suppress(OSError):  # then readers don't know the age in steps
            self._file = path.open("wb", buffering=0)

    def tell(self, step: int) -> None:
        """Writes the last finished step and the time of day."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._file.fileno(), struct.pack("<qd", step, time.time()), 0)


def _remove(path: Path) -> None:
    """Removes a version or base; what a kill leaves of it has a name that nobody takes for a whole one."""
    if path.is_symlink() or path.is_file():
        path.unlink()
        return
    if not path.is_dir():
        return
    if not path.name.endswith((PARTIAL, _REMOVED)):
        aside = path.with_name(path.name + _REMOVED)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        path = aside
    shutil.rmtree(path)
