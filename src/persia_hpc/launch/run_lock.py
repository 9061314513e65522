"""Keeps a run directory for one job at a time, on all hosts that share it.

RUN/run.lock  locked by one process of the job (the supervisor; without one, rank 0) as long as it lives; its
              text says which. The kernel, or the file server of a dead host, drops the lock with the process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
import re
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from persia_hpc.errors import UserError
from persia_hpc.printable import printable
from persia_hpc.reporting.run_files import read_object

from .environment import slurm_job_id

LOCK = "run.lock"
TEXT_SECONDS = 1.0  # a new holder writes its text at once, but after it has the lock
# A file server drops a dead host's locks when its lease ends: mostly after 90 s (NFSv4), or 100 s (Lustre).
LEASE_SECONDS = 150.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_HOST_ONLY = re.compile(r"\b(localflock|nolock|local_lock=(?:all|flock))\b")


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Holds the directory's lock for the time of the context.

    Inside a Slurm job it waits for a holder on another host, which may be a node that has died. Where the
    file system has no locks, or keeps them to one host, it says so and goes on.

    Raises UserError, which names the holder, if another job has it, or if it can't be written.
    """
    path, taker = run_dir / LOCK, os.getpid()
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise UserError(_unusable(run_dir, error)) from None
    try:  # whoever forks from here on shares the lock, but who is executed doesn't get the file
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise UserError(f"{path} is not a file; remove it")
        if _lock(file, run_dir):
            try:
                _write(file, json.dumps(_myself()))
                os.fsync(file)  # else another host would see it only when NFS gets round to it
            except OSError as error:
                raise UserError(_unusable(run_dir, error)) from None
        yield
        with contextlib.suppress(OSError):  # for people: what counts is the lock
            _write(file, "")
    finally:
        if os.getpid() == taker:  # closing alone leaves it to children that were forked meanwhile
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)


def holder(run_dir: Path) -> dict[str, Any] | None:
    """Returns who has taken the lock and not given it back (host, pid, user, job, since); None if unknown."""
    return read_object(run_dir / LOCK)[0] or None


def _lock(file: int, run_dir: Path) -> bool:
    """Takes the lock; returns False where there is none to be had."""
    begin, waits = time.monotonic(), False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in _NO_LOCKS:
                _say(f"{run_dir}: its file system has no locks ({error.strerror}): start no other job there")
                return False
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(_unusable(run_dir, error)) from None
        who, waited = holder(run_dir), time.monotonic() - begin
        remote = who is not None and who.get("host") != socket.gethostname()
        patience = LEASE_SECONDS if remote and "SLURM_JOB_ID" in os.environ else TEXT_SECONDS * (who is None)
        if waited >= patience:
            raise UserError(_in_use(run_dir, who, remote))
        if remote and not waits:
            waits = True
            _say(f"{run_dir} is in use {_told(who)}; waits {patience:.0f} s, in case that host is dead")
        time.sleep(0.05 if who is None else 1.0)
    option = host_only(run_dir)
    if option:
        _say(f"{run_dir}: locks hold on this host only ({option}): start no job there from another one")
    return True


def _write(file: int, text: str) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, text.encode(), 0)


def _myself() -> dict[str, Any]:
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # containers run under numbers without names
        user = str(os.geteuid())
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    job = slurm_job_id()
    return {"host": socket.gethostname(), "pid": os.getpid(), "user": user, "job": job, "since": since}


def _told(who: dict[str, Any] | None) -> str:
    if who is None:
        return "by a job that hasn't said who it is"
    job = "" if who.get("job") is None else f", Slurm job {who['job']}"
    text = f"by pid {who.get('pid')} on {who.get('host')} (user {who.get('user')}{job}), "
    return printable(f"{text}since {who.get('since')}")


def _in_use(run_dir: Path, who: dict[str, Any] | None, remote: bool) -> str:
    dead = f" (if that host is dead for good, remove {run_dir / LOCK})" if remote else ""
    return f"{run_dir} is in use {_told(who)}; wait for its end{dead}, or choose another --run-dir"


def _unusable(run_dir: Path, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return f"{run_dir / LOCK} is a link, which is not followed; remove it"
    if error.errno == errno.EISDIR:
        return f"{run_dir / LOCK} is a folder; remove it"
    problem = f"can't write into the run directory {run_dir}: {error.strerror}"
    return f"{problem}; make room or choose another --run-dir"


def host_only(run_dir: Path) -> str | None:
    """Returns the mount option that keeps locks from other hosts; None if there is none."""
    try:
        device = run_dir.stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    number = f"{os.major(device)}:{os.minor(device)}"
    for fields in (line.split() for line in mounts):
        found = _HOST_ONLY.search(fields[-1]) if fields[2] == number else None
        if found:
            return found.group(1)
    return None


def _say(text: str) -> None:
    print(f"persia-hpc: {printable(text)}", file=sys.stderr, flush=True)
