from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mpi import run_mpi


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_no_addition_is_lost(num_ranks: int) -> None:
    done = run_mpi(num_ranks, Path(__file__).with_name("programs") / "shared_vector.py")
    assert done.stdout.count("done") == num_ranks
