"""Checks this machine: cores, huge pages, shared memory, limits of a process, locks of a file system."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from persia_hpc.runtime.node_memory import SHARED_MEMORY, shared_memory_room

from .doctor_lines import BAD, GOOD, NOTE, Line
from .run_lock import host_only
from .shared_memory import MPI_BYTES

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
INFINIBAND = Path("/sys/class/infiniband")
LEAST_FILES = 1024  # ranks hold data files, sockets and windows open
_ROOM = 0.75  # of what is free in shared memory: more isn't used for rings
_TRY_LOCK = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def check_machine(shared_bytes: int | None, ranks: int) -> list[Line]:
    """Returns lines on this machine. shared_bytes: what the rings of a job of so many ranks want."""
    return [*_cores(), *_huge_pages(), *_shared_memory(shared_bytes, ranks), *_limits()]


def _cores() -> list[Line]:
    cores = len(os.sched_getaffinity(0))
    if cores > 1:
        return [Line(GOOD, "cores", f"{cores} for this process")]
    return [
        Line(NOTE, "cores", "1 for this process: all ranks share it", "ask for more, e.g. --cpus-per-task")
    ]


def _huge_pages() -> list[Line]:
    mode = HUGE_PAGES.read_text().partition("[")[2].partition("]")[0] if HUGE_PAGES.exists() else "unknown"
    if mode in ("always", "madvise"):
        return [Line(GOOD, "huge pages", mode)]
    found = f"{mode}: look-ups in large tables are 2-3 times slower"
    return [Line(NOTE, "huge pages", found, f"as root: echo madvise > {HUGE_PAGES}")]


def _shared_memory(wanted: int | None, ranks: int) -> list[Line]:
    if not Path(SHARED_MEMORY).is_dir():
        fix = "mount a tmpfs there: ranks of a node share memory in it"
        return [Line(BAD, SHARED_MEMORY, "doesn't exist", fix)]
    free, size = shared_memory_room()
    text = f"{free / 2**20:.0f} MiB free of {size / 2**20:.0f}"
    if wanted is None:
        if free >= 256 << 20:
            return [Line(GOOD, SHARED_MEMORY, text)]
        fix = "docker run --shm-size=2g, or smaller rings"
        return [Line(NOTE, SHARED_MEMORY, f"{text}: rings between ranks may not fit", fix)]
    text += (
        f"; {ranks} ranks here want {wanted / 2**20:.0f} for rings, and MPI {ranks * MPI_BYTES / 2**20:.0f}"
    )
    enough = int(wanted / _ROOM) + ranks * MPI_BYTES
    remount = f"mount -o remount,size={-(-enough >> 20) + 1}m {SHARED_MEMORY}"
    fix = f"as root: {remount}; containers: --shm-size={-(-enough >> 20) + 1}m; or a smaller batch_size"
    if free < ranks * MPI_BYTES:
        return [Line(BAD, SHARED_MEMORY, f"{text}: MPI can't start", fix)]
    if free < enough:
        return [Line(NOTE, SHARED_MEMORY, f"{text}: rings get smaller, and batches come in pieces", fix)]
    return [Line(GOOD, SHARED_MEMORY, text)]


def _limits() -> list[Line]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = Line(GOOD, "open files", _limit(soft))
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        fix = f"ulimit -n {LEAST_FILES if hard == -1 else min(hard, LEAST_FILES)}"
        if hard != resource.RLIM_INFINITY and hard < LEAST_FILES:
            fix += f"; more needs `nofile {LEAST_FILES}` in /etc/security/limits.conf"
        files = Line(NOTE, "open files", f"at most {soft}: data in many files and large jobs need more", fix)
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    memory = Line(GOOD, "locked memory", _limit(locked, "bytes"))
    if locked != resource.RLIM_INFINITY and INFINIBAND.is_dir() and any(INFINIBAND.iterdir()):
        found = f"at most {locked} bytes: InfiniBand can't register windows"
        fix = (
            "ulimit -l unlimited; /etc/security/limits.conf: memlock unlimited; slurmd: LimitMEMLOCK=infinity"
        )
        memory = Line(NOTE, "locked memory", found, fix)
    lines = [files, memory]
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY:
        found = f"at most {space >> 20} MiB: tables and windows map more than they use"
        lines.append(Line(NOTE, "address space", found, "ulimit -v unlimited"))
    return lines


def _limit(value: int, unit: str = "") -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"at most {value} {unit}".strip()


def check_run_dir(run_dir: Path) -> list[Line]:
    """Returns a line on the file system of a run directory: whether it takes files and keeps locks."""
    folder = run_dir.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    what, free = "run directory", shutil.disk_usage(folder).free
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".persia-doctor-") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            other = subprocess.run(
                [sys.executable, "-c", _TRY_LOCK, file.name], capture_output=True, timeout=60, check=False
            )
    except OSError as error:
        fix = "make room or get the right to write there, or choose another --run-dir"
        return [Line(BAD, what, f"{folder} takes no files or has no locks: {error.strerror}", fix)]
    found = f"{folder}: {free / 2**30:,.1f} GiB free"
    fix = "mount it with locks (Lustre: -o flock), or never start two jobs in one run directory"
    if other.returncode == 0:
        return [Line(NOTE, what, f"{found}, but it doesn't keep locks", fix)]
    if option := host_only(folder):
        return [Line(NOTE, what, f"{found}; locks hold on this host only ({option})", fix)]
    return [Line(GOOD, what, f"{found}, locks are kept")]
