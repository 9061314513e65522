"""Plays one case in processes of its own, and says what came of it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tests.support import served
from tests.support.checkpoints import sign

from . import hdf5, mutate
from .corpus import OUTSIDE
from .reference import table_problem
from .targets import Target, contents

CPU_SECONDS = 20
WALL_SECONDS = 120  # the machine may do other things
MEMORY_BYTES = 4 << 30  # of address space, beside what the parent has
RESIDENT_BYTES = 1 << 30
MOST_CHARACTERS = 3000  # of an error that a person reads
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")
KINDS = {
    ".h5": "data",
    ".csv": "table",
    ".toml": "TOML",
    ".json": "JSON",
    ".jsonl": "JSON",
    ".pt": "dense",
    ".rows": "rows",
}

CLEAN, SAME, OTHER, FAULT = "refused", "same", "other", "FAULT"


@dataclass(frozen=True)
class Ran:
    """Holds how a process ended; code is that of its exit, or minus the number of the signal."""

    code: int
    out: str
    err: str
    seconds: float
    resident_bytes: int


@dataclass(frozen=True)
class Damage:
    """Holds what was done to which file; checked: by a checksum that knows nothing of it."""

    path: str
    kind: str
    what: str
    by: str
    checked: bool
    refuse: bool = False


@dataclass(frozen=True)
class Verdict:
    """Holds the outcome of a case: one of the four, and why."""

    outcome: str
    why: str


@dataclass(frozen=True)
class Answer:
    """Holds what a command has answered."""

    code: int
    text: str


def in_fork(call: Callable[[], int], folder: Path, note: Path, limited: bool = True) -> Ran:
    """Makes a call in a process of its own whose current directory is `folder`.

    note: a path beside which its output lies meanwhile.
    """
    outputs = [note.with_suffix(suffix) for suffix in (".out", ".err")]
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for number, path in enumerate(outputs, 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
            os.chdir(folder)
            if limited:
                _limit()
            code = _called(call)
        finally:
            os._exit(code)
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        seconds = time.monotonic() - begin
        if done:
            break
        if seconds > WALL_SECONDS:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
    out, err = (path.read_bytes().decode("utf-8", "backslashreplace") for path in outputs)
    for path in outputs:
        path.unlink()
    return Ran(os.waitstatus_to_exitcode(status), out, err, seconds, usage.ru_maxrss << 10)


def _called(call: Callable[[], int]) -> int:
    try:
        code = call()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _limit() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 20,) * 2)


def answer_of(target: Target, folder: Path, ran: Ran) -> Answer:
    """What a command has said and written, without what is different each time."""
    text = re.sub(r"[\d.]+ \w+ ago|\d{4}-\d\d-\d\d \d\d:\d\d", "", ran.out).replace(f"{folder}/", "")
    text = re.sub(" +", " ", text)  # columns are as wide as what was taken out
    for name in target.outputs:
        path = folder / name
        text += f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" if path.is_file() else ""
    return Answer(ran.code, text)


def damage(target: Target, draw: random.Random) -> Damage | None:
    """Damages one of the files that the command reads, below the current directory; None: there is none."""
    found = sorted({path for pattern in target.reads for path in Path().glob(pattern)})
    if not found:
        return None
    path = draw.choice(found)
    kind = KINDS.get(path.suffix, "folder")
    kind = "shard" if kind == "data" and path.name.startswith(("server-", "cold-")) else kind
    if path.is_symlink() or path.is_dir():
        return Damage(str(path), "folder", _place(path, draw), "place", checked=False)
    mutators: tuple[mutate.Mutator, ...] = (mutate.in_its_place, *mutate.BYTES)
    if kind in ("data", "shard"):
        mutators += hdf5.STRUCTURE * 2
    elif kind == "dense":
        mutators += (mutate.change_torch,) * 4
    else:
        mutators += (mutate.change_words, mutate.change_lines) * 4
    if kind == "JSON":
        mutators += (mutate.change_json,) * 14
    mutator = draw.choice(mutators)
    before = path.read_bytes()
    what = mutator(path, draw)
    checked = kind in ("shard", "dense", "rows") and (not path.is_file() or path.read_bytes() != before)
    if kind in ("shard", "dense", "rows") and path.is_file() and draw.random() < 0.3:
        resign = served.sign if path.parts[0] == "served" else sign
        resign(path.parent, path.name)  # damage from before it was written
        checked, what = False, f"{what}; its checksum in the manifest too"
    refuse = kind == "data" and mutator is hdf5.change_storage
    return Damage(str(path), kind, what, mutator.__name__, checked, refuse)


def _place(path: Path, draw: random.Random) -> str:
    """What is done to a folder, or to the link to one."""
    what = draw.choice(("removed", "file", "partial", "again", "outside", "empty", "partial link"))
    outside = Path(*[".."] * len(path.parts)) / OUTSIDE / "dir"
    if what == "partial":
        path.rename(path.with_name(path.name + ".partial"))
    elif what == "partial link":
        path.with_name("step-00000012.partial").symlink_to(outside)
    elif what == "again":
        shutil.copytree(path, path.with_name("step-00000099"))
    else:
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)
        if what == "file":
            path.touch()
        elif what == "outside":
            path.symlink_to(outside)
        elif what == "empty":
            path.mkdir()
    return what


def judge(target: Target, done: Damage, ran: Ran, expected: Answer, folder: Path, sound: Path) -> Verdict:
    """Says what the outcome is worth. sound: the folder of the files as they were."""
    said = ran.out + ran.err
    if ran.code == -signal.SIGXCPU or ran.seconds > WALL_SECONDS:
        return Verdict(OTHER if target.long and done.kind == "TOML" else FAULT, "hangs")
    if ran.code < 0:
        return Verdict(FAULT, f"ended by {signal.Signals(-ran.code).name}")
    if "Traceback (most recent call last)" in said:
        return Verdict(FAULT, f"traceback: {_origin(said)}")
    if ran.resident_bytes > RESIDENT_BYTES:
        return Verdict(FAULT, f"took {ran.resident_bytes >> 20} MiB of memory")
    if found := CONTROL.search(said.replace("\r\n", "\n")):
        return Verdict(FAULT, f"prints the control character {found[0]!r}: {_around(said, found[0])}")
    if error := _unclear(ran):
        return Verdict(FAULT, error)
    got = answer_of(target, folder, ran)
    if "persia-hpc: error: " in ran.err:
        return Verdict(CLEAN, ran.err.splitlines()[-1])
    if got == expected:
        if target.notices and done.checked:
            return Verdict(FAULT, "finds nothing wrong with a damaged file")
        return Verdict(SAME, "")
    if done.refuse:
        return Verdict(FAULT, f"takes {done.what}")
    if done.checked and done.kind in target.covered:
        return Verdict(FAULT, "another answer from a damaged file")
    if done.kind == "data" and reads_same(folder / done.path, sound / done.path):
        return Verdict(FAULT, "another answer, although HDF5 reads the same values")
    if done.kind == "table" and (problem := table_problem(folder / "table", folder / "made")):
        return Verdict(FAULT, problem)
    return Verdict(OTHER, "")


def reads_same(path: Path, sound: Path) -> bool:
    """Whether h5py reads from a file what it reads from another, or nothing but errors. Attributes too."""
    try:
        got, expected = contents(path), contents(sound)
        if _attributes(path) != _attributes(sound):
            return False
    except Exception:
        return True
    if got.keys() != expected.keys():
        return False
    return all(np.array_equal(got[name], expected[name], equal_nan=True) for name in got)


def _attributes(path: Path) -> str:
    import h5py

    found = []
    with h5py.File(path, "r", locking=False) as file:
        file.visititems(lambda name, item: found.append((name, sorted(map(str, item.attrs.items())))))
        return str((found, sorted(map(str, file.attrs.items()))))


def _unclear(ran: Ran) -> str:
    """What is wrong with the way in which a command refuses; "" if nothing is, or if it doesn't."""
    lines = [line for line in ran.err.splitlines() if line.strip()]
    refused = "persia-hpc: error: " in ran.err
    if ran.code != 0 and not refused and not ran.out:
        return f"exit code {ran.code} without a word"
    if refused and ran.code not in (1, 2, 3):
        return f"exit code {ran.code} for {lines[-1][:200]}"
    if ran.code != 0 and refused and not lines[-1].startswith("persia-hpc: error: "):
        return f"the error isn't the last line, but {lines[-1][:200]!r}"
    if odd := [line for line in lines if not line.startswith("persia-hpc: ")]:
        return f"more than one line: {odd[0][:200]!r}"
    if lines and len(max(lines, key=len)) > MOST_CHARACTERS:
        return f"an error of {len(max(lines, key=len))} characters: {lines[-1][:200]!r}"
    return ""


