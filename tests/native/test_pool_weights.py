"""Weights of ids multiply their rows and the rows' gradients, in every kernel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from persia_hpc import _native
from persia_hpc.errors import UserError
from persia_hpc.protocol.row_batch import RowBatch, pack_row_batch, unpack_row_batch
from persia_hpc.protocol.wire import WIRES
from persia_hpc.trainer.batch import Inputs
from persia_hpc.trainer.pooling.embed import Pooling
from tests.support.row_batches import make_inputs, make_row_batch, random_ids

PLACES = [
    ("cpu", "native"),
    ("cpu", "torch"),
    ("cpu", "cuda"),
    pytest.param(("cuda", "cuda"), marks=pytest.mark.gpu),
]


def weighted_batch(dim: int, num_samples: int, rng: np.random.Generator) -> tuple[Inputs, RowBatch]:
    """Features a, c and d have weights; a and b lie beside each other, d has ids of no sample at times."""
    inputs = make_inputs(
        [
            ("a", dim, "sum", True),
            ("b", dim, "mean", True),
            ("c", dim + 1, "mean", True),
            ("d", dim, "jagged", True),
        ]
    )
    specs = tuple(replace(f, weighted=f.name != "b") for f in inputs.features)
    inputs = Inputs(specs, inputs.num_dense, inputs.labels)
    row_batch = make_row_batch(inputs, random_ids(inputs, num_samples, rng, most=6), rng)
    for i, feature in enumerate(specs):
        count = int(row_batch.feature_offsets[i + 1]) - int(row_batch.feature_offsets[i])
        if feature.weighted:
            row_batch.id_weights[feature.name] = rng.normal(size=count).astype(np.float32)
    return inputs, row_batch


@pytest.mark.parametrize("place", PLACES, ids=str)
@settings(max_examples=25, deadline=None)
@given(
    dim=st.sampled_from([1, 3, 4, 16, 64, 130]),
    num_samples=st.integers(0, 9),
    seed=st.integers(0, 2**31),
    wire=st.sampled_from(list(WIRES)),
)
def test_weighted_sums_and_their_gradients_are_those_of_embedding_bag(
    place: tuple[str, str], dim: int, num_samples: int, seed: int, wire: str
) -> None:
    device, kernel = place
    rng = np.random.default_rng(seed)
    inputs, row_batch = weighted_batch(dim, num_samples, rng)
    row_batch.rows = [_native.encode_rows(rows, wire) for rows in row_batch.rows]
    batch, gradients = Pooling(inputs, device, kernel=kernel).embed(row_batch, training=True)
    leaves = [
        torch.from_numpy(_native.decode_rows(rows, dim + g)).double().requires_grad_()
        for g, rows in enumerate(row_batch.rows)
    ]
    losses = []
    for i, feature in enumerate(inputs.features):
        begin, end = row_batch.feature_offsets[i : i + 2]
        indices = torch.from_numpy(row_batch.indices[begin:end].astype(np.int64))
        weights = row_batch.id_weights.get(feature.name)
        bags = torch.from_numpy(row_batch.bag_offsets[feature.name].astype(np.int64))
        if feature.pooling == "jagged":
            assert torch.equal(batch.jagged["d"].weights.cpu(), torch.from_numpy(weights))  # as they are
            expected, got = leaves[0][indices], batch.jagged["d"].values
        else:
            expected = functional.embedding_bag(
                indices,
                leaves[feature.dim_group],
                bags[:-1],
                mode="mean" if weights is None else "sum",
                per_sample_weights=None if weights is None else torch.from_numpy(weights).double(),
            )
            got = batch.pooled[feature.name]
        torch.testing.assert_close(got.cpu().double(), expected.detach(), rtol=1e-5, atol=1e-5)
        wave = torch.arange(1.0, expected.numel() + 1).reshape(expected.shape).sin()
        losses.append(((got * wave.to(device)).sum(), (expected * wave).sum()))
    sum(loss for loss, _ in losses).backward()
    sum(loss for _, loss in losses).backward()
    for got, leaf in zip(gradients.arrays(), leaves, strict=True):
        expected = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(torch.from_numpy(got).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dim", [7, 8])
def test_the_gpus_code_gives_the_native_bits_also_of_batches_from_rings(device: str, dim: int) -> None:
    inputs, row_batch = weighted_batch(dim, 30, np.random.default_rng(2))
    packed = [np.concatenate(a) if isinstance(a, list) else a for a in pack_row_batch(row_batch)]
    arrived = unpack_row_batch(1, 0, packed, list("abcd"), None, {"a": 0, "c": 2, "d": 3})
    results = []
    for where, kernel, fed in (("cpu", "native", row_batch), (device, "cuda", arrived)):
        batch, gradients = Pooling(inputs, where, kernel=kernel).embed(fed, training=True)
        outputs = [*batch.pooled.values(), batch.jagged["d"].values]
        generator = torch.Generator().manual_seed(1)
        torch.autograd.backward(
            outputs, [torch.randn(o.shape, generator=generator).to(o.device) for o in outputs]
        )
        results.append([*(o.detach().cpu().numpy() for o in outputs), *gradients.arrays()])
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one, other)
    assert results[0][-1].any()


def test_a_batch_without_weights_is_refused() -> None:
    inputs, row_batch = weighted_batch(4, 3, np.random.default_rng(1))
    del row_batch.id_weights["c"]
    with pytest.raises(UserError, match="no weights for the ids of 'c'"):
        Pooling(inputs).embed(row_batch, training=True)


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_histories_of_thousands_of_ids_beside_empty_ones(place: tuple[str, str]) -> None:
    device, kernel = place
    rng = np.random.default_rng(4)
    inputs = make_inputs([("a", 16, "jagged", True), ("b", 16, "jagged", True), ("c", 16, "sum", False)])
    lengths = {"a": [0, 5000, 1, 0, 3000], "b": [0] * 5, "c": [1] * 5}
    ids = {name: [rng.integers(0, 4000, n).tolist() for n in each] for name, each in lengths.items()}
    row_batch = make_row_batch(inputs, ids, rng)
    batch, gradients = Pooling(inputs, device, kernel=kernel).embed(row_batch, training=True)
    history = batch.jagged["a"]
    assert (history.lengths.tolist(), history.longest) == (lengths["a"], 5000)
    assert (batch.jagged["b"].values.shape, batch.jagged["b"].longest) == ((0, 16), 1)
    indices = row_batch.indices[:8001].astype(np.int64)
    np.testing.assert_array_equal(history.values.detach().cpu().numpy(), row_batch.rows[0][indices])
    wave = rng.normal(size=(8001, 16)).astype(np.float32)
    history.values.backward(torch.from_numpy(wave).to(device))
    expected = np.zeros(row_batch.rows[0].shape)
    np.add.at(expected, indices, wave)
    np.testing.assert_allclose(gradients.arrays()[0], expected, rtol=1e-5, atol=1e-5)
