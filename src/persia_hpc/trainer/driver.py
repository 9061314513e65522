"""Runs the standard training loop over a session: loss, evaluation, early stopping, callbacks, events."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from persia_hpc.callbacks import Callback
from persia_hpc.config import Config
from persia_hpc.errors import UserError
from persia_hpc.models import build_model
from persia_hpc.reporting.events import MetricLogger
from persia_hpc.user_objects import load_object

from .batch import Batch, Inputs
from .dense.optimizer import make_optimizer
from .dense.state import seed_generators
from .metrics import auc, load_metrics
from .run_state import DriverState
from .session import Session

EVENT_SECONDS = 1.0  # how often the training event is logged
RECENT_SAMPLES = 50_000  # for the AUC and loss of the progress bar
LARGER_IS_WORSE = ("logloss",)


def bce(logits: Tensor, batch: Batch) -> Tensor:
    """Computes the binary cross-entropy of each sample and label from logits.

    Shapes: logits and result [B, L].
    """
    return functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")


def load_loss(name: str) -> Any:
    """Returns `bce` or the user's function `module:function`, called as f(logits, batch).

    Shapes: logits [B, L]; result [B] or [B, L].
    Raises UserError for a function that can't be imported.
    """
    return bce if name == "bce" else load_object(name, "train.loss")


def check_logits(logits: Tensor, batch: Batch) -> None:
    """Checks that the model's logits have the shape of the labels.

    Raises UserError if not.
    """
    if logits.shape != batch.labels.shape:
        raise UserError(
            f"the model returned logits of shape {tuple(logits.shape)}, expected "
            f"{tuple(batch.labels.shape)} ([samples, labels])"
        )


class RunView:
    """Shows a running training to callbacks."""

    def __init__(self, session: Session):
        self.session = session
        self.stop_reason: str | None = None

    @property
    def step(self) -> int:
        """Returns the last finished step."""
        return self.session.step_number

    @property
    def model(self) -> torch.nn.Module | None:
        """Returns the model that is trained."""
        return self.session.model

    def stop(self, reason: str) -> None:
        """Ends the training at a step that all ranks agree on; `reason` is written into summary.json."""
        self.session.request_stop(reason)


class EarlyStop:
    """Asks for a stop after `patience` evaluations without a better `metric` on the valid split."""

    def __init__(self, metric: str = "auc", patience: int = 3):
        self.metric = metric.rpartition(":")[2]  # a custom one is known by its function's name
        self.patience = patience
        self.best = -math.inf
        self.bad = 0

    def update(self, metrics: dict[str, float]) -> str | None:
        """Takes the metrics of an evaluation and returns the reason to stop, or None.

        Raises UserError for metrics without the one that it watches.
        """
        if self.metric not in metrics:
            raise UserError(
                f"train.early_stop.metric = {self.metric!r} is not among the metrics: {', '.join(metrics)}"
            )
        value = metrics[self.metric] * (-1 if self.metric in LARGER_IS_WORSE else 1)
        if value > self.best:
            self.best, self.bad = value, 0
            return None
        self.bad += 1
        return self.reason()

    def restore(self, best: float, bad: int) -> None:
        """Continues with the best value, and the evaluations without a better one, of an earlier run."""
        self.best, self.bad = best, bad

    def reason(self) -> str | None:
        """Returns the reason to stop after the evaluations so far, or None."""
        if self.bad < self.patience:
            return None
        return f"no better {self.metric} in {self.patience} evaluations"


class Driver:
    """Runs a session's whole schedule; events and callbacks on trainer 0 only."""

    def __init__(
        self,
        config: Config,
        inputs: Inputs,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[MetricLogger] = (),
    ):
        """Imports and builds everything that the user named. Needs no other rank.

        Raises UserError for what can't be imported or built.
        """
        self.config = config
        self.callbacks = callbacks
        self.loggers = loggers
        self.loss = load_loss(config.train.loss)
        load_metrics(config.train.metrics)
        seed_generators(config.seed)
        self.model = build_model(config.model.class_name, inputs, dict(config.model.arguments))
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if parameters:
            make_optimizer(parameters, config.train.optimizer)  # only to refuse bad arguments now
        self.early_stop = EarlyStop(**config.train.early_stop) if config.train.early_stop else None
        self._recent: deque[tuple[Tensor, Tensor, Tensor]] = deque()
        self._recent_samples = 0
        self._staleness: deque[int] = deque(maxlen=100)
        self._began = self._last_event = time.perf_counter()
        self._last_samples = self._epoch = 0

    def run(self, session: Session) -> None:
        """Trains to the end of the schedule or a stop, evaluating as configured.

        Collective over trainers.
        """
        self.session, self.run_view = session, RunView(session)
        if session.trainer_rank != 0:
            self.callbacks = self.loggers = ()
        session.skips.tell_to(self._log)
        session.prepare(self.model)
        evaluated = self._restore(session)
        for callback in self.callbacks:
            callback.on_start(self.run_view)
        while True:
            schedule = session.schedules["train"]
            # Trainer 0's callbacks may have asked for a stop: all must know it before they evaluate, or not.
            session.agree_on_stop()
            step = session.step_number
            # Also after a resume: the checkpoint of a step is begun before its evaluation.
            due = (
                "valid" in session.schedules and step not in (0, evaluated) and schedule.evaluates_after(step)
            )
            if due and session.stop_reason is None:
                metrics = self._evaluate("valid")
                evaluated = step
                if self.early_stop is not None and (reason := self.early_stop.update(metrics)):
                    session.request_stop(reason)
                session.keep_driver_state(self._state(evaluated))
                session.agree_on_stop()
            if session.following is not None and step == session.num_steps:
                self._event(force=True)  # what comes next may be long in coming
            if session.stop_reason is not None or not session.wait_for_data(self._log):
                break
            if session.following is not None and step == schedule.num_steps:
                self._last_event = time.perf_counter()  # a wait is no part of the pace
            schedule = session.schedules["train"]
            for batch in session.batches(steps=schedule.next_drain(step + 1) - step):
                logits = session.forward(batch)
                check_logits(logits, batch)
                session.step(self.loss(logits, batch))
                self._count_step(logits, batch)
        self._event(force=True)
        if self.config.train.evaluate_at_end and session.interrupted is None:
            if "valid" in session.schedules and evaluated != session.step_number:
                self._evaluate("valid")
            if "test" in session.schedules:
                self._evaluate("test")

    def _state(self, evaluated: int) -> DriverState:
        """Returns what a resumed run must know of this loop."""
        early = self.early_stop
        return DriverState(evaluated, early.best if early else 0.0, early.bad if early else 0)

    def _restore(self, session: Session) -> int:
        """Takes over what `_state` saved; returns the last evaluated step, -1 if there was none."""
        state = session.state.driver
        self._last_samples = session.samples
        if session.step_number and self.loggers:
            self._log({"event": "resume", "step": session.step_number})
        if self.early_stop is not None and state is not None:
            self.early_stop.restore(state.best, state.bad)
            if reason := self.early_stop.reason():  # it was interrupted between this and its end
                session.request_stop(reason)
        return -1 if state is None else state.evaluated

    def _evaluate(self, split: str) -> dict[str, float]:
        metrics = self.session.evaluate(split=split)
        self._log({"event": "evaluate", "split": split, "step": self.session.step_number, **metrics})
        for callback in self.callbacks:
            callback.on_evaluate(self.run_view, {"split": split, **metrics})
        return metrics

    def _count_step(self, logits: Tensor, batch: Batch) -> None:
        if not self.callbacks and not self.loggers:
            return
        session = self.session
        if not session.state.last_skipped:
            self._recent.append((logits.detach()[:, 0], batch.labels[:, 0], session.loss))
            self._recent_samples += batch.num_samples
        while self._recent_samples > RECENT_SAMPLES and len(self._recent) > 1:
            self._recent_samples -= len(self._recent.popleft()[0])
        self._staleness.append(session.last_staleness)
        self._epoch = session.schedules["train"].step(session.step_number).epoch
        for callback in self.callbacks:
            callback.on_step(self.run_view)
        self._event()

    def _event(self, *, force: bool = False) -> None:
        now = time.perf_counter()
        if not self.loggers or not self._recent or (not force and now - self._last_event < EVENT_SECONDS):
            return
        session = self.session
        scores = torch.cat([r[0] for r in self._recent]).float().cpu().numpy()
        labels = torch.cat([r[1] for r in self._recent]).cpu().numpy()
        event = {
            "event": "train",
            "step": session.step_number,
            "num_steps": session.num_steps,
            "epoch": self._epoch,
            "samples": session.samples,
            "seconds": now - self._began,
            "loss": float(torch.stack([r[2] for r in self._recent]).mean()),
            "auc": auc(scores, labels),
            "samples_per_second": (session.samples - self._last_samples) / max(now - self._last_event, 1e-9),
            "staleness": float(np.mean(self._staleness)),
        }
        self._last_event, self._last_samples = now, session.samples
        self._log(event)

    def _log(self, event: dict[str, Any]) -> None:
        for logger in self.loggers:
            logger.log(event)

    def finish(self, summary: dict[str, Any]) -> None:
        """Hands the summary to callbacks and loggers."""
        for callback in self.callbacks:
            callback.on_end(self.run_view, summary)
        self._log({"event": "end", "status": summary["status"], "steps": summary["steps"]})
