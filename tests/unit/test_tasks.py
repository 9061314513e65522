"""Which labels a model learns: columns of the data by name, where they count, and what outputs mean."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import persia_hpc as ph
from persia_hpc.errors import DataError, UserError
from persia_hpc.job.loaded_run import LoadedRun
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.samples.source import open_source
from persia_hpc.samples.writer import DatasetWriter
from persia_hpc.tasks import Tasks, make_tasks
from persia_hpc.trainer.batch import Batch, Inputs
from tests.support.tiny import SCHEMA, tiny_batch, tiny_config, trained_rows

LABELS = DatasetSchema((), (), ("click", "buy", "rating"))


def tasks_of(schema: DatasetSchema = LABELS, **tasks: Any) -> Tasks:
    return make_tasks(ph.load_config(tiny_config("train.h5", tasks=tasks)), schema)


def columns(*rows: list[float]) -> Any:
    return np.array(rows, np.float32)


def test_without_tasks_labels_are_what_they_are() -> None:
    tasks = tasks_of()
    data = columns([0, 1, 7.5])
    assert tasks.names == LABELS.label_names
    assert tasks.select(data) is data


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, np.nan])] * 2, st.integers(0, 4)), max_size=20))
def test_a_label_counts_where_another_one_is_1(rows: list[tuple[float, float, int]]) -> None:
    tasks = tasks_of(
        stars={"label": "rating", "loss": {"name": "softmax", "classes": 5}}, buy={"where": "click"}
    )
    data = np.array(rows, np.float32).reshape(-1, 3)
    selected = tasks.select(data)
    expected = [[stars, buy if click == 1 else np.nan] for click, buy, stars in rows]
    np.testing.assert_array_equal(selected, np.array(expected, np.float32).reshape(-1, 2))
    assert selected.flags.c_contiguous
    assert selected.dtype == np.float32


@pytest.mark.parametrize(
    ("task", "row", "part"),
    [
        ({}, [2, 0, 0], "got a label of 2, expected 0 or 1"),
        ({"where": "rating"}, [0, 0, 3], "got a label of 3, expected 0 or 1 in the label of `where`"),
        ({"loss": {"name": "softmax", "classes": 3}}, [3, 0, 0], "expected a class from 0 to 2"),
        ({"loss": {"name": "softmax", "classes": 3}}, [1.5, 0, 0], "got a label of 1.5, expected a class"),
        ({"loss": "poisson"}, [-1, 0, 0], "got a label of -1, expected a count, 0 or more"),
        ({"loss": "focal"}, [0.5, 0, 0], "expected 0 or 1"),
    ],
)
def test_a_label_that_a_loss_cant_take_is_one_clear_error(
    task: dict[str, Any], row: list[float], part: str
) -> None:
    with pytest.raises(UserError, match=r"tasks\.click: ") as caught:
        tasks_of(click=task).select(columns([np.nan] * 3, row))
    assert part in str(caught.value)


def test_numbers_of_all_kinds_do_for_squared_errors_and_losses_of_the_users_own() -> None:
    tasks = tasks_of(click={"loss": "mse"}, buy={"loss": "module:function"})
    np.testing.assert_array_equal(tasks.select(columns([-2.5, 99, 0])), columns([-2.5, 99]))


@pytest.mark.parametrize(
    ("tasks", "parts"),
    [
        ({"clik": {}}, ["tasks.clik: the data have no label 'clik'", "tasks.clik.label", "mean 'click'"]),
        ({"a": {"label": "click", "where": "b"}}, ["no label 'b'", "tasks.a.where", "click, buy, rating"]),
        ({"click": {"loss": "bpr"}}, ["bpr", "/group"]),
    ],
)
def test_tasks_that_the_data_dont_have_are_named(tasks: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        tasks_of(**tasks)
    for part in parts:
        assert part in str(caught.value)


def test_outputs_become_probabilities_classes_and_numbers() -> None:
    tasks = tasks_of(
        click={}, rating={"loss": {"name": "softmax", "classes": 3}}, n={"label": "buy", "loss": "poisson"},
        x={"label": "buy", "loss": "mse"},
    )  # fmt: skip
    got = tasks.predictions(columns([0.0, 1, 1, 1, np.log(5), -3]))
    np.testing.assert_allclose(got, columns([0.5, 1 / 3, 1 / 3, 1 / 3, 5, -3]), rtol=1e-6)
    names = [name for task in tasks.each for name in task.outputs]
    assert names == ["click", "rating_0", "rating_1", "rating_2", "n", "x"]


class Outputs(nn.Module):
    """One linear layer on everything, with as many outputs as the tasks want."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs
        width = inputs.num_dense + inputs.pooled_width
        self.layer = nn.Linear(width, inputs.num_outputs)

    def forward(self, batch: Batch) -> Tensor:
        logits: Tensor = self.layer(torch.cat([batch.dense, batch.concatenated()], dim=1))
        return logits


