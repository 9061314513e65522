"""Misuse and damage end in the same named error on all ranks, not in a hang."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mpi import run_mpi


@pytest.mark.parametrize("path", ["shared", "remote"])
def test_misuse_and_damage_are_named(programs: Path, path: str) -> None:
    done = run_mpi(3, programs / "faults.py", path, timeout=60)
    assert "faults: all named" in done.stdout
