"""Permuted features: against a plain computation, and in the order of what leaving them out costs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.errors import UserError
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.drawn import DrawnSource
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.source import open_source
from persia_hpc.samples.writer import DatasetWriter
from tests.support.retrieval import retrieval_config, write_retrieval
from tests.support.tiny import SEQUENCES, tiny_config, write_sequences

PLANTED = {"strong": 2.0, "middle": 1.0, "weak": 0.5, "none": 0.0}  # effect of each id
COLUMN = 1.4  # of the dense one


def write_planted(path: Path, num_samples: int, seed: int) -> str:
    """Writes ids with 8 values each, whose effects on the logit are as strong as planted."""
    rng, effects = np.random.default_rng(seed), np.random.default_rng(0)
    ids, logit = {}, np.zeros(num_samples)
    for name, strength in PLANTED.items():
        values = rng.integers(0, 8, num_samples)
        logit += strength * effects.permutation(np.linspace(-1.5, 1.5, 8))[values]
        ids[name] = IdColumn(values.astype(np.uint64))
    dense = rng.normal(size=(num_samples, 1)).astype(np.float32)
    logit += COLUMN * dense[:, 0]
    labels = (rng.random(num_samples) < 1 / (1 + np.exp(-logit))).astype(np.float32)[:, None]
    schema = DatasetSchema(tuple(FeatureSchema(name, False) for name in ids), ("column",))
    with DatasetWriter(path, schema) as writer:
        writer.write(SampleBatch(ids, dense, labels))
    return str(path)


def test_order_is_that_of_training_without_each_feature(tmp_path: Path) -> None:
    train, test = (write_planted(tmp_path / f"{n}.h5", n, seed) for n, seed in ((12_000, 1), (6_000, 2)))
    config: dict[str, Any] = {
        "data": {"train": train, "test": test, "batch_size": 256},
        "tables": {"default": {"dim": 4, "capacity": "1 MiB", "optimizer": {"name": "adagrad", "lr": 0.1}}},
        "model": {"class": "tests.support.models:Small"},
        "train": {"epochs": 2, "optimizer": {"name": "Adam", "lr": 0.01}, "threads": 1, "save": True},
    }

    def auc(name: str, features: list[str]) -> float:
        changes = {"data": {**config["data"], "features": features}, "run_dir": str(tmp_path / name)}
        return float(ph.train({**config, **changes}, quiet=True)["test"]["auc"])

    whole = auc("whole", list(PLANTED))
    found = ph.load(tmp_path / "whole").importance(samples=0, repeats=5)
    assert found["value"] == whole
    drops = {e["name"]: e["drop"] for e in found["features"]}
    assert list(drops) == sorted(drops, key=lambda name: -drops[name])
    assert list(drops) == ["strong", "column", "middle", "weak", "none"]
    without = {n: whole - auc(n, [other for other in PLANTED if other != n]) for n in PLANTED}
    assert sorted(without, key=lambda n: -without[n]) == [name for name in drops if name != "column"]
    assert abs(drops["none"]) < 0.005 < drops["weak"]
    for entry in found["features"]:
        assert entry["std"] == pytest.approx(np.std(entry["drops"], ddof=1))
        assert entry["drop"] == pytest.approx(np.mean(entry["drops"]))


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("run")
    data = write_sequences(folder / "data.h5", 150)
    config = tiny_config(data, run_dir=str(folder / "run"), **SEQUENCES)
    config["data"] |= {"valid": data, "evaluate_batch_size": 64}
    config["train"] |= {"epochs": 3, "early_stop": {"metric": "logloss"}}
    ph.train(config, quiet=True)
    return folder / "run", data


@pytest.mark.parametrize("unit", ["item", "user", "tags", "events", "watched", "x1"])
def test_each_kind_is_permuted_as_in_the_file(unit: str, sequences: tuple[Path, str], tmp_path: Path) -> None:
    """Against the scores of a file that is permuted: with look-ups, pooling, padding and weights of ids."""
    run, data = sequences
    found = ph.load(run).importance("valid", samples=0, repeats=1, seed=4)
    assert (found["metric"], found["mode"], found["samples"]) == ("logloss", "min", 150)
    names = ["item", "user", "tags", "events", "watched", "x0", "x1", "x2"]
    assert sorted(e["name"] for e in found["features"]) == sorted(names)
    source = open_source([data])
    batch, schema = source.read(0, 150), source.schema
    order = np.random.default_rng([4, 0]).permutation(150)
    taken = SampleBatch.concatenate([batch.slice(int(i), int(i) + 1) for i in order])
    ids, dense = dict(batch.ids), batch.dense.copy()
    for name in {"events": ["history", "action"]}.get(unit, [unit]):
        if name in ids:
            ids[name] = taken.ids[name]
        else:
            dense[:, 1] = taken.dense[:, 1]
    with DatasetWriter(tmp_path / "permuted.h5", schema) as writer:
        writer.write(dataclasses.replace(batch, ids=ids, dense=dense))
    ph.load(run).predict([str(tmp_path / "permuted.h5")], tmp_path / "scores.csv")
    scores = np.loadtxt(tmp_path / "scores.csv", skiprows=1)
    (entry,) = [e for e in found["features"] if e["name"] == unit]
    expected = log_loss(batch.labels[:, 0], scores) - found["value"]
    assert entry["drop"] == pytest.approx(expected, abs=1e-6)
    assert entry["kind"] == {"events": "sequence", "x1": "dense"}.get(unit, "feature")
    assert entry.get("features") == (["history", "action"] if unit == "events" else None)


def test_command_prints_a_table_or_json(
    sequences: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = sequences
    arguments = ["importance", str(run), "--split", "valid", "--metric", "auc", "--samples", "64"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["metric"], found["repeats"]) == (64, "auc", 3)
    assert main(arguments) == 0
    head, columns, *lines = capsys.readouterr().out.splitlines()
    assert head == f"valid: auc {found['value']:.4f} on 64 samples; 3 permutations of each feature"
    assert columns.split() == ["feature", "kind", "auc", "lower", "by", "sd"]
    assert [line.split()[0] for line in lines] == [entry["name"] for entry in found["features"]]
    assert main([*arguments, "--only", "x1", "events", "--json"]) == 0
    some = json.loads(capsys.readouterr().out)["features"]
    assert some == [entry for entry in found["features"] if entry["name"] in ("x1", "events")]
    assert main([*arguments, "--repeats", "1"]) == 0
    assert all(line.split()[-1] == "-" for line in capsys.readouterr().out.splitlines()[2:])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--metric", "ac"], "--metric ac: expected one that evaluations of this run report: auc, logloss"),
        (["--only", "item", "usr"], "--only usr: expected what the model has: item, user, tags, events"),
        (["--repeats", "0"], "--repeats 0: expected at least 1"),
        (["--samples", "-1"], "--samples -1: expected at least 0"),
        (["--split", "test"], "there is no data for split 'test'"),
        (["--samples", "1"], "auc isn't defined on these 1 samples"),
    ],
)
def test_what_cant_be_measured_is_one_line(
    arguments: list[str], said: str, sequences: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = sequences
    given = ["--split", "valid", *(["--metric", "auc"] if "--metric" not in arguments else []), *arguments]
    assert main(["importance", str(run), *given]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith(f"persia-hpc: error: {said}")


@pytest.mark.parametrize("count", [1, 15, 16, 64, 149, 150, 200])
def test_samples_are_drawn_without_repetition_in_their_order(count: int, sequences: tuple[Path, str]) -> None:
    source = open_source([sequences[1]])
    rows = {source.read(i, i + 1).dense.tobytes(): i for i in range(150)}
    drawn = DrawnSource(source, count, seed=3)
    assert drawn.num_samples == min(count, 150)
    size = drawn.num_samples
    batch = SampleBatch.concatenate([drawn.read(i, min(i + 7, size)) for i in range(0, size, 7)])
    found = [rows[row.tobytes()] for row in batch.dense]
    assert found == sorted(set(found))
    assert len(found) == min(count, 150)
    if count == 16:
        assert len(set(np.diff(found))) > 1, "they are spread"


def test_auc_reference_is_the_one_reported(sequences: tuple[Path, str], tmp_path: Path) -> None:
    run, data = sequences
    ph.load(run).predict([data], tmp_path / "scores.csv")
    scores = np.loadtxt(tmp_path / "scores.csv", skiprows=1)
    labels = open_source([data]).read(0, 150).labels[:, 0]
    found = ph.load(run).importance("valid", samples=0, repeats=1, metric="auc")
    assert found["value"] == pytest.approx(roc_auc_score(labels, scores))


def test_nothing_is_defined_for_an_unknown_label(sequences: tuple[Path, str]) -> None:
    with pytest.raises(UserError, match="expected one that evaluations"):
        ph.load(sequences[0]).importance("valid", metric="auc_buy")


def test_of_a_retrieval_model_labels_are_explained_and_no_ranks(tmp_path: Path) -> None:
    data = write_retrieval(tmp_path)
    with h5py.File(data["valid"], "r+") as file:
        file["label"][::2] = 0.0
    settings = retrieval_config(data, tmp_path / "run")
    ph.train(settings, set={"train.max_steps": 8, "train.keep_best": "recall@5"}, quiet=True)
    run = ph.load(tmp_path / "run")
    found = run.importance("valid", repeats=1, metric="auc")
    assert {entry["name"] for entry in found["features"]} == {"user", "history", "item", "kind"}
    for metric in ("recall@5", None):
        with pytest.raises(UserError, match="recall@5 ranks the whole catalogue, which importance doesn't"):
            run.importance("valid", metric=metric)
