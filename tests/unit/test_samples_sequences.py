"""Features of one sequence have equal offsets: in files before training, in batches when they are read."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.config import load_config
from persia_hpc.embedding_worker.engine import EmbeddingWorker
from persia_hpc.errors import EXIT_USER, DataError, UserError
from persia_hpc.job.dry_run import dry_run
from persia_hpc.job.sources import open_sources
from persia_hpc.protocol.row_batch import pack_row_batch, unpack_row_batch
from persia_hpc.samples import sequences
from persia_hpc.samples import source as sources
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.follow import Follower, TakenFile, followed_schema
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.source import open_source
from persia_hpc.samples.writer import DatasetWriter
from persia_hpc.table_layout import make_layout
from persia_hpc.trainer.batch import make_inputs
from persia_hpc.trainer.pooling.embed import Pooling
from tests.support.tiny import SEQUENCES, tiny_config, write_sequences

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


def test_a_difference_that_shows_late_is_found_before_training_and_by_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences, "FIRST_ROWS", 1)
    good = write(tmp_path / "a.h5", samples([1]))
    bad = write(tmp_path / "b.h5", with_lengths(samples([2, 0, 1, 3]), "artist", [2, 0, 2, 2]))
    source = open_source([good, bad], sequences=HISTORY)
    message = r"b.h5: got 1 ids of 'item' but 2 of 'artist' in row 2"
    with pytest.raises(UserError, match=message):
        source.check_sequences()
    assert source.read(0, 3).num_samples == 3
    with pytest.raises(DataError, match=message):
        source.read(2, 5)
    open_source([good, bad], sequences=HISTORY, limit=3).check_sequences()  # what isn't used may differ
    config = {
        "data": {"train": [good], "valid": [bad], "batch_size": 1},
        "model": {"class": "tower"},
        "sequences": {"history": {"features": HISTORY["history"]}},
        "run_dir": str(tmp_path / "run"),
    }
    with pytest.raises(UserError, match=message):
        ph.train(config, quiet=True)
    assert not (tmp_path / "run").exists()


def write_parquet(path: Path, batch: SampleBatch, seed: int) -> str:
    """Writes lists with missing words among them, which the schema leaves out."""
    rng = np.random.default_rng(seed)
    lists = {
        name: [
            [*map(int, ids), *[-1] * rng.integers(0, 2)] if rng.random() < 0.9 or len(ids) else None
            for ids in split(column)
        ]
        for name, column in batch.ids.items()
    }
    frame = pl.DataFrame(
        {**lists, "label": batch.labels[:, 0]}, schema_overrides={n: pl.List(int) for n in lists}
    )
    frame.write_parquet(path, row_group_size=int(rng.integers(1, 9)))
    return str(path)


@pytest.mark.parametrize("kind", ["h5", "parquet"])
def test_shares_find_the_first_difference_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(sequences, "FIRST_ROWS", 0)
    monkeypatch.setattr(sources, "OFFSET_ROWS", 4)
    schema = tmp_path / "schema.toml"
    ids = "\n".join(f'{name} = {{ type = "integer" }}' for name in NAMES)
    schema.write_text(
        f'files = ["*.parquet"]\nmissing = [-1]\n[labels]\nlabel = {{ binary = true }}\n[ids]\n{ids}\n'
        "[split]\nfractions = { train = 1.0 }\n"
    )
    rng = np.random.default_rng(5)
    for round_ in range(40):
        files, first = [], None
        for k in range(3):
            lengths = rng.integers(0, 4, rng.integers(2, 14))
            batch = samples(lengths.tolist(), seed=round_)
            if k == 1 and round_ % 4:  # as many ids in all, so only the rows tell
                row, other = sorted(rng.choice(len(lengths), 2, replace=False).tolist())
                if lengths[row] + lengths[other]:
                    moved = lengths.copy()
                    moved[[row, other]] += [1, -1] if lengths[other] else [-1, 1]
                    batch, first = with_lengths(batch, "action", moved.tolist()), row
            path = tmp_path / f"{round_}-{k}.{kind}"
            files.append(write(path, batch) if kind == "h5" else write_parquet(path, batch, round_))
        source = open_source(files, sequences=HISTORY, schema_file=str(schema))
        for shares in (1, 2, 3, 40):
            errors = []
            for share in range(shares):
                try:
                    source.check_sequences(share, shares)
                except UserError as error:
                    errors.append(str(error))
            assert bool(errors) == (first is not None)
            if errors:
                assert errors[0].startswith(f"{files[1]}: got ")
                assert f" in row {first}, " in errors[0]


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


def write_events(path: Path, late_row: int | None = None) -> str:
    """Writes 60 samples with the sequence "events"; in `late_row` an action is of the next sample instead."""
    data = write_sequences(path, 60)
    if late_row is not None:
        with h5py.File(data, "r+") as file:
            file["ids/action/offsets"][late_row + 1] -= 1
    return data


def test_all_that_reads_a_file_compares_all_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sequences, "FIRST_ROWS", 1)
    good, run = write_events(tmp_path / "a.h5"), str(tmp_path / "run")
    with h5py.File(good) as file:
        row = int(np.diff(file["ids/action/offsets"][:]).nonzero()[0][-3])
    bad = write_events(tmp_path / "b.h5", row)
    message = rf"b\.h5: got (\d) ids of 'history' but \d of 'action' in row {row}, expected as many"
    config = tiny_config(good, run_dir=run, **SEQUENCES)
    ph.train(config, quiet=True)
    for split in ("train", "valid", "test"):
        with pytest.raises(UserError, match=message):
            dry_run(load_config(config, {f"data.{split}": [bad]}))
    for command in (
        ["evaluate", run, "--set", f"data.test={bad}"],
        ["importance", run, "--set", f"data.test={bad}", "--samples", "4"],
        ["predict", run, "--data", bad, "--out", str(tmp_path / "out.csv")],
    ):
        capsys.readouterr()
        assert main(command) == EXIT_USER
        (line,) = [text for text in capsys.readouterr().err.splitlines() if "b.h5" in text]
        assert re.search(message, line)
    assert not (tmp_path / "out.csv").exists()
    assert main(["evaluate", run, "--set", f"data.test={good}"]) == 0


def test_a_new_file_that_differs_late_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "FIRST_ROWS", 1)
    folder = tmp_path / "data"
    folder.mkdir()
    good = write_events(folder / "a.h5")
    changes = {"data.follow": True, "train.epochs": 1, **SEQUENCES}
    settings = load_config(tiny_config(str(folder / "*.h5"), **changes))
    follower = Follower(settings, followed_schema(settings))
    assert [info.path for info in follower.look()] == [good]
    with h5py.File(good) as file:
        row = int(np.diff(file["ids/action/offsets"][:]).nonzero()[0][-3])
    bad = write_events(folder / "b.h5", row)
    message = rf"b\.h5: got \d ids of 'history' but \d of 'action' in row {row}, "
    with pytest.raises(UserError, match=message):
        follower.look()
    assert len(follower.portions) == 1
    taken = [[*follower.portions[0], TakenFile(bad, 60, None)]]
    with pytest.raises(UserError, match=message):  # a run that resumes in the middle of it
        Follower(settings, follower.schema, taken).reopen()
