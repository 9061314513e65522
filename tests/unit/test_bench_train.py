"""The parts of `bench train` that its figures hang on: what is measured beside it must be the same maths."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from persia_hpc.bench import train, train_dense, train_jobs
from persia_hpc.bench.train import shares
from persia_hpc.bench.train_jobs import DENSE, DIM, FEATURES, prepare_data, run_job, run_local, w0_settings
from persia_hpc.errors import PersiaError
from persia_hpc.models import build_model
from persia_hpc.topology.cores import Decision
from persia_hpc.trainer.batch import Batch, FeatureSpec, Inputs


def test_plain_pytorch_updates_rows_as_rowwise_adagrad_does() -> None:
    torch.manual_seed(1)
    table = train_dense.RowwiseTable(10)
    rows, state = table.embedding.weight.detach().clone().double(), np.zeros(10)
    ids = torch.tensor([[1, 2], [1, 1], [7, 2]])
    for _ in range(3):
        factors = torch.randn(3, 2, DIM)
        (table.look_up(ids) * factors).sum().backward()
        table.update()
        for row in (1, 2, 7):
            gradient = factors[ids == row].double().sum(dim=0)
            state[row] += float((gradient**2).mean())
            rows[row] -= 0.05 * gradient / (state[row] ** 0.5 + 1e-8)
    torch.testing.assert_close(table.embedding.weight.detach().double(), rows, rtol=0, atol=1e-6)


def test_the_textbook_is_the_model_that_jobs_train() -> None:
    features = tuple(FeatureSpec(f"f{i}", f"f{i}", 0, DIM, "sum", False) for i in range(FEATURES))
    inputs = Inputs(features, DENSE, ("click",))
    model = build_model("dlrm", inputs, {"bottom": [64], "hidden": [64]})
    textbook = train_dense.Textbook(inputs, 64, 64)
    textbook.load_state_dict(model.state_dict())
    block = torch.randn(5, FEATURES, DIM)
    names = tuple(f.name for f in features)
    pooled = dict(zip(names, block.unbind(1), strict=True))
    batch = Batch(1, 5, torch.randn(5, DENSE), torch.zeros(5, 1), None, None, pooled, {}, {names: block})
    torch.testing.assert_close(textbook(batch), model(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["session", "model", "textbook"])
def test_every_limit_trains_and_has_a_rate(tmp_path, case) -> None:
    prepare_data(tmp_path, 256)
    assert np.load(tmp_path / "ids.npy").shape == (256, FEATURES)
    options = argparse.Namespace(case=case, data=tmp_path, batch=64, samples=512, threads=1)
    rate = train_dense.session(options) if case == "session" else train_dense.plain(options)
    assert rate > 0


def test_a_job_says_where_its_time_went(tmp_path) -> None:
    path = prepare_data(tmp_path, 256)
    summary = run_local(tmp_path, w0_settings(path, 64, 512))
    assert summary["samples"] == 512
    (line,) = shares(summary["phase_seconds"]).values()
    parts = {name: int(share.rstrip("%")) for name, share in (p.split() for p in line.split(", "))}
    assert sum(parts.values()) == pytest.approx(100, abs=len(parts))
    assert parts["dense"] > 0


def test_a_job_that_does_not_stop_is_killed_and_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    monkeypatch.setattr(train_jobs, "cli", lambda: [sys.executable, "-c", program])
    monkeypatch.setattr(train_jobs, "STOP_SECONDS", 1)
    with pytest.raises(PersiaError, match="didn't stop within 1 s of SIGTERM: it was killed") as caught:
        run_job(tmp_path, w0_settings(tmp_path / "t.h5", 8, 80), seconds=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bound", [True, False])
def test_a_job_is_measured_unbound_only_where_it_would_be_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: bool
) -> None:
    started: list[bool] = []

    def job(_: Path, settings: Any) -> dict[str, Any]:
        started.append(settings["ranks"].get("bind_cores", True))
        rate = {"samples_per_second": 1.0}
        return {"steady": rate, "phase_seconds": {}, **rate}

    monkeypatch.setattr(train, "prepare_data", lambda folder, _: folder / "t.h5")
    monkeypatch.setattr(train, "run_job", job)
    monkeypatch.setattr(train, "run_local", job)
    monkeypatch.setattr(train, "run_program", lambda *_: {"samples_per_second": 1.0})
    cpus = [frozenset({i}) for i in range(3)] if bound else None
    monkeypatch.setattr(train, "decide", lambda *_: Decision(cpus, ""))
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    options = parser.parse_args(["--data", str(tmp_path), "--batch", "8", "--peers", str(tmp_path)])
    options.repeats = 2
    results = {result.case["job"]: result for result in train.measure(options)}
    assert started.count(False) == 2 * bound
    assert (train.UNBOUND in results) == bound
    assert any(train.UNBOUND in note for note in results["1+1+1"].notes) != bound
