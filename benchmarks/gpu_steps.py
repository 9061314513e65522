"""Runs the steps of benchmarks/gpu_parts.py: with limits, a log as it goes, and three files of results."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).resolve().parents[1]
MARGIN = 10  # seconds of a part's limit, to end a step that must be cut, and to write the files
MOST_BYTES = 4_000_000  # larger files of a step stay out of the archive
PR_SET_CHILD_SUBREAPER = 36
UNABLE = ("Device not supported", "Failed to initialize the profiler", "ERR_NVGPUCTRPERM", "LibraryNotLoaded")


@dataclass(frozen=True)
class Step:
    """Describes a step: a command, and how long it may take at most.

    tests: it is pytest's, and must have passed some: skipped ones prove nothing.
    tool: a program without which the step is skipped, as it is when it prints one of UNABLE.
    """

    name: str
    seconds: float
    command: Sequence[str]
    tests: bool = False
    tool: str | None = None


@dataclass
class Outcome:
    """Says how a step ended: ok, FAILED, CUT (it took too long), NOT RUN (no time was left), skipped."""

    name: str
    status: str
    seconds: float
    code: int | None = None

    @property
    def good(self) -> bool:
        return self.status in ("ok", "skipped")


class Runner:
    """Runs steps one after the other and keeps OUT's files up to date."""

    def __init__(self, part: str, limit: float, out: Path, work: Path, device: str = "cuda") -> None:
        self.part, self.device, self.work = part, device, work
        self.begin = time.monotonic()
        self.deadline = self.begin + limit - min(MARGIN, limit / 4)
        out.mkdir(parents=True, exist_ok=True)
        self._files = {kind: out / f"{part}.{kind}" for kind in ("log", "json", "tar.gz")}
        self._log = self._files["log"].open("wb")
        self._lock = threading.Lock()
        self.outcomes: list[Outcome] = []
        path = f"{ROOT}/build/gpu-venv/bin:{os.environ['PATH']}"
        self._environment = dict(os.environ, PYTHONUNBUFFERED="1", PATH=path)
        # What a step leaves behind becomes a child of this process, and can be found.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def say(self, text: str) -> None:
        self._write(f"{text}\n".encode())

    def _write(self, data: bytes) -> None:
        with self._lock:
            for target in (sys.stdout.buffer, self._log):
                target.write(data)
                target.flush()

    def run(self, steps: Sequence[Step]) -> bool:
        """Returns whether all went well."""
        try:
            for step in steps:
                outcome = Outcome(step.name, "CUT", 0.0)  # what it is if a signal comes now
                self.outcomes.append(outcome)
                self._step(step, outcome)
                self._report()
        finally:
            sweep()
            self._report()
            self._table()
            self._archive()
        return all(outcome.good for outcome in self.outcomes)

    def _step(self, step: Step, outcome: Outcome) -> None:
        left = self.deadline - time.monotonic()
        limit = min(step.seconds, left)
        if left < min(5.0, step.seconds):
            outcome.status = "NOT RUN"
            return
        self.say(f"== {step.name} (at most {limit:.0f} s): {' '.join(step.command)[:300]}")
        if step.tool is not None and shutil.which(step.tool, path=self._environment["PATH"]) is None:
            self.say(f"there is no {step.tool}")
            outcome.status = "skipped"
            return
        begin = time.monotonic()
        try:
            process = subprocess.Popen(
                step.command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            self.say(f"can't be started: {error}")
            outcome.status = "FAILED"
            return
        assert process.stdout is not None
        tail = Tail(process.stdout, self._write)
        try:
            outcome.code = process.wait(limit)
            outcome.status = "FAILED" if outcome.code else "ok"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        finally:
            outcome.seconds = time.monotonic() - begin
            sweep()
            tail.thread.join(2)
        if outcome.code and any(text in tail.text for text in UNABLE):
            outcome.status = "skipped"
        if outcome.status == "ok" and step.tests and not re.search(r"\b[1-9]\d* passed", tail.text):
            self.say("no test passed")
            outcome.status = "FAILED"
        self.say(f"== {step.name}: {outcome.status}, {outcome.seconds:.0f} s")

    def _table(self) -> None:
        self.say(f"| {self.part} | | seconds |\n|---|---|---|")
        for outcome in self.outcomes:
            self.say(f"| {outcome.name} | {outcome.status} | {outcome.seconds:.0f} |")
        self._log.flush()

    def _report(self) -> None:
        """Writes OUT/PART.json: a reader sees the last one or this one."""
        results: dict[str, Any] = {}
        for path in sorted(self.work.glob("*.json")):
            try:
                results[path.stem] = json.loads(path.read_text())
            except (OSError, ValueError) as error:
                results[path.stem] = f"unreadable: {error}"
        report = {
            "schema_version": 1,
            "part": self.part,
            "device": self.device,
            "seconds": time.monotonic() - self.begin,
            "steps": [asdict(outcome) for outcome in self.outcomes],
            "results": results,
        }
        partial = self._files["json"].with_suffix(".partial")
        partial.write_text(json.dumps(report, indent=2) + "\n")
        partial.replace(self._files["json"])

    def _archive(self) -> None:
        partial = self._files["tar.gz"].with_suffix(".partial")
        with tarfile.open(partial, "w:gz") as archive:
            for path in sorted(self.work.rglob("*")):
                if path.is_file() and path.stat().st_size <= MOST_BYTES:
                    archive.add(path, path.relative_to(self.work))
        partial.replace(self._files["tar.gz"])


class Tail:
    """Passes on what a process prints, and keeps the end of it."""

    def __init__(self, pipe: BinaryIO, write: Any) -> None:
        self.text = ""
        self._pipe, self._write = pipe, write
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        while data := os.read(self._pipe.fileno(), 1 << 16):
            self._write(data)
            self.text = (self.text + data.decode(errors="replace"))[-100_000:]


def sweep() -> None:
    """Kills all that descends from this process: children, and orphans, which come to it one by one.

    One that the kernel doesn't let go of is left alone after some seconds.
    """
    limit = time.monotonic() + 3
    while children := _children():
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
            except (ProcessLookupError, ChildProcessError):
                pass
        if time.monotonic() > limit:
            return
        time.sleep(0.02)


def _children() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue  # it has ended
        if int(parent) == os.getpid():
            found.append(int(path.parent.name))
    return found


def end(number: int, _: object) -> None:
    """Handles a signal that asks the part to end."""
    signal.signal(number, signal.SIG_IGN)  # once is enough: the files are being written
    sys.exit(128 + number)
