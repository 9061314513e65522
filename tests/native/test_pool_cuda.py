"""The CUDA kernels of gather_pool against the native ones: on the host, and on a GPU if there is one."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc import _native
from persia_hpc.errors import PersiaError
from persia_hpc.protocol.row_batch import RowBatch, pack_row_batch, unpack_row_batch
from persia_hpc.protocol.wire import WIRES
from persia_hpc.trainer.batch import Batch, Inputs
from persia_hpc.trainer.pooling.embed import Pooling
from persia_hpc.trainer.pooling.gradients import RowGradients
from persia_hpc.trainer.pooling.staging import Staging, arrays_of
from tests.support.row_batches import make_inputs, make_row_batch, random_ids

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
POOLINGS = ("sum", "mean", "sqrtn", "sequence", "jagged")


def embed(
    inputs: Inputs,
    row_batch: RowBatch,
    device: str,
    wire: str = "fp32",
    pooled: torch.dtype = torch.float32,
) -> tuple[Batch, RowGradients, list[torch.Tensor]]:
    pooling = Pooling(inputs, device, gradients=wire, kernel="cuda")
    batch, gradients = pooling.embed(row_batch, training=True, pooled=pooled)
    return batch, gradients, outputs_of(batch)


def outputs_of(batch: Batch) -> list[torch.Tensor]:
    padded = [values for values, _ in batch.sequence.values()]
    return [*batch.pooled.values(), *padded, *(jagged.values for jagged in batch.jagged.values())]


def backward(outputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
    torch.autograd.backward(outputs, [g.to(o.device) for g, o in zip(gradients, outputs, strict=True)])


def waves(outputs: Sequence[torch.Tensor], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_batch_gives_what_the_native_kernels_give(device: str, data: st.DataObject) -> None:
    dims = st.one_of(st.integers(1, 40), st.sampled_from([64, 128, 130, 512, 1023, 1024]))
    shape = st.tuples(dims, st.sampled_from(POOLINGS), st.booleans())
    features = data.draw(st.lists(shape, min_size=1, max_size=5))
    inputs = make_inputs([(f"f{i}", *feature) for i, feature in enumerate(features)])
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    num_samples = data.draw(st.integers(1, 12))
    wire, back = data.draw(st.sampled_from(list(WIRES))), data.draw(st.sampled_from(list(WIRES)))
    row_batch = make_row_batch(
        inputs, random_ids(inputs, num_samples, rng), rng, unused_rows=data.draw(st.booleans())
    )
    row_batch.rows = [_native.encode_rows(rows, wire) for rows in row_batch.rows]
    if data.draw(st.booleans()):
        row_batch.indices = row_batch.indices.astype(np.uint32)
    pooled = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    batch, gradients, outputs = embed(inputs, row_batch, device, back, pooled)
    assert all(values.dtype == pooled for values in batch.pooled.values())
    expected, native = Pooling(inputs, gradients=back).embed(row_batch, training=True)
    for one, other in zip(outputs, outputs_of(expected), strict=True):
        assert torch.equal(one.cpu(), other.to(one.dtype))  # rounded as autocast does it
    for name, (_, mask) in expected.sequence.items():
        assert torch.equal(batch.sequence[name][1].cpu(), mask)
    for name, jagged in expected.jagged.items():
        assert torch.equal(batch.jagged[name].offsets.cpu(), jagged.offsets)
        assert batch.jagged[name].longest == jagged.longest
    wave = waves(outputs, 1)
    backward(outputs, wave)
    backward(outputs_of(expected), [w.float() for w in wave])
    for got, want in zip(gradients.arrays(), native.arrays(), strict=True):
        assert np.array_equal(got, want)  # to the bit, in any format: all rows are short


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("dim", [1, 6, 16, 64, 100, 1024, 1300])
def test_rows_that_many_ids_use_repeat_and_are_summed_well(device: str, wire: str, dim: int) -> None:
    rng = np.random.default_rng(dim)
    inputs = make_inputs(
        [
            ("a", dim, "sum", False),
            ("b", dim, "mean", True),
            ("c", dim, "sequence", True),
            ("d", dim, "jagged", True),
        ]
    )
    ids: dict[str, list] = {
        "a": [[int(rng.integers(0, 3))] for _ in range(500)],
        "b": [rng.integers(0, 2, rng.integers(0, 4)).tolist() for _ in range(500)],
        "c": [rng.integers(0, 2, rng.integers(0, 4)).tolist() for _ in range(500)],
        "d": [rng.integers(0, 2, rng.integers(0, 4)).tolist() for _ in range(500)],
    }
    row_batch = make_row_batch(inputs, ids, rng)
    assert np.diff(row_batch.row_offsets).max() > 200
    results = []
    for _ in range(2):
        _, gradients, outputs = embed(inputs, row_batch, device, wire)
        backward(outputs, waves(outputs, 3))
        results.append(gradients.arrays()[0])
    assert np.array_equal(*results)
    expected, native = Pooling(inputs).embed(row_batch, training=True)
    backward(outputs_of(expected), waves(outputs_of(expected), 3))
    exact = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1e-2, "scaled_fp16": 2e-3}[wire]
    np.testing.assert_allclose(
        _native.decode_rows(results[0], dim), native.arrays()[0], rtol=exact, atol=1e-4
    )


def tree(values: np.ndarray, slices: int, piece: int = 512) -> np.ndarray:
    """The sum of a long row's gradients [n, D] in fp32, in the order that all GPUs and the host keep."""

    def of_slices(part: np.ndarray) -> np.ndarray:
        sums = np.zeros((slices, part.shape[1]), np.float32)
        for i in range(0, len(part), slices):
            turn = part[i : i + slices]
            sums[: len(turn)] += turn
        while len(sums) > 1:
            sums = sums[: len(sums) // 2] + sums[len(sums) // 2 :]
        return sums[0]

    pieces = [of_slices(values[i : i + piece]) for i in range(0, len(values), piece)]
    return pieces[0] if len(pieces) == 1 else of_slices(np.stack(pieces))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dim", "slices", "most", "pooled"),
    [
        (1, 256, 20_000, torch.float32),
        (6, 128, 20_000, torch.bfloat16),
        (64, 16, 5_000, torch.bfloat16),
        (128, 8, 20_000, torch.float32),
        (1024, 1, 1_100, torch.float32),
    ],
)
def test_rows_of_thousands_of_uses_are_summed_in_one_fixed_order(
    device: str, dim: int, slices: int, most: int, pooled: torch.dtype
) -> None:
    rng = np.random.default_rng(dim)
    counts = [n for n in (1, 64, 65, 511, 512, 513, 1024, 1025) if n < most] + [most]
    ids = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    other = rng.integers(0, 2, len(ids))  # the other group's rows are long too
    inputs = make_inputs([("a", dim, "sum", False), ("b", 3, "sum", False)])
    row_batch = make_row_batch(inputs, {"a": ids[:, None].tolist(), "b": other[:, None].tolist()}, rng)
    results = []
    for _ in range(2):
        _, gradients, outputs = embed(inputs, row_batch, device, pooled=pooled)
        wave = waves(outputs, 4)
        backward(outputs, wave)
        results.append(gradients.arrays())
    assert all(np.array_equal(one, other) for one, other in zip(*results, strict=True))
    lengths = []
    for feature, values, turns, begin in zip(
        inputs.features, wave, (slices, 256), row_batch.feature_offsets[:-1], strict=True
    ):
        first = int(row_batch.dim_group_offsets[feature.dim_group])
        for u, row in enumerate(results[0][feature.dim_group], first):
            uses = row_batch.positions[row_batch.row_offsets[u] : row_batch.row_offsets[u + 1]]
            summed = values[torch.from_numpy(uses.astype(np.int64) - int(begin))].float().numpy()
            np.testing.assert_allclose(
                row, summed.sum(axis=0, dtype=np.float64), atol=1e-5 * len(uses) ** 0.5
            )
            if len(uses) > 64:
                assert np.array_equal(row, tree(summed, turns))
            lengths.append(len(uses))
    assert sorted(lengths) == sorted([*counts, *np.bincount(other)])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dim", [7, 8])
