"""Graphs of trained models predict what their runs do, for any number of samples and any length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.job import export_model as exporting
from tests.support.models import Small
from tests.support.tiny import SEQUENCES, tiny_config, write_sequences

FORMATS = ("onnx", "torch-export", "torchscript")
TABLES = {
    "default": {"dim": 4, "capacity": "1 MiB", "buckets": 16},
    "item": {"dim": 4, "capacity": "1 MiB"},
    "user": {"dim": 4, "capacity": "1 MiB"},
}
TASKS = {
    "tables": TABLES,
    "tasks": {"click": {"label": "label"}, "buy": {"label": "label"}},
}
HISTORY = {"attend": [{"targets": ["item"], "histories": ["history"]}]}
EVENTS = {"attend": [{"targets": ["item"], "histories": ["history", "action"]}]}  # for HSTU
PAIRS = {"attend": [{"targets": ["item", "user"], "histories": ["history", "action"]}]}  # for DIN
ITEMS = {
    "items": ["item", "x0"],
    "queries": ["user", "history", "tags", "x1"],
    "hidden": [8],
    "width": 4,
}
PADDED: dict[str, Any] = {
    **SEQUENCES,
    "sequences": {"events": {"features": ["history", "action"], "max_length": 3, "pooling": "sequence"}},
}
CASES: dict[str, dict[str, Any]] = {
    "dlrm": {"model": {"class": "dlrm", "hidden": [8], "bottom": [8]}},
    "dcn_v2": {"model": {"class": "dcn_v2", "hidden": [8], "low_rank": 2, "batch_norm": True}},
    "deepfm": {"model": {"class": "deepfm", "hidden": [8], "id_weights": True}},
    "tower": {"model": {"class": "tower", "hidden": [8], "dropout": 0.5}},
    "din": {"model": {"class": "din", "hidden": [8], **HISTORY}},
    "din of events, softmax": {"model": {"class": "din", "hidden": [8], "softmax": True, **PAIRS}},
    "mmoe": {"model": {"class": "mmoe", "expert": [8], "tower": [4]}, **TASKS},
    "ple": {"model": {"class": "ple"}, **TASKS},
    "esmm": {"model": {"class": "esmm", "hidden": [8]}, **TASKS},
    "two_tower": {"model": {"class": "two_tower", **ITEMS}},
    "sasrec": {"model": {"class": "sasrec", **HISTORY}},
    "sasrec with layers": {"model": {"class": "sasrec", "hidden": [8], **HISTORY}},
    "hstu": {"model": {"class": "hstu", **HISTORY}},
    "hstu dlrm_v4": {
        "model": {"class": "hstu", "hidden": [8], "form": "dlrm_v4", "context": ["user"], **EVENTS}
    },
    "a user's": {"model": {"class": "tests.support.models:Small"}},
}


def trained(folder: Path, features: dict[str, Any], case: dict[str, Any], **more: Any) -> Any:
    data = write_sequences(folder / "train.h5", 60)
    config = tiny_config(data, run_dir=str(folder / "run"), **{"tables": TABLES, **features, **case, **more})
    ph.train(config, quiet=True)
    return ph.load(folder / "run")


@pytest.mark.parametrize("name", CASES)
def test_graphs_predict_what_the_run_does(name: str, tmp_path: Path) -> None:
    run = trained(tmp_path, SEQUENCES, CASES[name])
    for to in FORMATS:
        about = exporting.export_model(run, to, tmp_path / to)
        assert about["checked"]["largest_difference"] <= exporting.TOLERANCE
        assert json.loads((tmp_path / to / "model.json").read_text()) == about
        assert (tmp_path / to / about["file"]).stat().st_size > 0


@pytest.mark.parametrize("name", CASES)
def test_padded_sequences_too(name: str, tmp_path: Path) -> None:
    run = trained(tmp_path, PADDED, CASES[name])
    exporting.export_model(run, "torchscript", tmp_path)


@pytest.mark.parametrize("name", ["dlrm", "dcn_v2", "deepfm", "mmoe"])
def test_pooled_features_alone_too(name: str, tmp_path: Path) -> None:
    """They are stacked, and in a trace their dims are tensors, of which no two are the same."""
    run = trained(tmp_path, {"features": {}}, CASES[name])
    for to in FORMATS:
        exporting.export_model(run, to, tmp_path)


def test_another_program_needs_only_the_json(tmp_path: Path) -> None:
    """It computes scores from rows, with names and shapes as model.json says them, and nothing of ours."""
    onnxruntime = pytest.importorskip("onnxruntime")
    run = trained(tmp_path, SEQUENCES, CASES["dlrm"], **{"train.amp": "bf16"})
    assert main(["export", str(tmp_path / "run"), "--to", "onnx", "--out", str(tmp_path / "out")]) == 0
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert about["checked"]["tolerance"] == exporting.NARROW_TOLERANCE
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / about["file"]))
    history, tags, watched = [3, 5], [7], [2, 9]
    rows = {name: lambda ids, name=name: run.rows(name, ids) for name in run.tables}
    feed = {
        "dense": np.array([[0.5, -1.0, 2.0]], np.float32),
        "pooled.item": rows["item"]([4]),
        "pooled.user": rows["user"]([6]),
        "pooled.tags": rows["tags"](tags),
        "sequence.history": rows["item"](history)[None],
        "mask.sequences.events": np.ones((1, 2), bool),
        "sequence.action": rows["action"](history)[None],
        "sequence.watched": rows["watched"](watched)[None],
        "weights.watched": np.array([[1.0, 0.5]], np.float32),
        "mask.watched": np.ones((1, 2), bool),
    }
    assert [described["name"] for described in about["inputs"]] == list(feed)
    for described in about["inputs"]:
        assert feed[described["name"]].dtype == described["dtype"]
        assert feed[described["name"]].ndim == len(described["shape"])
    known = {each.name for each in session.get_inputs()}
    scores = session.run(["scores"], {name: value for name, value in feed.items() if name in known})[0]
    expected = run.score(
        {
            "item": 4,
            "user": 6,
            "tags": {"ids": tags, "weights": [1.0]},
            "history": history,
            "action": history,
            "watched": {"ids": watched, "weights": [1.0, 0.5]},
        },
        feed["dense"][0],
    )
    assert scores[0] == pytest.approx(expected, abs=exporting.NARROW_TOLERANCE)


class Deciding(Small):
    """Decides by what its inputs hold."""

    def forward(self, batch: Any) -> Any:
        logits = super().forward(batch)
        return logits + 1 if float(batch.dense.sum()) > 0 else logits


class Counting(Small):
    """Makes a constant of the number of samples."""

    def forward(self, batch: Any) -> Any:
        return super().forward(batch) / len(batch.dense)


@pytest.mark.parametrize(
    ("model", "to", "message"),
    [
        ("Deciding", "torch-export", "torch can't make a graph of the model"),
        ("Deciding", "torchscript", "the graph predicts otherwise than the run"),
        ("Counting", "torchscript", "the graph predicts otherwise than the run"),
    ],
)
def test_what_a_graph_cannot_do_is_refused(
    model: str, to: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path, SEQUENCES, {"model": {"class": f"{__name__}:{model}"}})
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), "--to", to, "--out", str(out)]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not out.exists()


def test_bad_arguments_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for arguments, message in (
        (["--out", str(tmp_path)], "--to and --tables are missing"),
        (["--to", "onnx", "--out", str(tmp_path / "file")], "got a file, expected a folder"),
    ):
        assert main(["export", str(tmp_path), *arguments]) == 2
        assert message in capsys.readouterr().err
