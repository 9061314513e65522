"""In which order the local ranks died, and by what: seen by the supervisor, which is not their parent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import threading
import time
from dataclasses import dataclass

from .registry import RankRecord, process_stat

# linux/pidfd.h, since 6.15: how a process ended, also when its parent has reaped it already.
_PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, 64 bytes)
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_INFO = struct.Struct("QQ11Ii")  # mask, cgroup id, eleven ids, exit code
_LAUNCHERS_SIGNALS = (9, 15)


@dataclass(frozen=True)
class Death:
    """A rank whose process ended.

    `wait_status` is as of waitpid, None when the parent had reaped the process before we looked and the
    kernel can't say it any more (Linux < 6.15).
    """

    rank: RankRecord
    time: float  # time.time()
    wait_status: int | None

    @property
    def signal(self) -> int | None:
        """The signal that killed the process, None if it exited or isn't known."""
        if self.wait_status is None or not os.WIFSIGNALED(self.wait_status):
            return None
        return os.WTERMSIG(self.wait_status)

    @property
    def exit_code(self) -> int | None:
        """The code with which the process exited, None if it was killed or isn't known."""
        if self.wait_status is None or not os.WIFEXITED(self.wait_status):
            return None
        return os.WEXITSTATUS(self.wait_status)


class DeathWatch:
    """A thread that waits for processes to end.

    A launcher kills the other ranks milliseconds after the first death, and reaps the dead: a thread that
    does nothing else sees them in order and mostly still as zombies, whose exit status can be read.
    """

    def __init__(self) -> None:
        self.deaths: list[Death] = []  # appended by the thread only
        self._epoll = select.epoll()
        self._by_pidfd: dict[int, RankRecord] = {}
        self._by_poll: dict[int, RankRecord] = {}  # without pidfd_open (Linux < 5.3): /proc, each 50 ms
        self._seen: dict[int, int] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="persia-deaths", daemon=True)
        self._thread.start()

    def watch(self, rank: RankRecord) -> None:
        """Starts to watch a local rank; once per process, later calls do nothing."""
        if self._seen.get(rank.world_rank) == rank.pid:
            return
        self._seen[rank.world_rank] = rank.pid
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
        self._closing = True
        self._thread.join(timeout=2)
        for pidfd in self._by_pidfd:
            with contextlib.suppress(OSError):
                os.close(pidfd)
        self._epoll.close()

    def _run(self) -> None:
        while not self._closing:
            deaths = self._round(0.05)
            if deaths and all(d.signal in _LAUNCHERS_SIGNALS for d in deaths):
                # A dying process closes its sockets before its end can be seen (do_exit in the kernel): on a
                # loaded machine the launcher may have killed the others in between.
                deaths += self._round(0.03)
            # Seen in one go, the order is unknown: what launchers send to the others then comes last.
            deaths.sort(key=lambda d: d.signal in _LAUNCHERS_SIGNALS)
            self.deaths += deaths

    def _round(self, seconds: float) -> list[Death]:
        ended = [fd for fd, _ in self._epoll.poll(seconds)]
        round_ = [(self._by_pidfd.pop(fd), fd) for fd in ended]
        deaths = [Death(rank, time.time(), _status(rank, fd)) for rank, fd in round_]
        for _, fd in round_:
            self._epoll.unregister(fd)
            os.close(fd)
        for rank in list(self._by_poll.values()):
            if not rank.is_alive():
                del self._by_poll[rank.world_rank]
                deaths.append(Death(rank, time.time(), _zombie_status(rank)))
        return deaths


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
