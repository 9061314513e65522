"""DLRM's native network, against torch in doubles."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from persia_hpc import _native
from persia_hpc.models.layers import Team, is_native, run_dlrm
from persia_hpc.models.parts import perceptron

WITH_BF16 = pytest.mark.skipif(not _native.has_bf16(), reason="the processor doesn't multiply bf16")


class Network(nn.Module):
    """The parts of a DLRM with D = `dim` and random parameters, and both ways to compute it."""

    def __init__(self, num_dense: int, vectors: int, dim: int, copied: int, widths: list[list[int]]) -> None:
        super().__init__()
        self.bottom = perceptron(num_dense, [*widths[0], dim]) if num_dense else None
        self.num_vectors = vectors + (self.bottom is not None)
        self.copied = min(copied, self.num_vectors)
        pairs = self.num_vectors * (self.num_vectors - 1) // 2
        self.top = perceptron(self.copied * dim + pairs, widths[1][:-1], outputs=widths[1][-1])

    def native(self, dense: Tensor | None, vectors: Tensor, team: Team) -> Tensor:
        return run_dlrm(dense, vectors, self.copied, list(self.bottom or []), list(self.top), team)

    def formula(self, dense: Tensor | None, vectors: Tensor) -> Tensor:
        if self.bottom is not None:
            vectors = torch.cat([self.bottom(dense).unsqueeze(1), vectors], dim=1)
        row, column = torch.tril_indices(vectors.shape[1], vectors.shape[1], offset=-1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))[:, row, column]
        return self.top(torch.cat([vectors[:, : self.copied].flatten(1), products], dim=1))

    def away_from_bends(self, dense: Tensor | None, vectors: Tensor) -> Tensor:
        """Which samples have no ReLU so near its bend that roundings decide."""
        inputs: list[Tensor] = []
        layers = [layer for layer in self.modules() if isinstance(layer, nn.ReLU)]
        hooks = [layer.register_forward_hook(lambda _, args, out: inputs.append(args[0])) for layer in layers]
        with torch.no_grad():
            self.formula(dense, vectors)
        for hook in hooks:
            hook.remove()
        near = [(x.abs() < 1e-4 * x.abs().mean()).any(dim=1) for x in inputs]
        return ~torch.stack(near).any(dim=0) if near else torch.ones(len(vectors), dtype=torch.bool)


def both_ways(apply, model: nn.Module, leaves: list[Tensor | None], weights: Tensor) -> list[Tensor]:
    """Output and all gradients of a function whose gradient differs for each element of the output."""
    leaves = [None if leaf is None else leaf.clone().requires_grad_() for leaf in leaves]
    model.zero_grad()
    out = apply(*leaves)
    (out * weights.to(out.dtype)).sum().backward()
    gradients = [leaf.grad for leaf in leaves if leaf is not None]
    return [out.detach(), *gradients, *(p.grad for p in model.parameters())]


def close(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.float32
        scale = max([1.0, *other.abs().flatten().tolist()[:1], float(other.abs().max()) if len(other) else 0])
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=2e-5 * scale)


def team_of(threads: int) -> Team:
    class Fixed(Team):
        def threads(self):
            return _native.ThreadTeam(threads)

    return Fixed()


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.sampled_from([0, 1, 2, 15, 16, 17, 63, 65, 511, 513, 1100]),
    num_dense=st.integers(0, 20),
    vectors=st.integers(1, 30),
    dim=st.integers(1, 20),
    copied=st.sampled_from([0, 1, 99]),
    widths=st.tuples(
        st.lists(st.integers(1, 40), max_size=2), st.lists(st.integers(1, 40), min_size=1, max_size=3)
    ),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 2**31),
)
def test_the_network_is_torchs(num_samples, num_dense, vectors, dim, copied, widths, threads, seed) -> None:
    torch.manual_seed(seed)
    model = Network(num_dense, vectors, dim, copied, [*widths])
    if model.top[0].in_features == 0:
        return
    dense = torch.randn(num_samples, num_dense) if num_dense else None
    rows = torch.randn(num_samples, vectors, dim) / dim**0.5
    weights = torch.randn(num_samples, widths[1][-1])
    double = copy.deepcopy(model).double()
    leaves = [None if leaf is None else leaf.double() for leaf in (dense, rows)]
    weights *= double.away_from_bends(*leaves)[:, None]
    got = both_ways(lambda *x: model.native(*x, team_of(threads)), model, [dense, rows], weights)
    close(got, both_ways(double.formula, double, leaves, weights))


def test_bits_depend_neither_on_threads_nor_on_where_a_sample_lies() -> None:
    model = Network(13, 26, 17, 1, [[30], [24, 1]])
    dense, rows, weights = torch.randn(1300, 13), torch.randn(1300, 26, 17), torch.randn(1300, 1)

    def with_threads(threads: int, part: slice = slice(None)) -> list[Tensor]:
        team = team_of(threads)
        return both_ways(lambda *x: model.native(*x, team), model, [dense[part], rows[part]], weights[part])

    whole = with_threads(1)
    for threads in (2, 3, 7):
        assert all(map(torch.equal, whole, with_threads(threads)))
    for one, other in zip(whole[:3], with_threads(1, slice(20, 21))[:3], strict=True):
        assert torch.equal(one[20:21], other)


@WITH_BF16
@settings(max_examples=30, deadline=None)
@given(
    num_samples=st.sampled_from([0, 1, 2, 15, 16, 17, 33, 63, 65, 513]),
    width=st.integers(1, 50),
    outputs=st.integers(1, 50),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**31),
)
def test_in_bf16_only_factors_are_rounded(num_samples, width, outputs, threads, seed) -> None:
    """One layer of what is given (a single vector has no products): the rest is as in doubles."""
    torch.manual_seed(seed)
    layer = nn.Linear(width, outputs)
    rows, weights = torch.randn(num_samples, 1, width), torch.randn(num_samples, outputs)
    team = team_of(threads)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = both_ways(lambda x: run_dlrm(None, x, 1, [], [layer], team), layer, [rows], weights)
    x, w, slopes = (t.bfloat16().double() for t in (rows[:, 0], layer.weight.detach(), weights))
    expected = [
        x @ w.t() + layer.bias.detach().double(),
        (slopes @ w)[:, None],
        slopes.t() @ x,
        slopes.sum(0),
    ]
    close(got, expected)


@WITH_BF16
def test_in_bf16_the_whole_network_is_near_torchs_and_bits_do_not_depend_on_threads() -> None:
    torch.manual_seed(1)
    model = Network(13, 26, 16, 1, [[64], [64, 1]])
    dense, rows, weights = torch.randn(1300, 13), torch.randn(1300, 26, 16) / 4, torch.randn(1300, 1)

    def natively(threads: int) -> list[Tensor]:
        team = team_of(threads)
        return under_autocast(lambda *x: model.native(*x, team))

    def under_autocast(apply) -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return both_ways(apply, model, [dense, rows], weights)

    exact = both_ways(model.formula, model, [dense, rows], weights)
    of_torch = under_autocast(model.formula)
    got = natively(1)
    for ours, torchs, true in zip(got, of_torch, exact, strict=True):
        assert ours.dtype == torch.float32
        # Torch also rounds what layers return, so it is farther off.
        assert 0 < (ours - true).norm() < 1.1 * (torchs - true).norm()
    for threads in (2, 3):
        assert all(map(torch.equal, got, natively(threads)))


def test_views_expanded_gradients_and_inputs_that_need_none() -> None:
    model = Network(7, 4, 6, 1, [[5], [9, 3]])
    dense, rows = torch.randn(7, 50).t(), torch.randn(4, 50, 6).transpose(0, 1)
    ones = torch.ones(1, 1).expand(50, 3)
    got = both_ways(lambda *x: model.native(*x, Team()), model, [dense, rows], ones)
    double = copy.deepcopy(model).double()
    close(got, both_ways(double.formula, double, [dense.double(), rows.double()], ones))
    model.zero_grad()
    model.native(dense, rows, Team()).sum().backward()
    assert dense.grad is rows.grad is None
    close([p.grad for p in model.parameters()], [p.double() for p in got[3:]])
    with torch.no_grad():
        assert not model.native(dense, rows, Team()).requires_grad


@pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=WITH_BF16)])
def test_nan_is_hidden_by_no_relu_and_stays_in_its_sample(bf16: bool) -> None:
    model = Network(4, 3, 4, 1, [[4], [4, 1]])
    dense, rows = torch.randn(20, 4), torch.randn(20, 3, 4)
    dense[3, 1], rows[17, 2, 0] = float("nan"), float("nan")
    ones = torch.ones(20, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        got = both_ways(lambda *x: model.native(*x, Team()), model, [dense, rows], ones)
    logits, *inputs = got[:3]
    bottom, top = got[3], got[7]
    assert logits.isnan().flatten().nonzero().flatten().tolist() == [3, 17]
    for gradient in inputs:
        assert set(gradient.flatten(1).isnan().any(dim=1).nonzero().flatten().tolist()) <= {3, 17}
    assert bottom[:, 1].isnan().any()
    assert top.isnan().any()


def test_what_is_not_plain_is_left_to_torch() -> None:
    layers, x = [nn.Linear(4, 4), nn.ReLU()], torch.randn(3, 4)
    assert is_native(layers, x)
    assert is_native([*layers, nn.Linear(4, 1)], x)
    assert not is_native(layers, x.double())
    assert not is_native([nn.Linear(4, 4, bias=False)], x)
    assert not is_native([nn.Linear(4, 4), nn.GELU()], x)
    assert not is_native([nn.ReLU(), *layers], x)
    assert not is_native([nn.Linear(4, 4), *layers], x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert is_native(layers, x) == _native.has_bf16()
    with torch.autocast("cpu", dtype=torch.float16):
        assert not is_native(layers, x)
    before_backward = nn.Linear(4, 4)
    before_backward.register_full_backward_pre_hook(lambda *_: None)
    assert not is_native([before_backward], x)
    hooked = nn.ReLU()
    hooked.register_forward_hook(lambda module, args, out: None)
    assert not is_native([nn.Linear(4, 4), hooked], x)
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    assert not is_native([parametrized], x)


def test_a_team_is_copied_without_its_threads() -> None:
    team = Team()
    team.threads()
    for other in (copy.deepcopy(team), pickle.loads(pickle.dumps(team))):
        assert other.threads() is not team.threads()
    assert team.threads() is team.threads()


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": np.ones((2, 3, 4))}, r"vectors: expected .* float32 .*, got float64 \[2, 3, 4\]"),
        ({"vectors": ones(2, 12)}, r"vectors: expected .* \[B, V, D\], got float32 \[2, 12\]"),
        ({"dense": ones(3, 5)}, r"dense: expected .* \[2, K\], got float32 \[3, 5\]"),
        ({"dense": None}, "dense and layers of bottom, got only one"),
        ({"bottom": []}, "dense and layers of bottom, got only one"),
        ({"bottom": [(ones(3, 5), ones(3))]}, "as many outputs as the vectors have elements, 4, got 3"),
        ({"bottom": [(ones(4, 6), ones(4))]}, r"bottom\[0\].weight: expected .* \[N, 5\], got .* \[4, 6\]"),
        ({"num_copied": 5}, "at most the number of vectors 4, got 5"),
        ({"top": []}, "top: expected layers, got none"),
        ({"top": [(ones(3, 10), ones(4))]}, r"top\[0\].bias: expected .* \[3\], got float32 \[4\]"),
        (
            {"top": [(ones(3, 10), ones(3)), (ones(1, 4), ones(1))]},
            r"top\[1\].weight: expected .* \[N, 3\], got float32 \[1, 4\]",
        ),
    ],
)
def test_bad_arrays_are_refused(change: dict, message: str) -> None:
    good = {
        "dense": ones(2, 5),
        "vectors": ones(2, 3, 4),
        "num_copied": 1,
        "bottom": [(ones(4, 5), ones(4))],
        "top": [(ones(3, 10), ones(3))],
        "team": _native.ThreadTeam(1),
    }
    logits, kept = _native.dlrm_forward(**good)
    assert logits.shape == (2, 3)
    with pytest.raises(ValueError, match=message):
        _native.dlrm_forward(**{**good, **change})
    both = {"gradient": logits, "kept": kept, "wants_dense": True, "wants_vectors": True}
    _native.dlrm_backward(**good, **both)
    with pytest.raises(ValueError, match=message):
        _native.dlrm_backward(**{**good, **both, **change})


def test_what_the_forward_kept_is_checked() -> None:
    good = {
        "dense": None,
        "vectors": ones(2, 3, 4),
        "num_copied": 0,
        "bottom": [],
        "top": [(ones(6, 3), ones(6)), (ones(1, 6), ones(1))],
        "team": _native.ThreadTeam(1),
    }
    logits, kept = _native.dlrm_forward(**good)
    more = {"wants_dense": True, "wants_vectors": False}
    made = _native.dlrm_backward(**good, **more, kept=kept, gradient=logits)
    assert made[:2] == (None, None)
    with pytest.raises(ValueError, match="kept: expected"):
        _native.dlrm_backward(**good, **more, kept=kept[:-1], gradient=logits)
    with pytest.raises(ValueError, match="gradient: expected"):
        _native.dlrm_backward(**good, **more, kept=kept, gradient=logits[:1])