def data_of(path: Path, *, missing: bool = False) -> str:
    batch = tiny_batch(160)
    random = np.random.default_rng(5)
    labels = np.stack(
        [random.integers(0, 2, 160), random.integers(0, 2, 160), random.integers(0, 5, 160)], axis=1
    ).astype(np.float32)
    if missing:
        labels[::3, 0] = np.nan
    schema = dataclasses.replace(SCHEMA, label_names=LABELS.label_names)
    with DatasetWriter(path, schema, check_binary_labels=False) as writer:
        writer.write(dataclasses.replace(batch, labels=labels))
    return str(path)


def train(folder: Path, data: str, **changes: Any) -> tuple[dict[str, Any], ph.LoadedRun]:
    settings = {"run_dir": str(folder), "model.class": f"{__name__}:Outputs", "train.epochs": 2, **changes}
    summary = ph.train(tiny_config(data, **settings))
    return summary, ph.load(folder / "latest")


def test_one_task_of_weight_1_trains_the_bits_of_its_label_alone(tmp_path: Path) -> None:
    data = data_of(tmp_path / "all.h5", missing=True)
    with DatasetWriter(tmp_path / "one.h5", dataclasses.replace(SCHEMA, label_names=("click",))) as writer:
        batch = open_source([data]).read(0, 160)
        writer.write(dataclasses.replace(batch, labels=batch.labels[:, :1].copy()))
    _, task = train(tmp_path / "task", data, tasks={"click": {}})
    _, label = train(tmp_path / "label", str(tmp_path / "one.h5"))
    for name, expected in label.model().state_dict().items():
        assert torch.equal(task.model().state_dict()[name], expected)
    expected_rows = trained_rows(tmp_path / "label")
    for table, arrays in trained_rows(tmp_path / "task").items():
        for got, expected_array in zip(arrays, expected_rows[table], strict=True):
            np.testing.assert_array_equal(got, expected_array)


def test_tasks_of_all_kinds_train_evaluate_and_predict_together(tmp_path: Path) -> None:
    data = data_of(tmp_path / "train.h5", missing=True)
    tasks = {
        "click": {},
        "buy": {"where": "click", "weight": 0.5, "loss": {"smoothing": 0.1}},
        "rating": {"loss": {"name": "softmax", "classes": 5}},
        "stars": {"label": "rating", "loss": "mse", "weight": 0.1},
    }
    changes = {"tasks": tasks, "data.valid": [data], "train.keep_best": "rmse_stars"}
    summary, run = train(tmp_path / "run", data, **changes)
    valid = summary["valid"]
    for name in ("auc", "auc_click", "logloss_buy", "accuracy_rating", "rmse_stars", "mae"):
        assert 0 <= valid[name] < 10, name
    labels = open_source([data]).read(0, 160).labels
    assert valid["missing_labels"] == {
        "click": int(np.isnan(labels[:, 0]).sum()),
        "buy": int((labels[:, 0] != 1).sum()),
    }
    best = summary["best"]
    assert (best["metric"], best["mode"]) == ("rmse_stars", "min")
    assert run.evaluate("valid")["rmse_stars"] == pytest.approx(valid["rmse_stars"], rel=1e-6)
    assert run.predict([data], tmp_path / "out.csv") == 160
    header, *lines = (tmp_path / "out.csv").read_text().splitlines()
    assert header == "click,buy,rating_0,rating_1,rating_2,rating_3,rating_4,stars"
    scores = np.array([line.split(",") for line in lines], np.float64)
    np.testing.assert_allclose(scores[:, 2:7].sum(axis=1), 1, rtol=1e-5)
    error = np.sqrt(np.mean((scores[:, 7] - labels[:, 2]) ** 2))
    assert error == pytest.approx(valid["rmse_stars"], rel=1e-5)


