"""What `persia-hpc init` proposes: it loads, it fits the data, and its choices are those it documents."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.config import Config, load_config
from persia_hpc.preprocess.inspection import Frequencies, inspect_source
from persia_hpc.preprocess.proposal import Machine, dim_of, expected_ids, propose
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.source import open_source
from persia_hpc.samples.writer import DatasetWriter
from persia_hpc.table_layout import make_layout

NAMES = st.text("abc._ \"\\'=#é0\x7f", min_size=1, max_size=6).filter(lambda name: name.strip(".") == name)


def proposed(folder: Path, schema: DatasetSchema, batch: SampleBatch, machine: Machine) -> tuple[Config, str]:
    path = folder / "train.h5"
    with DatasetWriter(path, schema, check_binary_labels=False) as writer:
        writer.write(batch)
    source = open_source([str(path)])
    found = list(inspect_source(source))[-1]
    text = propose(source.schema, found, source.num_samples, {"train": [str(path)]}, machine)
    (folder / "train.toml").write_text(text, encoding="utf-8")
    config = load_config(folder / "train.toml")
    make_layout(config, source.schema)
    return config, text


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_the_data_it_loads_and_fits_them(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = data.draw(st.lists(NAMES, min_size=1, max_size=4, unique_by=str.casefold))
    rows = data.draw(st.integers(1, 200))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    multi = data.draw(st.lists(st.booleans(), min_size=len(names), max_size=len(names)))
    labels = data.draw(st.lists(st.sampled_from(["binary", "number"]), min_size=1, max_size=3))
    columns = {}
    for name, several in zip(names, multi, strict=True):
        lengths = rng.integers(0, 30, rows) if several else np.ones(rows, np.int64)
        ids = rng.integers(0, 2**63, lengths.sum()).astype(np.uint64)
        columns[name] = IdColumn.from_lengths(ids, lengths) if several else IdColumn(ids)
    values = [rng.integers(0, 2, rows) if kind == "binary" else rng.normal(size=rows) for kind in labels]
    schema = DatasetSchema(
        tuple(FeatureSchema(name, several) for name, several in zip(names, multi, strict=True)),
        (),
        tuple(f"{kind}_{i}" for i, kind in enumerate(labels)),
    )
    batch = SampleBatch(columns, np.zeros((rows, 0), np.float32), np.stack(values, 1).astype(np.float32))
    machine = Machine(data.draw(st.integers(1, 128)), data.draw(st.integers(0, 8)))
    config, text = proposed(tmp_path_factory.mktemp("data"), schema, batch, machine)
    losses = (
        [config.train.loss] if len(labels) == 1 else [task.loss["name"] for task in config.tasks.values()]
    )
    assert losses == ["bce" if kind == "binary" else "mse" for kind in labels]
    assert config.data.batch_size >= config.ranks.trainers >= config.ranks.embedding_workers
    assert config.ranks.trainers <= max(machine.cores, machine.gpus)
    assert all(len(line) <= 200 for line in text.splitlines()[2:] if not line.startswith("train ="))


@pytest.mark.parametrize(
    ("ids", "dim"), [(0, 8), (1, 8), (4096, 8), (4097, 16), (65_536, 16), (10**6, 32), (10**9, 64)]
)
def test_dims_are_fourth_roots_up_to_a_power_of_two(ids: int, dim: int) -> None:
    assert dim_of(ids) == dim


@pytest.mark.parametrize("seed", range(5))
def test_the_ids_of_all_data_are_expected_from_a_part(seed: int) -> None:
    """Never fewer than there are, and no more than if every unseen one were as new as the next."""
    rng = np.random.default_rng(seed)
    ids = (rng.zipf(1.3, 100_000) % 1_000_000).astype(np.uint64)
    counts = Frequencies()
    counts.add(ids[:10_000], None)
    all_ids, seen = len(np.unique(ids)), len(np.unique(ids[:10_000]))
    assert seen < all_ids <= expected_ids(counts, 0.1) <= seen + 90_000
    assert expected_ids(counts, 1.0) == seen


def test_capacity_holds_every_id(tmp_path: Path) -> None:
    rows = 50_000
    batch = SampleBatch(
        {"user": IdColumn(np.arange(rows, dtype=np.uint64)), "place": IdColumn(np.zeros(rows, np.uint64))},
        np.zeros((rows, 0), np.float32),
        np.zeros((rows, 1), np.float32),
    )
    schema = DatasetSchema((FeatureSchema("user", False), FeatureSchema("place", False)), ())
    config, text = proposed(tmp_path, schema, batch, Machine(2, 0))
    layout = make_layout(config, schema)
    room = {table.name: table.capacity_rows for table in layout.tables}
    assert 1.25 * rows <= room["user"] < 2 * rows
    assert 'user = { dim = 16, capacity = "' in text
    assert "# 50,000 ids seen" in text
    assert config.data.batch_size == 1 << math.floor(math.log2(rows / 200))


@pytest.mark.parametrize(
    ("cores", "gpus", "roles"),
    [(1, 0, (1, 1, 1)), (2, 0, (1, 1, 1)), (4, 0, (1, 1, 2)), (16, 0, (4, 4, 8)), (16, 4, (4, 4, 4))],
)
def test_roles_are_those_of_the_machine(cores: int, gpus: int, roles: tuple[int, int, int]) -> None:
    assert Machine(cores, gpus).roles(2048) == roles


def test_several_trainers_without_horovod_sum_by_mpi(tmp_path: Path) -> None:
    batch = SampleBatch(
        {"user": IdColumn(np.zeros(50_000, np.uint64))},
        np.zeros((50_000, 0), np.float32),
        np.zeros((50_000, 1), np.float32),
    )
    schema = DatasetSchema((FeatureSchema("user", False),), ())
    for cores, horovod, reducer in ((2, False, None), (8, False, "mpi"), (8, True, "horovod")):
        config, _ = proposed(tmp_path, schema, batch, Machine(cores, 0, horovod))
        assert config.reducer(config.ranks.trainers) == reducer


def test_small_batches_have_few_trainers() -> None:
    assert Machine(64, 0).roles(128) == (2, 2, 2)
