"""Sums in shared memory against NumPy's, with threads for ranks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import NodeSum
from persia_hpc.transport.records import aligned_empty

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def members(ranks: int, lengths: list[int], wire: str) -> list[np.ndarray]:
    memory = [aligned_empty(NodeSum.bytes(lengths, wire, rank == 0)) for rank in range(ranks)]
    for each in memory:
        each[:] = 0
    return memory


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 70_000), min_size=1, max_size=3),
    st.sampled_from(sorted(DTYPES)),
    st.integers(0, 2**32 - 1),
)
def test_all_ranks_get_the_sum_in_the_order_of_ranks(
    ranks: int, lengths: list[int], wire: str, seed: int
) -> None:
    memory, rounds, total = members(ranks, lengths, wire), 3, sum(lengths)
    random = np.random.default_rng(seed)
    values = torch.from_numpy(random.normal(size=(rounds, ranks, total)).astype(np.float32))
    values = values.to(DTYPES[wire])

    def run(rank: int) -> None:
        node = NodeSum(memory, rank, lengths, wire)
        slots = torch.from_numpy(node.slots).view(DTYPES[wire])
        for turn in range(rounds):
            slots[:] = values[turn, rank]
            for _ in lengths:
                node.post()
            for bucket in range(len(lengths)):
                number = turn * len(lengths) + bucket
                while not node.wait_summed(number, 0.0, 10.0):
                    pass
                assert node.summed(number)
            expected = values[turn, 0].float()
            for other in range(1, ranks):
                expected = expected + values[turn, other].float()
            np.testing.assert_array_equal(node.sums, expected.numpy())

    with ThreadPoolExecutor(ranks) as threads:
        list(threads.map(run, range(ranks)))


def test_misfits_are_refused() -> None:
    memory = members(2, [3], "fp32")
    for arguments, part in (
        ((memory, 2, [3], "fp32"), "rank"),
        ((memory, 0, [4], "fp32"), "memory"),
        ((memory, 0, [], "fp32"), "lengths"),
        ((memory, 0, [3], "scaled_fp16"), "single elements"),
        (([memory[0], memory[1][8:]], 0, [3], "fp32"), "memory"),
    ):
        with pytest.raises(ValueError, match=part):
            NodeSum(*arguments)