@pytest.mark.parametrize("width", [0, 3, 8])
def test_gradients_may_lie_in_a_wider_tensor(device: str, width: int, dim: int) -> None:
    rng = np.random.default_rng(11)
    inputs = make_inputs([("a", dim, "sum", False), ("b", dim, "mean", True)])
    row_batch = make_row_batch(inputs, random_ids(inputs, 40, rng), rng)
    results = []
    for wide in (False, True):
        batch, gradients, _ = embed(inputs, row_batch, device)
        block = batch.stacked()
        wave = torch.randn(40, 2 * dim + 2 * width, generator=torch.Generator().manual_seed(2)).to(device)
        part = wave[:, width : width + 2 * dim].unflatten(1, (2, dim))
        assert part.is_contiguous() == (width == 0)
        block.backward(part if wide else part.contiguous())
        results.append(gradients.arrays()[0])
    assert np.array_equal(*results)
    assert results[0].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dim", [7, 8])
def test_gradients_of_sequences_may_lie_in_wider_tensors_or_be_one_for_all_samples(
    device: str, dim: int
) -> None:
    rng = np.random.default_rng(12)
    inputs = make_inputs([("a", dim, "sequence", True), ("b", dim, "sequence", True)])
    row_batch = make_row_batch(inputs, random_ids(inputs, 40, rng), rng)
    results = []
    for wide in (False, True):
        _, gradients, outputs = embed(inputs, row_batch, device)
        lengths = [o.shape[1] for o in outputs]
        wave = torch.randn(40, sum(lengths), dim, generator=torch.Generator().manual_seed(2)).to(device)
        parts = [wave[:, : lengths[0]], wave[0, lengths[0] :].expand(40, -1, -1)]
        assert not any(part.is_contiguous() for part in parts)
        torch.autograd.backward(outputs, [part if wide else part.contiguous() for part in parts])
        results.append(np.concatenate(gradients.arrays()))
    assert np.array_equal(*results)
    assert results[0].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wire", WIRES)
