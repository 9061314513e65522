"""A changed bit, link or value in any file of a checkpoint: readers refuse it, or it makes no difference."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.errors import EXIT_DATA, EXIT_USER, PersiaError
from tests.support.checkpoints import CHANGES, IDS, LAST, TABLES, own, train_runs
from tests.support.tiny import digest

PLACES = 6  # of a file, at each of which one bit is turned over


@pytest.fixture(autouse=True)
def outside_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("PMI", "OMPI", "SLURM"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_runs(tmp_path_factory.mktemp("runs"), "a")


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A copy of run a to damage, by hard links: what is written to must be `own`ed first."""
    shutil.copytree(runs / "a", tmp_path / "a", symlinks=True, copy_function=os.link)
    return tmp_path / "a"


def command(*arguments: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def loaded(directory: Path) -> str:
    run = ph.load(directory)
    weights = {name: value.numpy() for name, value in run.model().state_dict().items()}
    return digest({**{name: run.rows(name, IDS) for name in TABLES}, **weights})


def exported(directory: Path) -> bytes:
    out = directory.parent / "item.parquet"
    out.unlink(missing_ok=True)
    expect(command("checkpoint", "export", directory, "--table", "item", "--out", out))
    return out.read_bytes()


def listed(directory: Path) -> dict[str, Any]:
    """What `ls` says without reading rows; what it can't read, it tells as a problem."""
    facts = json.loads(expect(command("checkpoint", "ls", directory, "--json")))
    if "problem" in facts:
        raise PersiaError(facts["problem"])
    facts.pop("written")
    return dict(facts)


def expect(result: tuple[int, str, str]) -> str:
    """Returns the output of a command; raises its refusal, which must be one line."""
    code, out, err = result
    if code:
        assert code in (EXIT_USER, EXIT_DATA), result
        assert err.count("\n") == 1, err
        assert err.startswith("persia-hpc: error: "), err
        raise PersiaError(err)
    return out


READERS: dict[str, Callable[[Path], Any]] = {
    "load": loaded,
    "export": exported,
    "evaluate": lambda d: expect(command("evaluate", d, "--split", "train")),
    "verify": lambda d: expect(command("checkpoint", "verify", d)),
    "ls": lambda d: listed(d),
}
READ_BY = {
    "manifest.json": {*READERS},
    "dense.pt": {"load", "evaluate", "verify"},
    "server-0000.h5": {"load", "evaluate", "verify", "export"},
}


def outcome(reader: Callable[[Path], Any], directory: Path) -> Any:
    """Returns what a reader finds, or None if it refuses."""
    text = ""
    try:
        return reader(directory)
    except PersiaError as error:
        text = str(error).strip()
    assert "\n" not in text
    return None


@pytest.mark.parametrize("name", ["manifest.json", "dense.pt", "server-0000.h5"])
@pytest.mark.parametrize("step", [LAST, CHANGES])
def test_a_flipped_bit_is_refused_or_makes_no_difference(step: str, name: str, run: Path) -> None:
    directory = run / step
    sound = {reader: outcome(READERS[reader], directory) for reader in READERS}
    assert None not in sound.values()
    content = own(directory / name).read_bytes()
    rng = np.random.default_rng(len(name))
    refused: Counter[str] = Counter()
    for at in rng.integers(0, len(content), PLACES).tolist():
        changed = bytearray(content)
        changed[at] ^= 1 << int(rng.integers(8))
        (directory / name).write_bytes(changed)
        for reader, expected in sound.items():
            found = outcome(READERS[reader], directory)
            refused[reader] += found is None
            assert found in (None, expected), (reader, at)
    # A manifest whose key "sha256" has another name is as those of before: without a checksum of its own.
    least = PLACES - (name == "manifest.json")
    assert {reader for reader in READERS if refused[reader] >= least} == READ_BY[name]
