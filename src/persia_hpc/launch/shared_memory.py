"""Looks after a job's shared memory: whether MPI can start, and what it leaves behind.

MPI libraries leave their files when a rank or launcher is killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from persia_hpc.errors import UserError
from persia_hpc.runtime.node_memory import SHARED_MEMORY, UNLIMITED, shared_memory_room

from .registry import RankRecord, process_stat

MPI_BYTES = 1_100_000  # what MPICH takes there for each rank of a node at least; with less it dies by SIGBUS
ROOMY_BYTES = 64 << 20  # what containers have by default; with much less it may die as well
_CLOCK_SECONDS = 2.0  # the time of the boot is told in whole seconds
_MAPPED = re.compile(r" (/dev/shm/.+)$", re.MULTILINE)


def check_room(environment: Mapping[str, str] = os.environ) -> None:
    """Checks, before MPI starts, that it has the shared memory that it takes without asking.

    MPICH's launcher counts the ranks of each node; each of them checks. In a requeued job it first removes
    what a start before, that was killed, has left.
    Raises UserError if there is too little.
    """
    if environment.get("SLURM_RESTART_COUNT", "0").strip("0"):
        _remove_of_earlier_start()
    ranks = environment.get("MPI_LOCALNRANKS", "")
    if not ranks.isdigit() or not os.path.isdir(SHARED_MEMORY):
        return
    needed = int(ranks) * MPI_BYTES
    if shared_memory_room()[1] < needed:  # others of this job may have taken theirs by now
        raise UserError(
            f"{_room_text()}; MPI itself needs {needed} there for {ranks} of the job's ranks, and its rings "
            f"more: enlarge it (containers: --shm-size; else mount -o remount,size=64m {SHARED_MEMORY})"
        )


def _remove_of_earlier_start() -> None:
    """Removes MPICH's files of this user that no process has and that are older than this job step.

    Under srun MPICH names them by the numbers of job and step, which a requeued job keeps: its ranks would
    join a file of dead ones, and wait in MPI_Init for ever.
    """
    began, old = step_began(), []
    for path in Path(SHARED_MEMORY).glob("mpich_shm_*"):
        with contextlib.suppress(OSError):
            if path.stat().st_ctime < began - _CLOCK_SECONDS:
                old.append(str(path))
    remove_leaked(old, only_if_all_seen=True)


def step_began() -> float:
    """Returns the time at which the process began that starts this node's ranks; 0 if that isn't known.

    Behind a PID namespace's border, or when it has died, the parent is another.
    """
    if os.getppid() <= 1:
        return 0.0
    parent = process_stat(os.getppid())
    try:
        boot = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    if parent is None or boot is None:
        return 0.0
    return int(boot[1]) + parent.start_ticks / os.sysconf("SC_CLK_TCK")


def room_hint(number: int) -> str:
    """Returns what may have made a signal kill a rank of this host while MPI was starting; "" if unlikely."""
    if number not in (signal.SIGBUS, signal.SIGSEGV) or not os.path.isdir(SHARED_MEMORY):
        return ""
    size = shared_memory_room()[1]
    if size == UNLIMITED or (number == signal.SIGSEGV and size >= ROOMY_BYTES):
        return ""
    return f" while MPI was starting ({_room_text()}; give it {ROOMY_BYTES} or more)"


def _room_text() -> str:
    free, size = shared_memory_room()
    return f"{SHARED_MEMORY} of {socket.gethostname()} has {free} bytes free of {size}"


def mapped_files(pid: int) -> set[str]:
    """Returns the existing files in /dev/shm that a process maps; none if it is gone or not ours."""
    with contextlib.suppress(OSError):
        return _read_mapped(pid)
    return set()


def _read_mapped(pid: int) -> set[str]:
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {path for path in _MAPPED.findall(maps) if not path.endswith(" (deleted)")}


class SharedMemory:
    """Notes the files that a job's local ranks map, while they live."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._seen: tuple[int, int] | None = None
        self._next_look = 0.0
        self._again = False

    def look(self, ranks: Collection[RankRecord], *, at_once: bool = False) -> None:
        """Reads what the ranks map, if files have come or gone since the last look; else almost free.

        Files are made when the windows are, at any time; and a rank maps a file a little after it is made.
        """
        now = time.monotonic()
        if not at_once and now < self._next_look:
            return
        with contextlib.suppress(OSError):
            state = (os.stat("/dev/shm").st_mtime_ns, len(ranks))
            if not at_once and state == self._seen and not self._again:
                return
            self._again = state != self._seen
            self._seen = state
        self._next_look = now + 0.1
        for rank in ranks:
            if rank.is_local:
                self._files |= mapped_files(rank.pid)

    def remove_leaked(self) -> list[str]:
        """Removes the files that are left; must be called after the ranks have ended."""
        return remove_leaked(self._files)


def remove_leaked(paths: Iterable[str], *, only_if_all_seen: bool = False) -> list[str]:
    """Removes those of the files that still exist, belong to this user and that no living process maps.

    only_if_all_seen: removes none if the maps of one of this user's processes can't be read, as inside of
    some containers; for files that may be another job's.
    """
    candidates = set()
    for path in paths:
        with contextlib.suppress(OSError):
            if os.stat(path).st_uid == os.geteuid():
                candidates.add(path)
    if not candidates:
        return []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            candidates -= _read_mapped(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        except OSError:
            if only_if_all_seen and _may_be_rank(entry):
                return []
    removed = []
    for path in sorted(candidates):
        with contextlib.suppress(OSError):
            os.unlink(path)
            removed.append(path)
    return removed


def _may_be_rank(entry: os.DirEntry[str]) -> bool:
    """Says whether a process is this user's, and not init, which a container's own root may not look into."""
    if entry.name == "1":
        return False
    with contextlib.suppress(OSError):
        return entry.stat().st_uid == os.geteuid()
    return False
