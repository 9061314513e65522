"""Measures what a directory's drive does: random reads of 4 KiB, some at a time, and fsync."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from persia_hpc.durable import file_system

READ_BYTES, FILE_BYTES = 4096, 256 << 20
DEPTHS = (1, 16, 64)  # reads under way at a time
_SECONDS = 0.4  # of reads at each depth
_FSYNCS, _CHUNK = 15, 4 << 20


@dataclass(frozen=True)
class DiskSpeed:
    """Holds what was measured; direct: past the page cache, which this file system may not know how to do.

    reads: a second, by how many are under way. fsync_seconds: the median, of 4 KiB that were just written.
    """

    reads: dict[int, float]
    fsync_seconds: float
    direct: bool


def measure_disk(folder: Path, *, file_bytes: int = FILE_BYTES, seconds: float = _SECONDS) -> DiskSpeed:
    """Writes a file without a name there, and reads it; it takes some seconds, of which `seconds` a depth.

    Raises OSError for what the system refuses.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        chunk = os.urandom(_CHUNK)
        for _ in range(max(1, file_bytes // _CHUNK)):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        with _reader(file.fileno()) as (reader, direct):
            pages = os.fstat(reader).st_size // READ_BYTES
            reads = {depth: _read_for(seconds, reader, pages, depth) for depth in DEPTHS}
        times = []
        for _ in range(_FSYNCS):
            os.pwrite(file.fileno(), chunk[:READ_BYTES], 0)
            begin = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begin)
    return DiskSpeed(reads, sorted(times)[_FSYNCS // 2], direct)


def is_memory(folder: Path) -> bool:
    """Returns whether a directory's files are kept in memory, as far as the system says."""
    return file_system(folder) in ("tmpfs", "ramfs")


@contextlib.contextmanager
def _reader(file: int) -> Iterator[tuple[int, bool]]:
    """Opens a file again for reads past the page cache, or with nothing of it there; and says which."""
    path = f"/proc/self/fd/{file}"
    try:
        reader, direct = os.open(path, os.O_RDONLY | os.O_DIRECT), True
    except OSError:  # tmpfs, and some network file systems
        reader, direct = os.open(path, os.O_RDONLY), False
        os.posix_fadvise(reader, 0, 0, os.POSIX_FADV_RANDOM)
    try:
        os.posix_fadvise(reader, 0, 0, os.POSIX_FADV_DONTNEED)
        yield reader, direct
    finally:
        os.close(reader)


def _read_for(seconds: float, file: int, pages: int, threads: int) -> float:
    """Returns the reads a second of so many threads, each of which has one read under way."""
    random = np.random.default_rng(threads)
    orders = [(random.permutation(pages) * READ_BYTES).tolist() for _ in range(threads)]
    end = time.perf_counter() + seconds

    def read(order: list[int]) -> int:
        with mmap.mmap(-1, READ_BYTES) as page:  # aligned, as O_DIRECT wants it
            for done, place in enumerate(order):
                if done and time.perf_counter() >= end:  # threads may begin late
                    return done
                os.preadv(file, [page], place)
        return len(order)

    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(read, orders))
        return done / (time.perf_counter() - begin)
