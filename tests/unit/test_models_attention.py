"""Attention without padding is that of each sequence alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from persia_hpc.models import attention
from persia_hpc.models.attention import (
    Bias,
    bucket_edges,
    padded_silu_attention,
    silu_attention,
    softmax_attention,
    time_buckets,
)
from persia_hpc.models.layers import Team
from persia_hpc.trainer.jagged import Jagged
from tests.support.histories import gradients

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=8)


def random(lengths: list[int], *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(lengths), *shape, generator=generator).requires_grad_()


def like(lengths: list[int]) -> Jagged:
    return Jagged(torch.empty(sum(lengths), 0), torch.tensor([0, *lengths]).cumsum(0), max(1, *lengths))


def one_by_one(lengths: list[int], q: Tensor, k: Tensor, v: Tensor, weigh: Any) -> Tensor:
    """The attention of each event, in the order of a loop."""
    rows, begin = [], 0
    for length in lengths:
        for i in range(begin, begin + length):
            seen = slice(begin, i + 1)
            heads = [
                weigh(k[seen, h] @ q[i, h], i, range(begin, i + 1)) @ v[seen, h] for h in range(q.shape[1])
            ]
            rows.append(torch.stack(heads))
        begin += length
    return torch.stack(rows) if rows else v


@settings(deadline=None, max_examples=20)
@given(LENGTHS, st.sampled_from([(1, 4), (2, 8), (3, 17)]))
def test_softmax_attention_is_its_definition(lengths: list[int], shape: tuple[int, int]) -> None:
    q, k, v = (random(lengths, *shape, seed=seed) for seed in range(3))
    made = softmax_attention(like(lengths), q, k, v)
    expected = one_by_one(
        lengths, q, k, v, lambda scores, *_: torch.softmax(scores / math.sqrt(shape[1]), dim=0)
    )
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(made, q, k, v), gradients(expected, q, k, v), rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(LENGTHS, st.sampled_from([(1, 4), (2, 16), (1, 50), (3, 17)]), st.booleans(), st.booleans())
def test_silu_attention_is_its_definition(
    lengths: list[int], shape: tuple[int, int], positions: bool, timed: bool
) -> None:
    q, k, v = (random(lengths, *shape, seed=seed) for seed in range(3))
    by_distance = random([40], seed=4) if positions else None
    by_time = random([129], seed=5) if timed else None
    since = torch.randint(-(10**10), 10**10, (sum(lengths),)).double().sort().values
    until = since + torch.randint(0, 1000, since.shape)

    def weigh(scores: Tensor, i: int, seen: range) -> Tensor:
        scores = 0.7 * scores
        if by_distance is not None:
            scores = scores + by_distance[i - torch.tensor(seen)]
        if by_time is not None:
            apart = (until[i] - since[seen.start : seen.stop]).abs().clamp(min=1)
            scores = scores + by_time[(apart.log() / 0.301).long()]
        return scores * torch.sigmoid(scores) / 11.0

    bias = Bias(by_distance, by_time, until if timed else None, since if timed else None)
    vqk = torch.stack([v, q, k], dim=1)
    options: dict[str, Any] = {"scale": 0.7, "divisor": 11.0, "bias": bias}
    expected = one_by_one(lengths, q, k, v, weigh)
    wanted = [t for t in (q, k, v, by_distance, by_time) if t is not None]
    passed_back = gradients(expected, *wanted)
    for made in (
        silu_attention(like(lengths), vqk, **options, team=Team()),
        padded_silu_attention(like(lengths), vqk, **options),
    ):
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradients(made, *wanted), passed_back, rtol=1e-4, atol=1e-4)


def test_time_buckets_are_logarithmic() -> None:
    seconds = torch.tensor([0.0, 0.5, 1, 2, 10, -10, 3600, 86400, 1e9, 1e25], dtype=torch.float64)
    expected = [min(128, math.floor(math.log(max(abs(s), 1)) / 0.301)) for s in seconds.tolist()]
    assert time_buckets(seconds).tolist() == expected
    assert len(bucket_edges()) == 128


def test_one_block_as_on_a_gpu_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [7, 0, 30, 1]
    vqk, by_distance, by_time = random(lengths, 3, 2, 4), random([40], seed=1), random([129], seed=2)
    since = torch.rand(sum(lengths), dtype=torch.float64) * 1e6
    made = []
    for one in (False, True):
        monkeypatch.setattr(attention, "_in_one_block", lambda _, one=one: one)
        bias = Bias(by_distance, by_time, since.roll(-1), since)
        out = padded_silu_attention(like(lengths), vqk, scale=1.0, divisor=4.0, bias=bias)
        soft = softmax_attention(like(lengths), *vqk.unbind(1))
        made.append([out, soft, *gradients(torch.cat([out, soft]), vqk, by_distance, by_time)])
    torch.testing.assert_close(made[1], made[0], rtol=1e-4, atol=1e-5)


def test_results_dont_depend_on_the_number_of_threads() -> None:
    lengths = [70, 3, 0, 129, 16, 33, 200]
    vqk, by_distance, by_time = random(lengths, 3, 2, 20), random([200], seed=1), random([129], seed=2)
    since = torch.rand(sum(lengths), dtype=torch.float64) * 1e6
    bias = Bias(by_distance, by_time, since.roll(-1), since)
    threads, made = torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            out = silu_attention(like(lengths), vqk, scale=0.3, divisor=9.0, bias=bias, team=Team())
            made.append([out, *gradients(out, vqk, by_distance, by_time)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in made[1:] for a, b in zip(made[0], other, strict=True))


@pytest.mark.parametrize("value", [0.0, 30.0, -30.0, 100.0, -100.0, 1e4, -1e4, math.inf, math.nan])
def test_large_scores_are_what_torch_makes_of_them(value: float) -> None:
    vqk = torch.tensor([[1.0, value, 1.0]]).view(1, 3, 1, 1).requires_grad_()
    made = [
        silu_attention(like([1]), vqk, scale=1.0, divisor=1.0, team=Team()),
        padded_silu_attention(like([1]), vqk, scale=1.0, divisor=1.0, bias=Bias()),
    ]
    torch.testing.assert_close(made[0], made[1], equal_nan=True, rtol=1e-6, atol=1e-30)
    if math.isfinite(value):
        torch.testing.assert_close(gradients(made[0], vqk), gradients(made[1], vqk), rtol=1e-6, atol=1e-30)


def test_without_events_there_is_nothing() -> None:
    vqk = torch.zeros(0, 3, 2, 4, requires_grad=True)
    options: dict[str, Any] = {"scale": 1.0, "divisor": 3.0, "bias": Bias()}
    for made in (
        softmax_attention(like([0, 0]), *vqk.unbind(1)),
        silu_attention(like([0, 0]), vqk, **options, team=Team()),
        padded_silu_attention(like([0, 0]), vqk, **options),
    ):
        assert made.shape == (0, 2, 4)
        made.sum().backward()
