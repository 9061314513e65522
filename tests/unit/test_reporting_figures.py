"""What a person sees of evaluations: every metric, what is undefined and why, and which was the best."""

from __future__ import annotations

import io
from typing import Any

import pytest

from persia_hpc.reporting.figures import figure, metrics_text, undefined_text
from persia_hpc.reporting.screen import Screen, summary_text

TWO_LABELS = {
    "samples": 400,
    "auc": None,
    "logloss": 0.4,
    "auc_click": 0.75,
    "logloss_click": 0.5,
    "auc_buy": None,
    "logloss_buy": 0.3,
    "gauc": 0.61234,
    "undefined": {"auc_buy": "all labels are 0", "auc": "auc_buy is undefined"},
}


def evaluation(step: int, **more: Any) -> dict[str, Any]:
    return {"event": "evaluate", "split": "valid", "step": step, **TWO_LABELS, **more}


def training(step: int) -> dict[str, Any]:
    rates = {"samples_per_second": 10.0, "staleness": 0.0, "seconds": 5.0, "samples": 50}
    return {"event": "train", "step": step, "num_steps": 9, "epoch": 0, "loss": 0.5, "auc": None, **rates}


def test_the_bar_has_the_metrics_of_each_label_and_the_custom_ones() -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    screen._last_line = -1e9
    screen.log(evaluation(5))
    screen.log(training(6))
    line = stream.getvalue().splitlines()[-1]
    assert "auc undefined, valid auc undefined, auc_click 0.7500, auc_buy undefined, gauc 0.6123" in line
    assert "logloss" not in line


def test_why_a_metric_is_undefined_is_said_once_and_again_when_it_changes() -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    screen.log(evaluation(5, uncounted=["early_stop"]))
    screen.log(evaluation(10, uncounted=["early_stop"]))
    screen.log({**evaluation(15), "split": "test"})
    screen.log({"event": "evaluate", "split": "valid", "step": 20, "auc": 0.5, "logloss": 0.6})
    screen.log(evaluation(25))
    reasons = "auc_buy: all labels are 0; auc: auc_buy is undefined"
    assert stream.getvalue().splitlines() == [
        f"step 5: undefined on valid: {reasons}; not counted by early_stop",
        f"step 15: undefined on test: {reasons}",
        f"step 25: undefined on valid: {reasons}",
    ]


def test_the_end_has_every_metric_and_the_best() -> None:
    summary = {
        "status": "stopped",
        "versions": {"mpi": "an MPI"},
        "stop_reason": "no better auc_click in 2 evaluations",
        "skipped_steps": 0,
        "steps": 40,
        "samples": 4000,
        "train_seconds": 2.0,
        "samples_per_second": 2000.0,
        "roles": {"parameter_servers": 1, "embedding_workers": 1, "trainers": 1},
        "mode": "sync",
        "staleness": {"max": 0, "bound": 0},
        "valid": {**TWO_LABELS, "missing_labels": {"buy": 1234}, "skipped_groups": {"gauc": 1012}},
        "test": {"auc": 0.5, "logloss": 6e28, "samples": 3},
        "best": {"metric": "auc_click", "value": 0.75, "step": 20, "checkpoint": "step-00000020"},
        "run_dir": "runs/1",
    }
    text = summary_text(summary)
    for part in (
        "valid auc undefined, logloss 0.4000, auc_click 0.7500, logloss_click 0.5000, auc_buy undefined, "
        "logloss_buy 0.3000, gauc 0.6123\n  label buy is missing in 1,234 samples\n  "
        "groups left out: 1,012 by gauc\n  undefined: auc_buy: all labels are 0;",
        "test auc 0.5000, logloss 6e+28\n  a log loss of this size comes from huge inputs",
        "best valid auc_click 0.7500 after step 20, kept as step-00000020, which evaluate and predict "
        "use; the metrics above are of the last step",
    ):
        assert part in text
    restored = summary_text({**summary, "restored_step": 20})
    assert "which evaluate and predict use; the metrics above are of it\n" in restored
    assert "kept as" not in summary_text({**summary, "best": {**summary["best"], "checkpoint": None}})
    assert "best" not in summary_text({**summary, "best": None})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.5000"),
        (0, "0.0000"),
        (1e-5, "1e-05"),
        (-6e28, "-6e+28"),
        (None, "undefined"),
        ("x", "undefined"),
    ],
)
def test_figures_are_short(value: Any, text: str) -> None:
    assert figure(value) == text


def test_names_with_one_reason_share_it() -> None:
    reasons = {"auc": "all weights are 0", "logloss": "all weights are 0", "own": "it is None"}
    assert undefined_text({"undefined": reasons}) == "auc and logloss: all weights are 0; own: it is None"
    assert undefined_text({}) == undefined_text({"undefined": 3}) == ""
    assert metrics_text({"event": "evaluate", "step": 3, "samples": 5, "auc": 0.25}) == "auc 0.2500"
