"""The supervisor: starts a job with mpiexec or srun, watches its ranks, and says truthfully how it ended."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

from persia_hpc.config import Config
from persia_hpc.errors import EXIT_AGAIN, EXIT_DATA, EXIT_FAILURE, EXIT_OK, EXIT_USER

from .deaths import Death, DeathWatch
from .environment import SUPERVISED
from .mpiexec import Launcher, find_launcher
from .registry import RankRecord, beacon_path, read_failure, read_ranks, read_summary
from .relay import Relay
from .run_dir import make_run_dir, write_config
from .shared_memory import SharedMemory

RANK_PROGRAM = (sys.executable, "-m", "mpi4py", "-m", "persia_hpc.job.rank_main")
LAUNCHER_GRACE_SECONDS = 3.0  # after the first death the launcher may end the job by itself
FAILURE_GRACE_SECONDS = 10.0  # after a rank has written down why the job fails
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
    into it and starts `program --run-dir RUN_DIR *arguments` on as many ranks as `config.ranks` asks for.
    0 means that the launcher ended well *and* the run wrote a summary. UserError if there is no launcher or
    the directory can't be used.
    """
    found = find_launcher(launcher)
    directory = make_run_dir(run_dir or config.run_dir, resume=config.checkpoint.resume)
    (directory / "logs").mkdir(exist_ok=True)
    for stale in (directory / "ranks").glob("*.json"):  # of a job that was killed before it had results
        stale.unlink()
    write_config(directory, config)
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    num_ranks = config.ranks.total(nodes)
    command = found.command(num_ranks, [*program, "--run-dir", str(directory), *arguments])
    with _Log(directory / "logs" / "launcher.log") as log:
        return _Job(found, command, directory, num_ranks, log, config.checkpoint.grace_seconds).run()


