"""Tells ranks and supervisor, through the run directory, who runs where and what went wrong.

RUN/ranks/<world_rank>.json   pid, host, role of a rank, and whether it came to its end
RUN/ranks/<world_rank>.alive  a FIFO that the rank holds open until it dies, its *beacon* (deaths.py)
RUN/failure.json              the first failure of the job; later ones don't replace it
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persia_hpc.durable import partial_of, replacing
from persia_hpc.errors import EXIT_FAILURE, PersiaError
from persia_hpc.printable import LINES, printable
from persia_hpc.reporting.run_files import read_object

from .environment import SUPERVISED, supervised

_BEACON_FD = 500  # at least; the usual limit is 1024


@dataclass(frozen=True)
class RankRecord:
    """Holds one rank as it registered itself; role and role_rank are None until the roles are known."""

    world_rank: int
    pid: int
    host: str
    pid_namespace: str
    start_ticks: int  # tells a process from a later one with the same pid
    role: str | None = None
    role_rank: int | None = None
    finished: bool = False
    job: str | None = None  # as its supervisor calls it

    @property
    def is_local(self) -> bool:
        """Says whether `pid` means something in this process' view."""
        return (self.host, self.pid_namespace) == _place()

    def is_alive(self) -> bool:
        """Says whether the very process still runs (a zombie doesn't). Only for local ranks."""
        stat = process_stat(self.pid)
        return stat is not None and stat.start_ticks == self.start_ticks and stat.state not in "ZX"

    def __str__(self) -> str:
        role = "" if self.role is None else f"{self.role} {self.role_rank}, "
        return f"rank {self.world_rank} ({role}pid {self.pid})"


@dataclass(frozen=True)
class ProcessStat:
    """Holds state letter, parent, start time and exit status (only for zombies; as of waitpid) of a pid."""

    state: str
    parent: int
    start_ticks: int
    exit_status: int


def process_stat(pid: int) -> ProcessStat | None:
    """Reads /proc/PID/stat; returns None when there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return ProcessStat(fields[0], int(fields[1]), int(fields[19]), int(fields[49]))


def register_rank(
    run_dir: str | Path, world_rank: int, role: str | None = None, role_rank: int | None = None
) -> None:
    """Records the calling process in `run_dir/ranks`; again when its role is known."""
    old = read_object(Path(run_dir) / "ranks" / f"{world_rank}.json")[0]
    if old.get("pid") != os.getpid() and supervised():  # else nobody looks at the beacon
        _light_beacon(beacon_path(run_dir, world_rank))
    _write_record(run_dir, world_rank, role, role_rank, finished=False)


def beacon_path(run_dir: str | Path, world_rank: int) -> Path:
    """Returns the FIFO that a rank holds open until it dies."""
    return Path(run_dir) / "ranks" / f"{world_rank}.alive"


def _light_beacon(path: Path) -> None:
    with contextlib.suppress(OSError):  # a file system may have no FIFOs: deaths are then told less exactly
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        # Never closed. A dying process closes high descriptors first (task_work_run in the kernel), so this
        # one before the launcher's.
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _BEACON_FD)
            os.close(fd)


def finish_rank(run_dir: str | Path, world_rank: int) -> None:
    """Notes that the calling rank came to its end, so that the end of its process is no failure."""
    old = read_object(Path(run_dir) / "ranks" / f"{world_rank}.json")[0]
    _write_record(run_dir, world_rank, old.get("role"), old.get("role_rank"), finished=True)
    with contextlib.suppress(OSError):  # a supervisor that watches it has it open
        beacon_path(run_dir, world_rank).unlink()


def read_ranks(run_dir: str | Path, job: str | None = None) -> dict[int, RankRecord]:
    """Returns all ranks registered so far by world rank; with `job` none of another job."""
    out = {}
    for path in (Path(run_dir) / "ranks").glob("[0-9]*.json"):
        values = read_object(path)[0]
        kinds = {"world_rank": int, "pid": int, "host": str, "pid_namespace": str, "start_ticks": int}
        if not all(isinstance(values.get(name), kind) for name, kind in kinds.items()):
            continue
        with contextlib.suppress(TypeError):
            record = RankRecord(**values)
            if job is None or record.job in (None, job):
                out[record.world_rank] = record
    return out


class _RankLog(logging.FileHandler):
    """Writes a rank's log and drops what the disk doesn't take: a full disk must not hide why a job fails."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Keeps logging's traceback off the screen."""


