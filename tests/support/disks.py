"""File systems that are small, full or read-only. Needs root and mount; else the test is skipped."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[int], None]]:
    """A tmpfs at `folder` for the time of the context. What it gives fills the disk but for so many bytes;
    a negative number makes room again.
    """
    folder.mkdir(exist_ok=True)
    filler = folder / "filler"

    def fill(leave: int) -> None:
        filler.unlink(missing_ok=True)
        if leave >= 0:
            room = os.statvfs(folder)
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - leave)

    with _mounted("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)):
        yield fill


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """What is opened in `folder` from now on can't be written; root is refused too."""
    with _mounted("--bind", str(folder), str(folder)):
        _mount("-o", "remount,bind,ro", str(folder))
        yield


@contextmanager
def _mounted(*arguments: str) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("mounting file systems needs root")
    try:
        _mount(*arguments)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"file systems can't be mounted here: {getattr(error, 'stderr', error)}")
    with ExitStack() as stack:
        stack.callback(
            subprocess.run, ["umount", "--lazy", arguments[-1]], check=False, stdin=subprocess.DEVNULL
        )
        yield


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)
