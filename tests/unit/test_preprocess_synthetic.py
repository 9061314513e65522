"""Synthetic data: the distributions, the planted model, determinism, virtual ids."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score

from persia_hpc.cli import main
from persia_hpc.config import load_config
from persia_hpc.errors import UserError
from persia_hpc.preprocess import synthetic
from persia_hpc.preprocess.criteo import synthetic as criteo_syn
from persia_hpc.preprocess.splitting import uniform
from persia_hpc.preprocess.synthetic import Generator, SyntheticOptions
from persia_hpc.preprocess.zipf import Zipf
from persia_hpc.samples.source import open_source
from tests.support.mpi import run_mpi

PROGRAM = Path(__file__).parent / "programs" / "preprocess.py"
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


def test_virtual_ids():
    options = SyntheticOptions("", features=2, vocabulary=(100, 1000), virtual_ids=10**13)
    batch = Generator(options).block(0, 20_000)[0]
    for column in batch.ids.values():
        assert len(np.unique(column.values)) == 20_000
        assert stats.kstest(column.values / 1e13, "uniform").pvalue > 1e-3
    few = SyntheticOptions("", features=1, vocabulary=(10,), virtual_ids=37)
    assert np.array_equal(np.unique(Generator(few).block(0, 5000)[0].ids["f0"].values), np.arange(37))


def counts_of(values):
    """How many of the values occur for the first time in each half."""
    first = np.unique(values, return_index=True)[1]
    return np.bincount(first // (len(values) // 2), minlength=2)


def test_new_ids_are_a_share_of_the_draws():
    new = {}
    for share in (0.0, 0.05):
        options = SyntheticOptions(
            "", features=2, vocabulary=(100, 1000), virtual_ids=10**12, new_ids=share, test_rows=0
        )
        batch = Generator(options).block(0, 40_000)[0]
        new[share] = np.sum([counts_of(column.values) for column in batch.ids.values()], axis=0)
    assert new[0.0][0] > 700
    assert new[0.0][1] < 300
    # In a half 2,000 of 40,000 draws; 5 deviations.
    np.testing.assert_allclose(new[0.05] - new[0.0], 2000, atol=5 * np.sqrt(2000) + 20)


def test_presets_reach_what_is_stated_at_one_rate_of_new_ids():
    """Tables of 6 to 100 trillion parameters differ in the range of ids only."""
    stated = [6.25e12, 12.5e12, 25e12, 50e12, 100e12]
    rates = []
    for (name, preset), parameters in zip(criteo_syn.PRESETS.items(), stated, strict=True):
        assert 0 <= 26 * preset.virtual_ids * 128 - parameters < 26 * 128
        generator = Generator(SyntheticOptions("", preset=name))
        batch = generator.block(0, 20_000)[0]
        assert len(batch.ids) == 26
        assert batch.dense.shape[1] == 13
        largest = max(int(column.values.max()) for column in batch.ids.values())
        assert 0.9 * preset.virtual_ids < largest < preset.virtual_ids
        rates.append(np.sum([counts_of(column.values) for column in batch.ids.values()], axis=0))
    np.testing.assert_allclose(rates, np.broadcast_to(rates[0], (5, 2)), atol=5)


def test_ranks_and_parts_make_the_same_files(tmp_path):
    arguments = ["preprocess", "synthetic", "--rows", "900", "--test-rows", "500", "--shards", "4"]
    arguments += ["--features", "3", "--vocabulary", "50", "--dense", "2", "--out"]
    assert main([*arguments, str(tmp_path / "alone")]) == 0
    done = run_mpi(3, PROGRAM, *arguments, str(tmp_path / "ranks"))
    assert "best possible on test: AUC" in done.stdout
    for part in ("1/2", "0/2"):
        assert main([*arguments, str(tmp_path / "parts"), "--part", part]) == 0
    names = sorted(path.name for path in (tmp_path / "alone").glob("*.h5*"))
    assert len(names) == 5
    for folder in ("ranks", "parts"):
        assert names == sorted(path.name for path in (tmp_path / folder).glob("*.h5*"))
        for name in names:
            assert equal(read(tmp_path / folder, name), read(tmp_path / "alone", name))
            with h5py.File(tmp_path / folder / name) as one, h5py.File(tmp_path / "alone" / name) as other:
                assert one.attrs["preprocessing"] == other.attrs["preprocessing"]
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ranks").glob("*.h5*")}
    (tmp_path / "ranks" / "train-002.h5").unlink()  # as after a kill
    assert main([*arguments, str(tmp_path / "ranks")]) == 0
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ranks").glob("*.h5*")}
    assert [name for name in names if before[name] != after[name]] == ["train-002.h5"]


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
        ({"new_ids": 0.5}, "--new-ids: got 0.5 without --virtual-ids"),
        ({"new_ids": 1.5, "virtual_ids": 10**9}, "--new-ids: got 1.5, expected 0.0 to 1.0"),
        (
            {"preset": "criteo-syn1", "virtual_ids": 10},
            "--virtual-ids: got 10, expected none beside --preset",
        ),
        ({"preset": "criteo-syn1", "features": 3}, "--features: got 3, expected none beside --preset"),
        ({"rows": 0}, "--rows: got 0, expected 1 to"),
        ({"multi_features": 27}, "--multi-features: got 27, expected 0 to 26"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Generator(SyntheticOptions("", **options))


def test_the_configuration_of_the_presets_is_valid():
    config = load_config(Path(__file__).parents[2] / "datasets" / "synthetic" / "criteo_syn.toml")
    assert config.tables["default"].dim == criteo_syn.DIM
