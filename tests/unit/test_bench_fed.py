"""Batches that lie ready for a trainer: what they were, and copied to a GPU as from a registered ring."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.bench import gpu, train_dense
from persia_hpc.bench.fed import lay_out
from persia_hpc.protocol.row_batch import pack_row_batch
from persia_hpc.trainer.pooling.staging import Staging
from tests.support.fake_gpu import FakeGpu, fake_gpu
from tests.support.row_batches import make_inputs, make_row_batch, random_ids
from tests.support.tiny import tiny_config, write_tiny

__all__ = ["fake_gpu"]
INPUTS = make_inputs([("a", 4, "sum", False), ("b", 3, "mean", True), ("c", 5, "sequence", True)])


def flat(array: Any) -> np.ndarray:
    return np.concatenate(array) if isinstance(array, list) else array


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_batches_are_what_they_were_and_lie_as_in_a_ring(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    batches = [make_row_batch(INPUTS, random_ids(INPUTS, size, rng), rng) for size in sizes]
    block, laid = lay_out(batches, ["b", "c"])
    end = 0
    for batch, copy in zip(batches, laid, strict=True):
        assert (copy.step, copy.trainer, copy.num_samples) == (batch.step, batch.trainer, batch.num_samples)
        for one, other in zip(pack_row_batch(batch), pack_row_batch(copy), strict=True):
            assert np.array_equal(flat(one), flat(other))
            assert flat(one).dtype == flat(other).dtype
        for array in [copy.indices, *copy.rows, copy.dense]:
            if array.nbytes:
                at = array.ctypes.data - block.ctypes.data
                assert at % 64 == 0
                assert end <= at < at + array.nbytes <= block.nbytes
        end = max([end, *(a.ctypes.data - block.ctypes.data + a.nbytes for a in copy.rows if a.nbytes)])


def count_packed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which grows by a number for each batch that is packed before it is copied."""
    packed: list[int] = []
    pack = Staging._pack

    def noted(self: Staging, named: Any) -> Any:
        packed.append(len(named))
        return pack(self, named)

    monkeypatch.setattr(Staging, "_pack", noted)
    return packed


def test_a_trainer_alone_packs_nothing(
    fake_gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is a limit for one whose batches come through rings."""
    packed = count_packed(monkeypatch)
    make = train_dense.make_session

    def on_gpu(facts: Any, stream: Any, device: torch.device) -> Any:
        return make(facts, stream, device=torch.device("cuda"))

    monkeypatch.setattr(train_dense, "make_session", on_gpu)
    data = write_tiny(tmp_path / "train-000.h5", 64)
    settings = tmp_path / "settings.json"
    changes = {
        "mode": "hybrid",
        "train.evaluate_at_end": False,
        "data.train": [data],
        "run_dir": str(tmp_path),
    }
    settings.write_text(json.dumps(tiny_config(data, **changes)))
    options = argparse.Namespace(data=tmp_path, batch=16, samples=64, settings=settings)
    with fake_gpu:
        assert train_dense.session(options) >= 0
    assert packed == fake_gpu.faults == []


def test_copies_are_measured_from_registered_memory(
    fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = count_packed(monkeypatch)
    options = argparse.Namespace(features=2, exponent=1.2, repeats=1)
    _, row_batch = gpu._row_batch(options, 50, 1, 8, "fp16")
    with fake_gpu:
        results = list(gpu._staging(options, torch.device("cuda"), row_batch, {}))
    assert [result.case["pass"] for result in results] == ["staging batch to", "staging back", "staging both"]
    assert packed == fake_gpu.faults == []
    assert len(fake_gpu.locked) == len(fake_gpu._pinned)  # nothing is left registered
