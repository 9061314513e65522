"""Misuse and damage end in the same named error on all ranks, not in a hang."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mpi import run_mpi

# The last word that each fault's error must say, in the order of programs/faults.py on rank 0 of 3.
FAULTS = [
    "one rank",
    "0..2",
    "4096",
    "multiple of 256",
    "listed twice",
    "ring_bytes",
    "same list",
    "lower transport",
    "next",
    "'next'",
    "queued in 'next' (rank 0 to 1)",
    "unread in 'next' (rank 0 to 1)",
    "after close()",
    "expected 2",
    *["expected 0x50485243, 1, 2"] * 3,
]


@pytest.mark.parametrize("path", ["shared", "remote"])
def test_misuse_and_damage_are_named(programs: Path, path: str) -> None:
    done = run_mpi(3, programs / "faults.py", path, timeout=60)
    named = done.stdout.partition("faults:\n")[2].splitlines()
    assert named == FAULTS
