"""Encodings and labels of a job's data: what training, scoring and resuming accept, in one process."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import persia_hpc as ph
from persia_hpc import api
from persia_hpc.checkpoint.manifest import read_manifest, read_schema
from persia_hpc.cli import main
from persia_hpc.config import load_config
from persia_hpc.errors import UserError
from persia_hpc.job.dry_run import dry_run
from persia_hpc.job.sources import open_sources
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.encoding import read_encoding
from persia_hpc.samples.follow import Follower, followed_schema
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.samples.source import open_source
from persia_hpc.samples.writer import DatasetWriter
from tests.support.tiny import tiny_config, write_tiny

A, B = "a" * 64, "b" * 64
OTHER = f"got encoding {B[:12]}, expected {A[:12]} as of .*--encoding DIR"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on data of encoding A."""
    folder = tmp_path_factory.mktemp("run")
    data = write_tiny(folder / "train.h5", 64, encoding=A)
    ph.train(config(data, run_dir=str(folder / "run")), quiet=True)
    return folder / "run"


def config(data: str, **changes: Any) -> dict[str, Any]:
    return tiny_config(data, **changes)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_data_of_another_encoding_are_refused_before_training(tmp_path: Path, split: str) -> None:
    data = write_tiny(tmp_path / "train.h5", 9, encoding=A)
    other = write_tiny(tmp_path / "other.h5", 9, encoding=B)
    with pytest.raises(UserError, match="other.h5: " + OTHER):
        ph.train(config(data, **{f"data.{split}": [other], "run_dir": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()


def test_training_files_of_two_encodings_are_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path / "a.h5", 9, encoding=A)
    write_tiny(tmp_path / "b.h5", 9, encoding=B)
    with pytest.raises(UserError, match="b.h5: " + OTHER):
        open_sources(load_config(config(str(tmp_path / "*.h5"))))


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_training_needs_labels(tmp_path: Path, split: str) -> None:
    data = write_tiny(tmp_path / "train.h5", 9)
    without = write_tiny(tmp_path / "new.h5", 9, labels=False)
    with pytest.raises(UserError, match=r"new\.h5: got a file without labels.*persia-hpc predict"):
        open_sources(load_config(config(data, **{f"data.{split}": [without]})))


def write_labels(path: Path, *columns: list[float]) -> str:
    labels = np.array(columns, np.float32).T.copy()
    schema = DatasetSchema((), ("x",), label_names=("click", "buy")[: len(columns)])
    with DatasetWriter(path, schema) as writer:
        writer.write(SampleBatch({}, np.zeros((len(labels), 1), np.float32), labels))
    return str(path)


NAN = float("nan")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ([[0, 1, NAN]], None),
        ([[0, 0, 0]], "label click is 0 in every sample that has it: its AUC is undefined"),
        ([[1, NAN, 1]], "label click is 1 in every sample that has it: its AUC is undefined"),
        ([[0, 1, 1], [NAN, NAN, NAN]], "label buy is missing in every sample"),
        ([[0, 1, 1], [1, 1, 1]], "label buy is 1 in every sample that has it: its AUC is undefined"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_label_that_is_constant_or_missing_is_said_before_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, split: str, columns: list[list[float]], said: str | None
) -> None:
    mixed = write_labels(tmp_path / "mixed.h5", *[[0, 1]] * len(columns))
    for i in range(2):
        write_labels(tmp_path / f"part-{i}.h5", *columns)
    data = [str(tmp_path / "part-*.h5")]
    changes = {"features": {}, "data.train": mixed, f"data.{split}": data}
    open_sources(load_config(config(mixed, **changes)))
    found = [record.message.split(";")[0] for record in caplog.records]
    assert found == ([] if said is None else [f"data.{split}: {said}"])
    caplog.clear()
    open_sources(load_config(config(mixed, **{**changes, f"data.{split}": [mixed, *data]})))
    assert not caplog.records


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (
            {"early_stop": {"metric": "auc"}},
            r"train\.early_stop watches auc.*negatives.* click is 1",
        ),
        ({"plateau": {"metric": "auc"}}, r"train\.plateau watches auc, which needs negatives"),
        ({"restore_best": True}, r"train\.keep_best watches auc, which needs negatives"),
        ({}, None),
    ],
)
def test_a_run_without_negatives_watches_no_auc(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, train: dict[str, Any], said: str | None
) -> None:
    ones = write_labels(tmp_path / "ones.h5", [1, 1, 1])
    changes = {"features": {}, "data.valid": ones, "train.loss": "in_batch_softmax"}
    settings = config(ones, **changes, **{f"train.{key}": value for key, value in train.items()})
    if said is None:
        open_sources(load_config(settings))
    else:
        with pytest.raises(UserError, match=said):
            open_sources(load_config(settings))
        mixed = write_labels(tmp_path / "mixed.h5", [1, 0, 1])
        open_sources(load_config(settings, {"data.valid": mixed}))
    assert not caplog.records


