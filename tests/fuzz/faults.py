"""Lets every write, fsync and rename fail once, and checks what is left: `make fuzz ARGS=--faults`.

A scenario is a job in one process that writes: a run that begins, one that goes on, data that is prepared
over older data. A preloaded library (failing_calls.cpp) counts its calls that change files and lets one of
them fail, in each process another one, as a full or a broken disk would. Then: the job ends with one line of
error, or as if nothing had been; what was there before is whole; the same job started again comes to the same
end, and leaves no half-written file.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from persia_hpc.checkpoint.files import whole_checkpoints
from persia_hpc.cli import main
from persia_hpc.samples.writer import DatasetWriter
from tests.support.chaos import check_checkpoints
from tests.support.tiny import SCHEMA, tiny_batch

from .cases import FAULT, Ran, Verdict, digest_of, in_fork
from .targets import contents, preprocess, refusing, train

LIBRARY = "PERSIA_HPC_FAILING_CALLS"
ERRORS = (errno.ENOSPC, errno.EIO)
HALF_WRITTEN = (".partial", ".damaged")


@dataclass(frozen=True)
class Scenario:
    """Holds a job that writes.

    prepare: makes what is there before. call: the job; prints its result. check: raises AssertionError unless
    what was there before is there, or the whole result. folder: which calls fail, those that change files
    below.
    """

    name: str
    prepare: Callable[[], None]
    call: Callable[[], int]
    check: Callable[[], None]
    folder: str


def scenarios() -> list[Scenario]:
    often = {"run_dir": "run", "checkpoint.resume": True, "checkpoint.every": 3, "checkpoint.keep": 2}
    new, again = {**often, "run_dir": "new"}, {**often, "train.epochs": 2}
    return [
        Scenario("a run begins", _nothing, train(**new), lambda: _check_run("new"), "new"),
        Scenario("a run goes on", _nothing, train(**again), lambda: _check_run("run", whole=True), "run"),
        Scenario("a dataset is replaced", _nothing, refusing(_write_dataset), _check_dataset, "data"),
        Scenario("data is prepared again", _other_table, preprocess("--overwrite"), _check_prepared, "made"),
    ]


def _nothing() -> None:
    Path("data").mkdir()
    shutil.copyfile("train.h5", "data/train.h5")


def _check_run(name: str, whole: bool = False) -> None:
    check_checkpoints(Path(name))
    found = whole_checkpoints(Path(name))
    assert found or not whole, "no whole checkpoint is left"
    if found:
        assert main(["checkpoint", "verify", *map(str, found)]) == 0, "verify finds damage"


def _write_dataset() -> None:
    with DatasetWriter("data/train.h5", SCHEMA, chunk_rows=64) as writer:
        for seed in range(3):
            writer.write(tiny_batch(100, seed=seed))
    print(len(contents(Path("data/train.h5"))["train/label"]))


def _check_dataset() -> None:
    assert len(contents(Path("data/train.h5"))["train/label"]) in (320, 300)


def _other_table() -> None:
    """Data prepared from other tables than now."""
    assert preprocess()() == 0
    path = Path("table/a.csv")
    path.write_text(path.read_text() + "1,2.5,3,w1,gold\n")


def _check_prepared() -> None:
    for path, rows in (("made/train.h5", (40, 41)), ("made/test.h5", (40,))):
        assert len(contents(Path(path))[f"{Path(path).stem}/label"]) in rows, f"{path} is half a one"


def compiler() -> str | None:
    """The compiler that set-up needs anyway."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def build(folder: Path) -> Path:
    """Compiles the library that is preloaded."""
    library, source = folder / "failing_calls.so", Path(__file__).with_name("failing_calls.cpp")
    found = compiler()
    assert found, "no C++ compiler"
    options = ["-std=c++17", "-shared", "-fPIC", "-O1"]
    subprocess.run([found, *options, "-o", str(library), str(source), "-ldl"], check=True)
    return library


