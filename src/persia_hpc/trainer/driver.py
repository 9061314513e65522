"""Runs the standard training loop over a session: loss, evaluation, early stopping, callbacks, events."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persia_hpc.callbacks import Callback
from persia_hpc.checkpoint.names import step_name
from persia_hpc.config import Config
from persia_hpc.config.metric_names import asked_metrics
from persia_hpc.config.retrieval import ranked_metrics, retrieval_loss
from persia_hpc.config.watching import Watched, best_metric, keeps_best
from persia_hpc.errors import UserError
from persia_hpc.models import build_model
from persia_hpc.reporting.events import MetricLogger
from persia_hpc.reporting.screen import Screen

from .batch import Batch, Inputs
from .dense.optimizer import make_optimizer
from .dense.state import seed_generators
from .label_metrics import known_auc
from .losses import make_loss
from .metrics import Metrics, load_metrics
from .remaining import Outlook
from .restoring import restore
from .retrieval import Matches, RetrievalLoss, RetrievalModel, check_matches, check_model
from .run_state import DriverState
from .session import Session
from .watching import Plateau, Watch

EVENT_SECONDS = 1.0  # how often the training event is logged
RECENT_SAMPLES = 50_000  # for the AUC and loss of the progress bar


def check_logits(logits: Tensor, inputs: Inputs, num_samples: int) -> None:
    """Checks that the model's logits have the shape that its inputs ask for.

    Raises UserError if not.
    """
    expected = (num_samples, inputs.num_outputs)
    if logits.shape != expected:
        what = "labels" if inputs.num_outputs == len(inputs.labels) else "inputs.num_outputs"
        raise UserError(
            f"the model returned logits of shape {tuple(logits.shape)}, expected {expected} "
            f"([samples, {what}])"
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


class Driver:
    """Runs a session's whole schedule; events and callbacks on trainer 0 only."""

    def __init__(
        self,
        config: Config,
        inputs: Inputs,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[MetricLogger] = (),
        *,
        num_items: int = 0,
    ):
        """Imports and builds everything that the user named. Needs no other rank.

        num_items: of the catalogue; 0 without one.

        Raises UserError for what can't be imported or built.
        """
        self.config = config
        self.callbacks = callbacks
        self.loggers = loggers
        softmax = retrieval_loss(config)
        self.loss: Callable[[Any, Batch], Tensor]
        if softmax is None:
            self.loss = make_loss(config)
        else:
            weight = next((task.weight for task in config.tasks.values()), 1.0)
            self.loss = RetrievalLoss(softmax, num_items, weight)
        load_metrics(config.train.metrics)
        seed_generators(config.seed)
        self.model = build_model(config.model.class_name, inputs, dict(config.model.arguments))
        self.retrieval: RetrievalModel | None = None
        if softmax is not None:
            self.retrieval = check_model(self.model, 'the loss "in_batch_softmax"')
        if ranked := ranked_metrics(config):
            check_model(self.model, f"the metric {ranked[0]} of data.items")
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if parameters:
            make_optimizer(parameters, config.dense_optimizer, self.model)  # only to refuse bad arguments now
        early_stop, metrics = config.train.early_stop, asked_metrics(config)
        self.early_stop = None
        if early_stop is not None:
            self.early_stop = Watch(Watched.of(early_stop, metrics), float(early_stop["min_delta"]))
        self.plateau = None if config.train.plateau is None else Plateau(config.train.plateau, metrics)
        self.best = Watch(best_metric(config))
        self.keeps_best = keeps_best(config.train)
        self._parts: list[tuple[Tensor, Tensor]] = []  # of the step under way
        self._recent: deque[tuple[Tensor, Tensor, Tensor]] = deque()
        self._recent_samples = 0
        self._staleness: deque[int] = deque(maxlen=100)
        self._began = self._last_event = time.perf_counter()
        self._last_samples = self._epoch = 0
        self._told_unlabelled = False
        self._outlook = Outlook(config)
        self._evaluated = -1  # the last step whose evaluation was due
        self._told_progressive = 0  # the last step after which the window's metrics were reported

    def run(self, session: Session) -> None:
        """Trains to the end of the schedule or a stop, evaluating as configured.

        Collective over trainers.
        """
        self.session, self.run_view = session, RunView(session)
        if session.trainer_rank != 0:
            self.callbacks = self.loggers = ()
        session.skips.tell_to(self._log)
        session.prepare(self.model)
        self._restore(session)
        for callback in self.callbacks:
            callback.on_start(self.run_view)
        while True:
            schedule = session.schedules["train"]
            # Trainer 0's callbacks may have asked for a stop: all must know it before they evaluate, or not.
            session.agree_on_stop()
            step = session.step_number
            # Also after a resume: the checkpoint of a step is begun before its evaluation.
            due = step not in (0, self._evaluated) and schedule.evaluates_after(step)
            if step and schedule.evaluates_after(step):
                self._report_progressive()
            if "valid" in session.schedules and due and session.stop_reason is None:
                self._evaluate_valid(due=True)
            if session.following is not None and step == session.num_steps:
                self._event(force=True)  # what comes next may be long in coming
            if session.stop_reason is not None or not session.wait_for_data(self._log):
                break
            if session.following is not None and step == schedule.num_steps:
                self._last_event = time.perf_counter()  # a wait is no part of the pace
            schedule = session.schedules["train"]
            for batch in session.batches(steps=schedule.next_drain(step + 1) - step):
                outputs, logits = self.outputs(session, batch)
                session.step(self.loss(outputs, batch))
                self._count_step(logits, batch)
        self._event(force=True)
        if session.interrupted is None:
            self._report_progressive()
        if self.config.train.evaluate_at_end and session.interrupted is None:
            if "valid" in session.schedules and self._evaluated != session.step_number:
                self._evaluate_valid(due=False)
            if self._restore_best():
                self._report("valid", session.evaluate(split="valid"))
            if "test" in session.schedules:
                self._busy("evaluates test")
                self._report("test", session.evaluate(split="test"))

    def _restore_best(self) -> bool:
        """Takes the run back to its best evaluation, if it is to end with that and isn't there.

        Collective over trainers.
        """
        session, best = self.session, self.best
        if not self.config.train.restore_best or best.best is None or best.step == session.step_number:
            return False
        if self.config.train.save:
            session.save(full=True)  # from which the run can be continued
        restore(session, best.step)
        self._log({"event": "restore", "step": session.step_number, "restored_step": best.step})
        return True

    def outputs(self, session: Session, batch: Batch) -> tuple[Tensor | Matches, Tensor]:
        """Returns what the loss takes of a training batch, and its logits.

        These are the same but for retrieval models: their loss takes matches, and the logits are the means of
        the scores of a sample's positions.

        Raises UserError for a model of the user's own that returns anything else.
        """
        if self.retrieval is None:
            logits = session.forward(batch)
            check_logits(logits, session.inputs, batch.num_samples)
            return logits, logits
        with session.precision.autocast():
            matches = self.retrieval.matches(batch)
        check_matches(matches, batch.num_samples)
        return matches, matches.per_sample(matches.scores().detach(), batch.num_samples)[:, None]

    def _evaluate_valid(self, *, due: bool) -> None:
        """Evaluates the valid split and does what follows: stops early, keeps the checkpoint of the best.

        due: whether the schedule asked for it; else it comes after a stop, and says nothing about patience.

        Collective over trainers.
        """
        session, step = self.session, self.session.step_number
        self._busy("evaluates valid")
        metrics = session.evaluate(split="valid")
        better = self.best.update(metrics, step)
        uncounted = ["keep_best"] if better is None and self.keeps_best else []
        if due:
            self._evaluated = step
            if self.early_stop is not None and self.early_stop.update(metrics, step) is None:
                uncounted.append("early_stop")
            if self.plateau is not None:
                if self.plateau.update(metrics, step) is None:
                    uncounted.append("plateau")
                session.state.rate_factor = self.plateau.factor
        self._report("valid", metrics, uncounted)
        if due and (reason := self._reason()):
            session.request_stop(reason)
        session.state.driver = self._state()  # for the next checkpoint
        session.agree_on_stop()
        if better and self.keeps_best:
            ends = session.stop_reason is not None or session.schedules["train"].is_last(step)
            session.save(full=ends and session.interrupted is None, best=self.best.state())

    def _report_progressive(self) -> None:
        """Reports the metrics of the window of training samples, if it has any that weren't reported.

        Collective over trainers.
        """
        session, step = self.session, self.session.step_number
        if self.config.train.progressive and step not in (session.state.first_step, self._told_progressive):
            self._told_progressive = step
            if metrics := session.progressive.metrics():
                self._log({"event": "progressive", "step": step, **metrics})

    def _reason(self) -> str | None:
        """Returns the reason to stop early, or None."""
        early = self.early_stop
        patience = (self.config.train.early_stop or {}).get("patience", 0)
        if early is None or early.bad < patience:
            return None
        return f"no better {early.watched.metric} in {patience} evaluations"

    def _state(self) -> DriverState:
        """Returns what a resumed run must know of this loop."""
        early, best = self.early_stop, self.best.state() if self.best.best is not None else None
        plateau = self.plateau.state() if self.plateau is not None else None
        if early is None or early.best is None:
            return DriverState(self._evaluated, -math.inf, best_evaluation=best, plateau=plateau)
        sign = -1 if early.watched.mode == "min" else 1
        return DriverState(
            self._evaluated,
            sign * early.best,
            early.bad,
            **asdict(early.watched),
            best_evaluation=best,
            plateau=plateau,
        )

    def _restore(self, session: Session) -> None:
        """Takes over what `_state` saved.

        Collective over trainers.
        """
        state = session.state.driver or DriverState(best=-math.inf)
        self._evaluated, self._last_samples = state.evaluated, session.samples
        if session.step_number and self.loggers:
            self._log({"event": "resume", "step": session.step_number})
        self.best.restore(state.best_evaluation)
        if self.plateau is not None:
            self.plateau.restore(state.plateau)
            session.state.rate_factor = self.plateau.factor
        if session.saver is not None and not session.peers.broadcast(
            session.saver.restore_best(self.best.state() if self.keeps_best else None)
        ):
            self.best.restore(None)
        early = self.early_stop
        # Without a metric it is a checkpoint of an older version: 0 and 0 if it had no early stopping.
        known = state.metric or (math.isfinite(state.best) and (state.best, state.bad) != (0.0, 0))
        same = early is not None and (state.metric, state.mode) in (("", ""), astuple(early.watched))
        if early is not None and known and same:
            sign = -1 if early.watched.mode == "min" else 1
            early.restore({**early.state(), "value": sign * state.best}, state.bad)
            if reason := self._reason():  # it was interrupted between this and its end
                session.request_stop(reason)

    def best_evaluation(self) -> dict[str, Any] | None:
        """Returns the best evaluation for the summary: metric, mode, value, step and kept checkpoint."""
        if self.best.best is None:
            return None
        return {**self.best.state(), "checkpoint": step_name(self.best.step) if self.keeps_best else None}

    def _report(self, split: str, metrics: Metrics, uncounted: Sequence[str] = ()) -> None:
        step = self.session.state.restored_step or self.session.step_number
        self._outlook.evaluated(int(metrics["samples"]))
        event = {"event": "evaluate", "split": split, "step": step, **metrics}
        if self.plateau is not None:
            event["rate_factor"] = self.plateau.factor
        self._log({**event, "uncounted": list(uncounted)} if uncounted else event)
        for callback in self.callbacks:
            callback.on_evaluate(self.run_view, {"split": split, **metrics})

    def _count_step(self, logits: Tensor, batch: Batch) -> None:
        if not self.callbacks and not self.loggers:
            return
        session = self.session
        self._parts.append((logits.detach()[:, 0], batch.labels[:, 0]))
        if session.step_number < batch.step:  # more parts of the step follow
            return
        scores, labels = (torch.cat(column) for column in zip(*self._parts, strict=True))
        self._parts = []
        if not session.state.last_skipped:
            self._recent.append((scores, labels, session.loss))
            self._recent_samples += len(scores)
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
        if not self._told_unlabelled and np.isnan(labels).all():
            self._told_unlabelled = True
            name, count = session.inputs.labels[0], len(labels)
            text = f"label {name} is missing in all of the last {count:,} samples: nothing is learned from it"
            session.skips.warn(session.step_number, text)
        event = {
            "event": "train",
            "step": session.step_number,
            "num_steps": session.num_steps,
            "epoch": self._epoch,
            "samples": session.samples,
            "seconds": now - self._began,
            "loss": float(torch.stack([r[2] for r in self._recent]).mean()),
            "auc": known_auc(scores, labels),
            "samples_per_second": (session.samples - self._last_samples) / max(now - self._last_event, 1e-9),
            "staleness": float(np.mean(self._staleness)),
            **self._outlook.fields(session, self._evaluated, now - self._last_event),
        }
        self._last_event, self._last_samples = now, session.samples
        self._log(event)

    def _busy(self, text: str) -> None:
        for logger in self.loggers:
            if isinstance(logger, Screen):
                logger.busy(text)

    def _log(self, event: dict[str, Any]) -> None:
        for logger in self.loggers:
            logger.log(event)

    def finish(self, summary: dict[str, Any]) -> None:
        """Hands the summary to callbacks and loggers."""
        for callback in self.callbacks:
            callback.on_end(self.run_view, summary)
        self._log({"event": "end", "status": summary["status"], "steps": summary["steps"]})
