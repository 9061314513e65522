"""Trains some steps of a configuration in this process, without MPI: for dry runs and the cost model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from persia_hpc.config import Config
from persia_hpc.cost_model.memory import Memory, Room, role_memory
from persia_hpc.cost_model.work import Counting, Counts, batch_work
from persia_hpc.embedding_worker.engine import EmbeddingWorker
from persia_hpc.errors import PersiaError, UserError
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.follow import Follower, portion_source
from persia_hpc.samples.source import FileSource, Source
from persia_hpc.topology.roles import Plan, Role
from persia_hpc.trainer.dense.buckets import divide
from persia_hpc.trainer.device import prepare_device
from persia_hpc.trainer.driver import Driver
from persia_hpc.user_objects import describe

from .facts import facts_of_sources
from .local_stream import LocalStream, local_server
from .sources import open_sources
from .training import make_session

COUNTED_SAMPLES = 1 << 16  # at least, if the data have that many: batches are cut out of these


class Trial:
    """Holds data, tables and model of a configuration, all roles in this process. Writes nothing."""

    def __init__(self, config: Config):
        """Opens the data and makes the tables.

        Raises UserError for bad input.
        """
        self.config = config
        self.sources: dict[str, Source] = dict(open_sources(config))
        if config.data.follow:  # what there is now is the first portion
            train = self.sources["train"]
            self.sources["train"] = portion_source(Follower(config, train.schema).look(), train, config)
        self.facts = facts_of_sources(config, self.sources)
        self.schema, self.layout, self.schedules = self.facts.schema, self.facts.layout, self.facts.schedules
        server = local_server(dataclasses.replace(self.facts, layout=self.layout.without_disk()))
        self.stream = LocalStream(self.facts, self.sources, server)
        self._driver: Driver | None = None
        self._counts: dict[int, Counts] = {}
        self.session = make_session(
            self.facts, self.stream, device=prepare_device(config.train, local_rank=0)
        )

    def first_batch(self) -> RowBatch:
        """Returns the first training batch, with rows as evaluations see them."""
        with self._transforms():
            self.stream.begin_evaluation("train", 0)
            return self.stream.next_evaluation(1)

    @cached_property
    def sample(self) -> SampleBatch:
        """Reads the first samples of the training data, at least a batch if there are that many."""
        source = self.sources["train"]
        count = min(source.num_samples, max(self.config.data.batch_size, COUNTED_SAMPLES))
        return self.stream.splits.drawing.add(source.read(0, count), 0, 0)

    @property
    def row_groups(self) -> list[int]:
        """Returns the rows of all row groups of training data in Parquet; none of data in HDF5."""
        source = self.sources["train"]
        groups = source.row_groups if isinstance(source, FileSource) else ()
        return [rows for file in groups for rows in file]

    def count(self, samples: int) -> Counts:
        """Returns mean counts of batches of `samples`, cut out of the first samples."""
        if samples not in self._counts:
            with self._transforms():
                self._counts[samples] = count_batches(self.stream.worker, self.sample, samples)
        return self._counts[samples]

    @contextmanager
    def _transforms(self) -> Iterator[None]:
        """Lets an exception of `data.transform` be the error that names it."""
        try:
            yield
        except (PersiaError, MemoryError):
            raise
        except Exception as error:
            if self.config.data.transform is None:
                raise
            text = f"data.transform {self.config.data.transform!r} fails on the first samples"
            raise UserError(f"{text}: {describe(error)}") from error

    def memory(self, plan: Plan, counting: Counting | None = None, room: Room | None = None) -> Memory:
        """Returns the bytes of each role of a job of this configuration.

        counting: says how many ids and rows a batch has; they are counted in the data if it is None.
        room: what the plan's nodes have for rings; None if that isn't known.
        """
        samples = self.config.data.batch_size / plan.count(Role.TRAINER)
        counts = (counting or self.count)(max(1, round(samples)))
        groups = self.row_groups
        return role_memory(
            self.config,
            self.layout,
            self.schema,
            plan,
            batch_work(self.config, self.layout, self.schema, samples, counts),
            num_samples=self.sources["train"].num_samples,
            dense_bytes=self.parameter_bytes(),
            block=max(groups, default=0),
            room=room,
        )

    def parameter_bytes(self) -> float:
        """Returns the bytes of the trained parameters as float32."""
        model = self.prepare().model
        return 4.0 * sum(p.numel() for p in model.parameters() if p.requires_grad)

    def bucket_bytes(self) -> tuple[float, ...]:
        """Returns the same bytes by the groups in which gradients are summed over trainers."""
        trained = [p for p in self.prepare().model.parameters() if p.requires_grad]
        groups = divide(trained, self.config.train.bucket_bytes)
        return tuple(4.0 * sum(p.numel() for p in group) for group in groups)

    def prepare(self) -> Driver:
        """Makes the model, unless it is there.

        Raises UserError if that fails.
        """
        if self._driver is None:
            try:
                num_items = self.facts.num_samples.get("items", 0)
                driver = Driver(self.config, self.session.inputs, num_items=num_items)
                self.session.prepare(driver.model)
            except (PersiaError, MemoryError):
                raise
            except Exception as error:  # whatever a user's code raises
                raise self._failure("can't be prepared", error) from error
            self._driver = driver
        return self._driver

    def _failure(self, what: str, error: Exception) -> UserError:
        return UserError(f"model {self.config.model.class_name!r} {what}: {describe(error)}")

    def steps(self, count: int) -> list[dict[str, float]]:
        """Trains the next `count` steps; returns the seconds of each by phase.

        Raises UserError for a model, loss or optimizer that fails, DataError for a damaged file.
        """
        driver = self.prepare()
        found: list[dict[str, float]] = []
        what = "fails before the first batch"
        try:
            begin, before = time.perf_counter(), dict(self.session.phases.seconds)
            for batch in self.session.batches(steps=count):
                where = "the first batch" if batch.step == 1 else f"batch {batch.step}"
                what = f"fails on {where}, of {batch.num_samples} samples"
                outputs, _ = driver.outputs(self.session, batch)
                loss = (
                    "a loss of [tasks]" if self.config.tasks else f"train.loss = {self.config.train.loss!r}"
                )
                what = f"or {loss} fails on {where}"
                self.session.step(driver.loss(outputs, batch))
                if self.session.step_number < batch.step:  # more parts of the step follow
                    continue
                end, now = time.perf_counter(), dict(self.session.phases.seconds)
                step = {phase: seconds - before[phase] for phase, seconds in now.items()}
                found.append({**step, "other": max(0.0, end - begin - sum(step.values()))})
                begin, before = end, now
        except (PersiaError, MemoryError):  # says itself what is wrong, with data for instance
            raise
        except Exception as error:  # whatever a user's code raises
            raise self._failure(what, error) from error
        return found


def count_batches(worker: EmbeddingWorker, sample: SampleBatch, samples: int) -> Counts:
    """Returns mean counts of batches of `samples`, cut out of a `sample` of at least one."""
    size = min(samples, sample.num_samples)
    batches = max(1, sample.num_samples // size)
    layout = worker.layout
    ids, rows, stored = [0.0] * len(layout.features), [0.0] * len(layout.tables), 0.0
    for number in range(batches):
        part = sample.slice(number * size, (number + 1) * size)
        stored += sum(len(column.values) for column in part.ids.values())
        dedup = worker.prepare(part, step=number + 1, trainer=0, num_global=size).dedup
        for f, _ in enumerate(layout.features):
            ids[f] += float(dedup.feature_offsets[f + 1]) - float(dedup.feature_offsets[f])
        for t, _ in enumerate(layout.tables):
            rows[t] += float(dedup.server_offsets[t, -1]) - float(dedup.server_offsets[t, 0])
    # A data set smaller than a batch: as if it had more of the same kind.
    scale = samples / size / batches
    return Counts(tuple(n * scale for n in ids), tuple(n * scale for n in rows), stored * scale)
