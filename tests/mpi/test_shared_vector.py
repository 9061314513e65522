from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mpi import run_mpi


@pytest.mark.parametrize(("num_ranks", "of_node"), [(1, 0), (3, 0), (3, 2), (4, 2)])
def test_no_addition_is_lost(num_ranks: int, of_node: int) -> None:
    """Nor added twice, by ranks of one node or of several."""
    done = run_mpi(num_ranks, Path(__file__).with_name("programs") / "shared_vector.py", str(of_node))
    assert done.stdout.count("done") == num_ranks
