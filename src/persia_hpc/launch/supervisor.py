"""Starts a job with mpiexec or srun, watches its ranks, and says truthfully how it ended."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

from persia_hpc.config import Config
from persia_hpc.printable import LINES, printable
from persia_hpc.reporting.progress_line import terminal_width
from persia_hpc.runtime.stop import STOP_SIGNALS

from .deaths import Death, DeathWatch, ParentWatch, lost_output
from .environment import SUPERVISED
from .mpiexec import MPI_PYTHON, Launcher, find_launcher
from .registry import RankRecord, beacon_path, read_ranks
from .relay import Relay
from .run_dir import run_directory, write_config
from .shared_memory import SharedMemory
from .verdict import Ending, verdict

RANK_PROGRAM = (*MPI_PYTHON, "-m", "persia_hpc.job.rank_main")
LAUNCHER_GRACE_SECONDS = 3.0  # after the first death the launcher may end the job by itself
FAILURE_GRACE_SECONDS = 10.0  # after a rank has written down why the job fails
LOOK_SECONDS = 1.0  # between two looks at files and parents
START_GRACE_SECONDS = 5.0  # after a signal while ranks still start, which then have nothing to save
_PR_SET_PDEATHSIG = 1


def supervise(
    config: Config,
    run_dir: Path | None = None,
    arguments: Sequence[str] = (),
    *,
    launcher: str = "mpiexec",
    program: Sequence[str] = RANK_PROGRAM,
) -> int:
    """Runs a whole job and returns its exit code; the last line on stderr says what went wrong, if anything.

    Makes the run directory (`run_dir`, else `config.run_dir`, else runs/<next>), writes the configuration
    into it and starts `program --run-dir RUN_DIR *arguments` on as many ranks as `config.ranks` asks for. 0
    means that the launcher ended well *and* the run wrote a summary.

    Raises UserError if there is no launcher or the directory can't be used.
    """
    found = find_launcher(launcher)
    with run_directory(run_dir or config.run_dir, resume=config.checkpoint.resume) as directory:
        (directory / "logs").mkdir(exist_ok=True)
        write_config(directory, config)
        nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
        num_ranks = config.ranks.total(nodes)
        command = found.command(num_ranks, [*program, "--run-dir", str(directory), *arguments])
        if sys.stderr.isatty() and "--quiet" not in arguments:  # it takes seconds until a rank speaks
            text = f"persia-hpc: starting {num_ranks} ranks, run directory {printable(directory)}"
            print(text, file=sys.stderr, flush=True)
        with _Log(directory / "logs" / "launcher.log") as log:
            return _Job(found, command, directory, num_ranks, log, config.checkpoint.grace_seconds).run()


class _Log(io.FileIO):
    """Writes a file and drops what the disk doesn't take: the job matters more than its log."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "wb")

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            super().write(data)
        return len(data)