def start_log(run_dir: str | Path, world_rank: int) -> None:
    """Sends what this rank logs from now on to `run_dir/logs`."""
    path = Path(run_dir) / "logs" / f"rank-{world_rank:04d}.log"
    path.parent.mkdir(exist_ok=True)
    handler = _RankLog(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("persia_hpc")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def report_failure(
    run_dir: str | Path, world_rank: int, role: str | None, error: BaseException, *, supervised: bool
) -> int:
    """Records why the job fails and, unless a supervisor does so, says it; returns the job's exit code.

    Only the job's first failure is said: the others mostly follow from it, and are in their ranks' logs.
    """
    code, message, details = EXIT_FAILURE, f"{type(error).__name__}: {error}", ""
    if isinstance(error, PersiaError):
        code, message = error.exit_code, str(error)
    else:
        details = "".join(traceback.format_exception(error))
    logging.getLogger("persia_hpc").error("%s", details or message)
    if type(error).__module__.partition(".")[0] in ("mpi4py", "horovod"):  # mostly not this rank's fault
        cause = (str(error).split("\n") or [""])[-1].partition("): ")
        message = f"communication failed ({(cause[2] or cause[0]).strip()}); a rank or node may have died"
        details = ""
    recorded = supervised
    try:
        first = write_failure(run_dir, world_rank, role, code, message, details)
    except OSError:  # the disk may be what fails
        first, recorded, details = True, False, ""
    sys.stdout.flush()
    # The supervisor says it last, from the record: launchers drop unwritten output when a rank aborts.
    if first and not recorded:
        print(f"{details}persia-hpc: error: {printable(message, LINES)}", file=sys.stderr, flush=True)
        time.sleep(0.2)
    return code


def write_failure(
    run_dir: str | Path, world_rank: int, role: str | None, code: int, message: str, details: str = ""
) -> bool:
    """Records why the job fails: exit code, one clear message, for errors of the user's code a traceback.

    The first writer wins; returns False for the others.
    """
    values = {
        "world_rank": world_rank,
        "role": _plain(role),
        "code": int(code),
        "message": str(message),
        "details": details,
        "time": time.time(),
    }
    target = Path(run_dir) / "failure.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    # A thread may fail beside another.
    temporary = Path(partial_of(f"{target}.{threading.get_native_id()}"))
    try:
        temporary.write_text(json.dumps(values))
        os.link(temporary, target)  # unlike rename, fails if the target exists
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def read_failure(run_dir: str | Path) -> dict[str, Any] | None:
    """Returns failure.json (world_rank, role, code, message, details, time); None without a whole one."""
    values = read_object(Path(run_dir) / "failure.json")[0]
    kinds = {"world_rank": int, "code": int, "message": str, "time": float}
    return values if all(isinstance(values.get(name), kind) for name, kind in kinds.items()) else None


def read_summary(run_dir: str | Path) -> dict[str, Any] | None:
    """Returns the content of summary.json, None while there is none."""
    return read_object(Path(run_dir) / "summary.json")[0] or None


def _write_record(
    run_dir: str | Path, world_rank: int, role: Any, role_rank: int | None, *, finished: bool
) -> None:
    host, namespace = _place()
    stat = process_stat(os.getpid())
    values = {
        "world_rank": world_rank,
        "pid": os.getpid(),
        "host": host,
        "pid_namespace": namespace,
        "start_ticks": stat.start_ticks if stat else 0,
        "role": _plain(role),
        "role_rank": role_rank,
        "finished": finished,
        "job": os.environ.get(SUPERVISED),
    }
    target = Path(run_dir) / "ranks" / f"{world_rank}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:  # of use only while the job lives, so it need not be durable
        partial.write_text(json.dumps(values))


def _plain(role: Any) -> str | None:
    return None if role is None else str(getattr(role, "value", role))


def _place() -> tuple[str, str]:
    try:
        return socket.gethostname(), os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname(), ""
