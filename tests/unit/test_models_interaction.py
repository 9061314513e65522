from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
def test_torchs_operations_are_the_formula(
    num_samples: int, num_vectors: int, dim: int, apart: bool, copies: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(num_samples, dim, generator=generator).double() if apart else None
    rest = torch.randn(num_samples, num_vectors - apart, dim, generator=generator).double()
    num_copied = {"none": 0, "first": 1, "all": num_vectors}[copies]
    model = Interaction(num_vectors, num_copied)
    weights = torch.randn(num_samples, num_copied * dim + model.num_pairs, generator=generator)
    got = both_ways(model, first, rest, weights)
    expected = both_ways(lambda a, b: formula(a, b, num_copied), first, rest, weights)
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
