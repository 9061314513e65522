"""Batches on their way to a GPU: never by an asynchronous copy from memory that isn't page-locked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.trainer.pooling import staging as module
from persia_hpc.trainer.pooling.staging import Staging, arrays_of
from persia_hpc.transport.records import aligned_empty
from tests.support.fake_gpu import FakeGpu, fake_gpu
from tests.support.local_ring import LocalRing
from tests.support.row_batches import make_inputs, make_row_batch, random_ids

__all__ = ["fake_gpu"]
INPUTS = make_inputs([("a", 4, "sum", False), ("b", 3, "mean", True), ("c", 5, "sequence", True)])
MULTI = ("b", "c")
NO_RESET = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def batch_of(num_samples: int, seed: int) -> RowBatch:
    rng = np.random.default_rng(seed)
    return make_row_batch(INPUTS, random_ids(INPUTS, num_samples, rng), rng)


def lies_in(batch: RowBatch, memory: np.ndarray) -> bool:
    return all(np.shares_memory(array, memory) for _, array in arrays_of(batch) if array.nbytes)


@NO_RESET
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    ring_bytes=st.sampled_from([8192, 1 << 16]),
    is_registered=st.booleans(),
    ahead=st.booleans(),
)
def test_only_page_locked_memory_is_copied_from_and_all_arrives(
    fake_gpu: FakeGpu, sizes: list[int], ring_bytes: int, is_registered: bool, ahead: bool
) -> None:
    """Batches come whole or in chunks, which then lie in one piece elsewhere; or from no ring at all."""
    ring, loose = LocalRing(ring_bytes), batch_of(9, 1)
    with fake_gpu:
        staging = Staging(torch.device("cuda"))
        if is_registered:
            staging.register([ring.memory])
        for seed, size in enumerate(sizes):
            batch, sent = ring.carry(batch_of(size, seed), MULTI), batch_of(size, seed)
            before = len(fake_gpu.locked)
            if ahead:
                staging.ahead(batch)
            staged = staging.arrive(batch)
            packed = len(fake_gpu.locked) - before
            assert packed == (not is_registered or not lies_in(batch, ring.memory))
            staged.wait()
            batch.release()
            for name, array in arrays_of(sent):
                if array.dtype in (np.float32, np.int64):
                    assert np.array_equal(staged.tensor(name, array).numpy(), array), name
        staging.arrive(loose).wait()
        staging.close()
    assert fake_gpu.faults == []


def test_a_record_in_chunks_is_packed_and_a_whole_one_is_not(fake_gpu: FakeGpu) -> None:
    """The two cases that the property above is about do occur."""
    ring = LocalRing(8192)
    with fake_gpu:
        staging = Staging(torch.device("cuda"))
        staging.register([ring.memory])
        for num_samples, whole in ((2, True), (200, False)):
            batch = ring.carry(batch_of(num_samples, 0), MULTI)
            assert lies_in(batch, ring.memory) == whole
            before = len(fake_gpu.locked)
            staging.arrive(batch)
            assert len(fake_gpu.locked) - before == (not whole)
            batch.release()
    assert fake_gpu.faults == []


def test_the_fake_gpu_sees_a_copy_from_other_memory(
    fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = LocalRing(8192).carry(batch_of(200, 0), MULTI)  # in chunks
    monkeypatch.setattr(Staging, "_is_registered", lambda *_: True)
    with fake_gpu:
        Staging(torch.device("cuda")).arrive(batch)
    assert len(fake_gpu.faults) == 1


def test_memory_that_cuda_refuses_is_not_copied_from(
    fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ring = LocalRing(1 << 16)
    monkeypatch.setattr(FakeGpu, "register", lambda *_: 2)
    with fake_gpu:
        staging = Staging(torch.device("cuda"))
        staging.register([ring.memory])
        staging.arrive(ring.carry(batch_of(3, 0), MULTI))
        staging.close()
    assert fake_gpu.faults == []
    assert "CUDA can't register" in caplog.text


def test_a_block_must_lie_in_one_registered_range() -> None:
    staging, memory = Staging(torch.device("cpu")), aligned_empty(256)
    staging.register([memory[:128], memory[128:]])
    first = module.address_of(memory)
    inside: list[tuple[int, int]] = [(0, 128), (64, 64), (128, 128)]
    outside: list[tuple[int, int]] = [(64, 128), (0, 129), (192, 65), (-1, 8), (256, 1)]
    found: Any = [staging._is_registered(first + at, size) for at, size in inside + outside]
    assert found == [True] * 3 + [False] * 5
