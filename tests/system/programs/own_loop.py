"""A user's own script: own loop, or ph.train with callbacks. argv: mode, config JSON, output file."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

import persia_hpc as ph
from tests.support.models import Small


def main(session):
    model = session.prepare(Small(session.inputs))
    for batch in session.batches("train"):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            model(batch), batch.labels, reduction="none"
        )
        session.step(loss)
        if session.step_number == 3:
            with pytest.raises(ph.UserError, match="in flight"):  # refused, not hung
                session.evaluate(model, "valid")
    metrics = session.evaluate(model, "valid")
    if session.trainer_rank == 0:
        Path(sys.argv[3]).write_text(json.dumps(metrics))


def stops_everywhere(session):
    """Every trainer asks for the stop; trainer 0's word counts, and nobody hangs."""
    model = session.prepare(Small(session.inputs))
    for batch in session.batches("train"):
        session.step(model(batch) ** 2)
        if session.step_number == 5:
            session.request_stop("enough")


def leaves_early(session):
    model = session.prepare(Small(session.inputs))
    for batch in session.batches("train"):
        session.step(model(batch) ** 2)
        if session.step_number == 5:
            break
    with pytest.raises(ph.UserError, match="was left at step 5"):  # not a hang
        next(iter(session.batches("train")))


def evaluates_inside(session):
    """In `async`: where trainers meet they have one model, inside a loop too, and they learn."""
    model = session.prepare(Small(session.inputs))
    begun = [p.detach().clone() for p in model.parameters()]
    for batch in session.batches("train"):
        if session.trainer_rank == 1:
            time.sleep(0.01)
        session.step(model(batch) ** 2)
        if session.step_number % 10 == 0:
            session.evaluate(model, "valid")
            everybodys = session.peers.gather_objects([p.tolist() for p in model.parameters()])
            if everybodys is not None:
                assert everybodys[0] == everybodys[1]
                assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), begun, strict=True))
    assert session.step_number == 20


class StopAt(ph.Callback):
    def __init__(self, step):
        self.step = step
        self.events = []

    def on_start(self, run):
        self.events.append("start")
        if self.step == 0:
            run.stop("not even one")

    def on_step(self, run):
        if run.step == self.step:
            run.stop("seen enough")

    def on_evaluate(self, run, metrics):
        self.events.append(f"evaluate {metrics['split']}")

    def on_end(self, run, summary):
        self.events.append(f"end {summary['status']}")
        Path(sys.argv[3]).write_text(json.dumps(self.events))


config = json.loads(sys.argv[2])
if sys.argv[1] == "run":
    summary = ph.run(config, main)
elif sys.argv[1] == "break":
    summary = ph.run(config, leaves_early)
elif sys.argv[1] == "inside":
    summary = ph.run(config, evaluates_inside)
elif sys.argv[1] == "stop":
    summary = ph.run(config, stops_everywhere)
    assert summary["status"] == "stopped", summary
else:
    summary = ph.train(config, callbacks=[StopAt(int(sys.argv[1]))])
assert summary["schema_version"] == 1, "every rank gets the summary"