class Faults:
    """Plays scenarios, each call of which fails once."""

    def __init__(self, folder: Path, sound: Path) -> None:
        self.folder, self.sound = folder, sound
        self.preloaded = ctypes.CDLL(os.environ[LIBRARY])
        self.preloaded.persia_fail.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int)
        self.preloaded.persia_calls.restype = ctypes.c_long
        self.preloaded.persia_failed.restype = ctypes.c_char_p
        self.expected: dict[str, tuple[Ran, int]] = {}
        self.preloaded.persia_begin()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []
        self.num_todo = 0

    def play(self, scenario: Scenario, at: int, error: int) -> tuple[Verdict, str]:
        """Lets call number `at` fail. Returns the outcome, and which call it was."""
        place = self.folder / f"faults-{os.getpid()}"
        shutil.copytree(self.sound, place / "case", symlinks=True)
        try:
            return self._play(scenario, at, error, place)
        finally:
            shutil.rmtree(place)

    def _play(self, scenario: Scenario, at: int, error: int, place: Path) -> tuple[Verdict, str]:
        folder = place / "case"

        def run(call: Callable[[], int], at: int) -> Ran:
            def inside() -> int:
                self.preloaded.persia_fail(os.path.realpath(scenario.folder).encode(), at, error)
                try:
                    return call()
                finally:
                    self.preloaded.persia_fail(b"", -1, 0)

            return in_fork(inside, folder, place / "ran")

        def prepare() -> int:
            scenario.prepare()
            return 0

        made = in_fork(prepare, folder, place / "made")
        assert made.code == 0, made.err
        first = run(scenario.call, at)
        calls, failed = self.preloaded.persia_calls(), self.preloaded.persia_failed().decode()
        if not at:
            self.expected[scenario.name] = first, calls
        expected, _ = self.expected[scenario.name]
        if problem := _problem(first, expected):
            return Verdict(FAULT, problem), failed

        def check() -> int:
            scenario.check()
            return 0

        left = in_fork(check, folder, place / "checked")
        if left.code:
            return Verdict(FAULT, f"afterwards: {left.err.splitlines()[-1]}"), failed
        second = run(scenario.call, 0)
        if second.code or second.out.splitlines()[-1] != expected.out.splitlines()[-1]:
            why = f"started again: exit code {second.code}, {second.out[-200:]!r} {second.err[-300:]!r}"
            return Verdict(FAULT, why), failed
        kept = [name for name in digest_of(folder / scenario.folder) if _half_written(name)]
        if kept:
            return Verdict(FAULT, f"left behind: {', '.join(kept)}"), failed
        return Verdict("refused" if first.code else "same", first.err.strip()), failed

    def run(self, seed: int, sample: int | None, seconds: float, jobs: int) -> None:
        """Plays what time allows, in an order that the seed gives, in several processes.

        sample: so many calls of each scenario and error, instead of all.
        """
        todo = []
        for scenario in scenarios():
            verdict, _ = self.play(scenario, 0, 0)
            assert verdict.outcome == "same", f"{scenario.name}, undisturbed: {verdict.why}"
            _, calls = self.expected[scenario.name]
            for error in ERRORS:
                draw = random.Random(f"{seed} {scenario.name} {error}")
                chosen = draw.sample(range(1, calls + 1), min(sample or calls, calls))
                todo += [(scenario, at, error) for at in chosen]
        random.Random(seed).shuffle(todo)
        self.num_todo = len(todo)
        end = time.monotonic() + seconds
        results = [self.folder / f"results-{job}" for job in range(jobs)]
        pids = [self._start(todo[job::jobs], path, end) for job, path in enumerate(results)]
        for pid in pids:
            assert os.waitpid(pid, 0)[1] == 0, "a process of the fault injection failed"
        for path in results:
            for line in path.read_text().splitlines():
                name, outcome, text = json.loads(line)
                self.counts[name, outcome] += 1
                self.faults += [text] if outcome == FAULT else []

    def _start(self, todo: list[tuple[Scenario, int, int]], path: Path, end: float) -> int:
        """Returns a process that plays a part and writes its results to `path`, a line each."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            self.preloaded.persia_begin()
            with path.open("w") as file:
                for scenario, at, error in todo:
                    if time.monotonic() > end:
                        break
                    verdict, failed = self.play(scenario, at, error)
                    text = f"{scenario.name}, {errno.errorcode[error]} at call {at}, {failed}: {verdict.why}"
                    file.write(json.dumps((scenario.name, verdict.outcome, text)) + "\n")
                    if verdict.outcome == FAULT:
                        print(f"FAULT {text}", flush=True)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def table(self) -> str:
        """Outcomes by scenario, as Markdown."""
        names = ("refused", "same", FAULT)
        rows = [f"| scenario | calls | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
        for name, (_, calls) in self.expected.items():
            rows.append(f"| {name} | {calls} | {' | '.join(str(self.counts[name, n]) for n in names)} |")
        return "\n".join([*rows, f"{self.counts.total()} of {self.num_todo} failures tried"])


def _problem(ran: Ran, expected: Ran) -> str:
    """What is wrong with how a job ended one of whose calls failed."""
    if ran.code < 0 or ran.code not in (0, 1, 2, 3):
        return f"ended by {ran.code}: {ran.err[-300:]!r}"
    lines = [line for line in ran.err.splitlines() if line.strip()]
    if "Traceback" in ran.err:
        return f"traceback: {lines[-1][:300]}"
    if ran.code == 0:
        same = ran.out.splitlines()[-1:] == expected.out.splitlines()[-1:]
        return "" if same else f"exit code 0, but {ran.out[-200:]!r} instead of {expected.out[-200:]!r}"
    if not lines or not lines[-1].startswith("persia-hpc: error: "):
        return f"exit code {ran.code} with {lines[-1:]}"
    odd = [line for line in lines if not line.startswith("persia-hpc: ")]
    return f"more than a line: {odd[0][:200]}" if odd else ""


def _half_written(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.startswith(".") or any(part in base for part in HALF_WRITTEN)


def restart_with_library(folder: Path, arguments: list[str]) -> int:
    """Runs this program again with the library preloaded; returns its exit code."""
    library = build(folder)
    env = {**os.environ, "LD_PRELOAD": str(library), LIBRARY: str(library)}
    return subprocess.run([sys.executable, "-m", "tests.fuzz", *arguments], env=env, check=False).returncode