@pytest.mark.parametrize("columns", [[[NAN, NAN]], [[NAN, NAN], [NAN, NAN]]])
def test_training_data_without_any_known_label_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, columns: list[list[float]]
) -> None:
    data = write_labels(tmp_path / "train.h5", *columns)
    settings = config(data, features={}, run_dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"data\.train: got no known label in any of 2 samples \(click.*NaN"):
        ph.train(settings)
    assert not (tmp_path / "run").exists()
    own = load_config(settings, {"train.loss": "tests.support.models:squared"})
    assert open_sources(own)["train"].num_samples == 2
    assert "data.train: label click is missing in every sample" in caplog.text
    write_labels(tmp_path / "more.h5", *[[1, 0]] * len(columns))
    assert open_sources(load_config(settings, {"data.train": [str(tmp_path / "*.h5")]}))


def test_files_that_do_not_say_their_labels_are_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of older versions, and those that say what can't be."""
    data = write_labels(tmp_path / "train.h5", [NAN, NAN, NAN])
    settings = load_config(config(data, features={}))
    for known in (
        [[4.0, 0.0, 0.0]],
        [[2.0, 1.0, 0.0]],
        [[2.0, 0.0, np.inf]],
        [[NAN] * 3],
        [0.0],
        "text",
        None,
    ):
        with h5py.File(data, "r+") as file:
            del file.attrs["label_known"]
            if known is not None:
                file.attrs["label_known"] = known
        assert open_sources(settings)["train"].num_samples == 3
        with h5py.File(data, "r+") as file:
            file.attrs["label_known"] = 0
    assert not caplog.records


def test_splits_with_other_columns_are_refused(tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "train.h5", 9)

    other = shutil.copy(data, tmp_path / "other.h5")
    with h5py.File(other, "r+") as file:
        file.attrs["dense_names"] = ["x1", "x0", "x2"]
    with pytest.raises(UserError, match=r"other\.h5: got dense features x1, x0, x2, expected x0, x1, x2"):
        open_sources(load_config(config(data, **{"data.valid": [str(other)]})))


def test_a_followed_file_of_another_encoding_is_refused(tmp_path: Path) -> None:
    settings = load_config(config(str(tmp_path / "*.h5"), **{"data.follow": True}))
    write_tiny(tmp_path / "a.h5", 9)
    follower = Follower(settings, followed_schema(settings))
    follower.look()
    write_tiny(tmp_path / "b.h5", 9, encoding=A)  # what the first file names isn't known
    follower.look()
    write_tiny(tmp_path / "c.h5", 9, encoding=B)
    with pytest.raises(UserError, match="c.h5: " + OTHER):
        follower.look()