def test_predictions_dont_look_at_the_labels_that_samples_have(tmp_path: Path) -> None:
    tasks = {"buy": {"where": "click"}, "rating": {"loss": {"name": "softmax", "classes": 5}}}
    data = data_of(tmp_path / "train.h5")
    _, run = train(tmp_path / "run", data, tasks=tasks)
    run.predict([data], tmp_path / "same.csv")
    with DatasetWriter(tmp_path / "other.h5", SCHEMA, check_binary_labels=False) as writer:
        batch = open_source([data]).read(0, 160)
        writer.write(dataclasses.replace(batch, labels=np.full((160, 1), 7, np.float32)))
    assert run.predict([str(tmp_path / "other.h5")], tmp_path / "other.csv") == 160
    assert (tmp_path / "other.csv").read_text() == (tmp_path / "same.csv").read_text()


def test_a_resumed_run_learns_the_same_labels_in_the_same_order(tmp_path: Path) -> None:
    data, run = data_of(tmp_path / "train.h5"), tmp_path / "run"
    train(run, data, tasks={"click": {}, "buy": {}})
    more = {"train.epochs": 3, "checkpoint.resume": True}
    for tasks in ({"buy": {}, "click": {}}, {"click": {}, "buy": {"label": "rating", "loss": "mse"}}):
        with pytest.raises(UserError, match="labels that are learned: click, buy there, "):
            train(run, data, tasks=tasks, **more)
    summary, _ = train(run, data, tasks={"click": {}, "b": {"label": "buy"}}, **more)
    assert summary["steps"] == 15


@pytest.mark.parametrize("one_process", [True, False])
def test_a_bad_label_is_named_with_its_file_and_row(one_process: bool, tmp_path: Path) -> None:
    """Although samples are shuffled: rows count in the file, from 0."""
    paths = []
    for number in range(3):
        batch = tiny_batch(40, seed=number)
        if number == 1:
            batch.labels[23] = 5
        paths.append(tmp_path / f"{number}.h5")
        with DatasetWriter(paths[-1], SCHEMA, check_binary_labels=False) as writer:
            writer.write(batch)
    config = tiny_config("", **{"data.train": [str(path) for path in paths], "tasks": {"label": {}}})
    wanted = rf"{paths[1]}: row 23: tasks.label: got a label of 5, expected 0 or 1 "
    if one_process:
        with pytest.raises(DataError, match=wanted) as said:
            ph.train(config, set={"run_dir": str(tmp_path / "run")}, quiet=True)
        assert "\n" not in str(said.value)
    else:  # and by evaluate, of data that nobody has trained on
        first = {"data.train": [str(paths[0])], "run_dir": str(tmp_path / "run")}
        ph.train(config, set=first, quiet=True)
        run = LoadedRun(tmp_path / "run", {"data.test": [str(paths[1])]})
        with pytest.raises(DataError, match=wanted):
            run.evaluate("test")


def test_labels_that_a_transform_mends_are_learned(tmp_path: Path) -> None:
    batch = tiny_batch(40)
    batch.labels[7] = 5
    with DatasetWriter(tmp_path / "a.h5", SCHEMA, check_binary_labels=False) as writer:
        writer.write(batch)
    changes = {"data.transform": "tests.unit.test_tasks:clipped", "tasks": {"label": {}}}
    config = tiny_config(str(tmp_path / "a.h5"), run_dir=str(tmp_path / "run"), **changes)
    assert ph.train(config, quiet=True)["steps"] == 2


def clipped(batch: Any, seed: int, step: int) -> Any:
    return dataclasses.replace(batch, labels=np.minimum(batch.labels, 1))