def _origin(text: str) -> str:
    """The error, and the last place in this package that it passed."""
    places = re.findall(r'persia_hpc/([\w/]+\.py)", line (\d+)', text)
    last = [line for line in text.splitlines() if line.strip()][-1]
    return f"{last[:160]} at {':'.join(places[-1]) if places else 'elsewhere'}"


def _around(text: str, found: str) -> str:
    at = text.index(found)
    return repr(text[max(0, at - 40) : at + 20])


def digest_of(folder: Path, without: tuple[str, ...] = ()) -> dict[str, str]:
    """What lies in a folder: files by their content, links by their targets."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if any(name == part or name.startswith(f"{part}/") for part in without):
            continue
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


def play(target: Target, seed: int, number: int, place: Path, sound: Path, expected: Answer) -> None:
    """Plays a case below `place` and writes result.json there. Call it in a process of its own."""
    draw = random.Random(f"{seed}:{number}")
    folder = place / "case"
    shutil.copytree(sound, folder, symlinks=True)
    os.chdir(folder)
    done = damage(target, draw)
    if done is None:
        result = {"outcome": "nothing", "why": ""}
    else:
        result = asdict(done)
        (place / "result.json").write_text(json.dumps(result))
        kept = (*target.changes, *target.outputs, "made", "tables")
        before, outside = digest_of(folder, kept), digest_of(place / OUTSIDE)
        ran = in_fork(target.call, folder, place / "ran")
        verdict = judge(target, done, ran, expected, folder, sound)
        if digest_of(place / OUTSIDE) != outside:
            verdict = Verdict(FAULT, "changed what lies outside")
        elif (after := digest_of(folder, kept)) != before and verdict.outcome != FAULT:
            names = sorted(name for name in after | before if after.get(name) != before.get(name))
            verdict = Verdict(FAULT, f"changed {', '.join(names[:3])}")
        result |= asdict(verdict)
    result |= {"target": target.name, "case": f"{seed}:{number}"}
    (place / "result.json").write_text(json.dumps(result))
