"""Runs set-up steps: stamps, logs, progress lines, locking. What the steps are: setup_steps.py."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

LOG_LINES_SHOWN = 30


class SetupError(Exception):
    """A step failed. `fix`: what to do about it, where the step's own advice is too general."""

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(problem)
        self.fix = fix


@dataclass(frozen=True)
class Step:
    """One part of the set-up.

    `inputs` is all that the result depends on: the step runs again when it differs from what the stamp of
    the last *successful* run says. `fix` tells the user what to do when it fails. A step that only `begins`
    another has no stamp: whether there is anything to begin, that one's says.
    """

    name: str
    title: str
    inputs: Mapping[str, str]
    action: Callable[[Commands], None]
    fix: str
    begins: str = ""


class Commands:
    """Starts the commands of one step; their output goes to the step's log."""

    def __init__(self, log: Path, environment: Mapping[str, str], lock_fd: int) -> None:
        self.log = log
        self.environment = dict(environment)
        self._lock_fd = lock_fd

    def run(self, command: Sequence[str], **environment: str) -> None:
        """Runs a command; SetupError if it fails. Its whole process group ends with us."""
        self.end(self.start(command, **environment))

    def start(self, command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
        """Starts a command, which `end` must be told of."""
        with self.log.open("a", encoding="utf-8") as log:
            log.write("$ " + " ".join(command) + "\n")
            log.flush()
            # A session of its own, so that one signal reaches compilers too. It inherits the lock:
            # should this process be killed, the next set-up waits for what still runs.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self.environment, **environment},
                start_new_session=True,
                pass_fds=(self._lock_fd,),
            )

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Waits for a command; SetupError if it failed."""
        try:
            code = process.wait()
        except BaseException:
            end_group(process)
            raise
        if code != 0:
            command = [str(word) for word in process.args]  # type: ignore[union-attr]
            shown = " ".join([Path(command[0]).name, *command[1:]])
            raise SetupError(f"`{shown[:100]}` ended with exit code {code}")


class Runner:
    """Runs the steps of one environment folder in order, each only if its inputs changed.

    Stamps lie in the environment itself, so that removing the folder removes them. `recover` is called before
    the first step after an interrupted or failed one.
    """

    def __init__(
        self, venv: Path, build: Path, environment: Mapping[str, str], recover: Callable[[], None]
    ) -> None:
        self.venv = venv
        self.environment = dict(environment)
        self.recover = recover
        self._begun = venv / ".stamps" / "begun"
        self._build = build
        self._started = 0.0
        self._ran = 0
        self._current = 0
        self._lock_fd = -1

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock of the environment: two `make` at a time would spoil each other's."""
        self._build.mkdir(parents=True, exist_ok=True)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup stays nohup
                signal.signal(number, _raise_interrupt)
        with (self._build / f"setup{self.venv.name}.lock").open("w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                print("set-up: another one is running in this folder, waiting for it", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            self._lock_fd = lock.fileno()
            self._started = time.monotonic()
            yield

    def run(self, step: Step) -> None:
        """Runs the step unless its stamp says that nothing changed; exits the process if it fails."""
        self._current += 1
        inputs = dict(step.inputs)
        done = read_stamp(self._stamp(step))
        if done == inputs:
            return
        why = ""
        if done is not None:
            changed = sorted(k for k in {*done, *inputs} if done.get(k) != inputs.get(k))
            why = f" (changed: {', '.join(changed)})"
        print(f"set-up {self._current:2}  {step.title + why:<62} ", end="", flush=True)
        started = time.monotonic()
        log = self._build / f"setup-{self.venv.name.lstrip('.')}-{step.name}.log"
        log.write_text("", encoding="utf-8")
        try:
            self._stamp(step).unlink(missing_ok=True)
            self._begun.parent.mkdir(parents=True, exist_ok=True)
            begun_before = self.interrupted
            self._begun.touch()
            if begun_before:
                self.recover()
            step.action(Commands(log, self.environment, self._lock_fd))
        except KeyboardInterrupt:
            print(f"interrupted after {time.monotonic() - started:.1f} s; the next run goes on from here")
            raise SystemExit(130) from None
        except (SetupError, OSError) as error:
            print(f"FAILED after {time.monotonic() - started:.1f} s", flush=True)
            _report(step, error, log)
            raise SystemExit(1) from None
        if not step.begins:
            stamp = self._stamp(step)
            stamp.parent.mkdir(parents=True, exist_ok=True)
            aside = stamp.with_suffix(".new")
            aside.write_text(json.dumps(inputs, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            aside.replace(stamp)
        self._begun.unlink(missing_ok=True)
        self._ran += 1
        print(f"{time.monotonic() - started:6.1f} s", flush=True)

    @property
    def interrupted(self) -> bool:
        """Whether some step was begun in this environment but never ended well."""
        return self._begun.exists()

    def close(self) -> None:
        """Prints the closing line."""
        seconds = time.monotonic() - self._started
        if self._ran:
            print(f"set-up done in {seconds:.1f} s: {self.venv.name}", flush=True)
        else:
            print(
                f"set-up: {self.venv.name} is up to date ({self._current} steps, {seconds:.1f} s)", flush=True
            )

    def _stamp(self, step: Step) -> Path:
        return self.venv / ".stamps" / (step.begins or step.name)


def read_stamp(path: Path) -> dict[str, str] | None:
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) else None


def _report(step: Step, error: Exception, log: Path) -> None:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    shown = lines[-LOG_LINES_SHOWN:]
    if shown:
        print(f"--- last {len(shown)} of {len(lines)} lines of {os.path.relpath(log)}")
        print("\n".join(shown))
        print("---")
    fix = getattr(error, "fix", "") or step.fix
    print(f"set-up step '{step.name}' failed: {error}\nfix: {fix}", flush=True)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a command and all that it has started, if it still runs."""
    if process.poll() is not None:
        return
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
            return


def _raise_interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def capture(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Output of a quick command, '' if it can't be run."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).strip() if done.returncode == 0 else ""
