"""Readers on one host share the memory of rows, by the kernel's account of two that have looked up all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import persia_hpc as ph
from tests.support.served import write_export
from tests.support.tiny import tiny_config, write_tiny

LOOK_UP_ALL = """
import gc
import sys
from pathlib import Path
import numpy as np
import persia_hpc as ph

def own():  # bytes of this process that are no file's
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Anonymous:"))

ph.Reader(sys.argv[1], follow=False).rows("item", [1])  # imports what it needs
gc.collect()
before = own()
reader, found = ph.Reader(sys.argv[1], follow=False), 0
for begin in range(0, int(sys.argv[2]), 1000):
    found += np.count_nonzero(reader.rows("item", np.arange(begin, begin + 1000)).values.any(axis=1))
print(found, own() - before, flush=True)
sys.stdin.read()
"""


def mapped_bytes(pid: int, folder: Path, field: str) -> int:
    """Returns what a process has of a folder's files in memory, as the kernel counts it in `field`."""
    total, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):  # a mapping begins
            inside = bool(values) and values[-1].startswith(f"{folder}/")
        elif inside and name == f"{field}:":
            total += int(values[0]) << 10
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel doesn't tell")
def test_readers_of_a_host_share_the_memory_of_rows(tmp_path: Path) -> None:
    """Two hold as much as the files, together; of its own each has little."""
    data = write_tiny(tmp_path / "train.h5", 30_000, vocabulary=100_000)
    tables = {"tables.item.dim": 64, "tables.item.capacity": "64 MiB"}
    change = {"run_dir": str(tmp_path / "run"), "data.batch_size": 5000, "data.block_rows": 5000}
    ph.train(tiny_config(data, **tables, **change), quiet=True)
    write_export(tmp_path / "export", tmp_path / "run" / "latest")
    command = [sys.executable, "-c", LOOK_UP_ALL, str(tmp_path / "export"), "100000"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    readers = [subprocess.Popen(command, **pipes) for _ in range(2)]
    try:
        told = [[int(value) for value in reader.stdout.readline().split()] for reader in readers]
        (base,) = (tmp_path / "export").glob("base-*/*.rows")
        size = base.stat().st_size
        counts = [[mapped_bytes(r.pid, tmp_path, field) for r in readers] for field in ("Rss", "Pss")]
    finally:
        for reader in readers:
            reader.communicate()
    resident, shares = counts
    assert all(found > 40_000 and own < size / 4 for found, own in told), (told, size)
    assert size > 10 << 20
    assert all(size <= each < 1.05 * size + (1 << 20) for each in resident), (resident, size)
    assert sum(shares) < 1.05 * size + (1 << 20), (shares, size)
