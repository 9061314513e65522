"""What a worker adds to batches for retrieval, and the batch of a trainer that is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persia_hpc.config import Config, load_config
from persia_hpc.embedding_worker.engine import EmbeddingWorker
from persia_hpc.job.sources import open_sources
from persia_hpc.protocol.row_batch import RowBatch, pack_row_batch, unpack_row_batch
from persia_hpc.samples.split_readers import SplitReaders
from persia_hpc.schedule import make_schedules
from persia_hpc.table_layout import Layout, make_layout
from persia_hpc.trainer.batch import make_inputs
from persia_hpc.trainer.pooling.embed import Pooling
from tests.support.retrieval import ITEMS, SCHEMA, ids_of, retrieval_config, write_retrieval


class Split:
    """Prepares batches of a split as a worker does."""

    def __init__(self, folder: Path, name: str, **changes: Any) -> None:
        self.config: Config = load_config(
            retrieval_config(write_retrieval(folder), folder / "run"),
            {key.replace("__", "."): value for key, value in changes.items()},
        )
        sources = open_sources(self.config)
        counts = {split: source.num_samples for split, source in sources.items()}
        self.reader = SplitReaders(self.config, sources, make_schedules(self.config, counts)).readers[name]
        self.layout: Layout = make_layout(self.config, SCHEMA)
        self.worker = EmbeddingWorker.of(self.config, self.layout, sources=sources)
        self.evaluation = name != "train"

    def batch(self, begin: int, end: int) -> tuple[Any, RowBatch]:
        sample = self.reader.read(0, begin, end)
        keys = self.worker.prepare(
            sample, step=1, trainer=0, num_global=end - begin, evaluation=self.evaluation
        )
        rows = [
            np.zeros((int(n), dim), np.float32)
            for n, dim in zip(np.diff(keys.dedup.group_offsets), self.layout.dim_groups, strict=True)
        ]
        return sample, self.worker.assemble(keys, rows)


def travelled(batch: RowBatch, layout: Layout) -> RowBatch:
    arrays: list[np.ndarray] = []
    for array in pack_row_batch(batch):
        if isinstance(array, list):
            array = np.concatenate([part.reshape(-1) for part in array])
        arrays.append(array)
    return unpack_row_batch(batch.step, batch.trainer, arrays, layout.bags)


@pytest.mark.parametrize("hashed", [False, True])
def test_a_training_batch_numbers_its_ids(tmp_path: Path, hashed: bool) -> None:
    # A wide table of rows, so that no two of a few ids have both rows in common.
    changes = {"tables__item__hash": {"size": 1 << 30}, "tasks__liked__loss__logq": "off"} if hashed else {}
    split = Split(tmp_path, "train", **changes)
    sample, batch = split.batch(10, 42)
    inputs = make_inputs(split.layout, SCHEMA)
    got, _ = Pooling.of(split.config, inputs, "cpu").embed(travelled(batch, split.layout), training=True)
    names = ("item", "history", "negatives")
    ids = np.concatenate([sample.ids[name].values for name in names])
    numbers = np.concatenate([got.ids[name].numpy() for name in names])
    assert np.array_equal(ids[:, None] == ids, numbers[:, None] == numbers)
    assert got.jagged["negatives"].values.shape == (32 * 6, 8)
    none, _ = Pooling.of(split.config, inputs, "cpu").embed(travelled(batch, split.layout), training=False)
    assert none.ids == none.log_q == {}
    if hashed:
        assert batch.log_q is None
        assert got.log_q == {}
        return
    train = split.reader.read(0, 0, 400).ids["item"].values
    share = {int(i): (train == i).mean() for i in ids_of(np.arange(ITEMS))}
    for name in names:
        expected = [share[int(i)] for i in sample.ids[name].values]
        np.testing.assert_allclose(np.exp(got.log_q[name].numpy()), expected, rtol=1e-5)
    assert set(got.log_q) == set(names)


def test_an_evaluation_brings_the_item_and_what_is_excluded_even_beyond_max_length(tmp_path: Path) -> None:
    split = Split(tmp_path, "valid", features__history__max_length=1, train__slices=["kind"])
    sample, batch = split.batch(0, 30)
    got = travelled(batch, split.layout)
    assert got.slices is not None
    assert got.slices.tolist() == [sample.ids["kind"].values.tolist(), sample.ids["item"].values.tolist()]
    assert got.excluded is not None
    assert got.excluded_offsets is not None
    assert got.excluded.tolist() == sample.ids["history"].values.tolist()
    assert got.excluded_offsets.tolist() == sample.ids["history"].starts.tolist()
    assert np.diff(got.excluded_offsets.astype(int)).max() > 1
    assert got.log_q is None


def test_of_the_catalogue_nothing_is_excluded(tmp_path: Path) -> None:
    split = Split(tmp_path, "items")
    _, batch = split.batch(0, ITEMS)
    got = travelled(batch, split.layout)
    assert got.slices is not None
    assert got.slices[-1].tolist() == ids_of(np.arange(ITEMS)).tolist()
    assert got.excluded is not None
    assert not len(got.excluded)
    assert got.labels.shape == (ITEMS, 0)


def test_a_run_without_retrieval_sends_what_it_always_did(tmp_path: Path) -> None:
    settings = retrieval_config(write_retrieval(tmp_path), tmp_path / "run")
    plain = {key: settings["data"][key] for key in ("train", "batch_size")}
    config = load_config(
        {"mode": "sync", "data": plain, "model": {"class": "tower"}, "train": {"slices": ["kind"]}}
    )
    layout = make_layout(config, SCHEMA)
    worker = EmbeddingWorker.of(config, layout)
    sample = open_sources(config)["train"].read(0, 8)
    for evaluation in (False, True):
        keys = worker.prepare(sample, step=1, trainer=0, num_global=8, evaluation=evaluation)
        rows = [np.zeros((int(n), 16), np.float32) for n in np.diff(keys.dedup.group_offsets)]
        assert len(pack_row_batch(worker.assemble(keys, rows))) == 13 + len(rows) + evaluation
