"""The cost model beside real jobs and servers: the checks run, a plan uses the phases of an earlier run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from persia_hpc.config import load_config
from persia_hpc.cost_model.cluster import Cluster
from persia_hpc.cost_model.constants import DEFAULTS, constants_text
from persia_hpc.job.planner import Given, Planner

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PROGRAM = BENCHMARKS / "plan_check.py"


def test_a_case_is_predicted_run_and_planned_from(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("plan_check", PROGRAM)
    program = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "plan_check", program)  # dataclasses look their module up
    spec.loader.exec_module(program)
    monkeypatch.setattr(program, "DATA_SAMPLES", 4096)
    monkeypatch.setattr(program, "JOB_SECONDS", 0.1)
    monkeypatch.setattr("persia_hpc.job.planner.TRIAL_SECONDS", 0.1)
    constants = tmp_path / "constants.toml"
    constants.write_text(constants_text(DEFAULTS))
    found = program.check("8-features", 1, 1, constants, tmp_path)
    assert found["error"] == found["predicted"][0] / found["measured"][0] - 1
    assert "8-features" in capsys.readouterr().out

    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steady"]["samples_per_second"] == found["measured"][0]
    planner = Planner(load_config(run / "config.toml"), Cluster(cores=2), Given(run=run))
    predicted = planner.predict(planner.ranks).costs.seconds
    steps, compared = summary["steps"], 0
    for role, phases in summary["phase_seconds"].items():
        for phase, seconds in phases.items():
            if predicted[role].get(phase) and phase != "allreduce":
                assert predicted[role][phase] == pytest.approx(seconds["mean"] / steps)
                compared += 1
    assert compared == 3 + 5 + 4
    trainer = {phase: seconds["mean"] for phase, seconds in summary["phase_seconds"]["trainer"].items()}
    dense = trainer["forward"] + trainer["backward"]
    assert predicted["trainer"]["dense"] == pytest.approx(dense / steps)

    # As if it had been on a GPU: all that the trainer did besides waiting, nothing twice.
    gpu = Planner(load_config(run / "config.toml"), Cluster(cores=2, gpus=1), Given(run=run))
    costs = gpu.predict(gpu.ranks).costs
    assert costs.total("trainer") == pytest.approx(
        (trainer["total"] - trainer["wait"] - trainer["allreduce"]) / steps
    )


@pytest.mark.parametrize(
    "arguments",
    [
        (),  # 300 tables of 80 KiB
        ("--servers", "3", "--optimizer", "adam"),
        ("--tables", "3", "--capacity", "16 MiB", "--batch", "1024"),
    ],
)
def test_the_memory_of_a_server_is_predicted(arguments):
    program = [sys.executable, str(BENCHMARKS / "server_memory.py"), *arguments]
    found = json.loads(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    assert found["rows"] == found["capacity_rows"] > 0
    assert found["predicted_bytes"] == pytest.approx(found["measured_bytes"], rel=0.2)
