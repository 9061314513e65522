from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from persia_hpc import _native
from persia_hpc.errors import UserError
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.protocol.wire import WIRES, wire_of
from persia_hpc.trainer.batch import Batch, Inputs
from persia_hpc.trainer.pooling.embed import Pooling
from persia_hpc.trainer.pooling.gradients import RowGradients
from tests.support.row_batches import make_inputs, make_row_batch, random_ids

KERNELS = ("native", "cuda", "torch")  # the GPU's code on the host; on a GPU: test_pool_cuda.py

MIXED = [
    ("a", 4, "sum", False),
    ("b", 3, "mean", True),
    ("c", 4, "sqrtn", True),
    ("d", 4, "sequence", True),
    ("e", 3, "sequence", False),
    ("f", 4, "sum", True),
    ("g", 1, "mean", False),
    ("h", 4, "jagged", True),
    ("i", 3, "jagged", False),
    ("j", 1, "jagged", True),
]


def plain_torch(
    inputs: Inputs, row_batch: RowBatch, ids: dict[str, list], leaves: list[torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The same outputs by embedding_bag and indexing, straight from the ids of each sample."""
    pooled, sequences = {}, {}  # the latter also without padding
    for i, feature in enumerate(inputs.features):
        begin, end = (int(x) for x in row_batch.feature_offsets[i : i + 2])
        rows = leaves[feature.dim_group]
        indices = torch.from_numpy(row_batch.indices[begin:end].astype(np.int64))
        sizes = torch.tensor([len(x) for x in ids[feature.name]], dtype=torch.int64)
        bags = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        if feature.pooling == "sequence":
            values = torch.zeros(len(sizes), max(1, int(sizes.max())), feature.dim, dtype=rows.dtype)
            for b in range(len(sizes)):
                values[b, : sizes[b]] = rows[indices[bags[b] : bags[b + 1]]]
            sequences[feature.name] = values
            continue
        if feature.pooling == "jagged":
            sequences[feature.name] = rows[indices]
            continue
        mode = "mean" if feature.pooling == "mean" else "sum"
        out = functional.embedding_bag(indices, rows, bags[:-1], mode=mode)
        if feature.pooling == "sqrtn":
            out = out / sizes.clamp(min=1).sqrt()[:, None]
        pooled[feature.name] = out
    return pooled, sequences


def decoded_rows(row_batch: RowBatch, inputs: Inputs) -> list[torch.Tensor]:
    """Float64 leaves [U_g, D_g] of each group."""
    dims = {f.dim_group: f.dim for f in inputs.features}
    return [
        torch.from_numpy(_native.decode_rows(rows, dims[group])).double().requires_grad_()
        for group, rows in enumerate(row_batch.rows)
    ]


def tensors(gradients: RowGradients) -> list[torch.Tensor]:
    """Of gradients that travel as fp32."""
    return [torch.from_numpy(array) for array in gradients.arrays()]


def outputs_of(batch: Batch) -> list[torch.Tensor]:
    padded = [values for values, _ in batch.sequence.values()]
    return [*batch.pooled.values(), *padded, *(jagged.values for jagged in batch.jagged.values())]


def weighted_sum(outputs: list[torch.Tensor]) -> torch.Tensor:
    """A scalar whose gradient differs for each element of each output."""
    total = torch.zeros((), dtype=outputs[0].dtype)
    for number, out in enumerate(outputs):
        wave = torch.arange(out.numel(), dtype=out.dtype).reshape(out.shape) * 0.37 + number
        total = total + (out * wave.cos() + 0.5 * out.square()).sum()
    return total


@settings(max_examples=40, deadline=None)
@given(
    num_samples=st.integers(1, 9),
    seed=st.integers(0, 2**31),
    most=st.integers(0, 5),
    picks=st.lists(st.integers(0, len(MIXED) - 1), min_size=1, max_size=len(MIXED), unique=True),
    kernel=st.sampled_from(KERNELS),
)
def test_forward_and_backward_match_plain_torch(
    num_samples: int, seed: int, most: int, picks: list[int], kernel: str
) -> None:
    rng = np.random.default_rng(seed)
    inputs = make_inputs([MIXED[i] for i in picks])
    ids = random_ids(inputs, num_samples, rng, most=most)
    row_batch = make_row_batch(inputs, ids, rng, unused_rows=True)
    batch, gradients = Pooling(inputs, kernel=kernel).embed(row_batch, training=True)
    doubles = decoded_rows(row_batch, inputs)
    pooled, sequences = plain_torch(inputs, row_batch, ids, doubles)
    assert set(batch.pooled) == set(pooled)
    assert {*batch.sequence, *batch.jagged} == set(sequences)
    for name, expected in pooled.items():
        torch.testing.assert_close(batch.pooled[name].double(), expected, rtol=1e-6, atol=1e-6)
    for name, expected in sequences.items():
        lengths = [len(x) for x in ids[name]]
        if name in batch.jagged:
            jagged = batch.jagged[name]
            torch.testing.assert_close(jagged.values.double(), expected, rtol=0, atol=0)
            assert jagged.offsets.dtype == torch.int64
            assert jagged.offsets.tolist() == [0, *accumulate(lengths)]
            assert jagged.longest == max([1, *lengths])
            continue
        values, mask = batch.sequence[name]
        torch.testing.assert_close(values.double(), expected, rtol=0, atol=0)
        assert mask.tolist() == [[i < n for i in range(mask.shape[1])] for n in lengths]
    weighted_sum(outputs_of(batch)).backward()
    unpooled = [sequences[n] for n in (*batch.sequence, *batch.jagged)]
    weighted_sum([*(pooled[n] for n in batch.pooled), *unpooled]).backward()
    for gradient, double, rows in zip(tensors(gradients), doubles, row_batch.rows, strict=True):
        assert double.grad is not None
        torch.testing.assert_close(gradient.double(), double.grad, rtol=1e-5, atol=1e-5)
        assert not gradient[len(rows) - 1].any()  # the row that no id uses


@pytest.mark.parametrize("dim", [1, 2, 7, 8, 16, 32, 33, 64, 128, 1024])
def test_kernels_agree_at_any_dim(dim: int) -> None:
    rng = np.random.default_rng(dim)
    inputs = make_inputs(
        [
            ("a", dim, "sum", False),
            ("b", dim, "mean", True),
            ("c", dim, "sequence", True),
            ("d", dim, "sum", True),
            ("e", dim, "jagged", True),
        ]
    )
    row_batch = make_row_batch(inputs, random_ids(inputs, 40, rng), rng)
    results = []
    for kernel in KERNELS:
        batch, gradients = Pooling(inputs, kernel=kernel).embed(row_batch, training=True)
        weighted_sum(outputs_of(batch)).backward()
        results.append([*outputs_of(batch), *tensors(gradients)])
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_backward_repeats_bit_for_bit_and_sums_in_ascending_order() -> None:
    rng = np.random.default_rng(0)
    num_samples = 3000
    inputs = make_inputs([("a", 4, "sum", False)])
    row_batch = make_row_batch(inputs, {"a": [[0]] * num_samples}, rng)
    gradient = (
        rng.normal(size=(num_samples, 1, 4)) * 10.0 ** rng.integers(-6, 6, (num_samples, 1, 1))
    ).astype(np.float32)
    expected = np.zeros(4, np.float32)
    for row in gradient[:, 0]:
        expected += row
    for kernel in ("native", "torch"):  # a GPU sums so long a row in parts
        for _ in range(2):
            batch, gradients = Pooling(inputs, kernel=kernel).embed(row_batch, training=True)
            batch.stacked().backward(torch.from_numpy(gradient))
            np.testing.assert_array_equal(tensors(gradients)[0].numpy()[0], expected)


@pytest.mark.parametrize("dim", [3, 16])
@pytest.mark.parametrize("rows", [[3, 3, 3, 3], [4, 1, 7, 2]])
def test_features_of_one_table_are_summed_in_the_order_of_their_ids(dim: int, rows: list[int]) -> None:
    """However the kernel goes through the batch: four features use `rows` rows, which overlap or don't."""
    rng = np.random.default_rng(0)
    num_samples = 200
    bags = np.arange(num_samples + 1, dtype=np.uint32)
    ids = np.concatenate([rng.integers(0, n, num_samples) for n in rows]).astype(np.uint32)
    ids[num_samples : 2 * num_samples] += rows[0]  # a table of its own, or of its neighbours
    features = [(f * num_samples, (f + 1) * num_samples, "sum", bags if f == 2 else None) for f in range(4)]
    gradient = rng.normal(size=(num_samples, 4, dim)) * 10.0 ** rng.integers(-6, 6, (num_samples, 4, 1))
    gradient = gradient.astype(np.float32)
    expected = np.zeros((8, dim), np.float32)
    for at, row in enumerate(ids):
        expected[row] += gradient[at % num_samples, at // num_samples]
    got, finite = _native.gather_pool_backward(
        gradient, [], ids, features=features, num_samples=num_samples, num_rows=8, dim=dim
    )
    np.testing.assert_array_equal(got, expected)
    assert finite


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("wire", ["fp32", "fp16"])
@pytest.mark.parametrize("factor", [None, 1.0])
def test_a_row_whose_gradient_is_not_finite_is_noticed(kernel: str, wire: str, factor: float | None) -> None:
    """NaN, infinity, and finite gradients that sum to infinity; what only fp16 can't hold is finite."""
    inputs = make_inputs([("a", 4, "sum", False), ("b", 20, "sum", False)])
    for value, finite in ((1.0, True), (1e6, True), (torch.nan, False), (-torch.inf, False), (3e38, False)):
        for name in ("a", "b"):
            rng = np.random.default_rng(1)
            row_batch = make_row_batch(inputs, {"a": [[1], [1], [2]], "b": [[4], [4], [5]]}, rng)
            batch, gradients = Pooling(inputs, kernel=kernel, gradients=wire).embed(row_batch, training=True)
            if factor is not None:
                gradients.scale_by(torch.full((1,), factor))
            steep = torch.ones(3, 1)
            steep[:2] = value
            sum((x * (steep if n == name else 1)).sum() for n, x in batch.pooled.items()).backward()
            gradients.wait()
            assert bool(gradients.overflow().isnan()) != finite, (value, name)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_batch_without_samples(kernel: str) -> None:
    rng = np.random.default_rng(1)
    inputs = make_inputs(MIXED)
    row_batch = make_row_batch(inputs, {name: [] for name, *_ in MIXED}, rng)
    batch, gradients = Pooling(inputs, kernel=kernel).embed(row_batch, training=True)
    assert batch.num_samples == 0
    assert {name: tuple(x.shape) for name, x in batch.pooled.items()} == {
        f.name: (0, f.dim) for f in inputs.features if f.pooling not in ("sequence", "jagged")
    }
    assert batch.jagged["h"].values.shape == (0, 4)
    assert (batch.jagged["h"].offsets.tolist(), batch.jagged["i"].offsets.tolist()) == ([0], [0])
    assert batch.sequence["d"][0].shape == (0, 1, 4)
    sum(x.sum() for x in outputs_of(batch)).backward()  # type: ignore[union-attr]
    assert [tuple(g.shape) for g in tensors(gradients)] == [(0, 1), (0, 3), (0, 4)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_unused_outputs_give_zero_gradients(kernel: str) -> None:
    rng = np.random.default_rng(2)
    inputs = make_inputs(MIXED)
    row_batch = make_row_batch(inputs, random_ids(inputs, 5, rng), rng)
    batch, gradients = Pooling(inputs, kernel=kernel).embed(row_batch, training=True)
    batch.pooled["b"].sum().backward()
    arrays = gradients.arrays()
    assert [bool(g.any()) for g in arrays] == [False, True, False]
    assert [g.shape for g in arrays] == [rows.shape for rows in row_batch.rows]


def test_half_rows_are_widened_and_everything_stays_float32_under_autocast() -> None:
    rng = np.random.default_rng(3)
    inputs = make_inputs(MIXED)
    row_batch = make_row_batch(inputs, random_ids(inputs, 5, rng), rng, dtype=np.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch, gradients = Pooling(inputs).embed(row_batch, training=True)
        weights = torch.ones(4, 2)
        (batch.pooled["a"] @ weights).sum().backward()
    assert {x.dtype for x in [*outputs_of(batch), *tensors(gradients)]} == {torch.float32}


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_and_gradients_travel_in_any_format(wire: str, kernel: str) -> None:
    """Decoding on the fly is decoding first; encoding the sum is encoding afterwards. To the bit."""
    rng = np.random.default_rng(10)
    inputs = make_inputs([*MIXED, *((f"{name}17", 17, *rest) for name, _, *rest in MIXED)])
    dims = [1, 3, 4, 17]
    row_batch = make_row_batch(inputs, random_ids(inputs, 40, rng), rng, unused_rows=True)
    wide = row_batch.rows
    row_batch.rows = [_native.encode_rows(rows, wire) for rows in wide]
    assert [wire_of(rows, dim).name for rows, dim in zip(row_batch.rows, dims, strict=True)] == [wire] * 4
    batch, gradients = Pooling(inputs, gradients=wire, kernel=kernel).embed(row_batch, training=True)
    weighted_sum(outputs_of(batch)).backward()
    row_batch.rows = [_native.decode_rows(rows, dim) for rows, dim in zip(row_batch.rows, dims, strict=True)]
    plain, expected = Pooling(inputs, kernel=kernel).embed(row_batch, training=True)
    weighted_sum(outputs_of(plain)).backward()
    for one, other in zip(outputs_of(batch), outputs_of(plain), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(gradients.arrays(), expected.arrays(), strict=True):
        assert np.array_equal(one, _native.encode_rows(other, wire))


def test_a_second_backward_adds_to_the_first() -> None:
    rng = np.random.default_rng(11)
    inputs = make_inputs(MIXED)
    row_batch = make_row_batch(inputs, random_ids(inputs, 5, rng), rng)
    batch, gradients = Pooling(inputs, gradients="fp16").embed(row_batch, training=True)
    batch.pooled["a"].sum().backward(retain_graph=True)
    once = gradients.arrays()
    (batch.pooled["a"].sum() + batch.pooled["b"].sum()).backward()
    twice = gradients.arrays()
    assert np.array_equal(twice[2], 2 * once[2])
    assert once[2].any()
    assert twice[1].any()


def test_evaluation_tracks_no_gradients() -> None:
    rng = np.random.default_rng(4)
    inputs = make_inputs(MIXED)
    row_batch = make_row_batch(inputs, random_ids(inputs, 5, rng), rng)
    batch, _ = Pooling(inputs).embed(row_batch, training=False)
    assert not any(x.requires_grad for x in outputs_of(batch))


def test_the_batch_outlives_the_feeds_memory() -> None:
    rng = np.random.default_rng(5)
    inputs = make_inputs(MIXED)
    row_batch = make_row_batch(inputs, random_ids(inputs, 5, rng), rng)
    row_batch.weight = np.ones(5, np.float32)
    batch, _ = Pooling(inputs).embed(row_batch, training=True)
    tensors = [batch.dense, batch.labels, batch.weight, *outputs_of(batch)]
    before = [t.detach().clone() for t in tensors if t is not None]
    for array in (row_batch.dense, row_batch.labels, row_batch.weight, *row_batch.rows):
        array.fill(7)
    for now, then in zip(tensors, before, strict=True):
        assert torch.equal(now, then)  # type: ignore[arg-type]


def test_read_only_feeds_are_accepted_and_left_alone() -> None:
    rng = np.random.default_rng(6)
    inputs = make_inputs(MIXED)
    row_batch = make_row_batch(inputs, random_ids(inputs, 5, rng), rng)
    arrays = [
        row_batch.indices,
        row_batch.row_offsets,
        row_batch.positions,
        row_batch.dense,
        row_batch.labels,
        *row_batch.rows,
    ]
    for array in [*arrays, *row_batch.bag_offsets.values()]:
        array.flags.writeable = False
    for kernel in KERNELS:
        batch, gradients = Pooling(inputs, kernel=kernel).embed(row_batch, training=True)
        weighted_sum(outputs_of(batch)).backward()
        assert all(torch.isfinite(g).all() for g in tensors(gradients))


def test_features_of_one_dim_stack_without_a_copy() -> None:
    rng = np.random.default_rng(7)
    inputs = make_inputs([(name, 4, "sum", False) for name in "abc"])
    row_batch = make_row_batch(inputs, random_ids(inputs, 5, rng), rng)
    batch, gradients = Pooling(inputs).embed(row_batch, training=True)
    stacked, flat = batch.stacked(), batch.concatenated()
    assert stacked.data_ptr() == batch.pooled["a"].data_ptr() == flat.data_ptr()
    assert stacked.shape == (5, 3, 4)
    swapped = batch.stacked(["c", "a"])
    assert torch.equal(swapped, torch.stack([batch.pooled["c"], batch.pooled["a"]], 1))
    assert torch.equal(batch.concatenated(["c", "a"]), swapped.flatten(1))
    # Whatever mixture of views a model uses, the gradients add up: b's ids count twice, the others' thrice.
    (stacked.sum() + flat.sum() + swapped.sum()).backward()
    counts = np.array([3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3])[row_batch.positions]
    expected = np.add.reduceat(counts, row_batch.row_offsets[:-1].astype(np.int64))
    np.testing.assert_array_equal(tensors(gradients)[0].numpy(), expected[:, None].repeat(4, axis=1))


def test_stacking_what_can_not_be_stacked() -> None:
    rng = np.random.default_rng(8)
    inputs = make_inputs(MIXED)
    batch, _ = Pooling(inputs).embed(make_row_batch(inputs, random_ids(inputs, 5, rng), rng), training=False)
    with pytest.raises(UserError, match="one dim"):
        batch.stacked()
    with pytest.raises(UserError, match="'d' is a sequence"):
        batch.stacked(["a", "d"])
    with pytest.raises(UserError, match="'h' is jagged, use batch"):
        batch.concatenated(["h"])
    with pytest.raises(UserError, match="'x' is not a feature; pooled features: a, b, c, f, g"):
        batch.concatenated(["x"])


def test_a_feed_that_does_not_fit_the_inputs() -> None:
    rng = np.random.default_rng(9)
    inputs = make_inputs(MIXED)
    row_batch = make_row_batch(inputs, random_ids(inputs, 5, rng), rng)
    with pytest.raises(UserError, match="rows of 3 groups, the model's inputs 1"):
        Pooling(make_inputs(MIXED[:1])).embed(row_batch, training=True)
    row_batch.rows[1], kept = row_batch.rows[1].astype(np.uint16)[:, :2], row_batch.rows[1]
    with pytest.raises(
        UserError, match=r"dim 3 can travel as .*, or as uint16 \[U, 3\] or \[U, 5\]; got uint16"
    ):
        Pooling(inputs).embed(row_batch, training=True)
    row_batch.rows[1] = kept
    del row_batch.bag_offsets["b"]
    with pytest.raises(UserError, match="bag offsets for the multi-hot feature 'b'"):
        Pooling(inputs).embed(row_batch, training=True)
