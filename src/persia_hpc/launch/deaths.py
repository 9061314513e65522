"""Finds the order and cause of the deaths of local ranks, although the supervisor isn't their parent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from .registry import RankRecord, process_stat

# linux/pidfd.h, since 6.15: how a process ended, also when its parent has reaped it already.
_PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, 64 bytes)
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_INFO = struct.Struct("QQ11Ii")  # mask, cgroup id, eleven ids, exit code
_HELD_BACK_SECONDS = 1.0  # deaths wait this long for the end of a rank that began to die before


@dataclass(frozen=True)
class Death:
    """Holds how the process of a rank ended.

    `wait_status` is as of waitpid, None when the parent had reaped the process before we looked and the
    kernel can't say it any more (Linux < 6.15).
    """

    rank: RankRecord
    time: float  # time.time() when it began to die
    wait_status: int | None

    @property
    def signal(self) -> int | None:
        """Returns the signal that killed the process; None if it exited, or if that isn't known."""
        if self.wait_status is None or not os.WIFSIGNALED(self.wait_status):
            return None
        return os.WTERMSIG(self.wait_status)

    @property
    def exit_code(self) -> int | None:
        """Returns the code with which the process exited; None if it was killed, or if that isn't known."""
        if self.wait_status is None or not os.WIFEXITED(self.wait_status):
            return None
        return os.WEXITSTATUS(self.wait_status)


class DeathWatch:
    """Waits, in a thread, for processes to end.

    A launcher kills the other ranks milliseconds after the first death, and reaps the dead: a thread that
    does nothing else sees them mostly still as zombies, whose exit status can be read. Their beacons
    (registry.py) tell in which order they *began* to die: a dying process closes its files, so the launcher
    learns of it, before its end can be seen, and may on a loaded machine have killed the others in between.
    The beacon is closed before what the launcher watches, and epoll gives events in their order.
    """

    def __init__(self) -> None:
        self.deaths: list[Death] = []  # appended by the thread only
        self._epoll = select.epoll()
        self._by_beacon: dict[int, RankRecord] = {}
        self._by_pidfd: dict[int, RankRecord] = {}
        self._by_poll: dict[int, RankRecord] = {}  # without pidfd_open (Linux < 5.3): /proc, each 50 ms
        self._seen: dict[int, int] = {}
        self._began: dict[int, float] = {}  # by world rank, in order, when; until told
        self._ended: dict[int, Death] = {}
        self._closing = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._closing, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="persia-deaths", daemon=True)
        self._thread.start()

    def watch(self, rank: RankRecord, beacon: Path | None = None) -> None:
        """Starts to watch a local rank; once per process, later calls do nothing."""
        if self._seen.get(rank.world_rank) == rank.pid:
            return
        self._seen[rank.world_rank] = rank.pid
        if beacon is not None:
            with contextlib.suppress(OSError):
                fd = os.open(beacon, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self._by_beacon[fd] = rank
                self._epoll.register(fd, 0)  # a hang-up is always told
        try:
            pidfd = os.pidfd_open(rank.pid)
        except ProcessLookupError:
            self.deaths.append(Death(rank, time.time(), None))
            return
        except (AttributeError, OSError):
            self._by_poll[rank.world_rank] = rank
            return
        stat = process_stat(rank.pid)
        if stat is None or stat.start_ticks != rank.start_ticks:  # the pid is another process' by now
            os.close(pidfd)
            self.deaths.append(Death(rank, time.time(), None))
            return
        self._by_pidfd[pidfd] = rank
        self._epoll.register(pidfd, select.EPOLLIN)

    def close(self) -> None:
        """Ends the thread."""
        os.eventfd_write(self._closing, 1)
        self._thread.join(timeout=2)
        for fd in (*self._by_pidfd, *self._by_beacon, self._closing):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._epoll.close()

    def _run(self) -> None:
        while self._round(0.05):
            for world_rank, began in list(self._began.items()):
                if world_rank in self._ended:
                    self.deaths.append(self._ended.pop(world_rank))
                    del self._began[world_rank]
                elif time.time() - began < _HELD_BACK_SECONDS:
                    break

    def _round(self, seconds: float) -> bool:
        """Takes what happens within some time; returns whether to go on."""
        events = [fd for fd, _ in self._epoll.poll(seconds)]
        for fd in events:
            if fd == self._closing:
                continue
            self._epoll.unregister(fd)
            rank = self._by_beacon.pop(fd, None)
            if rank is not None:
                self._began.setdefault(rank.world_rank, time.time())
            else:
                rank = self._by_pidfd.pop(fd)
                self._record_death(rank, _status(rank, fd))
            os.close(fd)
        for rank in list(self._by_poll.values()):
            if not rank.is_alive():
                del self._by_poll[rank.world_rank]
                self._record_death(rank, _zombie_status(rank))
        return self._closing not in events

    def _record_death(self, rank: RankRecord, status: int | None) -> None:
        began = self._began.setdefault(rank.world_rank, time.time())
        self._ended[rank.world_rank] = Death(rank, began, status)


class ParentWatch:
    """Notices that the process which started this node's ranks, such as MPICH's proxy, has died before them.

    The launcher may not notice it before they end: they go on, but nothing that they print arrives.
    """

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}  # by a rank's pid
        self._orphans: set[int] = set()  # pids, as of the look before

    def look(self, ranks: Iterable[RankRecord]) -> int | None:
        """Returns the pid of a dead parent if its ranks lived at the look before and still do, else None."""
        before, self._orphans = self._orphans, set()
        for rank in ranks:
            stat = process_stat(rank.pid) if rank.is_local and not rank.finished else None
            if stat is None or stat.start_ticks != rank.start_ticks or stat.state in "ZX":
                continue
            if stat.parent != self._parents.setdefault(rank.pid, stat.parent):
                self._orphans.add(rank.pid)
        return next((self._parents[pid] for pid in before & self._orphans), None)


def lost_output(dead: int, ranks: Collection[RankRecord]) -> str:
    """Returns what it means that the parent `dead` of this node's ranks was killed."""
    here = [rank for rank in ranks if rank.is_local]
    what = "it prints"
    if len(here) < len(ranks):
        numbers = ", ".join(str(rank.world_rank) for rank in sorted(here, key=lambda r: r.world_rank))
        what = f"this node's ranks ({numbers}) print"
    return (
        f"the process that started the ranks here (pid {dead}) was killed: the run goes on, but what {what} "
        "no longer arrives"
    )


def _status(rank: RankRecord, pidfd: int) -> int | None:
    status = _zombie_status(rank)
    if status is not None:
        return status
    info = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    mask, *_, code = _PIDFD_INFO.unpack(info)
    return int(code) if mask & _PIDFD_INFO_EXIT else None


def _zombie_status(rank: RankRecord) -> int | None:
    stat = process_stat(rank.pid)
    if stat is None or stat.state not in "ZX" or stat.start_ticks != rank.start_ticks:
        return None
    return stat.exit_status
