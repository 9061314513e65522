"""Training data without most of their negatives: which rows are left; predictions are those of all data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import persia_hpc as ph
from persia_hpc.checkpoint.matching import config_differences
from persia_hpc.config import load_config
from persia_hpc.errors import UserError
from persia_hpc.job.sources import open_sources
from persia_hpc.samples import downsampled
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.downsampled import Downsampled, keeps
from persia_hpc.samples.reader import BatchReader
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.source import FileSource, open_source
from persia_hpc.samples.writer import DatasetWriter
from persia_hpc.trainer.batch import Batch
from persia_hpc.trainer.losses import make_loss
from tests.support.tiny import tiny_config, write_tiny

SCHEMA = DatasetSchema(
    (FeatureSchema("row"), FeatureSchema("tags", multi=True)), ("x",), ("other", "click"), has_time=True
)


def write(folder: Path, sizes: list[int], rate: float = 0.3, missing: float = 0.1) -> list[str]:
    """Files of these numbers of rows; the feature "row" counts them, over all files."""
    rng = np.random.default_rng(sum(sizes))
    paths, first = [], 0
    for i, size in enumerate(sizes):
        labels = (rng.random((size, 2)) < rate).astype(np.float32)
        labels[rng.random(size) < missing, 1] = np.nan
        lengths = rng.integers(0, 4, size)
        rows = np.arange(first, first + size)
        batch = SampleBatch(
            {
                "row": IdColumn(rows.astype(np.uint64)),
                "tags": IdColumn.from_lengths(rng.integers(0, 99, lengths.sum()).astype(np.uint64), lengths),
            },
            rng.normal(size=(size, 1)).astype(np.float32),
            labels,
            time=rows,
        )
        paths.append(str(folder / f"{i}.h5"))
        with DatasetWriter(paths[-1], SCHEMA, check_binary_labels=False) as writer:
            writer.write(batch)
        first += size
    return paths


def same(got: SampleBatch, expected: SampleBatch) -> None:
    for name, column in expected.ids.items():
        np.testing.assert_array_equal(got.ids[name].values, column.values)
        if column.offsets is not None:
            np.testing.assert_array_equal(got.ids[name].offsets, column.offsets)
    for name in ("dense", "labels", "time"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_it_reads_the_rows_that_are_left_in_any_pieces(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=3))
    share, seed = data.draw(st.floats(0.01, 1)), data.draw(st.integers(0, 2**63))
    limit = data.draw(st.none() | st.integers(1, 120))
    paths = write(tmp_path_factory.mktemp("data"), sizes, missing=0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downsampled, "BLOCK_ROWS", 16)
        patch.setattr(downsampled, "PIECE_ROWS", 32)
        patch.setattr(downsampled, "DECODED_ROWS", 24)
        files = open_source(paths, limit=limit)
        everything = files.read(0, files.num_samples)
        rows = np.arange(files.num_samples, dtype=np.uint64)
        kept = np.flatnonzero((everything.labels[:, 1] != 0) | keeps(rows, share, seed))
        source = Downsampled(files, 1, share, seed)
        assert source.num_samples == len(kept)
        assert sum(rows for _, rows in source.files) == len(kept)
        begin = data.draw(st.integers(0, len(kept)))
        end = data.draw(st.integers(begin, len(kept)))
        same(source.read(begin, end), everything.take(kept[begin:end]))
        with pytest.raises(ValueError, match="expected a range"):
            source.read(begin, len(kept) + 1)


def test_an_epoch_has_each_row_that_is_left_once(tmp_path: Path) -> None:
    files = open_source(write(tmp_path, [5000, 7000]))
    source = Downsampled(files, 1, 0.25, 3)
    reader = BatchReader(source, block_rows=100, buffer_blocks=4, seed=1, shuffle=True)
    batches = [reader.read(0, a, min(a + 333, source.num_samples)) for a in range(0, source.num_samples, 333)]
    rows = np.concatenate([batch.ids["row"].values for batch in batches])
    assert len(rows) == source.num_samples
    np.testing.assert_array_equal(np.sort(rows), source.read(0, source.num_samples).ids["row"].values)


def test_what_is_kept_depends_on_seed_and_row_alone() -> None:
    rows = np.arange(200_000, dtype=np.uint64)
    few, more = keeps(rows, 0.1, 1), keeps(rows, 0.3, 1)
    assert few.mean() == pytest.approx(0.1, abs=0.003)
    assert more.mean() == pytest.approx(0.3, abs=0.005)
    assert (few <= more).all(), "a larger share keeps the same ones and more"
    np.testing.assert_array_equal(keeps(rows[7_000:9_000], 0.1, 1), few[7_000:9_000])
    both = (few & keeps(rows, 0.1, 2)).mean()
    assert both == pytest.approx(0.01, abs=0.002), "another seed keeps others"
    assert keeps(rows, 1.0, 1).all()


def config_of(path: str, **changes: Any) -> Any:
    return load_config(tiny_config(path, **changes))


@pytest.mark.parametrize("tasks", [False, True])
@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_the_logit_that_is_learned_is_that_of_all_data(share: float, tasks: bool) -> None:
    """With one parameter: where the mean loss of what is left is least."""
    positives, negatives = 30, 970 * share
    labels = torch.tensor([[1.0], [0.0]])
    nothing = torch.zeros(2, 0)
    batch = Batch(1, 2, nothing, labels, None, None, {}, {}, {})
    changes: dict[str, Any] = {"tasks": {"label": {}}} if tasks else {}
    loss = make_loss(config_of("train.h5", **{"data.keep_negatives": share, **changes}))
    logit = torch.tensor([[np.log(30 / 970)]], dtype=torch.float64).expand(2, 1).clone().requires_grad_()
    losses = loss(logit, batch).reshape(2)
    (losses[0] * positives + losses[1] * negatives).backward()
    assert logit.grad is not None
    assert abs(float(logit.grad.sum())) < 1e-4 * positives
    p = positives / (positives + negatives)
    q = p / (p + (1 - p) / share)  # He et al.
    assert torch.sigmoid(logit)[0, 0].item() == pytest.approx(q, rel=1e-6)


def test_a_run_trains_on_what_is_left_and_predicts_all(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "train.h5", 600)
    labels = open_source([path]).read(0, 600).labels[:, 0]
    left = int((labels == 1).sum() + keeps(np.flatnonzero(labels == 0).astype(np.uint64), 0.25, 1).sum())
    changes = {"data.keep_negatives": 0.25, "data.batch_size": 10, "data.valid": [path], "seed": 1}
    metrics = {"train.metrics": ["calibration"], "train.epochs": 6, "run_dir": str(tmp_path / "run")}
    summary = ph.train(tiny_config(path, **changes, **metrics), quiet=True)
    assert summary["steps"] == 6 * -(-left // 10)
    assert summary["valid"]["calibration"] == pytest.approx(
        1, abs=0.25
    )  # of those that are left it is about 2


def test_data_of_several_labels_name_the_one(tmp_path: Path) -> None:
    paths = write(tmp_path, [40])
    settings = {"data": {"train": paths, "keep_negatives": 0.5}, "model": {"class": "dlrm"}}
    with pytest.raises(
        UserError, match=r"the data have other, click; write the one to learn as \[tasks.LABEL\]"
    ):
        open_sources(load_config(settings))
    source = open_sources(load_config({**settings, "tasks": {"click": {}}}))["train"]
    assert isinstance(source, FileSource)
    assert 0 < source.num_samples < 40


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"data.keep_negatives": 0}, "more than 0"),
        ({"data.keep_negatives": 1.5}, "at most 1"),
        ({"train.loss": "focal"}, 'that the loss "bce" learns, got focal'),
        ({"tasks": {"a": {}, "b": {}}}, "got bce, bce"),
        ({"data.follow": True}, "data.follow takes files as they come"),
        ({"data.transform": "tests.support.transforms:high_ids"}, "which data.transform = 'tests"),
    ],
)
def test_what_cannot_be_corrected_is_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=r"^configuration: data\.keep_negatives") as caught:
        config_of("train.h5", **{"data.keep_negatives": 0.5, **changes})
    assert part in str(caught.value)


def test_a_run_that_resumes_keeps_the_share() -> None:
    old, new = (config_of("a.h5", **{"data.keep_negatives": share}).resolved() for share in (0.5, 0.6))
    assert list(config_differences(old, new)) == ["data.keep_negatives: 0.5 there, 0.6 here"]


def test_a_run_of_an_older_version_had_all_negatives() -> None:
    whole, part = (config_of("a.h5", **{"data.keep_negatives": share}).resolved() for share in (1, 0.6))
    del whole["data"]["keep_negatives"]
    assert list(config_differences(whole, part)) == ["data.keep_negatives: 1.0 there, 0.6 here"]
    assert list(config_differences(whole, config_of("a.h5").resolved())) == []


def test_data_of_which_nothing_is_left_are_refused(tmp_path: Path) -> None:
    settings = {"data": {"train": write(tmp_path, [40], rate=0), "keep_negatives": 1e-9}}
    with pytest.raises(UserError, match="leaves nothing of 40 samples"):
        open_sources(load_config({**settings, "model": {"class": "dlrm"}, "tasks": {"other": {}}}))
