"""The fuzzer finds faults that are planted, and says "no fault" only where there is none."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from persia_hpc.cli import main
from tests.fuzz import hdf5, mutate
from tests.fuzz.cases import CLEAN, FAULT, OTHER, SAME, Answer, Damage, Ran, in_fork, judge, reads_same
from tests.fuzz.corpus import make_table
from tests.fuzz.faults import LIBRARY, build
from tests.fuzz.reference import table_problem
from tests.fuzz.targets import Target
from tests.support.jobs import user_environment
from tests.support.mpi import REPOSITORY
from tests.support.tiny import write_tiny

EVALUATE = Target("evaluate", lambda: 0, (), frozenset({"dense", "shard"}))
SOUND = Answer(0, "auc 0.7\n")


def damaged(kind: str = "dense", *, checked: bool = True, refuse: bool = False) -> Damage:
    return Damage("dense.pt", kind, "bits [3]", "flip_bits", checked, refuse)


def ran(code: int = 0, out: str = SOUND.text, err: str = "", **more: float) -> Ran:
    return Ran(code, out, err, **{"seconds": 0.1, "resident_bytes": 0, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("done", "result", "outcome", "why"),
    [
        (damaged(), ran(), SAME, ""),
        (damaged(), ran(2, "", "persia-hpc: error: dense.pt is damaged\n"), CLEAN, "dense.pt"),
        (damaged(), ran(out="auc 0.6\n"), FAULT, "another answer"),
        (damaged(checked=False), ran(out="auc 0.6\n"), OTHER, ""),
        (damaged("TOML", checked=False), ran(out="auc 0.6\n"), OTHER, ""),
        (damaged("data", refuse=True), ran(out="auc 0.6\n"), FAULT, "takes"),
        (damaged(), ran(-11, ""), FAULT, "SIGSEGV"),
        (damaged(), ran(seconds=1000.0), FAULT, "hangs"),
        (damaged(), ran(resident_bytes=8 << 30), FAULT, "memory"),
        (
            damaged(),
            ran(1, "", 'Traceback (most recent call last):\n File "x"\nKeyError: 1\n'),
            FAULT,
            "traceback",
        ),
        (damaged(), ran(2, "", "persia-hpc: error: \x1b[31mred\n"), FAULT, "control character"),
        (damaged(), ran(2, "", "persia-hpc: error: a\nand b\n"), FAULT, "isn't the last line"),
        (damaged(), ran(2, "", "odd\npersia-hpc: error: a\n"), FAULT, "more than one line"),
        (damaged(), ran(2, "", f"persia-hpc: error: {'x' * 9000}\n"), FAULT, "9019 characters"),
        (damaged(), ran(1, "", ""), FAULT, "without a word"),
        (damaged(), ran(75, "", "persia-hpc: error: a\n"), FAULT, "exit code 75"),
    ],
)
def test_outcomes(done: Damage, result: Ran, outcome: str, why: str, tmp_path: Path) -> None:
    verdict = judge(EVALUATE, done, result, SOUND, tmp_path, tmp_path)
    assert verdict.outcome == outcome
    assert why in verdict.why


def test_a_command_that_must_notice(tmp_path: Path) -> None:
    verify = Target("verify", lambda: 0, (), frozenset({"dense"}), notices=True)
    assert judge(verify, damaged(), ran(), SOUND, tmp_path, tmp_path).outcome == FAULT
    assert judge(verify, damaged(checked=False), ran(), SOUND, tmp_path, tmp_path).outcome == SAME


def test_what_hdf5_itself_reads_is_the_reference(tmp_path: Path) -> None:
    """Another answer is right where HDF5 reads other values, and wrong where it reads the same or nothing."""
    sound, folder = tmp_path / "sound", tmp_path / "case"
    for place in (sound, folder):
        place.mkdir()
        write_tiny(place / "train.h5", 100)
    done = Damage("train.h5", "data", "", "", checked=False)
    other = ran(out="auc 0.6\n")
    assert reads_same(folder / "train.h5", sound / "train.h5")
    assert judge(EVALUATE, done, other, SOUND, folder, sound).outcome == FAULT
    with h5py.File(folder / "train.h5", "r+") as file:
        file["label"][3] = 1 - file["label"][3]
    assert judge(EVALUATE, done, other, SOUND, folder, sound).outcome == OTHER
    os.truncate(folder / "train.h5", 1000)
    assert judge(EVALUATE, done, other, SOUND, folder, sound).outcome == FAULT


def test_a_wrong_value_of_a_table_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_table(Path("table"))
    assert main(["preprocess", "table", "table/schema.toml", "--out", "made"]) == 0
    assert table_problem(Path("table"), Path("made")) == ""
    for column, name, wrong in (
        ("click", "label", [[5.0]]),
        ("price", "dense", [[5.0]]),
        ("user", "ids/user", [5]),
    ):
        with h5py.File("made/test.h5", "r+") as file:
            right = file[name][3:4]
            file[name][3:4] = wrong
        assert table_problem(Path("table"), Path("made")) == f"b.csv: {column} is not what the file says"
        with h5py.File("made/test.h5", "r+") as file:
            file[name][3:4] = right
    assert table_problem(Path("table"), Path("made")) == ""


def mutated(tmp_path: Path) -> Iterator[tuple[mutate.Mutator, Path]]:
    """Every mutator with a file that it can change."""
    text = json.dumps({"a": [1, {"b": 2.5, "c": "x"}], "d": {}})
    for mutator in (*mutate.BYTES, mutate.change_words, mutate.change_lines, mutate.change_json):
        path = tmp_path / "a.json"
        path.write_text(text * (1 if mutator is mutate.change_json else 20))
        yield mutator, path
    for mutator in hdf5.STRUCTURE:
        yield mutator, Path(write_tiny(tmp_path / "a.h5", 100))
    path = tmp_path / "dense.pt"
    torch.save({"model": {"w": torch.ones(3)}, "step": 4}, path)
    yield mutate.change_torch, path
    yield mutate.in_its_place, Path(write_tiny(tmp_path / "b.h5", 100))


def test_mutations_follow_from_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for mutator, path in mutated(Path()):
        sound = path.read_bytes()
        found = set()
        for seed in (*range(30), 1, 2, 3):
            for other in (path, path.with_name("test.h5")):
                if other.is_symlink() or other.is_file():
                    other.unlink()
                elif other.exists():
                    (other / "x").unlink(missing_ok=True)
                    other.rmdir()
            path.write_bytes(sound)
            what = mutator(path, random.Random(seed))
            found.add((seed, what, path.read_bytes() if path.is_file() else None))
        name = mutator.__name__
        assert len(found) == 30, f"{name} isn't a function of the seed"
        assert len({what for _, what, _ in found}) > 3, f"{name} does always the same"
        assert any(content != sound for _, _, content in found), f"{name} changes nothing"


def test_a_call_in_a_process_of_its_own(tmp_path: Path) -> None:
    def crash() -> int:
        os.kill(os.getpid(), 11)
        return 0

    def raises() -> int:
        raise KeyError("x")

    def leaves() -> int:
        raise SystemExit(2)

    def takes() -> int:
        return len(np.ones(1 << 40, np.uint8)) > 0

    for call, code, said in (
        (lambda: 3, 3, ""),
        (crash, -11, ""),
        (raises, 1, "KeyError"),
        (leaves, 2, ""),
        (takes, 1, "Unable to allocate"),
    ):
        result = in_fork(call, tmp_path, tmp_path / "ran")
        assert (result.code, said in result.err) == (code, True), result


def fuzz(*arguments: str, program: str = "", **more: str) -> tuple[int, str]:
    """The fuzzer in a process of its own: it needs one without threads.

    program: what is changed before. more: of the environment.
    """
    text = f"import sys\nfrom tests.fuzz.__main__ import main\n{program}\nsys.exit(main({list(arguments)!r}))"
    env = {**user_environment(), **more}
    done = subprocess.run(
        [sys.executable, "-c", text], env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_planted_fault_is_found() -> None:
    """Without the checksums of a checkpoint's files, some damage passes `verify`."""
    plant = """
from persia_hpc.checkpoint import manifest
from tests.fuzz.__main__ import Fuzzer

make_sound = Fuzzer.make_sound

def as_noted(path):
    return manifest.read_manifest(path.parent)["files"][path.name]["sha256"]

def make_and_plant(self):
    make_sound(self)
    assert manifest.file_sha256
    manifest.file_sha256 = as_noted

Fuzzer.make_sound = make_and_plant
"""
    code, said = fuzz("--only", "checkpoint verify", "--cases", "50", "--seed", "4", program=plant)
    assert code == 1, said
    assert "finds nothing wrong with a damaged file" in said


def test_calls_that_fail_are_survived() -> None:
    """A small `make fuzz ARGS=--faults`."""
    code, said = fuzz("--faults", "--sample", "1", "--seed", "3", "--seconds", "10000")
    assert code == 0, said
    assert "8 of 8 failures tried" in said


def test_half_a_dataset_is_found(tmp_path: Path) -> None:
    """If a writer went on after a call that failed, half a dataset would take an old one's place."""
    plant = """
from persia_hpc.durable import ErrorKeeper
from tests.fuzz import faults

assert ErrorKeeper.check
ErrorKeeper.check = lambda self: None
scenarios = faults.scenarios
faults.scenarios = lambda: [s for s in scenarios() if "dataset" in s.name]
"""
    library = str(build(tmp_path))
    code, said = fuzz("--faults", "--sample", "6", program=plant, LD_PRELOAD=library, **{LIBRARY: library})
    assert code == 1, said
    assert "FAULT a dataset is replaced" in said
