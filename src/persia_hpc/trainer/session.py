"""The trainer's engine: batches in, dense step, row gradients out; and what a user's own loop is written
with.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from persia_hpc import checkpoint
from persia_hpc.config import Config
from persia_hpc.errors import UserError
from persia_hpc.feed import FeedBatch
from persia_hpc.layout import Layout
from persia_hpc.learning_rate import LearningRate
from persia_hpc.metrics import Metric, evaluate_metrics, load_metrics
from persia_hpc.phases import Pace
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.schedule import Schedule

from .allreduce import DenseReducer
from .batch import Batch, FeatureSpec, Inputs, on_backward
from .feeding import Array, Feed, Peers, concatenate
from .pooling import Pooling, RowGradients

FUSED_EXCLUDES = {"fused", "foreach", "capturable", "differentiable"}  # options of torch's optimizers


def make_inputs(layout: Layout, schema: DatasetSchema) -> Inputs:
    """What a model's constructor gets."""
    specs = tuple(
        FeatureSpec(
            name=f.name,
            table=layout.tables[f.table].name,
            group=layout.tables[f.table].group,
            dim=layout.tables[f.table].dim,
            pooling=f.pooling,
            multi=f.multi,
            rounds=f.rounds,
        )
        for f in layout.features
    )
    return Inputs(features=specs, num_dense=len(schema.dense_names), labels=schema.label_names)


