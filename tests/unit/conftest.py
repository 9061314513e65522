"""Gives unit tests a process outside of MPI, and runs with checkpoints of every kind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.checkpoints import train_runs


@pytest.fixture(autouse=True)
def outside_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("PMI", "OMPI", "SLURM"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs a and b, for all who only read them."""
    return train_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A copy of run a to damage, by hard links: what is written to must be `own`ed first."""
    shutil.copytree(runs / "a", tmp_path / "a", symlinks=True, copy_function=os.link)
    return tmp_path / "a"
