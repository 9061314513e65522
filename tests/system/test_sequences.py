"""Jagged features, shared offsets and weights of ids in whole jobs: the same with and without MPI."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.errors import UserError
from persia_hpc.samples.source import open_source
from tests.support.cases import run_cases, settings, summary
from tests.support.tiny import SEQUENCES, run_digest, write_sequences, write_tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_sequences(folder / "train.h5", 333), write_sequences(folder / "valid.h5", 150, seed=1)


def case(data, run_dir, servers, workers, trainers, **changes):
    more = {**copy.deepcopy(SEQUENCES), "tables.action": {"dim": 4, "capacity": "1 MiB"}, **changes}
    return settings(data, run_dir, servers, workers, trainers, **more)


def test_a_job_is_bit_identical_to_one_process(tmp_path, data):
    """Also with rows kept by the trainer, and hashed actions, whose offsets are others on the wire."""
    hashed = {"tables.action.hash": {"size": 9}}
    exact = {
        "mode": "hybrid",
        "exact": True,
        "staleness_bound": 3,
        "wire.reuse_steps": 2,
        "wire.rows": "fp16",
    }
    ph.train(case(data, tmp_path / "one", 1, 1, 1, **hashed), quiet=True)
    digests = run_cases(
        case(data, tmp_path / "a", 2, 1, 1, **hashed),
        case(data, tmp_path / "b", 1, 1, 2, **exact),
        case(data, tmp_path / "c", 2, 2, 2, **exact),
    )
    assert digests[0] == run_digest(tmp_path / "one")
    assert digests[1] == digests[2] != digests[0]
    assert summary(tmp_path / "a")["valid"] == summary(tmp_path / "one")["valid"]


def test_a_run_scores_its_data_again_and_refuses_others(tmp_path, data):
    ph.train(case(data, tmp_path / "one", 1, 1, 1), quiet=True)
    run = ph.load(tmp_path / "one")
    assert run.schema.feature("tags").weighted
    run.predict([data[1]], tmp_path / "scores.csv")
    scores = np.loadtxt(tmp_path / "scores.csv", delimiter=",", skiprows=1, ndmin=2)[:, -1]
    labels = open_source([data[1]]).read(0, 150).labels[:, 0]
    loss = -np.mean(np.where(labels == 1, np.log(scores), np.log1p(-scores)))
    assert loss == pytest.approx(summary(tmp_path / "one")["valid"]["logloss"], rel=1e-4)
    with pytest.raises(UserError, match="no feature 'action'"):
        run.predict([write_tiny(tmp_path / "other.h5", 20)], tmp_path / "none.csv")
