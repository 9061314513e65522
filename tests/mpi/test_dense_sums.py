"""Dense gradients of real ranks, summed by every reducer."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.mpi import run_mpi

HOROVOD = ["horovod"] if find_spec("horovod") is not None else []


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_every_reducer_gives_the_sum_and_the_same_bits_again(programs: Path, num_ranks: int) -> None:
    """In whatever buckets, and for two trainers the same as the others do."""
    names = ["mpi", "nodes", "gloo", "gloo_nodes", *HOROVOD]
    runs = [run_mpi(num_ranks, programs / "dense_sums.py", *names).stdout for _ in range(2)]
    assert runs[0] == runs[1]
    found: dict[tuple[str, str], set[str]] = {}
    for line in runs[0].splitlines():
        name, wire, digest = line.split()
        found.setdefault((name, wire), set()).add(digest)
    for wire in ("fp32", "bf16", "fp16"):
        assert len(found["mpi", wire]) == len(found["nodes", wire]) == 1
    if num_ranks == 2:
        assert len({digest for name in names for digest in found[name, "fp32"]}) == 1
