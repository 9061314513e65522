"""Features of one sequence have equal offsets: in files before training, in batches when they are read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest

from persia_hpc.config import load_config
from persia_hpc.embedding_worker.engine import EmbeddingWorker
from persia_hpc.errors import DataError, UserError
from persia_hpc.job.sources import open_sources
from persia_hpc.protocol.row_batch import pack_row_batch, unpack_row_batch
from persia_hpc.samples import sequences
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.source import open_source
from persia_hpc.samples.writer import DatasetWriter
from persia_hpc.table_layout import make_layout
from persia_hpc.trainer.batch import make_inputs
from persia_hpc.trainer.pooling.embed import Pooling

NAMES = ("item", "tags", "artist", "action")
SCHEMA = DatasetSchema(tuple(FeatureSchema(name, True) for name in NAMES))
HISTORY = {"history": ["item", "artist", "action"]}


def samples(lengths: list[int], seed: int = 1) -> SampleBatch:
    """item, artist and action have these lengths, tags others."""
    rng = np.random.default_rng(seed)
    return SampleBatch(
        {
            name: IdColumn.from_lengths(rng.integers(0, 50, sum(n)).astype(np.uint64), np.array(n))
            for name in NAMES
            for n in [lengths if name != "tags" else rng.integers(0, 3, len(lengths)).tolist()]
        },
        np.zeros((len(lengths), 0), np.float32),
        np.ones((len(lengths), 1), np.float32),
    )


def with_lengths(batch: SampleBatch, name: str, lengths: list[int]) -> SampleBatch:
    column = IdColumn.from_lengths(np.zeros(sum(lengths), np.uint64), np.array(lengths))
    return dataclasses.replace(batch, ids={**batch.ids, name: column})


def write(path: Path, batch: SampleBatch) -> str:
    with DatasetWriter(path, SCHEMA) as writer:
        writer.write(batch)
    return str(path)


def worker_for(**more: object) -> EmbeddingWorker:
    config = load_config(
        {
            "data": {"train": ["none"], "batch_size": 4},
            "model": {"class": "tower"},
            "features": {"action": {"table": "hashed"}},
            "tables": {"hashed": {"dim": 16, "hash": {"size": 100, "rounds": 2}}},
            "sequences": {"history": {"features": HISTORY["history"], **more}},
        }
    )
    return EmbeddingWorker(make_layout(config, SCHEMA))


def test_files_that_differ_are_refused_before_training(tmp_path: Path) -> None:
    good = write(tmp_path / "a.h5", samples([2, 0, 3]))
    bad = write(tmp_path / "b.h5", with_lengths(samples([2, 0, 3]), "artist", [2, 1, 2]))
    assert open_source([good], sequences=HISTORY).num_samples == 3
    message = "b.h5: got 0 ids of 'item' but 1 of 'artist' in row 1, expected as many"
    with pytest.raises(UserError, match=message) as caught:
        open_source([good, bad], sequences=HISTORY)
    assert "\n" not in str(caught.value)
    config = {
        "data": {"train": [good, bad]},
        "model": {"class": "tower"},
        "sequences": {"history": {"features": HISTORY["history"]}},
    }
    with pytest.raises(UserError, match=message):
        open_sources(load_config(config))


def test_totals_are_compared_where_the_first_rows_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences, "FIRST_ROWS", 1)
    bad = write(tmp_path / "b.h5", with_lengths(samples([2, 0, 3]), "action", [2, 1, 3]))
    with pytest.raises(UserError, match="got 5 ids of 'artist' but 6 of 'action' in all rows"):
        open_source([bad], sequences=HISTORY)


def test_a_difference_that_shows_late_is_an_error_of_that_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences, "FIRST_ROWS", 1)
    good = write(tmp_path / "a.h5", samples([1]))
    bad = write(tmp_path / "b.h5", with_lengths(samples([2, 0, 1, 3]), "artist", [2, 0, 2, 2]))
    source = open_source([good, bad], sequences=HISTORY)
    assert source.read(0, 3).num_samples == 3
    with pytest.raises(DataError, match=r"b.h5: got 1 ids of 'item' but 2 of 'artist' in row 2"):
        source.read(2, 5)


def test_damaged_offsets_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with DatasetWriter(path, SCHEMA, chunk_rows=2) as writer:
        writer.write(samples([2, 0, 3, 1, 1, 1, 1]))
    with h5py.File(path) as file:
        at = file["ids/artist/offsets"].id.get_chunk_info(1).byte_offset
    with path.open("r+b") as damaged:
        damaged.seek(at)
        damaged.write(b"\xff" * 4)
    with pytest.raises(UserError, match=r"a.h5: can't read the offsets of 'history' \(.*damaged"):
        open_source([str(path)], sequences=HISTORY)


def test_a_worker_refuses_a_batch_that_differs() -> None:
    batch = with_lengths(samples([2, 0, 3]), "action", [2, 3, 0])
    with pytest.raises(DataError, match="step 7: a batch: got 0 ids of 'artist' but 3 of 'action' in row 1"):
        worker_for().prepare(batch, step=7, trainer=0, num_global=3)


@pytest.mark.parametrize("more", [{}, {"max_length": 2}, {"max_length": 3, "pooling": "sequence"}])
def test_a_batch_has_one_tensor_of_offsets_and_the_last_ids(more: dict[str, object]) -> None:
    lengths = [4, 0, 1, 3]
    worker, batch = worker_for(**more), samples(lengths)
    keyed = worker.prepare(batch, step=1, trainer=0, num_global=4)
    assert list(keyed.bag_offsets) == ["item", "tags", "action"]  # action has two rows an id
    rng = np.random.default_rng(2)
    rows = [
        rng.normal(size=(int(end - begin), 16)).astype(np.float32)
        for begin, end in zip(keyed.dedup.group_offsets[:-1], keyed.dedup.group_offsets[1:], strict=True)
    ]
    whole = worker.assemble(keyed, rows)
    arrays = [np.concatenate(a) if isinstance(a, list) else a for a in pack_row_batch(whole)]
    arrived = unpack_row_batch(1, 0, arrays, worker.layout.bags)
    inputs = make_inputs(worker.layout, SCHEMA)
    got, _ = Pooling(inputs).embed(arrived, training=False)
    kept = [min(n, int(str(more.get("max_length", 99)))) for n in lengths]
    if more.get("pooling") == "sequence":
        assert all(got.sequence[name][1].sum(1).tolist() == kept for name in HISTORY["history"])
        return
    histories = [got.jagged[name] for name in HISTORY["history"]]
    assert len({id(history.offsets) for history in histories}) == 1
    for name, history in zip(HISTORY["history"], histories, strict=True):
        assert (history.lengths.tolist(), history.longest) == (kept, max(kept))
        place = NAMES.index(name)
        begin, end = whole.feature_offsets[place : place + 2]
        ids = np.concatenate(
            [bag[len(bag) - k :] for bag, k in zip(split(batch.ids[name]), kept, strict=True)]
        )
        vectors = rows[0][whole.indices[begin:end].astype(np.int64)].reshape(len(ids), -1, 16).sum(1)
        np.testing.assert_allclose(history.values.numpy(), vectors, rtol=1e-6)
        same = ids[:, None] == ids  # equal ids have equal vectors, and others don't
        assert np.array_equal(same, (history.values[:, None] == history.values).all(-1).numpy())


def split(column: IdColumn) -> list[np.ndarray]:
    assert column.offsets is not None
    return np.split(column.values, column.offsets[1:-1].astype(int))
