"""DLRM's native layers, against torch in doubles."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from persia_hpc import _native
from persia_hpc.models.layers import Team, is_native, linear, linear_of_interaction, run_layers


def run(apply, leaves: list[Tensor], layer: nn.Linear, weights: Tensor) -> list[Tensor]:
    """Output and all gradients of a function whose gradient differs for each element of the output."""
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    layer.zero_grad()
    out = apply(layer, leaves)
    (out * weights.to(out.dtype)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves), layer.weight.grad, layer.bias.grad]


def close(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4 * max(1, len(got[0])) ** 0.5)


def interaction(first: Tensor | None, rest: Tensor, num_copied: int) -> Tensor:
    vectors = rest if first is None else torch.cat([first.unsqueeze(1), rest], dim=1)
    row, column = torch.tril_indices(vectors.shape[1], vectors.shape[1], offset=-1)
    products = torch.bmm(vectors, vectors.transpose(1, 2))[:, row, column]
    return torch.cat([vectors[:, :num_copied].flatten(1), products], dim=1)


@settings(max_examples=40, deadline=None)
@given(
    num_samples=st.sampled_from([0, 1, 2, 63, 64, 65, 511, 513, 1100]),
    sizes=st.tuples(st.integers(1, 50), st.integers(1, 40)),
    relu=st.booleans(),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 2**31),
)
def test_a_layer_is_torchs(num_samples, sizes, relu, threads, seed) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(*sizes)
    x, weights = torch.randn(num_samples, sizes[0]), torch.randn(num_samples, sizes[1])
    # Far from the ReLU's bend, where roundings decide.
    with torch.no_grad():
        x[(layer(x).abs() < 1e-4).any(dim=1)] = 0
        layer.bias += layer.bias.sign() * 1e-3
    team = team_of(threads)
    got = run(lambda layer, leaves: linear(layer, leaves[0], relu=relu, team=team), [x], layer, weights)
    double = copy.deepcopy(layer).double()
    expected = run(lambda layer, leaves: plain(layer(leaves[0]), relu), [x.double()], double, weights)
    close(got, expected)


@settings(max_examples=40, deadline=None)
@given(
    num_samples=st.sampled_from([0, 1, 5, 65, 130, 600]),
    num_vectors=st.integers(1, 40),
    dim=st.integers(1, 35),
    apart=st.booleans(),
    copies=st.sampled_from(["none", "first", "all"]),
    outputs=st.integers(1, 20),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**31),
)
def test_a_layer_on_the_interaction_is_torchs(
    num_samples, num_vectors, dim, apart, copies, outputs, threads, seed
) -> None:
    torch.manual_seed(seed)
    leaves = [torch.randn(num_samples, dim)] if apart else []
    leaves.append(torch.randn(num_samples, num_vectors - apart, dim) / dim**0.5)
    num_copied = {"none": 0, "first": 1, "all": num_vectors}[copies]
    width = num_copied * dim + num_vectors * (num_vectors - 1) // 2
    if width == 0:
        return
    layer, team = nn.Linear(width, outputs), team_of(threads)
    weights = torch.randn(num_samples, outputs)

    def native(layer, leaves):
        first = leaves[0] if apart else None
        return linear_of_interaction(layer, first, leaves[-1], num_copied, relu=False, team=team)

    def formula(layer, leaves):
        return layer(interaction(leaves[0] if apart else None, leaves[-1], num_copied))

    got = run(native, leaves, layer, weights)
    expected = run(formula, [leaf.double() for leaf in leaves], copy.deepcopy(layer).double(), weights)
    close(got, expected)


def plain(x: Tensor, relu: bool) -> Tensor:
    return torch.relu(x) if relu else x


def team_of(threads: int) -> Team:
    class Fixed(Team):
        def threads(self):
            return _native.ThreadTeam(threads)

    return Fixed()


def test_bits_depend_neither_on_threads_nor_on_where_a_sample_lies() -> None:
    layer, first, rest = nn.Linear(17 + 351, 24), torch.randn(1300, 17), torch.randn(1300, 26, 17)
    weights = torch.randn(1300, 24)

    def with_threads(threads: int, part: slice = slice(None)) -> list[Tensor]:
        team = team_of(threads)
        return run(
            lambda layer, leaves: linear_of_interaction(layer, *leaves, 1, relu=True, team=team),
            [first[part], rest[part]],
            layer,
            weights[part],
        )

    whole = with_threads(1)
    for threads in (2, 3, 7):
        assert all(map(torch.equal, whole, with_threads(threads)))
    for one, other in zip(whole[:3], with_threads(1, slice(20, 21))[:3], strict=True):
        assert torch.equal(one[20:21], other)


def test_views_expanded_gradients_and_inputs_that_need_none() -> None:
    layer, x, team = nn.Linear(7, 3), torch.randn(7, 50).t(), Team()
    ones = torch.ones(1, 1).expand(50, 3)
    got = run(lambda layer, leaves: linear(layer, leaves[0].t(), relu=False, team=team), [x.t()], layer, ones)
    double = copy.deepcopy(layer).double()
    close(got, run(lambda layer, leaves: layer(leaves[0].t()), [x.t().double()], double, ones))
    linear(layer, x, relu=True, team=Team()).sum().backward()
    assert x.grad is None


def test_nan_is_not_hidden_by_a_relu() -> None:
    layer = nn.Linear(4, 4)
    x = torch.tensor([[float("nan")] * 4]).requires_grad_()
    out = linear(layer, x, relu=True, team=Team())
    assert out.isnan().all()
    out.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isnan().all()


def test_what_is_not_plain_is_left_to_torch() -> None:
    layers, x = [nn.Linear(4, 4), nn.ReLU()], torch.randn(3, 4)
    assert is_native(layers, x)
    assert not is_native(layers, x.double())
    assert not is_native([nn.Linear(4, 4, bias=False)], x)
    assert not is_native([nn.GELU()], x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_native(layers, x)
    torch.testing.assert_close(run_layers([nn.ReLU(), *layers], x, Team()), layers[1](layers[0](x.relu())))
    before_backward = nn.Linear(4, 4)
    before_backward.register_full_backward_pre_hook(lambda *_: None)
    assert not is_native([before_backward], x)
    hooked = nn.Linear(4, 4)
    seen: list[Tensor] = []
    hooked.register_forward_hook(lambda module, args, out: seen.append(out))
    run_layers([hooked], x, Team())
    assert len(seen) == 1
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    assert not is_native([parametrized], x)


def test_a_team_is_copied_without_its_threads() -> None:
    team = Team()
    team.threads()
    for other in (copy.deepcopy(team), pickle.loads(pickle.dumps(team))):
        assert other.threads() is not team.threads()
    assert team.threads() is team.threads()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rest": np.ones((2, 3, 4))}, r"rest: expected .* float32 .*, got float64 \[2, 3, 4\]"),
        ({"rest": np.ones((2, 12), np.float32)}, r"rest: expected .* \[B, V, D\], got float32 \[2, 12\]"),
        ({"first": np.ones((2, 5), np.float32)}, r"first: expected .* \[2, 4\], got float32 \[2, 5\]"),
        ({"num_copied": 5}, "at most the number of vectors 4, got 5"),
        ({"weight": np.ones((3, 9), np.float32)}, r"weight: expected .* \[N, 10\], got float32 \[3, 9\]"),
        ({"bias": np.ones(4, np.float32)}, r"bias: expected .* \[3\], got float32 \[4\]"),
        ({"out": np.ones((2, 4), np.float32)}, r"out: expected .* \[2, 3\], got float32 \[2, 4\]"),
        ({"values": np.ones((2, 10), np.float32)}, "got both or neither"),
    ],
)
def test_bad_arrays_are_refused(change: dict, message: str) -> None:
    good = {
        "values": None,
        "first": np.ones((2, 4), np.float32),
        "rest": np.ones((2, 3, 4), np.float32),
        "num_copied": 1,
        "weight": np.ones((3, 10), np.float32),
        "bias": np.ones(3, np.float32),
        "relu": True,
        "out": np.ones((2, 3), np.float32),
        "team": _native.ThreadTeam(1),
    }
    _native.linear_forward(**good)
    with pytest.raises(ValueError, match=message):
        _native.linear_forward(**{**good, **change})