def test_a_factor_is_applied_and_what_is_not_finite_shows(device: str, wire: str) -> None:
    rng = np.random.default_rng(5)
    inputs = make_inputs([("a", 17, "sum", False)])
    row_batch = make_row_batch(inputs, {"a": [[i] for i in range(6)]}, rng)
    _, plain, outputs = embed(inputs, row_batch, device, wire)
    wave = waves(outputs, 5)
    backward(outputs, wave)
    assert plain.overflow().item() == 0
    _, scaled, outputs = embed(inputs, row_batch, device, wire)
    scaled.scale_by(torch.full((1,), 1 / 1024, device=device))
    backward(outputs, [1024 * wave[0]])
    assert np.array_equal(scaled.arrays()[0], plain.arrays()[0])
    assert scaled.overflow().item() == 0
    _, broken, outputs = embed(inputs, row_batch, device, wire)
    wave[0][3, 16] = torch.inf
    backward(outputs, wave)
    assert torch.isnan(broken.overflow())
    finite = np.isfinite(_native.decode_rows(broken.arrays()[0], 17)).all(axis=1)
    assert finite.sum() == 5
    poisoned = _native.decode_rows(broken.poison()[0], 17)
    assert np.isnan(poisoned).any(axis=1).all()


@pytest.mark.parametrize("device", DEVICES)
def test_an_index_that_is_no_row_is_an_error_and_not_a_crash(device: str) -> None:
    rng = np.random.default_rng(6)
    inputs = make_inputs([("a", 4, "sum", False), ("b", 4, "mean", True)])
    row_batch = make_row_batch(inputs, random_ids(inputs, 8, rng), rng)
    row_batch.indices = row_batch.indices.copy()
    row_batch.indices[3] = len(row_batch.rows[0])
    batch, gradients, outputs = embed(inputs, row_batch, device)
    assert not batch.pooled["a"][3].any()
    with pytest.raises(PersiaError, match="no row of its group"):
        gradients.arrays()
    batch, gradients, outputs = embed(inputs, row_batch, device)
    backward(outputs, waves(outputs, 1))
    with pytest.raises(PersiaError, match="no row of its group"):
        gradients.arrays()