def make_optimizer(parameters: Any, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Any optimizer of torch.optim by name, with its own arguments; UserError for names and arguments it
    doesn't have.

    On the CPU fused, where torch has that and `settings` doesn't choose: one kernel a parameter, not a dozen.
    """
    arguments = dict(settings)
    name = str(arguments.pop("name", "Adam"))
    names = [n for n in dir(torch.optim) if isinstance(getattr(torch.optim, n), type) and n != "Optimizer"]
    if name not in names:
        raise UserError(f"train.optimizer.name = {name!r} is not in torch.optim; it has: {', '.join(names)}")
    parameters = list(parameters)
    optimizer = getattr(torch.optim, name)
    free = "fused" in signature(optimizer).parameters and not FUSED_EXCLUDES & arguments.keys()
    able = all(p.is_floating_point() and p.device.type == "cpu" for p in parameters)
    fused = {"fused": True} if free and able else {}
    try:
        made: torch.optim.Optimizer = optimizer(parameters, **arguments, **fused)
    except (TypeError, ValueError) as error:
        raise UserError(f"train.optimizer: torch.optim.{name} refuses {arguments}: {error}") from error
    return made


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: LearningRate, step: int) -> None:
    """Gives each parameter group the learning rate of `step`; its first is kept as torch's schedulers do.

    Does nothing for a constant rate, so that a scheduler of the user's own is not disturbed.
    """
    if rate.varies:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * rate.factor(step)


class Session:
    """One trainer of a run. Methods marked collective must be called by every trainer, in the same order."""

    def __init__(
        self,
        config: Config,
        layout: Layout,
        inputs: Inputs,
        schedules: Mapping[str, Schedule],
        *,
        feed: Feed,
        peers: Peers,
        reducer: DenseReducer,
        device: torch.device,
    ):
        self.config = config
        self.layout = layout
        self.inputs = inputs
        self.schedules = schedules
        self.device = device
        self.peers = peers
        self.model: nn.Module | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.step_number = 0
        self.samples = 0
        self.evaluate_seconds = 0.0
        self.checkpoint_seconds = 0.0
        self.stop_reason: str | None = None
        self.last_loss = 0.0
        self.last_staleness = 0  # steps whose updates this trainer's last batch missed
        self.results: dict[str, dict[str, float]] = {}  # the last evaluation of each split
        self.phases = feed.phases
        self.pace = Pace()
        self._pool_began: float | None = None
        self._yielded = 0.0
        self._feed = feed
        self._reducer = reducer
        self._pooling = Pooling(inputs, gradients=config.wire.gradients)
        self._metrics: dict[str, Metric] = load_metrics(config.train.metrics)
        self._rate = LearningRate(config.train.schedule, self.num_steps if "train" in schedules else 1)
        self._current: tuple[FeedBatch, RowGradients] | None = None
        self._stepped = True
        self._segment_last: int | None = None  # while one is under way

    @property
    def trainer_rank(self) -> int:
        return self.peers.rank

    @property
    def num_trainers(self) -> int:
        return self.peers.size

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.schedules["train"].num_steps

    @property
    def steps_per_epoch(self) -> int:
        return self.schedules["train"].steps_per_epoch

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
        """Moves the model to the device and gives every trainer trainer 0's parameters. Collective.

        Without `optimizer`, the one of `[train] optimizer` is made. An optimizer of your own must hold the
        parameters of this model.
        """
        model.to(self.device)
        self._reducer.attach(model)
        self.model = model
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = optimizer or (
            make_optimizer(parameters, self.config.train.optimizer) if parameters else None
        )
        # From here on trainers draw their own random numbers (dropout).
        torch.manual_seed(self.config.seed + 7919 * self.trainer_rank)
        return model

    def forward(self, batch: Batch) -> Tensor:
        """The model's logits [B, L], under bf16 autocast when `train.amp` says so, as float32."""
        assert self.model is not None, "call session.prepare(model) first"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.train.amp == "bf16"):
            logits: Tensor = self.model(batch)
        return logits.float()

    def batches(self, split: str = "train", *, steps: int | None = None) -> Iterator[Batch]:
        """This trainer's batches of the next `steps` steps (default: all that are left). Collective.

        After each batch `step` must be called. Evaluation is possible between two calls, and inside one after
        every
        `train.evaluate_every` steps (0: at the end of each epoch). A trainer without samples in a step (the
        tail of an epoch) sees no batch, its part of the AllReduce is done here.
        """
        if split != "train":
            raise UserError(
                f'session.batches("{split}"): only "train" can be trained on; use session.evaluate for others'
            )
        schedule = self.schedules["train"]
        end = schedule.num_steps if steps is None else min(schedule.num_steps, self.step_number + steps)
        while self.step_number < end:
            self.agree_on_stop()
            if self.stop_reason is not None:
                return
            first = self.step_number + 1
            yield from self._segment(first, min(schedule.next_drain(first), end))

    def _segment(self, first: int, last: int) -> Iterator[Batch]:
        if self._segment_last is not None:
            raise UserError(
                f"a loop over session.batches was left at step {self.step_number}, before its end at step "
                f"{self._segment_last}: rows of later steps are on their way; use session.batches(steps=...)"
            )
        self.phases.start()
        self._feed.begin_segment(first, last)
        self._segment_last = last
        for number in range(first, last + 1):
            feed = self._feed.next_batch(number)
            if feed is None:
                break
            begin = time.perf_counter()
            batch, gradients = self._pooling.embed(feed, self.device, training=True)
            on_backward(batch, self._reach_pooling)
            self._yielded = self.phases.add("pool", begin, number)
            self._current, self._stepped = (feed, gradients), False
            self.last_staleness = feed.staleness
            if batch.num_samples:
                yield batch
                if not self._stepped:
                    raise UserError(
                        f"session.step was not called for step {number}: every batch needs it, "
                        "for other ranks wait for it"
                    )
            else:
                self._finish_step(0)
        self._segment_last = None
        self._feed.end_segment()
        self.phases.stop()

    def step(self, losses: Tensor) -> None:
        """Backward, AllReduce, one step of the dense optimizer, and the row gradients on their way.
        Collective.

        losses: [B] or [B, L] per sample (weights are applied here), or a scalar, the mean over this trainer's
        batch.
        """
        if self.model is None:
            raise UserError("session.step was called before session.prepare(model): nothing would be trained")
        if self._current is None or self._stepped:
            raise UserError(
                "session.step was called without a batch; call it once for each of session.batches"
            )
        feed, _ = self._current
        begin = self.phases.add("forward", self._yielded, feed.step)
        weight = (
            torch.as_tensor(np.array(feed.weight), device=losses.device) if feed.weight is not None else None
        )
        # Divided by the samples of all trainers: AllReduce's sum is then exact with uneven parts, rows need
        # no scale.
        if losses.dim() == 0:
            total = losses * (feed.num_samples / feed.num_global)
        else:
            per_sample = losses.reshape(feed.num_samples, -1).mean(dim=1)
            total = (per_sample if weight is None else per_sample * weight).sum() / feed.num_global
        self._pool_began = None
        total.backward()  # type: ignore[no-untyped-call]
        end = time.perf_counter()
        pool_began = self._pool_began or end
        self.phases.add("backward", begin, feed.step, pool_began)
        self.phases.add("pool", pool_began, feed.step, end)
        self.last_loss = float(total.detach()) * feed.num_global / feed.num_samples
        self._finish_step(feed.num_samples)

    def _finish_step(self, num_samples: int) -> None:
        assert self._current is not None
        feed, gradients = self._current
        self._current, self._stepped = None, True
        begin = time.perf_counter()
        number, num_global = feed.step, feed.num_global
        arrays = gradients.arrays()
        self.phases.add("push", begin, number)
        self._feed.push(feed, arrays)
        begin = time.perf_counter()
        self._reducer.reduce()
        begin = self.phases.add("allreduce", begin, number)
        if self.optimizer is not None:
            if self.config.train.clip_norm is not None and self.model is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
            set_learning_rate(self.optimizer, self._rate, number)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.phases.add("optimizer", begin, number)
        self.step_number = number
        self.samples += num_global
        self.pace.step(number, self.samples, self.phases.elapsed())

    def _reach_pooling(self, _: object) -> None:
        self._pool_began = time.perf_counter()

    def request_stop(self, reason: str) -> None:
        """Ends the run soon, at a step that all ranks agree on; may be called by trainer 0 at any time."""
        if self.trainer_rank != 0:
            return  # trainer 0 decides, the others hear of it
        self.stop_reason = reason
        if self._segment_last is not None:
            self._feed.request_stop()

    def agree_on_stop(self) -> None:
        """Gives every trainer trainer 0's `stop_reason`. Collective."""
        self.stop_reason = self.peers.broadcast(self.stop_reason)

    def evaluate(self, model: nn.Module | None = None, split: str = "valid") -> dict[str, float]:
        """Exact metrics of a split over all trainers; changes nothing in the tables. Collective.

        Only when no gradient is in flight (see `batches`). Returns `auc`, `logloss`, `samples` and the custom
        metrics, the same on every trainer.
        """
        width = len(self.inputs.labels)
        columns: dict[str, list[Array]] = {"logits": [], "labels": [], "weight": [], "group": []}
        for logits, feed in self.predictions(model, split):
            columns["logits"].append(logits)
            columns["labels"].append(np.array(feed.labels))
            if feed.weight is not None:
                columns["weight"].append(np.array(feed.weight)[:, None])
            if feed.group is not None:
                columns["group"].append(np.array(feed.group)[:, None])
        begin = time.perf_counter()
        all_logits = self.peers.gather(concatenate(columns["logits"], width))
        all_labels = self.peers.gather(concatenate(columns["labels"], width))
        all_weight = self.peers.gather(concatenate(columns["weight"], 1))
        all_group = self.peers.gather(concatenate(columns["group"], 1, np.int64))
        metrics: dict[str, float] = {}
        if all_logits is not None and all_labels is not None:
            metrics = evaluate_metrics(
                all_logits,
                all_labels,
                all_weight[:, 0] if all_weight is not None and len(all_weight) else None,
                all_group[:, 0] if all_group is not None and len(all_group) else None,
                self.inputs.labels,
                self._metrics,
            )
        metrics = self.peers.broadcast(metrics)
        self.results[split] = metrics
        self.evaluate_seconds += time.perf_counter() - begin
        return metrics

    def predictions(self, model: nn.Module | None, split: str) -> Iterator[tuple[Array, FeedBatch]]:
        """(logits [B, L] float32, batch) of this trainer's part of a split, in order. Collective."""
        model = model or self.model
        assert model is not None, "call session.prepare(model) first"
        if split not in self.schedules or split == "train":
            known = ", ".join(s for s in self.schedules if s != "train") or "none"
            raise UserError(
                f"there is no split {split!r} to evaluate; data.{split} is not set (there is: {known})"
            )
        if self._current is not None:
            raise UserError(
                "session.evaluate was called between a batch and its session.step; call step first"
            )
        if self._segment_last not in (None, self.step_number):
            raise UserError(
                f"session.evaluate was called after step {self.step_number}, while gradients are in flight; "
                "call it after a loop over session.batches(steps=...), or set train.evaluate_every"
            )
        self.phases.stop()  # inside a loop of the user's own the segment hasn't ended yet
        begin = time.perf_counter()
        self._reducer.broadcast(model.named_buffers())
        was_training = model.training
        model.eval()
        self._feed.begin_evaluation(split, self.step_number)
        try:
            for number in range(1, self.schedules[split].num_steps + 1):
                feed = self._feed.next_evaluation(number)
                if feed.num_samples:
                    with torch.no_grad():
                        batch, _ = self._pooling.embed(feed, self.device, training=False)
                        logits = self.forward(batch) if model is self.model else model(batch).float()
                    self.evaluate_seconds += time.perf_counter() - begin
                    yield logits.cpu().numpy().reshape(feed.num_samples, -1), feed
                    begin = time.perf_counter()
                feed.release()
            # What trainer 0 commands next must not overtake batches that another trainer still waits for.
            self.peers.gather(np.empty(0, np.float32))
            self.peers.broadcast(None)
        finally:
            model.train(was_training)
            self.evaluate_seconds += time.perf_counter() - begin

    def save(self, run_dir: Path, schema: DatasetSchema) -> Path:
        """Writes a checkpoint of this moment and moves `latest` to it; no gradient may be in flight.
        Collective.
        """
        begin = time.perf_counter()
        final = run_dir / f"step-{self.step_number:08d}"
        if self.trainer_rank == 0:
            assert self.model is not None
            directory = checkpoint.begin(run_dir, self.step_number)
            self._feed.checkpoint(str(directory), self.step_number)
            dense = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict() if self.optimizer is not None else {},
                "rng": torch.get_rng_state(),
            }
            final = checkpoint.finish(directory, self.step_number, self.config, schema, dense)
        self.peers.broadcast(None)  # nobody goes on before it is whole
        self.checkpoint_seconds += time.perf_counter() - begin
        return final

    def close(self) -> None:
        """Ends the run for all ranks. Collective."""
        self._feed.close()
        self._reducer.close()

    def wait_seconds(self) -> dict[str, float]:
        """Seconds this trainer waited, by cause."""
        return {"batch": self._feed.wait_seconds, "allreduce": self._reducer.seconds}
