"""docs/summary.md names every field of summary.json, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from persia_hpc.config import load_config
from persia_hpc.parameter_server.ledger import Ledger
from persia_hpc.reporting.outcomes import JobOutcome, ServerOutcome, Times, TrainerOutcome, WorkerOutcome
from persia_hpc.reporting.summary import make_summary
from persia_hpc.runtime.phases import SERVER, TRAINER, WORKER, Pace, Phases

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "summary.md"
METRICS = {"auc": 0.9, "logloss": 0.3, "samples": 10}
OF_CALLERS = {"run_dir"}  # added to what make_summary gives


def example() -> dict[str, Any]:
    trainer = TrainerOutcome(
        steps=5,
        samples=50,
        skipped_steps=1,
        first_step=0,
        first_samples=0,
        stop_reason=None,
        interrupted=False,
        evaluate_seconds=1.0,
        compile_seconds=30.0,
        checkpoints={"written": 1, "paused_seconds": 0.5, "write_seconds": 2.0},
        export={
            "versions": 3,
            "bases": 1,
            "failed": 0,
            "bytes": 100,
            "paused_seconds": 0.1,
            "write_seconds": 0.2,
            "last_step": 5,
        },
        results={"valid": METRICS, "test": METRICS},
        best={"metric": "auc", "mode": "max", "value": 0.9, "step": 5, "checkpoint": "step-00000005"},
        restored_step=None,
        steady=Pace().steady(),
        follow={"portions": 2, "files": 3, "late_files": 1, "wait_seconds": 4.0},
        times=Times({"batch": 1.0, "allreduce": 3.0}, Phases(TRAINER).report()),
    )
    server = ServerOutcome(
        rows=4,
        bytes=400,
        row_bytes=300,
        disk_rows=0,
        disk_bytes=0,
        ledger=vars(Ledger(pulled_rows=7, applied_rows=7)),
        histogram={0: 3, 2: 2},
        last_apply={1: 12.0},
        times=Times({"idle": 1.0}, Phases(SERVER).report()),
    )
    worker = WorkerOutcome({1: 10.0}, times=Times({"idle": 1.0, "read": 2.0}, Phases(WORKER).report()))
    return make_summary(
        load_config({"data": {"train": "train.h5"}, "model": {"class": "tower"}}),
        JobOutcome([server], [worker], [trainer]),
        mpi_library="an MPI",
    )


def fields(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the leaves; the histogram and the pairs of mean and max are leaves."""
    for key, value in values.items():
        name = prefix + key
        leaf = not isinstance(value, Mapping) or key == "histogram" or set(value) == {"mean", "max"}
        if leaf:
            yield name
        else:
            yield from fields(value, name + ".")


def documented() -> set[str]:
    section = DOCUMENT.read_text().partition("## Fields")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE))


def test_every_field_is_documented_and_every_documented_field_exists() -> None:
    produced = set(fields(example())) | OF_CALLERS
    objects = {"valid", "test", "best", "follow", "export"}  # rows of their own: null where there is none
    assert produced - documented() == set(), "fields that docs/summary.md doesn't name"
    assert documented() - produced - objects == set(), "docs/summary.md names fields that don't exist"


def test_numbers_mean_what_the_document_says() -> None:
    summary = example()
    assert summary["train_seconds"] == 2.0
    assert summary["samples_per_second"] == 25.0
    assert summary["embedding"]["overhead_bytes_per_row"] == 25.0
    assert summary["staleness"] == {"bound": 4, "max": 2, "histogram": {"0": 3, "2": 2}}