def test_a_followed_run_keeps_the_encoding_that_a_later_file_names(tmp_path: Path) -> None:
    folder, run_dir = tmp_path / "data", tmp_path / "run"
    folder.mkdir()
    write_tiny(folder / "a.h5", 64)
    write_tiny(folder / "b.h5", 64, seed=1, encoding=A)
    (folder / "_END").touch()
    changes = {"data.follow": True, "run_dir": str(run_dir)}
    ph.train(config(str(folder / "*.h5"), **changes), quiet=True)
    assert read_schema(read_manifest(run_dir / "latest")).encoding == A
    other = write_tiny(folder / "c.h5", 64, seed=2, encoding=B)
    with pytest.raises(UserError, match="c.h5: " + OTHER):
        ph.load(run_dir).predict([other], tmp_path / "out.csv")
    (folder / "b.h5").unlink()  # what it named is known from the checkpoint
    with pytest.raises(UserError, match="c.h5: " + OTHER):
        ph.train(config(str(folder / "*.h5"), **changes, **{"checkpoint.resume": True}), quiet=True)


def test_a_refused_portion_leaves_no_encoding(tmp_path: Path) -> None:
    settings = load_config(config(str(tmp_path / "*.h5"), **{"data.follow": True}))
    write_tiny(tmp_path / "a.h5", 9)
    follower = Follower(settings, followed_schema(settings))
    for name, encoding in (("b", A), ("c", B)):
        write_tiny(tmp_path / f"{name}.h5", 9, encoding=encoding)
    with pytest.raises(UserError, match="c.h5: " + OTHER):
        follower.look()
    assert follower.schema.encoding is None
    (tmp_path / "c.h5").unlink()
    follower.look()
    assert follower.schema.encoding == A


def test_a_checkpoint_says_which_encoding(run: Path) -> None:
    manifest = read_manifest(run / "latest")
    assert read_schema(manifest).encoding == manifest["schema"]["encoding"] == A
    del manifest["schema"]["encoding"]  # as older ones are
    assert read_schema(manifest).encoding is None


