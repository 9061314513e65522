"""Runs one trainer: takes batches in, makes the dense step, sends row gradients out. Users' loops call it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.arrays import Array
from persia_hpc.config import Config
from persia_hpc.errors import TrainingEndedError, UserError
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.runtime.phases import Pace
from persia_hpc.schedule import Schedule
from persia_hpc.table_layout import Layout

from .batch import Batch, Inputs, on_backward
from .dense.forward import Forward
from .dense.precision import Precision
from .dense.state import DenseState, Owned, copied, dense_content, owned_state, seed_generators, trainer_seed
from .dense.updates import Updates
from .dense.verdict import judge, tell
from .evaluation import predict_split
from .exporting import Exporter
from .following import Around, Following
from .intake import Intake
from .interfaces import BatchStream, DenseSync, Peers
from .metrics import Wanted
from .outbox import Outbox
from .parts import Parts, part_size
from .pooling.embed import Pooling
from .progress import Progress
from .progressive import Progressive
from .ranker import Ranker, Wrap
from .rates import changed_rates
from .run_state import RunState
from .saving import Saver
from .skips import Buffers, Skips
from .stopping import Stopping


class Session(Progress):
    """Is one trainer of a run. All trainers must call its collective methods in the same order."""

    def __init__(
        self,
        config: Config,
        layout: Layout,
        inputs: Inputs,
        schedules: Mapping[str, Schedule],
        *,
        stream: BatchStream,
        peers: Peers,
        reducer: DenseSync,
        device: torch.device,
        resume: DenseState | None = None,
        initial: DenseState | None = None,
        following: Following | None = None,
        saver: Saver | None = None,
        exporter: Exporter | None = None,
    ):
        """Takes the parts of a trainer. following: with `data.follow`. saver, exporter: write their files.
        resume: the checkpoint's dense side, to continue from. initial: another run's, for the first weights.
        """
        self.config, self.layout, self.inputs = config, layout, inputs
        self.device = device
        self.stream, self.peers, self.reducer = stream, peers, reducer
        self.saver, self.exporter = saver, exporter
        self.following = following
        self.model: nn.Module | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.state = RunState(schedules) if resume is None else resume.run_state(schedules)
        self.phases = stream.phases
        self.pace = Pace()
        self.stopping = Stopping(self.state, stream, peers, saver, exporter)
        self.pooling = Pooling.of(config, inputs, device)
        self.pooling.staging.register(stream.memory)
        self.outbox = Outbox(stream, device)
        self.precision = Precision(config.train.amp, device, cache=not config.train.cuda_graphs)
        newest = saver.newest if saver is not None else str
        self.intake = Intake(config, stream, self.pooling, self.precision)
        self.skips = Skips(config, inputs, self.state, peers, newest)
        self._buffers = Buffers()
        wanted = Wanted.of(config, inputs)
        self._ranker = Ranker(wanted, inputs, self.precision, peers, device)
        self.progressive = Progressive(config.train.progressive, wanted, peers, self.state)
        self.updates = Updates(config, self.num_steps if "train" in schedules else 1, self.precision, reducer)
        self._resume, self._initial = resume, initial
        self._current: Parts | None = None  # of the step under way
        self._pool_began: float | None = None
        self._yielded = 0.0
        self._stop_told = False
        if following is not None:
            self.state.follow(following.schedule)
            following.begin(stream, self.step_number)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
        """Moves the model to the device and gives every trainer trainer 0's parameters.
        optimizer: holds this model's parameters; by default that of `[train] optimizer` is made.
        Collective over trainers.
        Raises UserError for a checkpoint or an optimizer that doesn't fit.
        """
        model.to(self.device)
        if (begin := self._resume or self._initial) is not None:
            begin.load_model(model, averaged=self._resume is None)
        self.reducer.attach(model)
        self.model = model
        self.skips.begin(model)
        train = self.config.train
        self._buffers = Buffers(model, always=train.cuda_graphs or train.compile)
        warn = self.skips.warn if self.trainer_rank == 0 else None  # one line for all
        size = part_size(self.full_batch, train.accumulate) if self.full_batch else 0
        self._forward = Forward(model, train, self.inputs, self.device, size, self.state, warn)
        self.intake.attach(model)
        self.optimizer = optimizer = self.updates.attach(model, optimizer, self._resume)
        if self.exporter is not None:
            self.exporter.attach(self.state, model, self.updates.average, self.skips.warn)
        # From here on trainers draw their own random numbers (dropout).
        seed_generators(trainer_seed(self.config.seed, self.trainer_rank))
        if self._resume is not None:
            told = self._resume.restore_owned(self.pooling.item_counts, self.config.seed, self.peers)
            told += changed_rates(self._resume, self.config, self.schedules["train"], optimizer)
            for text in told if self.trainer_rank == 0 else ():
                self.skips.warn(self.step_number, text)
        return model

    def forward(self, batch: Batch) -> Tensor:
        """Returns the model's logits [B, L] as float32, computed under autocast when `train.amp` says so."""
        assert self.model is not None, "call session.prepare(model) first"
        with self.precision.autocast():
            logits = self._forward(batch)
        return self.progressive.score(batch, logits.float())

    def batches(self, split: str = "train", *, steps: int | None = None) -> Iterator[Batch]:
        """Yields this trainer's batches of the next `steps` steps (default: all that are left).
        After each batch `step` must be called; with `train.accumulate` a step has several. Evaluation is
        possible between two calls, and inside one after every `train.evaluate_every` steps (0: at the end of
        each epoch). Begins due checkpoints. A trainer without samples in a step (the end of an epoch) gets no
        batch, but takes part in AllReduce.
        Collective over trainers.
        Raises UserError for wrong calls, TrainingEndedError if called again after the run was stopped.
        """
        if split != "train":
            raise UserError(
                f'session.batches("{split}"): only "train" can be trained on; use session.evaluate for others'
            )
        if self._stop_told:  # a loop that doesn't ask why it has ended
            raise TrainingEndedError
        end = math.inf if steps is None else self.step_number + steps
        while self.step_number < end and self.wait_for_data():
            self.agree_on_stop()
            if self.stop_reason is not None:
                break
            first = self.step_number + 1
            yield from self._segment(first, int(min(self.schedules["train"].next_drain(first), end)))
            self.agree_on_stop()
            if self.stop_reason is None and self.peers.broadcast(self.stopping.checkpoint_is_due()):
                self.save()
        if self.stop_reason is not None:
            self._stop_told = True
            if self.interrupted is not None and self.config.train.save and self.model is not None:
                self.save()  # now: what follows in a loop of the user's own may take long

    def wait_for_data(self, tell: Callable[[dict[str, Any]], None] = lambda _: None) -> bool:
        """Returns whether steps are left; no gradient may be in flight.
        With `data.follow` it waits for new files or a stop. tell: takes an event for each portion and each
        wait.
        Collective over trainers.
        """
        if self.step_number < self.num_steps or self.following is None:
            return self.step_number < self.num_steps
        return self.following.wait(
            Around(self.state, self.stream, self.peers, self.stopping, self.saver, self.save, tell)
        )

    def _segment(self, first: int, last: int) -> Iterator[Batch]:
        if self.state.segment_last is not None:
            raise UserError(
                f"a loop over session.batches was left at step {self.step_number}, before its end at step "
                f"{self.state.segment_last}: rows of later steps are on their way; "
                "use session.batches(steps=...)"
            )
        self.phases.start()
        self.stream.begin_segment(first, last, self.state.rate_factor)
        self.state.segment_last = last
        for number in range(first, last + 1):
            self._buffers.keep()  # before `ahead`, which may change them
            if (taken := self.intake.take(number)) is None:
                break
            row_batch, batch, gradients, self._yielded = taken
            on_backward(batch, self._reach_pooling)
            self._current = parts = Parts(row_batch, gradients, batch, self.config.train.accumulate)
            self.state.last_staleness = row_batch.staleness
            for part in parts:
                yield part
                if parts.part is not None:
                    raise UserError(
                        f"session.step was not called for step {number}: each batch needs it, others wait"
                    )
            if not batch.num_samples:
                self._finish_step()
        self.state.segment_last = None
        self.stream.end_segment()
        self.reducer.settle(self.stream, self.stopping.listen)
        self.phases.stop()

    def step(self, losses: Tensor) -> None:
        """Trains on the last batch: backward, AllReduce, dense optimizer; sends the row gradients.
        Shapes: losses [B] or [B, L] per sample (weights are applied here), or the scalar mean of this batch.
        Collective over trainers.
        Raises UserError without a batch or before `prepare`.
        """
        if self.model is None:
            raise UserError("session.step was called before session.prepare(model): nothing would be trained")
        current = self._current
        if current is None or (part := current.part) is None:
            raise UserError(
                "session.step was called without a batch; call it once for each of session.batches"
            )
        step = current.row_batch.step
        begin = self.phases.add("forward", self._yielded, step)
        self._pool_began = None
        current.backward(losses, self.reducer, self.precision)
        self.progressive.finish_part()
        end = time.perf_counter()
        pool_began = self._pool_began or end
        self.phases.add("backward", begin, step, pool_began)
        self._yielded = self.phases.add("pool", pool_began, step, end)
        if part.last:
            self.state.loss = current.mean_loss
            self._finish_step()

    def _finish_step(self) -> None:
        assert self._current is not None
        row_batch, gradients = self._current.row_batch, self._current.gradients
        self._current = None
        number, reducer = row_batch.step, self.reducer
        loss = self.state.loss if row_batch.num_samples else None
        if self.device.type == "cuda" and (following := self.stream.peek(number + 1)) is not None:
            self.pooling.staging.ahead(following)
        tell(reducer.told, loss, gradients)
        self.outbox.send()  # of the step before; this one has been launched
        begin = time.perf_counter()
        reducer.reduce()
        begin = self.phases.add("allreduce", begin, number)
        verdict = judge(reducer.parameters, reducer.told, loss)
        # It waits for what was launched: of a GPU's time most is spent here.
        self.phases.add("backward" if self.device.type == "cuda" else "allreduce", begin, number)
        updates = self.optimizer is not None and reducer.updates_with(row_batch.num_samples)
        if updates:
            verdict = self.precision.judge(verdict)
        if not verdict.good:
            self._buffers.restore()
        self.skips.count(verdict, row_batch)
        self.progressive.finish_step(row_batch, good=verdict.good)
        self.outbox.put(row_batch, gradients, good=verdict.good)
        begin = time.perf_counter()
        if updates:
            self.updates.apply(number, good=verdict.good, factor=self.state.rate_factor)
            self.phases.add("optimizer", begin, number)
        for parameter in reducer.parameters:  # those that the optimizer doesn't have
            parameter.grad = None
        state = self.state
        state.finish_step(number, row_batch.num_global)
        trained = state.samples - state.first_samples
        self.pace.step(number - state.first_step, trained, self.phases.elapsed())
        self.outbox.settle(number + 1)
        self.stopping.listen()

    def _reach_pooling(self, _: object) -> None:
        self._pool_began = time.perf_counter()

    def request_stop(self, reason: str) -> None:
        """Ends the run soon, at a step that all ranks agree on; trainer 0 may call it at any time."""
        self.stopping.request_stop(reason)

    def agree_on_stop(self) -> None:
        """Gives every trainer trainer 0's `stop_reason`.
        Collective over trainers.
        """
        self.stopping.agree_on_stop()

    @property
    def drained(self) -> bool:
        """Returns whether no gradient is in flight and no row is still to be used."""
        return self._current is None and not self.state.in_segment

    def evaluate(self, model: nn.Module | None = None, split: str = "valid") -> dict[str, Any]:
        """Returns exact metrics of a split over all trainers (see `evaluate_metrics`). None: isn't defined.
        Changes nothing in the tables. No gradient may be in flight (see `batches`).
        Collective over trainers.
        Raises UserError as `predictions` does, and for the catalogue, which has no labels.
        """
        if split == "items":
            raise UserError('session.evaluate("items"): a catalogue has no labels; name another split')
        with self.averaged():
            predictions, wrap = self._ranker.begin(model or self.model, self.predictions)
            for logits, row_batch in self.predictions(model, split, wrap):
                predictions.add_batch(logits, row_batch)
        return predictions.metrics(self.peers, self.state, split)

    def averaged(self) -> AbstractContextManager[None]:
        """Gives the model the average of `train.average`, if there is one, instead of its parameters."""
        assert self.model is not None, "call session.prepare(model) first"
        return self.updates.average.in_place(self.model)

    def predictions(
        self, model: nn.Module | None, split: str, wrap: Wrap | None = None
    ) -> Iterator[tuple[Array, RowBatch]]:
        """Returns an iterator over (logits [B, L] float32, batch) of this trainer's part of a split.
        wrap: makes, of what returns logits, what returns other columns.
        Collective over trainers.
        Raises UserError for an unknown split, and while gradients are in flight.
        """
        model = model or self.model
        assert model is not None, "call session.prepare(model) first"
        if split not in self.schedules or split == "train":
            known = ", ".join(s for s in self.schedules if s not in ("train", "items")) or "none"
            raise UserError(
                f"there is no split {split!r} to evaluate; data.{split} is not set (there is: {known})"
            )
        if self._current is not None and self._current.part is not None:
            raise UserError(
                "session.evaluate was called between a batch and its session.step; call step first"
            )
        self._check_drained("evaluate", "train.evaluate_every")
        begin = time.perf_counter()
        self.phases.stop()  # inside a loop of the user's own the segment hasn't ended yet
        self.reducer.settle(self.stream, self.stopping.listen)
        self.reducer.broadcast(model.named_buffers())
        self.state.evaluate_seconds += time.perf_counter() - begin
        other = model
        forward = self.forward if model is self.model else lambda batch: other(batch).float()
        return predict_split(
            model,
            split,
            forward if wrap is None else wrap(forward),
            state=self.state,
            stream=self.stream,
            peers=self.peers,
            pooling=self.pooling,
            poll=self.saver.poll if self.saver is not None else lambda: None,
        )

    def save(self, *, full: bool = False, best: Mapping[str, Any] | None = None) -> None:
        """Begins a checkpoint of this moment, of all rows if `full`; it is written while training continues.
        best: what says that it is the run's best (`Watch.state`), so that it is kept.
        Collective over trainers.
        Raises UserError while gradients are in flight.
        """
        assert self.saver is not None, "this session has no run directory"
        self._check_drained("save", "checkpoint.every")
        self.phases.stop()
        self.reducer.settle(self.stream, self.stopping.listen)
        self.check_model()
        optimizer, own = self.optimizer, owned_state(self.pooling.item_counts)
        scaler, skipped = self.precision.state(), self.skips.total()

        def content(owned: list[Owned]) -> dict[str, Any]:
            assert self.model is not None, "call session.prepare(model) first"
            content = dense_content(self.state, self.model, optimizer, scaler, owned, skipped)
            return {**content, "average": copied(self.updates.average.state())}

        self.saver.begin(self.step_number, content, own, full=full, best=best)

    def _check_drained(self, method: str, key: str) -> None:
        if not self.drained:
            raise UserError(
                f"session.{method} was called after step {self.step_number}, while gradients are in flight; "
                f"call it after a loop over session.batches(steps=...), or set {key}"
            )

    def check_model(self) -> None:
        """Checks that training has left the dense model finite, on every trainer.
        Collective over trainers.
        Raises PersiaError if not.
        """
        if self.model is not None:
            self.skips.check_model(self.model)

    def close(self) -> None:
        """Ends the run for all ranks.
        Collective over trainers.
        """
        self.outbox.send()  # a loop of the user's own may have been left early
        if self.saver is not None:
            self.saver.wait()
        self.pooling.staging.close()
        self.stream.close()
        self.reducer.close()

    def wait_seconds(self) -> dict[str, float]:
        """Returns the seconds that this trainer waited, by cause."""
        return {"batch": self.stream.wait_seconds, "allreduce": self.reducer.seconds}
