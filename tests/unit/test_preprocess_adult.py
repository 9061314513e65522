"""Adult: the bundled files, both variants, bad lines by number."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from persia_hpc.errors import UserError
from persia_hpc.preprocess import adult
from persia_hpc.samples.source import open_source

BUNDLED = Path(__file__).parents[2] / "datasets" / "adult"


def prepare(tmp_path, **options):
    options = {"input": BUNDLED} | options
    return adult.prepare(adult.AdultOptions(tmp_path / "out", **options))


def read(tmp_path, *names):
    source = open_source([str(tmp_path / "out" / name) for name in names])
    return source.read(0, source.num_samples)


def raw(name):
    """Fields of all rows, by Python's own means."""
    with gzip.open(BUNDLED / f"{name}.gz", "rt") as file:
        rows = [line.strip().rstrip(".").split(", ") for line in file]
    return [row for row in rows if len(row) == 15]


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    path = tmp_path_factory.mktemp("adult")
    return path, prepare(path)


def test_counts_and_label_rates(default):
    rows = {report.path.name: report.num_rows for report in default[1]}
    positives = {report.path.name: report.num_rows * report.label_rate for report in default[1]}
    assert rows == {"train.h5": 29_305, "valid.h5": 3_256, "test.h5": 16_281}
    assert (positives["train.h5"] + positives["valid.h5"]) / 32_561 == pytest.approx(0.24081, abs=5e-6)
    assert positives["test.h5"] / 16_281 == pytest.approx(0.23623, abs=5e-6)


def test_valid_is_a_part_of_train_in_file_order(default, tmp_path):
    path, _ = default
    both = read(path, "train.h5", "valid.h5")
    # A fingerprint of each row: 8 ids and 5 numbers.
    keys = lambda b: [(*(c.values[i] for c in b.ids.values()), *b.dense[i]) for i in range(b.num_samples)]  # noqa: E731
    prepare(tmp_path, valid_fraction=0.5, seed=7)
    assert sorted(keys(both)) == sorted(keys(read(tmp_path, "train.h5", "valid.h5")))
    ages = np.asarray([float(row[0]) for row in raw("adult.data")])
    chosen = ~adult.valid_rows(32_561, 0.1, 1)
    expected = ((ages - ages.mean()) / ages.std())[chosen]
    np.testing.assert_allclose(read(path, "train.h5").dense[:, 0], expected, rtol=1e-5)


def test_values_of_the_test_file(default):
    batch = read(default[0], "test.h5")
    train, test = raw("adult.data"), raw("adult.test")
    names = list(adult.COLUMNS)
    for name in adult.IDS:
        column = names.index(name)
        known = sorted({row[column] for row in train})
        assert batch.ids[name].values.tolist() == [known.index(row[column]) + 1 for row in test]
    for k, name in enumerate(adult.DENSE):
        change = np.log1p if name in ("capital_gain", "capital_loss") else np.asarray
        fit, values = (change([float(row[names.index(name)]) for row in rows]) for rows in (train, test))
        np.testing.assert_allclose(batch.dense[:, k], (values - fit.mean()) / fit.std(), rtol=1e-4, atol=1e-6)


def test_the_tutorial_variant_keeps_its_quirk(tmp_path):
    reports = prepare(tmp_path, variant="persia_tutorial")
    assert {r.path.name: r.num_rows for r in reports} == {"train.h5": 32_561, "test.h5": 16_281}
    country = list(adult.COLUMNS).index("native_country")
    for name, file in (("train.h5", "adult.data"), ("test.h5", "adult.test")):
        batch, rows = read(tmp_path, name), raw(file)
        known = sorted({row[country] for row in rows})
        assert batch.ids["native_country"].values.tolist() == [known.index(row[country]) for row in rows]
        np.testing.assert_array_equal(batch.dense[:, 2], [float(row[10]) for row in rows])
    # The test file lacks one country, so the codes behind it mean other countries there.
    assert len(known) == 41


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<=50K", "50K", "adult.data:3: income: got '50K', expected '<=50K' or '>50K'"),
        ("38,", "NaN,", "adult.data:3: age: got 'NaN', expected an integer"),
        ("38,", ",", "adult.data:3: age: got no value, expected an integer"),
        (", Male", "", "adult.data:3: got 14 columns, expected 15 separated by comma"),
    ],
)
def test_bad_lines_are_named(tmp_path, old, new, message):
    lines = gzip.decompress((BUNDLED / "adult.data.gz").read_bytes()).decode().split("\n")
    assert old in lines[2]
    lines[2] = lines[2].replace(old, new, 1)
    (tmp_path / "adult.data").write_text("\n".join(lines))
    (tmp_path / "adult.test").write_bytes(b"")
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, input=tmp_path)


def test_missing_input_is_named(tmp_path):
    with pytest.raises(UserError, match=r"got no adult\.data"):
        prepare(tmp_path, input=tmp_path)
