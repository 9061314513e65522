"""Counts of items against a dictionary, and log q against the formula over what a stream had so far."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch
from persia_hpc.trainer.item_counts import UNIT, ItemCounts
from persia_hpc.trainer.retrieval import Matches, RetrievalLoss, counted, in_batch_softmax

KEYS = st.sampled_from([0, 1, 7, 2**63, 2**64 - 1, *range(100, 130)])
STEPS = st.lists(st.lists(KEYS, max_size=12), max_size=12)


def fed(steps: list[list[int]]) -> tuple[ItemCounts, Counter[int]]:
    counts, expected = ItemCounts(), Counter[int]()
    for keys in steps:
        counts.add(*np.unique(np.array(keys, np.uint64), return_counts=True))
        expected.update(keys)
    return counts, expected


@given(STEPS, st.lists(KEYS, max_size=5))
def test_shares_are_those_of_all_that_was_added(steps: list[list[int]], asked: list[int]) -> None:
    counts, expected = fed(steps)
    shares = np.exp(counts.log_q(np.array(asked, np.uint64)))
    total = sum(expected.values())
    if total:
        np.testing.assert_allclose(shares, [expected[key] / total for key in asked], rtol=1e-6)


@given(STEPS, STEPS, st.integers(1, 3))
def test_counts_are_kept_over_a_checkpoint(a: list[list[int]], b: list[list[int]], trainers: int) -> None:
    states = [fed(steps)[0].state() for steps in (a, b)]
    expected = fed(a + b)[1]
    again = []
    for rank in range(trainers):
        counts = ItemCounts()
        counts.restore(states, rank, trainers)
        again.append(counts.state())
        if len(again[-1]["keys"]):
            shares = np.exp(counts.log_q(again[-1]["keys"].numpy().view(np.uint64)))
            np.testing.assert_allclose(shares, again[-1]["counts"] / again[-1]["counts"].sum(), rtol=1e-6)
    if trainers == len(states):
        for old, new in zip(states, again, strict=True):
            assert torch.equal(old["keys"], new["keys"])
            assert torch.equal(old["counts"], new["counts"])
    total = Counter[int]()
    for state in again:
        for key, count in zip(state["keys"].numpy().view(np.uint64), state["counts"], strict=True):
            total[int(key)] += count.item()
    assert total == pytest.approx(expected)


@given(STEPS, st.integers(1, 4), st.integers(0, 12))
def test_halved_counts_are_those_of_a_dictionary_also_over_a_checkpoint(
    steps: list[list[int]], halve_every: int, kept: int
) -> None:
    counts, expected = ItemCounts(halve_every), dict[int, float]()
    for step, keys in enumerate(steps, 1):
        if step % halve_every == 0 and step > 1:
            expected = {key: count / 2 for key, count in expected.items() if count / 2 >= UNIT}
        for key in keys:
            expected[key] = expected.get(key, 0.0) + 1
        counts.add(*np.unique(np.array(keys, np.uint64), return_counts=True), step)
        if step == kept:
            state = counts.state()
            counts = ItemCounts(halve_every)
            counts.restore([state], 0, 1)
    state = counts.state()
    found = dict(zip(state["keys"].numpy().view(np.uint64).tolist(), state["counts"].tolist(), strict=True))
    assert found == expected
    if expected:
        shares = np.exp(counts.log_q(np.array(list(expected), np.uint64)))
        np.testing.assert_allclose(shares, np.array(list(expected.values())) / sum(expected.values()), 1e-6)


def test_counts_of_trainers_that_stopped_at_other_steps_are_aged_alike() -> None:
    """One trainer had no samples in the last step, after which all counts are halved."""
    states = []
    for steps in (9, 10):
        counts = ItemCounts(10)
        for step in range(1, steps + 1):
            counts.add(np.array([steps], np.uint64), np.array([2]), step)
        states.append(counts.state())
    alone = ItemCounts(10)
    alone.restore(states, 0, 2)
    alone.add(np.array([7], np.uint64), np.array([1]), 11)
    assert dict(zip(alone.state()["keys"].tolist(), alone.state()["counts"].tolist(), strict=True)) == {
        9: 9,
        7: 1,
    }
    together = ItemCounts(10)
    together.restore(states, 0, 1)
    state = together.state()
    assert dict(zip(state["keys"].tolist(), state["counts"].tolist(), strict=True)) == {9: 9, 10: 11}


def test_halved_counts_follow_a_stream_and_forget() -> None:
    """After items have changed places, shares are the new ones, where plain counts are far off."""
    rng, shares = np.random.default_rng(4), np.array([0.5, 0.25, 0.125, 0.125])
    aged, plain = ItemCounts(50), ItemCounts()
    for step in range(1, 2001):
        drawn = rng.choice(4, 64, p=shares if step <= 1000 else shares[::-1])
        keys, times = np.unique(np.append(drawn, 99) if step == 1 else drawn, return_counts=True)
        for counts in (aged, plain):
            counts.add(keys.astype(np.uint64), times, step)
    asked = np.arange(4, dtype=np.uint64)
    assert np.abs(np.exp(aged.log_q(asked)) - shares[::-1]).max() < 0.02
    assert np.abs(np.exp(plain.log_q(asked)) - shares[::-1]).max() > 0.1
    assert [len(counts.state()["keys"]) for counts in (aged, plain)] == [4, 5]


def test_a_step_costs_little_beside_many_items() -> None:
    counts, rng = ItemCounts(), np.random.default_rng(1)
    touched = 0
    for _ in range(400):
        before = {id(keys) for keys, _ in counts._parts}
        counts.add(np.unique(rng.integers(0, 1 << 40, 50).astype(np.uint64)), np.ones(50))
        touched += sum(len(keys) for keys, _ in counts._parts if id(keys) not in before)
    assert len(counts.state()["keys"]) == 400 * 50
    assert touched < 12 * 400 * 50  # and not a half of 400 times that


class Watched(np.ndarray):
    """Counts the elements that computations read."""

    read = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        Watched.read += self.size
        plain = [part.view(np.ndarray) if isinstance(part, Watched) else part for part in inputs]
        return getattr(ufunc, method)(*plain, **options)


def test_shares_are_found_without_reading_all_items() -> None:
    counts = ItemCounts()
    for size in (100_000, 10_000, 1_000):
        counts.add(np.arange(size, dtype=np.uint64), np.ones(size))
    counts._parts = [(keys.view(Watched), times.view(Watched)) for keys, times in counts._parts]
    asked = counts._parts[0][0][:50].view(np.ndarray)
    Watched.read = 0
    assert np.isfinite(counts.log_q(asked)).all()
    assert 0 < Watched.read <= 10 * len(counts._parts) * len(asked)


def batch_of(counts: ItemCounts, keys: np.ndarray, step: int = 1) -> Batch:
    made: dict[str, Any] = {name: torch.empty(0) for name in ("dense", "weight", "group")}
    labels = torch.ones(5, 1)
    return Batch(
        step, 5, **made, labels=labels, pooled={}, sequence={}, blocks={}, item_keys=keys, item_counts=counts
    )


@pytest.mark.parametrize("negatives", ["batch", "both"])
def test_the_loss_is_corrected_by_what_the_stream_had_so_far(negatives: str) -> None:
    rng, counts = np.random.default_rng(3), ItemCounts()
    loss = RetrievalLoss({"temperature": 0.5, "logq": "counts", "halve_every": 0, "negatives": negatives}, 20)
    seen = Counter[int]()
    for step in range(1, 6):
        keys = rng.permutation(1000)[:9].astype(np.uint64) % np.uint64(20)  # of rows; some items twice
        keys = np.unique(keys)
        ids = rng.integers(0, len(keys), 5)
        drawn = rng.integers(0, len(keys), (5, 3))
        matches = Matches(
            torch.randn(5, 4),
            torch.randn(5, 4),
            torch.from_numpy(ids),
            negatives=torch.randn(5, 3, 4) if negatives == "both" else None,
            negative_ids=torch.from_numpy(drawn) if negatives == "both" else None,
        )
        got = loss(matches, batch_of(counts, keys, step))
        seen.update(int(keys[i]) for i in ids)

        def log_q(rows: np.ndarray, keys: np.ndarray = keys) -> torch.Tensor:
            with np.errstate(divide="ignore"):
                shares = [seen[int(keys[i])] / seen.total() for i in rows.reshape(-1)]
                return torch.tensor(np.log(shares), dtype=torch.float32).view(rows.shape)

        known = dataclasses.replace(
            matches, log_q=log_q(ids), negative_log_q=log_q(drawn) if negatives == "both" else None
        )
        expected = in_batch_softmax(known, temperature=0.5, logq=True, negatives=negatives, num_items=20)
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_ids_of_another_table_are_refused() -> None:
    matches = Matches(torch.randn(2, 4), torch.randn(2, 4), torch.tensor([0, 3]))
    with pytest.raises(UserError, match="step 2: the model's matches have ids that are no rows of the"):
        counted(matches, batch_of(ItemCounts(), np.array([5, 6], np.uint64), 2))