class _Log(io.FileIO):
    """A file that goes without what the disk doesn't take: the job matters more than its log."""

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
        self.ranks: dict[int, RankRecord] = {}
        self.shared_memory = SharedMemory()
        self.signals: list[int] = []
        self.asked = False  # the ranks to stop by themselves
        self.in_vain = False  # they didn't in time
        self.deadline: float | None = None  # when to kill what still lives
        self.first_death: Death | None = None
        self.failed = False  # by what a rank has written down
        self.looked = 0.0
        self.out = Relay(_binary(sys.stdout), log)
        self.err = Relay(_binary(sys.stderr), log)
        log.write((" ".join(command) + "\n").encode())

    def run(self) -> int:
        self.watch = DeathWatch()
        with _signals(self._on_signal):
            self.process = subprocess.Popen(
                self.command,
                env=_environment(self.launcher),
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
            code, message = self._verdict()
        sys.stdout.flush()
        for said in dict.fromkeys(text.decode(errors="replace") for text in self.err.errors):
            if said.removeprefix("persia-hpc: error: ") not in message:
                print(said, file=sys.stderr)
        if message:
            print(f"persia-hpc: {message}", file=sys.stderr, flush=True)
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
                self._watch_failure(now)
                self.shared_memory.look(self.ranks.values())
                if self.deadline is not None and now >= self.deadline:
                    self.in_vain = self.asked and self.first_death is None and len(self.signals) == 1
                    return
                if self.process.poll() is not None:
                    # A rank that outlives the launcher may hold the pipes open: don't wait for their end.
                    closed_at = closed_at or now
                    if not selector.get_map() or now - closed_at > 1.0:
                        return

    def _watch_failure(self, now: float) -> None:
        """A launcher may not hear that a rank ends the job, for instance over a cut link."""
        if not self.failed and now - self.looked > 1.0:
            self.looked, self.failed = now, (self.run_dir / "failure.json").exists()
            if self.failed:
                self._set_deadline(FAILURE_GRACE_SECONDS)

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
        self.ranks = read_ranks(self.run_dir)
        for rank in self.ranks.values():
            if rank.is_local and not rank.finished:
                self.watch.watch(rank, beacon_path(self.run_dir, rank.world_rank))

    def _set_deadline(self, seconds: float) -> None:
        limit = time.monotonic() + seconds
        self.deadline = limit if self.deadline is None else min(self.deadline, limit)

    def _on_signal(self, number: int) -> None:
        self.signals.append(number)
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
                for rank in here:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(rank.pid, signal.SIGTERM)
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
        time.sleep(0.1)  # a round of the death watch
        self._watch_ranks()
        self.watch.close()
        self.shared_memory.remove_leaked()

    def _alive(self) -> list[RankRecord]:
        return [r for r in self.ranks.values() if r.is_local and r.is_alive()]

    def _verdict(self) -> tuple[int, str]:
        """Exit code and last message ("" if all is well)."""
        launcher_code = self.process.returncode
        summary = read_summary(self.run_dir)
        status = str((summary or {}).get("status"))
        if launcher_code == 0 and status in ("completed", "stopped"):
            return EXIT_OK, ""
        if status == "interrupted":
            assert summary is not None
            return EXIT_AGAIN, (
                f"stopped by {summary['stop_reason']} after step {summary['steps']}; go on with: "
                f"persia-hpc train --resume --run-dir {self.run_dir}"
            )
        failure = read_failure(self.run_dir)
        if self.signals and not (self.asked and failure):
            number = self.signals[0]
            return 128 + number, f"ended by {signal.Signals(number).name}{self._why_not_saved()}"
        death = self.first_death
        if failure is not None and not (
            death and death.rank.world_rank != failure["world_rank"] and death.time < failure["time"]
        ):
            if failure["code"] == 2:
                return 2, f"error: {failure['message']}"
            rank = self.ranks.get(failure["world_rank"]) or f"rank {failure['world_rank']}"
            sys.stderr.write(str(failure.get("details", "")))
            return int(failure["code"]), f"{rank} failed: {failure['message']}; the job was ended"
        aborted = self.err.aborted(launcher_code) or self.out.aborted(launcher_code)
        if self.err.errors:  # of a rank that couldn't write it down: the disk may be what has failed
            text = self.err.errors[-1].decode(errors="replace").removeprefix("persia-hpc: ")
            code = launcher_code if launcher_code in (EXIT_USER, EXIT_DATA) else EXIT_FAILURE
            return code, f"{text}; the job was ended"
        if aborted is not None:
            rank = self.ranks.get(aborted) or f"rank {aborted}"
            return EXIT_FAILURE, f"{rank} aborted the job with code {launcher_code}"
        if death is not None:
            return self._death_verdict(death)
        log = self.run_dir / "logs" / "launcher.log"
        name = Path(self.launcher.path).name
        if launcher_code:
            remote = "" if all(r.is_local for r in self.ranks.values()) else "; a node may have died"
            return EXIT_FAILURE, f"{name} ended with exit code {launcher_code}{remote}; see {log}"
        return (
            EXIT_FAILURE,
            f"{name} reports success, but the run wrote no summary ({self.run_dir}); see {log}",
        )

    def _why_not_saved(self) -> str:
        if not self.in_vain:
            return ""
        return (
            f"; not saved within checkpoint.grace_seconds ({self.grace_seconds:g} s): --resume goes on from "
            "the checkpoint before, if there is one"
        )

    def _death_verdict(self, death: Death) -> tuple[int, str]:
        rank = self.ranks.get(death.rank.world_rank, death.rank)
        number = death.signal
        if number is None and death.exit_code is None:
            ids = (rank.world_rank, rank.pid)
            number = self.err.exit_signal(*ids) or self.out.exit_signal(*ids)
        if number is not None:
            try:
                name = signal.Signals(number).name
            except ValueError:
                name = "real-time"
            return 128 + number, f"{rank} was killed by signal {number} ({name}); the job was ended"
        if death.exit_code is not None:
            return EXIT_FAILURE, f"{rank} ended early with exit code {death.exit_code}; the job was ended"
        return EXIT_FAILURE, f"{rank} died; the job was ended"


def die_with_parent(number: int = signal.SIGTERM) -> Callable[[], None]:
    """What a new process calls to get a signal when its parent dies, however that happens."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def call() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # died in between
            os.kill(os.getpid(), number)

    return call


def _environment(launcher: Launcher) -> Mapping[str, str]:
    env = launcher.environment(os.environ)
    env[SUPERVISED] = "1"
    env["PYTHONUNBUFFERED"] = "1"
    if sys.stderr.isatty():  # ranks write to a pipe: this is how their progress bar knows the screen
        env["PERSIA_HPC_SCREEN"] = "1"
        env.setdefault("COLUMNS", str(shutil.get_terminal_size().columns))
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
