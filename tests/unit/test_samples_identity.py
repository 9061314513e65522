"""Training samples are known again by what they are, wherever they lie, and others are noticed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import persia_hpc as ph
from persia_hpc.errors import UserError
from persia_hpc.models import build_model
from persia_hpc.samples import identity
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.identity import first_difference, sample_ranges
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.source import FileSource, open_source
from persia_hpc.samples.writer import DatasetWriter
from persia_hpc.trainer.losses import load_loss
from tests.support.checkpoints import change_manifest
from tests.support.retrieval import retrieval_config, write_retrieval
from tests.support.tiny import tiny_config, write_tiny

SCHEMA = DatasetSchema(
    (FeatureSchema("a"), FeatureSchema("b", True)),
    ("x",),
    ("y",),
    has_weight=True,
    has_group=True,
    has_time=True,
)
SAMPLES = 600


def batch() -> SampleBatch:
    rng = np.random.default_rng(3)
    lengths = rng.integers(0, 4, SAMPLES)
    return SampleBatch(
        {
            "a": IdColumn(rng.integers(0, 99, SAMPLES).astype(np.uint64)),
            "b": IdColumn.from_lengths(rng.integers(0, 99, lengths.sum()).astype(np.uint64), lengths),
        },
        rng.normal(size=(SAMPLES, 1)).astype(np.float32),
        rng.integers(0, 2, (SAMPLES, 1)).astype(np.float32),
        rng.random(SAMPLES).astype(np.float32),
        rng.integers(0, 9, SAMPLES),
        rng.integers(0, 9, SAMPLES),
    )


def write(path: Path, samples: SampleBatch, **options: object) -> str:
    with DatasetWriter(path, SCHEMA, **options) as writer:
        writer.write(samples)
    return str(path)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("data") / "whole.h5", batch())


def test_the_same_samples_have_the_same_digests_however_they_are_stored(stored: str, tmp_path: Path) -> None:
    expected = sample_ranges(open_source([stored]))
    shutil.copy(stored, tmp_path / "copy.h5")
    ids = {"id_dtypes": {"a": "uint8", "b": "uint16"}, "compression": "none", "chunk_rows": 7}
    write(tmp_path / "repacked.h5", batch(), **ids)
    for i, (begin, end) in enumerate([(0, 100), (100, 101), (101, SAMPLES)]):
        write(tmp_path / f"part-{i}.h5", batch().take(np.arange(begin, end)), compression="gzip")
    for name in ("copy.h5", "repacked.h5", "part-*.h5"):
        found = sample_ranges(open_source([str(tmp_path / name)]))
        assert [r.digest for r in found] == [r.digest for r in expected]
        assert first_difference(expected, found) is None


@given(st.sampled_from(["a", "b", "lengths", "dense", "labels", "weight", "group", "time"]), st.data())
def test_one_other_value_anywhere_is_noticed_and_placed(column: str, data: st.DataObject) -> None:
    samples, changed = batch(), batch()
    if column == "lengths":  # one id goes to the next sample
        offsets = changed.ids["b"].offsets
        row = data.draw(st.sampled_from(np.flatnonzero(np.diff(offsets))[:-1].tolist()))
        offsets[row + 1] -= 1
    else:
        arrays = {"a": changed.ids["a"].values, "b": changed.ids["b"].values}
        array = arrays[column] if column in arrays else getattr(changed, column)
        at = data.draw(st.integers(0, len(array) - 1))
        array[at] += 1
        row = at
        if column == "b":
            row = int(np.searchsorted(changed.ids["b"].offsets, at, side="right")) - 1
    found = first_difference(*(sample_ranges(InMemory(s)) for s in (samples, changed)))
    assert found is not None
    assert found[1].begin <= row < found[1].end


class InMemory(FileSource):
    """The samples of a batch, as if they were in the file `memory`."""

    def __init__(self, samples: SampleBatch) -> None:
        super().__init__((), SCHEMA, samples.num_samples, binary_labels=False)
        self.samples = samples

    @property
    def files(self) -> tuple[tuple[str, int], ...]:
        return (("memory", self.samples.num_samples),)

    def read(self, begin: int, end: int) -> SampleBatch:
        return self.samples.take(np.arange(begin, end))


@given(st.integers(1, 3_000_000), st.sampled_from([1, 8, 64]))
def test_ranges_are_spread_over_all_samples_and_cover_small_data(num_samples: int, most: int) -> None:
    bounds = list(identity._bounds(num_samples, most))
    assert bounds[0][0] == 0
    assert bounds[-1][1] == num_samples or len(bounds) == 1
    assert len(bounds) <= most
    assert all(0 <= begin < end <= num_samples for begin, end in bounds)
    gaps = [after[0] - before[1] for before, after in itertools.pairwise(bounds)]
    assert max(gaps, default=0) <= max(0, num_samples // max(1, len(bounds) - 1) - identity.ROWS + 1)
    if num_samples <= most * identity.ROWS:
        assert max(gaps, default=0) <= 0
        assert bounds[-1][1] == num_samples


def test_a_run_continues_on_the_same_samples_only(tmp_path: Path) -> None:
    """Moved files are the same; others of the same length are not, and the first one is named."""
    paths = [write_tiny(tmp_path / f"{name}.h5", 160, seed=seed) for seed, name in enumerate("ab")]

    def train(data: list[str], epochs: int) -> dict:
        config = tiny_config("", **{"data.train": data, "train.epochs": epochs})
        config |= {"run_dir": str(tmp_path / "run"), "checkpoint": {"resume": True}}
        return ph.train(config, quiet=True)

    train(paths, 1)
    manifest = json.loads((tmp_path / "run" / "latest" / "manifest.json").read_text())
    assert [r["path"] for r in manifest["data"]] == 8 * [paths[0]] + 8 * [paths[1]]
    other = write_tiny(tmp_path / "c.h5", 160, seed=2)
    with pytest.raises(UserError, match=r"samples 160 to 179, in .*c\.h5 \(.*b\.h5 there\): other values"):
        train([paths[0], other], 2)
    with pytest.raises(UserError, match=r"samples 0 to 19, in .*b\.h5 \(.*a\.h5 there\): other values"):
        train(paths[::-1], 2)
    moved = shutil.move(paths[0], tmp_path / "moved.h5")
    assert train([str(moved), paths[1]], 2)["this_run"]["steps"] == 10
    for checkpoint in (tmp_path / "run").glob("step-*"):  # as of an older version
        change_manifest(checkpoint, lambda m: m.pop("data"))
    assert train([str(moved), other], 3)["this_run"]["steps"] == 10


@pytest.mark.parametrize("draws", [True, False])
def test_a_run_continues_with_the_same_items_to_draw_only(tmp_path: Path, draws: bool) -> None:
    """A catalogue may lie elsewhere; one of other weights is named, unless it is only ranked."""
    config = retrieval_config(write_retrieval(tmp_path), tmp_path / "run")
    if not draws:
        config["features"] = {name: config["features"][name] for name in ("history", "item")}
        config["tasks"]["liked"]["loss"] |= {"logq": "off", "negatives": "batch"}
    ph.train(config, quiet=True)
    changes = {"checkpoint.resume": True, "train.epochs": 3}
    shutil.copy(tmp_path / "items.h5", tmp_path / "other.h5")
    with h5py.File(tmp_path / "other.h5", "r+") as file:
        weights = np.asarray(file["weight"])
        file["weight"][:] = weights[::-1]
    config["data"]["items"] = str(tmp_path / "other.h5")
    if not draws:
        assert ph.train(config, set=changes, quiet=True)["status"] == "completed"
        return
    said = r"items in data\.items: rows \d+ to \d+, in \S*other\.h5 \(\S*items\.h5 there\): other values"
    with pytest.raises(UserError, match=said):
        ph.train(config, set=changes, quiet=True)
    with h5py.File(tmp_path / "other.h5", "r+") as file:
        file["weight"][:] = weights
    shutil.move(tmp_path / "items.h5", tmp_path / "moved.h5")
    assert ph.train(config, set=changes, quiet=True)["status"] == "completed"


@pytest.mark.parametrize("kind", ["keep_best", "every", "own loop"])
def test_a_run_that_saves_nothing_at_its_end_continues_on_the_same_samples_only(
    tmp_path: Path, kind: str
) -> None:
    data, other = (write_tiny(tmp_path / f"{seed}.h5", 160, seed=seed) for seed in range(2))

    def own(session: Any) -> None:
        session.prepare(build_model("tests.support.models:Small", session.inputs, {}))
        for batch in session.batches(steps=3):
            session.step(load_loss("bce")(session.forward(batch), batch))
        session.save()

    def train(path: str, *, resume: bool = False) -> dict:
        config = tiny_config(path, **{"train.save": False, "train.epochs": 2})
        config |= {"run_dir": str(tmp_path / "run"), "checkpoint": {"resume": resume}}
        config["checkpoint"]["every"] = 3 if kind == "every" else 0
        if kind == "keep_best":
            config["train"]["keep_best"] = True
            config["data"]["valid"] = [data]
        return ph.run(config, own, quiet=True) if kind == "own loop" else ph.train(config, quiet=True)

    train(data)
    with pytest.raises(UserError, match=r"samples 0 to 9, in .*1\.h5 \(.*0\.h5 there\): other values"):
        train(other, resume=True)


def test_no_schema_has_a_column_that_no_digest_is_of() -> None:
    """A new kind of column must be made part of the digest, and of the test above."""
    assert [field.name for field in dataclasses.fields(SampleBatch)] == [
        *("ids", "dense", "labels", "weight", "group", "time")
    ]