def test_data_of_another_encoding_are_neither_scored_nor_evaluated(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_tiny(tmp_path / "other.h5", 9, encoding=B)
    with pytest.raises(UserError, match="other.h5: " + OTHER):
        ph.load(run).predict([other], tmp_path / "out.csv")
    for command in (
        ["predict", str(run), "--data", other, "--out", str(tmp_path / "out.csv")],
        ["evaluate", str(run), "--set", f"data.test={json.dumps([other])}"],
    ):
        assert main(command) == 2
        assert B[:12] in (error := capsys.readouterr().err)
        assert error.count("\n") == 1
    assert not (tmp_path / "out.csv").exists()


def test_data_that_name_no_encoding_are_scored_with_a_word(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = write_tiny(tmp_path / "old.h5", 9)
    with caplog.at_level(logging.WARNING, "persia_hpc"):
        assert ph.load(run).predict([old], tmp_path / "out.csv") == 9
    assert "old.h5 names no encoding" in caplog.text


def test_samples_without_labels_get_the_same_scores_but_no_metrics(run: Path, tmp_path: Path) -> None:
    scores = []
    for name in ("with", "without"):
        path = write_tiny(tmp_path / f"{name}.h5", 40, seed=3, encoding=A, labels=name == "with")
        ph.load(run).predict([path], tmp_path / f"{name}.csv")
        scores.append((tmp_path / f"{name}.csv").read_bytes())
    assert scores[0] == scores[1]
    with pytest.raises(UserError, match=r"without\.h5: got a file without labels"):
        api.evaluate(str(run), set={"data.test": [path]})


def test_a_run_resumes_on_the_same_encoding_only(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(run, again, symlinks=True)
    more = {"train.epochs": 2, "checkpoint.resume": True, "run_dir": str(again)}
    other = write_tiny(tmp_path / "train.h5", 64, encoding=B)
    with pytest.raises(UserError, match=f"encoding of the data: {A[:12]} there, {B[:12]} here"):
        ph.train(config(other, **more), quiet=True)
    same = write_tiny(tmp_path / "same.h5", 64, encoding=A)
    assert ph.train(config(same, **more), quiet=True)["steps"] == 4


@pytest.mark.parametrize("parts", ["all", "embeddings", "dense"])
def test_no_run_begins_with_rows_of_another_encoding(
    parts: str, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    init = {"checkpoint.init_from": str(run), "checkpoint.init_parts": parts}
    said = f"was trained on data of encoding {A[:12]}, this run's data have {B[:12]}: "

    def start(name: str, encoding: str | None) -> dict[str, Any]:
        data = write_tiny(tmp_path / f"{name}.h5", 64, encoding=encoding)
        return ph.train(config(data, **{**init, "run_dir": str(tmp_path / name)}), quiet=True)

    assert {start("same", A)["steps"], start("unnamed", None)["steps"]} == {2}
    assert said not in caplog.text
    if parts == "dense":
        assert start("other", B)["steps"] == 2
        assert caplog.text.count(said) == 1
        return
    with pytest.raises(UserError, match=said + r".*--encoding DIR.*checkpoint\.init_parts = \"dense\""):
        start("other", B)
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match=said):
        dry_run(load_config(config(str(tmp_path / "other.h5"), **init)))


def test_the_next_day_is_scored_with_the_ids_of_the_training(tmp_path: Path) -> None:
    """Colours that are bought and colours that aren't; the next day begins with the one that comes last."""
    rng = np.random.default_rng(0)
    bought = {"red": 0.9, "gold": 0.8, "blue": 0.2, "green": 0.1}

    def day(name: str, rows: int, colours: list[str]) -> list[int]:
        lines, clicks = ["item,price,click"], []
        for colour in rng.choice(colours, rows):
            clicks.append(int(rng.random() < bought[colour]))
            lines.append(f"{colour},{rng.normal(10, 2):.2f},{clicks[-1]}")
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
        columns = "[labels.click]\n[ids.item]\nvocabulary = true\n[dense.price]\ntransform = 'standardize'\n"
        split = "[split]\nfractions = { train = 1.0 }\n"
        (tmp_path / f"{name}.toml").write_text(f'files = ["{name}.csv"]\n{split}{columns}')
        return clicks

    def prepare(name: str, *more: str) -> Path:
        out = tmp_path / name
        assert main(["preprocess", "table", f"{out}.toml", "--out", str(out), *more]) == 0
        return out / "train.h5"

    day("monday", 400, list(bought))
    clicks = day("tuesday", 200, ["green", "blue", "gold", "red"])
    data = prepare("monday")
    run = tmp_path / "run"
    settings = {
        "mode": "sync",
        "run_dir": str(run),
        "data": {"train": [str(data)], "batch_size": 32},
        "tables": {"default": {"dim": 4, "optimizer": {"name": "adagrad", "lr": 0.3}, "capacity": "1 MiB"}},
        "model": {"class": "deepfm", "hidden": [8]},
        "train": {"epochs": 5, "threads": 1, "optimizer": {"name": "Adam", "lr": 0.02}},
    }
    ph.train(settings, quiet=True)
    assert read_encoding(run) == read_encoding(tmp_path / "monday")
    with pytest.raises(UserError, match="as of the training of"):
        api.predict(str(run), [str(prepare("tuesday"))], str(tmp_path / "scores.csv"))
    scored = prepare("tuesday", "--overwrite", "--encoding", str(run))
    api.predict(str(run), [str(scored)], str(tmp_path / "scores.csv"))
    with (tmp_path / "scores.csv").open() as file:
        scores = [float(row["click"]) for row in csv.DictReader(file)]
    best = [bought[line.split(",")[0]] for line in (tmp_path / "tuesday.csv").read_text().split()[1:]]
    assert roc_auc_score(clicks, scores) > roc_auc_score(clicks, best) - 0.03 > 0.8
    assert open_source([str(scored)]).schema.encoding == read_schema(read_manifest(run / "latest")).encoding
