from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc import _native
from persia_hpc.models.interaction import Interaction


def formula(first: torch.Tensor | None, rest: torch.Tensor, num_copied: int) -> torch.Tensor:
    vectors = rest if first is None else torch.cat([first.unsqueeze(1), rest], dim=1)
    count = vectors.shape[1]
    row, column = torch.tril_indices(count, count, offset=-1)
    products = torch.bmm(vectors, vectors.transpose(1, 2))[:, row, column]
    return torch.cat([vectors[:, :num_copied].flatten(1), products], dim=1)


def both_ways(
    apply, first: torch.Tensor | None, rest: torch.Tensor, weights: torch.Tensor
) -> list[torch.Tensor]:
    """Output and gradients of a function whose gradient differs for each element of the output."""
    leaves = [t.clone().requires_grad_() for t in (first, rest) if t is not None]
    out = apply(leaves[0] if first is not None else None, leaves[-1])
    (out * weights.to(out.dtype)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(0, 5),
    num_vectors=st.integers(1, 40),
    dim=st.integers(1, 35),
    apart=st.booleans(),
    copies=st.sampled_from(["none", "first", "all"]),
    seed=st.integers(0, 2**31),
)
def test_native_is_the_formula(
    num_samples: int, num_vectors: int, dim: int, apart: bool, copies: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(num_samples, dim, generator=generator) if apart else None
    rest = torch.randn(num_samples, num_vectors - apart, dim, generator=generator)
    num_copied = {"none": 0, "first": 1, "all": num_vectors}[copies]
    model = Interaction(num_vectors, num_copied)
    weights = torch.randn(num_samples, num_copied * dim + model.num_pairs, generator=generator)
    got = both_ways(model, first, rest, weights)
    doubles = [None if first is None else first.double(), rest.double()]
    for expected in (
        both_ways(lambda a, b: formula(a, b, num_copied), *doubles, weights.double()),
        both_ways(model, *doubles, weights.double()),  # torch operations: float64 is not native
    ):
        for one, other in zip(got, expected, strict=True):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-4)


def test_each_sample_gives_the_same_bits_wherever_it_lies() -> None:
    first, rest = torch.randn(50, 17), torch.randn(50, 26, 17)
    model = Interaction(27, 1)
    weights = torch.randn(50, 17 + model.num_pairs)
    whole = both_ways(model, first, rest, weights)
    alone = both_ways(model, first[20:21], rest[20:21], weights[20:21])
    for one, other in zip(whole, alone, strict=True):
        assert torch.equal(one[20:21], other)


def test_views_and_expanded_gradients() -> None:
    rest = torch.randn(6, 4, 5).transpose(1, 2)
    got = both_ways(Interaction(5, 5), None, rest, torch.ones(1, 1).expand(6, 30))
    expected = both_ways(lambda a, b: formula(a, b, 5), None, rest, torch.ones(6, 30))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_autocast_multiplies_in_the_narrow_type() -> None:
    first, rest, model = torch.randn(8, 16), torch.randn(8, 26, 16), Interaction(27, 1)
    weights = torch.randn(8, 16 + model.num_pairs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = both_ways(model, first, rest, weights)
    assert got[0].dtype == torch.bfloat16
    for one, other in zip(got, both_ways(model, first, rest, weights), strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rest": np.ones((2, 3, 4))}, r"rest: expected .* float32 .*, got float64 \[2, 3, 4\]"),
        (
            {"rest": np.ones((2, 12), np.float32)},
            r"rest: expected .* \[B, V, D\], got float32 \[2, 12\]",
        ),
        ({"first": np.ones((2, 5), np.float32)}, r"first: expected .* \[2, 4\], got float32 \[2, 5\]"),
        ({"num_copied": 5}, "at most the number of vectors 4, got 5"),
        ({"out": np.ones((2, 9), np.float32)}, r"out: expected .* \[2, 10\], got float32 \[2, 9\]"),
    ],
)
def test_bad_arrays_are_refused(change: dict, message: str) -> None:
    good = {
        "first": np.ones((2, 4), np.float32),
        "rest": np.ones((2, 3, 4), np.float32),
        "num_copied": 1,
        "out": np.ones((2, 10), np.float32),
    }
    _native.interaction_forward(**good)
    with pytest.raises(ValueError, match=message):
        _native.interaction_forward(**{**good, **change})