class Ring:
    """Owns a record's memory; nobody else waits for it."""

    def release(self) -> None:
        pass


def in_one_block(row_batch: RowBatch, multi: Sequence[str], memory: np.ndarray, shift: int) -> RowBatch:
    """The batch as it lies in a ring: arrays one after the other on multiples of 64 bytes."""
    packed = [np.concatenate(a) if isinstance(a, list) else a for a in pack_row_batch(row_batch)]
    sizes = [-(-a.nbytes // 64) * 64 for a in packed]
    assert memory.ctypes.data % 64 == 0
    assert sum(sizes) + shift <= len(memory)
    at = shift
    arrays: list[Any] = []
    for array, size in zip(packed, sizes, strict=True):
        place = memory[at : at + array.nbytes]
        place[:] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        arrays.append(place.view(array.dtype).reshape(array.shape))
        at += size
    return unpack_row_batch(row_batch.step, row_batch.trainer, arrays, multi, Ring())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shift", [0, 8, 24])
def test_batches_arrive_as_they_are_from_rings_and_from_anywhere(device: str, shift: int) -> None:
    rng = np.random.default_rng(7)
    inputs = make_inputs([("a", 4, "sum", False), ("b", 3, "mean", True), ("c", 5, "sequence", True)])
    strewn = make_row_batch(inputs, random_ids(inputs, 30, rng), rng)
    strewn.weight, strewn.group = np.arange(30, dtype=np.float32), np.arange(30, dtype=np.int64)
    staging = Staging(torch.device(device))
    # Whole pages of its own, like a ring's: CUDA refuses a copy over memory that is registered in part.
    window = np.frombuffer(mmap.mmap(-1, 1 << 16), np.uint8)
    staging.register([window])
    for count, row_batch in enumerate((strewn, in_one_block(strewn, ["b", "c"], window, shift))):
        staging.ahead(row_batch)
        staged = staging.arrive(row_batch)
        assert staging.used_ahead == (count + 1 if device == "cuda" else 0)
        staged.wait()
        for name, array in arrays_of(row_batch):
            if array.dtype in (np.float32, np.int64):
                assert np.array_equal(staged.tensor(name, array).cpu().numpy(), array), name
        results = []
        for kernel in ("cuda", "native"):
            where = device if kernel == "cuda" else "cpu"
            batch, gradients = Pooling(inputs, where, kernel=kernel).embed(row_batch, training=True)
            assert batch.weight is not None
            backward(outputs_of(batch), waves(outputs_of(batch), 2))
            results.append([*(o.detach().cpu().numpy() for o in outputs_of(batch)), *gradients.arrays()])
        assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
    staging.close()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dim", [7, 8])
def test_gradients_of_jagged_ids_may_lie_in_wider_tensors_or_be_one_for_all(device: str, dim: int) -> None:
    rng = np.random.default_rng(13)
    inputs = make_inputs([("a", dim, "jagged", True), ("b", dim, "jagged", True)])
    row_batch = make_row_batch(inputs, random_ids(inputs, 40, rng), rng)
    results = []
    for wide in (False, True):
        _, gradients, outputs = embed(inputs, row_batch, device)
        wave = torch.randn(len(outputs[0]), 3 * dim, generator=torch.Generator().manual_seed(2)).to(device)
        parts = [wave[:, dim : 2 * dim], wave[0, :dim].expand(len(outputs[1]), -1)]
        assert not any(part.is_contiguous() for part in parts)
        torch.autograd.backward(outputs, [part if wide else part.contiguous() for part in parts])
        results.append(np.concatenate(gradients.arrays()))
    assert np.array_equal(*results)
    assert results[0].any()