class _Job:
    def __init__(
        self,
        launcher: Launcher,
        command: list[str],
        run_dir: Path,
        num_ranks: int,
        log: IO[bytes],
        grace_seconds: float,
    ) -> None:
        self.launcher = launcher
        self.command = command
        self.run_dir = run_dir
        self.num_ranks = num_ranks
        self.grace_seconds = grace_seconds
        self.id = secrets.token_hex(8)  # tells its ranks from those of a job that was killed just before
        self.ranks: dict[int, RankRecord] = {}
        self.shared_memory = SharedMemory()
        self.signals: list[int] = []
        self.asked = False  # the ranks to stop by themselves
        self.in_vain = False  # they didn't in time
        self.deadline: float | None = None  # when to kill what still lives
        self.first_death: Death | None = None
        self.failed = False  # by what a rank has written down
        self.launcher_death: float | None = None  # when it was killed, by others
        self.parents: ParentWatch | None = ParentWatch()  # until it has found something
        self.looked = 0.0
        self.out = Relay(_binary(sys.stdout), log)
        self.err = Relay(_binary(sys.stderr), log)
        log.write(os.fsencode(" ".join(command) + "\n"))

    def run(self) -> int:
        self.watch = DeathWatch()
        with _signals(self._on_signal):
            self.process = subprocess.Popen(
                self.command,
                env=_environment(self.launcher, self.id),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
            try:
                if self.signals:
                    self._forward()
                self._loop()
            finally:
                self._end_everything()
            self.out.finish()
            self.err.finish()
            code, message = verdict(
                Ending(
                    run_dir=self.run_dir,
                    launcher=self.launcher.path,
                    launcher_code=self.process.returncode,
                    launcher_death=self.launcher_death,
                    launcher_pid=self.process.pid,
                    ranks=self.ranks,
                    first_death=self.first_death,
                    signals=self.signals,
                    asked=self.asked,
                    in_vain=self.in_vain,
                    grace_seconds=self.grace_seconds,
                    out=self.out,
                    err=self.err,
                )
            )
        sys.stdout.flush()
        for said in dict.fromkeys(text.decode(errors="replace") for text in self.err.errors):
            if said.removeprefix("persia-hpc: error: ") not in message:
                print(said, file=sys.stderr)
        if message:
            print(f"persia-hpc: {printable(message, LINES)}", file=sys.stderr, flush=True)
        return code

    def _loop(self) -> None:
        """Relays output and watches the ranks until the launcher has ended."""
        with selectors.DefaultSelector() as selector:
            assert self.process.stdout is not None
            assert self.process.stderr is not None
            selector.register(self.process.stdout, selectors.EVENT_READ, self.out)
            selector.register(self.process.stderr, selectors.EVENT_READ, self.err)
            closed_at: float | None = None
            while True:
                events = selector.select(0.05)
                for key, _ in events:
                    data = os.read(key.fd, 1 << 16)
                    if data:
                        key.data.feed(data)
                    else:
                        selector.unregister(key.fileobj)
                if not events:
                    self.out.idle()
                    self.err.idle()
                now = time.monotonic()
                self._watch_ranks()
                if now - self.looked > LOOK_SECONDS:
                    self.looked = now
                    self._watch_failure()
                    self._watch_parents()
                self.shared_memory.look(self.ranks.values())
                if self.deadline is not None and now >= self.deadline:
                    self.in_vain = self.asked and self.first_death is None and len(self.signals) == 1
                    return
                if self.process.poll() is not None:
                    if self.process.returncode < 0 and self.launcher_death is None:
                        self.launcher_death = time.time()
                    # A rank that outlives the launcher may hold the pipes open: don't wait for their end.
                    closed_at = closed_at or now
                    if not selector.get_map() or now - closed_at > 1.0:
                        return

    def _watch_failure(self) -> None:
        """Sets a deadline when a rank has failed: over a cut link the launcher may not learn of it."""
        if not self.failed:
            self.failed = (self.run_dir / "failure.json").exists()
            if self.failed:
                self._set_deadline(FAILURE_GRACE_SECONDS)

    def _watch_parents(self) -> None:
        """Says, once, that what the ranks of this node print no longer arrives; they train on."""
        if self.parents is None or self.deadline is not None or self.process.poll() is not None:
            return
        dead = self.parents.look(self.ranks.values())
        if dead is not None:
            self.parents = None
            self.err.finish()  # of the ranks' last line, such as a progress bar
            text = lost_output(dead, self.ranks.values())
            text += f"; see {self.run_dir}/logs and persia-hpc status {self.run_dir}"
            print(f"persia-hpc: {printable(text)}", file=sys.stderr, flush=True)

    def _watch_ranks(self) -> None:
        if len(self.ranks) < self.num_ranks or any(r.role is None for r in self.ranks.values()):
            self._read_ranks()
        if self.first_death is None and self.watch.deaths:
            self._read_ranks()  # which of them came to their end, and what their roles are
            for death in list(self.watch.deaths):
                if not self.ranks[death.rank.world_rank].finished:
                    self.first_death = death
                    self.shared_memory.look(self.ranks.values(), at_once=True)
                    self._set_deadline(LAUNCHER_GRACE_SECONDS)
                    break

    def _read_ranks(self) -> None:
        self.ranks |= read_ranks(self.run_dir, self.id)  # what can't be read just now is as it was
        for rank in self.ranks.values():
            if rank.is_local and not rank.finished:
                self.watch.watch(rank, beacon_path(self.run_dir, rank.world_rank))

    def _set_deadline(self, seconds: float) -> None:
        limit = time.monotonic() + seconds
        self.deadline = limit if self.deadline is None else min(self.deadline, limit)

    def _on_signal(self, number: int) -> None:
        self.signals.append(number)
        if number == signal.SIGINT and sys.stderr.isatty():  # it has shown ^C there
            self.err.clear_line()
        if hasattr(self, "process"):  # else `run` does it when there is one
            self._forward()

    def _forward(self) -> None:
        if len(self.signals) > 1:
            self.deadline = 0.0
            return
        self._read_ranks()
        self.shared_memory.look(self.ranks.values(), at_once=True)
        if len(self.ranks) == self.num_ranks and all(r.role for r in self.ranks.values()):
            self.asked = True
            self._set_deadline(self.grace_seconds)
            here = [rank for rank in self._alive() if not rank.finished]
            if here:  # one would do
                number = self.signals[0] if self.signals[0] in STOP_SIGNALS else signal.SIGTERM
                for rank in here:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(rank.pid, number)
            elif not all(r.finished for r in self.ranks.values()):  # launchers pass this one on
                self.process.send_signal(signal.SIGUSR1)
            return
        self._set_deadline(START_GRACE_SECONDS)
        # SIGTERM in place of SIGINT: Python ranks would answer the latter with a traceback each.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)

    def _end_everything(self) -> None:
        """Leaves no process and no shared-memory file of the job behind."""
        self._read_ranks()
        self.shared_memory.look(self.ranks.values(), at_once=True)
        if self.process.poll() is None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=1.0)
                    break
        patience = time.monotonic() + (1.0 if self.deadline is None else 0.2)
        alive = self._alive()
        while alive and time.monotonic() < patience:
            time.sleep(0.02)
            alive = self._alive()
        for rank in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.pid, signal.SIGKILL)
        limit = time.monotonic() + 2.0
        while self._alive() and time.monotonic() < limit:
            time.sleep(0.02)
        self._read_ranks()
        if len(self.ranks) < self.num_ranks or not all(rank.finished for rank in self.ranks.values()):
            time.sleep(0.1)  # a round of the death watch
        self._watch_ranks()
        self.watch.close()
        self.shared_memory.remove_leaked()
        for beacon in (self.run_dir / "ranks").glob("*.alive"):
            with contextlib.suppress(OSError):
                beacon.unlink()

    def _alive(self) -> list[RankRecord]:
        return [r for r in self.ranks.values() if r.is_local and r.is_alive()]


def die_with_parent(number: int = signal.SIGTERM) -> Callable[[], None]:
    """Returns what a new process calls to get a signal when its parent dies, however that happens."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def call() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # died in between
            os.kill(os.getpid(), number)

    return call


def _environment(launcher: Launcher, job: str) -> Mapping[str, str]:
    env = launcher.environment(os.environ)
    env[SUPERVISED] = job
    env["PYTHONUNBUFFERED"] = "1"
    if sys.stderr.isatty():  # ranks write to a pipe: this is how their progress bar knows the screen
        env["PERSIA_HPC_SCREEN"] = "1"
        env.setdefault("COLUMNS", str(terminal_width(sys.stderr)))
    return env


@contextlib.contextmanager
def _signals(handler: Callable[[int], None]) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    old = {n: signal.signal(n, lambda number, _: handler(number)) for n in numbers}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)


def _binary(stream: IO[str]) -> BinaryIO:
    stream.flush()
    buffer: BinaryIO = stream.buffer  # type: ignore[attr-defined]
    return buffer
