"""Damages files at random, and checks what every command that reads them makes of it: `make fuzz`.

    python -m tests.fuzz [--seconds S] [--seed N] [--replay SEED:N] [--only NAME] [--lines FILE]

Each case is a fresh copy of sound files of which one is damaged, and one command in a process of its own. Its
outcome is one of four. *refused*: exit code and one line as the contract says. *same*: the answer that the
sound files give. *other*: another answer, from files that no checksum covers. *FAULT*: a wrong answer, a
traceback, a hang, a crash, control characters, more than a line, much memory, or something changed that
shouldn't have been; it is printed with what plays it again. Exit code 1 if there was one.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # threads don't survive a fork
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["POLARS_MAX_THREADS"] = "1"

from .cases import CLEAN, FAULT, OTHER, SAME, Answer, answer_of, in_fork, play
from .corpus import OUTSIDE, make_corpus
from .faults import LIBRARY, Faults, restart_with_library
from .targets import Target, targets

JOBS = min(8, len(os.sched_getaffinity(0)))
CASE_SECONDS = 300  # a case's own process, with the judgement


class Fuzzer:
    """Plays cases, several at a time, and counts what comes of them."""

    def __init__(self, folder: Path, seed: int, only: str | None = None) -> None:
        self.folder, self.seed = folder, seed
        self.sound = folder / "sound"
        self.targets = [target for target in targets() if only in (None, target.name)]
        self.expected: dict[str, Answer] = {}
        self.counts: Counter[tuple[str, str]] = Counter()
        self.lines: dict[tuple[str, str, str], str] = {}
        self.faults: list[dict[str, Any]] = []

    def make_sound(self) -> None:
        """Makes the sound files."""
        self.sound.mkdir(parents=True)
        make = in_fork(self.make, self.sound, self.folder / "make", limited=False)
        assert make.code == 0, make.err
        _import_all(make.out.splitlines()[-1].split())

    def prepare(self) -> None:
        """Makes the sound files, and what each command answers to them; twice, since it must be the same."""
        self.make_sound()
        for target in self.targets:
            answers = []
            for attempt in range(2):
                place = self.place(attempt)
                shutil.copytree(self.sound, place / "case", symlinks=True)
                ran = in_fork(target.call, place / "case", place / "ran")
                answers.append(answer_of(target, place / "case", ran))
                shutil.rmtree(place, ignore_errors=True)
            if ran.code == 2 and "--encoding" in target.name:
                continue  # of a version without it
            assert ran.code in (0, 1), f"{target.name}: {ran.err}"
            assert answers[0] == answers[1], f"{target.name} answers otherwise each time: {answers} {ran.err}"
            assert ran.code == 0 or target.name == "checkpoint diff", f"{target.name}: {ran.err}"
            self.expected[target.name] = answers[0]
        self.targets = [target for target in self.targets if target.name in self.expected]

    @staticmethod
    def make() -> int:
        """Makes the sound files; prints what torch has imported late, which takes it a second each time."""
        make_corpus()
        print(*(name for name in sys.modules if name.partition(".")[0] in ("torch", "sympy")))
        return 0

    def place(self, number: int) -> Path:
        """The folder of a case, with one beside its files that nothing may change."""
        place = self.folder / f"case-{number}"
        (place / OUTSIDE / "dir").mkdir(parents=True)
        for name in ("file", "dir/manifest.json", "dir/kept"):
            (place / OUTSIDE / name).write_text("{}" * 1000)
        return place

    def target_of(self, number: int) -> Target:
        """By seed and number alone."""
        return random.Random(f"target {self.seed}:{number}").choice(self.targets)

    def start(self, number: int, place: Path) -> int:
        """Returns the process that plays a case."""
        target = self.target_of(number)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                play(target, self.seed, number, place, self.sound, self.expected[target.name])
                code = 0
            finally:
                if code:
                    import traceback

                    traceback.print_exc()
                os._exit(code)
        return pid

    def run(self, numbers: range, seconds: float, jobs: int) -> None:
        """Plays cases in order until the time is over."""
        end = time.monotonic() + seconds
        todo = iter(numbers)
        running: dict[int, tuple[int, float]] = {}
        while True:
            while len(running) < jobs and time.monotonic() < end:
                number = next(todo, None)
                if number is None:
                    end = 0
                    break
                running[self.start(number, self.place(number))] = (number, time.monotonic())
            if not running:
                return
            for pid, (number, begun) in list(running.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    del running[pid]
                    self.finish(number, os.waitstatus_to_exitcode(status))
                elif time.monotonic() - begun > CASE_SECONDS:
                    os.kill(pid, 9)
            time.sleep(0.001)

    def finish(self, number: int, code: int) -> None:
        """Counts a case; says what is wrong."""
        place = self.folder / f"case-{number}"
        path = place / "result.json"
        result = json.loads(path.read_text()) if path.exists() else {}
        if code:  # the damage itself, or the judgement, can crash HDF5
            result |= {
                "outcome": FAULT,
                "why": f"the case itself ended with {code}",
                "case": f"{self.seed}:{number}",
            }
        target = self.target_of(number).name
        self.counts[target, result["outcome"]] += 1
        if result["outcome"] == FAULT:
            self.faults.append({**result, "target": target})
            print(
                f"FAULT {result['case']} {target}: {result['why']}\n"
                f"      {result.get('path')}: {result.get('by')}: {result.get('what')}",
                flush=True,
            )
        elif result["outcome"] == CLEAN:
            self.lines.setdefault((target, result["kind"], result["by"]), result["why"])
        shutil.rmtree(place, ignore_errors=True)

    def table(self) -> str:
        """Outcomes by command, as Markdown."""
        names = ("cases", CLEAN, SAME, OTHER, FAULT)
        rows = [f"| command | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        total: Counter[str] = Counter()
        for target in self.targets:
            counts = Counter({name: self.counts[target.name, name] for name in names[1:]})
            total += counts
            rows.append(_row(target.name, counts, names))
        return "\n".join([*rows, _row("all", total, names)])

    def line_list(self) -> str:
        """The first line of each command for each kind of damage, as Markdown."""
        rows = ["| command | file | damage | says |", "|---|---|---|---|"]
        for (target, kind, by), line in sorted(self.lines.items()):
            said = line.removeprefix("persia-hpc: error: ").replace("|", "\\|")
            rows.append(f"| {target} | {kind} | {by.replace('_', ' ')} | {said} |")
        return "\n".join(rows)


def _import_all(names: list[str]) -> None:
    importlib.import_module("torch._dynamo")
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "threads don't survive a fork"


def _row(name: str, counts: Counter[str], names: tuple[str, ...]) -> str:
    figures = [str(counts.total()), *(str(counts[n]) for n in names[1:])]
    return f"| {name} | {' | '.join(figures)} |"


def main(arguments: list[str] | None = None) -> int:
    """Plays cases for some time; 1 if there was a fault."""
    parser = argparse.ArgumentParser(
        prog="make fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=300.0, help="default: five minutes")
    parser.add_argument("--cases", type=int, default=10**9, help="at most so many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=1, help="number of the first case")
    parser.add_argument("--jobs", type=int, default=JOBS, help="cases at a time")
    parser.add_argument("--only", metavar="NAME", help="only this command, as the table names it")
    parser.add_argument("--replay", metavar="SEED:N", help="one case; its files are kept")
    parser.add_argument("--lines", type=Path, metavar="FILE", help="write what is said of each damage")
    parser.add_argument("--faults", action="store_true", help="let every call that writes fail instead")
    parser.add_argument("--sample", type=int, metavar="N", help="with --faults: N calls of each scenario")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="persia-fuzz-"))
    if options.faults:
        code = let_calls_fail(folder, options, sys.argv[1:] if arguments is None else arguments)
        shutil.rmtree(folder)
        return code
    if options.replay:
        seed, number = map(int, options.replay.split(":"))
        return replay(folder, seed, number, options.only)
    print(f"seed {options.seed}", flush=True)
    fuzzer = Fuzzer(folder, options.seed, options.only)
    fuzzer.prepare()
    fuzzer.run(range(options.first, options.first + options.cases), options.seconds, options.jobs)
    print(fuzzer.table())
    if options.lines:
        options.lines.write_text(fuzzer.line_list() + "\n")
    shutil.rmtree(folder)
    if fuzzer.faults:
        case = fuzzer.faults[0]["case"]
        only = f" --only '{options.only}'" if options.only else ""
        print(f'{len(fuzzer.faults)} faults; again: make fuzz ARGS="--replay {case}{only}"')
    return int(bool(fuzzer.faults))


def let_calls_fail(folder: Path, options: argparse.Namespace, arguments: list[str]) -> int:
    """Lets one call after the other fail, in this program started with the library that does so."""
    if LIBRARY not in os.environ:
        return restart_with_library(folder, arguments)
    fuzzer = Fuzzer(folder, options.seed)
    fuzzer.make_sound()
    faults = Faults(folder, fuzzer.sound)
    faults.run(options.seed, options.sample, options.seconds, options.jobs)
    print(faults.table())
    return int(bool(faults.faults))


def replay(folder: Path, seed: int, number: int, only: str | None) -> int:
    """Plays one case again and shows everything."""
    fuzzer = Fuzzer(folder, seed, only)
    fuzzer.prepare()
    target, place = fuzzer.target_of(number), fuzzer.place(number)
    code = os.waitstatus_to_exitcode(os.waitpid(fuzzer.start(number, place), 0)[1])
    print(json.dumps(json.loads((place / "result.json").read_text()), indent=1))
    shutil.copytree(place / "case", place / "again", symlinks=True)
    ran = in_fork(target.call, place / "again", place / "ran")
    print(f"{target.name} on {place / 'case'} (played twice)\nexit code {ran.code}\n{ran.out}{ran.err}")
    return code


if __name__ == "__main__":
    sys.exit(main())
