"""Synthetic data: the distributions, the planted model, determinism, virtual ids."""

import json

import h5py
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score

from persia_hpc.errors import UserError
from persia_hpc.preprocess import synthetic
from persia_hpc.preprocess.splits import uniform
from persia_hpc.preprocess.synthetic import Generator, SyntheticOptions
from persia_hpc.preprocess.zipf import Zipf
from persia_hpc.samples.source import open_source

SMALL = {"rows": 3000, "test_rows": 2000, "features": 4, "vocabulary": (50,), "dense": 2}


def read(path, pattern):
    source = open_source([str(path / pattern)])
    return source.read(0, source.num_samples)


def equal(a, b):
    """Whether two batches are bit-identical."""
    ids = all(np.array_equal(a.ids[n].values, b.ids[n].values) for n in a.ids)
    return ids and np.array_equal(a.dense, b.dense) and np.array_equal(a.labels, b.labels)


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0, 1.2, 2.0])
@pytest.mark.parametrize("size", [1, 2, 30])
def test_zipf_ranks_have_their_probabilities(exponent, size):
    ranks = Zipf(exponent, size).draw(np.arange(40_000, dtype=np.uint64), 5, 9)
    counts = np.bincount(ranks.astype(np.int64), minlength=size + 1)
    assert counts[0] == 0
    expected = np.arange(1, size + 1) ** -exponent
    expected *= 40_000 / expected.sum()
    # The draws are fixed, so this either always passes or never.
    assert size == 1 or stats.chisquare(counts[1:], expected).pvalue > 1e-3


def test_zipf_reaches_ten_trillion_ids():
    ranks = Zipf(0.5, 10**13).draw(np.arange(20_000, dtype=np.uint64), 1, 2)
    # P(rank <= V/4) = sqrt(1/4).
    assert np.mean(ranks <= 10**13 // 4) == pytest.approx(0.5, abs=0.02)
    assert ranks.min() >= 1
    assert 0.99e13 < ranks.max() <= 10**13


def test_uniform_is_uniform_and_streams_differ():
    a, b = (uniform(np.arange(20_000, dtype=np.uint64), 1, stream) for stream in (0, 1))
    assert stats.kstest(a, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
    assert 0 < a.min() < a.max() < 1


def test_the_best_auc_is_that_of_the_true_logits(tmp_path):
    options = SyntheticOptions(tmp_path / "out", **SMALL)
    _, best = synthetic.prepare(options)
    batch, logits = Generator(options).block(3000, 5000)
    assert equal(read(tmp_path / "out", "test.h5"), batch)
    assert best["bayes_auc"] == pytest.approx(roc_auc_score(batch.labels[:, 0], logits), abs=1e-12)
    assert best["bayes_logloss"] == pytest.approx(
        log_loss(batch.labels[:, 0], 1 / (1 + np.exp(-logits))), abs=1e-9
    )
    assert 0.6 < best["bayes_auc"] < 0.95
    with h5py.File(tmp_path / "out" / "test.h5") as file:
        assert json.loads(file.attrs["preprocessing"])["bayes_auc"] == best["bayes_auc"]


def test_labels_follow_the_logits():
    batch, logits = Generator(SyntheticOptions("", **SMALL)).block(0, 50_000)
    chances = 1 / (1 + np.exp(-logits))
    # Calibrated in every tenth: 5 deviations.
    for part in np.array_split(np.argsort(logits), 10):
        deviation = np.sqrt((chances[part] * (1 - chances[part])).sum()) / len(part)
        assert abs(batch.labels[part, 0].mean() - chances[part].mean()) < 5 * deviation


def test_weights_belong_to_ids():
    """Without dense features and with one feature of one table, rows with one id have one logit."""
    options = SyntheticOptions("", features=1, vocabulary=(20,), dense=0)
    batch, logits = Generator(options).block(0, 5000)
    ids = batch.ids["f0"].values
    assert ids.max() < 20
    values = [np.unique(logits[ids == i]) for i in np.unique(ids)]
    assert all(len(v) == 1 for v in values)
    assert len({float(v[0]) for v in values}) == len(values) == 20


def test_rows_depend_on_the_seed_only(tmp_path):
    batches = []
    for run, more in enumerate(({}, {"shards": 3}, {"seed": 2})):
        synthetic.prepare(SyntheticOptions(tmp_path / str(run), **SMALL, **more))
        batches.append(read(tmp_path / str(run), "train-*.h5"))
    assert equal(batches[0], batches[1])
    assert not equal(batches[0], batches[2])
    whole, first, second = (
        Generator(SyntheticOptions("", **SMALL)).block(*r)[0] for r in ((0, 9), (0, 4), (4, 9))
    )
    assert equal(whole, type(whole).concatenate([first, second]))


def test_virtual_ids(tmp_path):
    options = SyntheticOptions("", features=2, vocabulary=(100, 1000), virtual_ids=10**13, exponent=1.2)
    plain = Generator(SyntheticOptions("", features=2, vocabulary=(100, 1000), exponent=1.2)).block(
        0, 20_000
    )[0]
    batch = Generator(options).block(0, 20_000)[0]
    for name, size in (("f0", 100), ("f1", 1000)):
        ids = batch.ids[name].values
        # Each id spreads over copies of its own, nearly all of them used once only.
        assert np.array_equal(ids // np.uint64(10**13 // size), plain.ids[name].values)
        assert len(np.unique(ids)) > 19_990
        assert ids.max() < 10**13


def test_multi_hot():
    options = SyntheticOptions("", features=3, vocabulary=(50,), multi_features=2, max_ids=4)
    generator = Generator(options)
    batch, _ = generator.block(10, 5010)
    assert [feature.multi for feature in generator.schema.features] == [False, True, True]
    lengths = np.diff(batch.ids["f2"].offsets)
    assert np.bincount(lengths).min() > 800
    assert len(np.bincount(lengths)) == 5
    part = generator.block(20, 30)[0]
    assert equal(part, batch.slice(10, 20))
    assert not np.array_equal(batch.ids["f1"].values[:100], batch.ids["f2"].values[:100])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": (5, 6)}, "--vocabulary: got 2 sizes, expected one or 26"),
        ({"virtual_ids": 10**14}, "--virtual-ids: got 1000*, expected 1000000 to"),
        ({"rows": 0}, "--rows: got 0, expected 1 to"),
        ({"multi_features": 27}, "--multi-features: got 27, expected 0 to 26"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Generator(SyntheticOptions("", **options))
