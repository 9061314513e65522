"""Reads what a run exports while it trains: rows, pooled vectors and predictions of the newest version."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import struct
import threading
import time
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from persia_hpc._native import hash_ids, lookup_served, mix
from persia_hpc.arrays import Array
from persia_hpc.embedding_worker.engine import EmbeddingWorker
from persia_hpc.errors import DataError, PersiaError, UserError
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.samples.catalogue import Drawing
from persia_hpc.samples.ids import TextIds, as_ids
from persia_hpc.samples.named import named_samples
from persia_hpc.serving.follower import Follower
from persia_hpc.serving.names import PROGRESS
from persia_hpc.serving.one_hot import OneHot
from persia_hpc.serving.side import Served, Side
from persia_hpc.table_layout import FeatureLayout, Layout

from .consent import agree_to_import

if TYPE_CHECKING:
    from .scoring import Scorer

LOG = logging.getLogger("persia_hpc")
POLL_SECONDS = 0.02  # between two looks for a newer version
RETRY_SECONDS = 1.0  # after one that can't be read
_PROGRESS = struct.Struct("<qd")


@dataclasses.dataclass(frozen=True)
class Answer:
    """Holds what was asked for, and of which version it is.

    age_steps: how many steps training had gone on since that version; None if it doesn't say.
    age_seconds: since the version's rows were taken.
    """

    values: Any
    version: int
    step: int
    age_steps: int | None
    age_seconds: float


class Reader:
    """Answers from an export directory, read-only; it goes on to newer versions by itself.

    Files are mapped, so that processes of a host share their memory. Threads may share a reader.
    """

    def __init__(self, directory: str | Path, *, follow: bool = True, trust: bool = False) -> None:
        """Opens the newest version of what a run writes to its `export.dir`.

        follow: a thread looks for newer versions; else `refresh` does. trust: the code that the run names,
        such as its model, may be imported although it is another user's run.
        Raises UserError if there is no version, DataError if it is damaged.
        """
        self.directory = Path(directory)
        self.problem = ""  # why the newest version can't be read; an older one answers
        self._trust = trust
        self._predicts = False
        self._agreed: Served | None = None  # whose code may be imported
        self._worker_of: tuple[Served, EmbeddingWorker, Drawing] | None = None  # of the base before, or this
        self._one_hot_of: tuple[Served, OneHot | None] | None = None
        self._turn = threading.Lock()
        self._updating = threading.Lock()
        self._closed = threading.Event()
        self._progress = _Progress(self.directory / PROGRESS)
        self._follower = Follower(self.directory, self._prepare)
        if follow:
            thread = threading.Thread(target=self._follow, name="persia-reader", daemon=True)
            thread.start()
            # At the end of Python, which ends a daemon in native code, and with it the process, by SIGABRT.
            weakref.finalize(self, _end, self._closed, thread)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops following; the reader goes on answering."""
        self._closed.set()

    def refresh(self) -> bool:
        """Goes on to the newest version; returns whether there is a newer one than before.

        Raises DataError if that can't be read, UserError if it has a format of another package, or its
        model can't be loaded; then the one before goes on answering.
        """
        with self._updating:
            newer = self._follower.update()
        self.problem = ""
        return newer

    def _follow(self) -> None:
        while not self._closed.wait(RETRY_SECONDS if self.problem else POLL_SECONDS):
            try:
                self.refresh()
            except (PersiaError, OSError) as error:
                if str(error) != self.problem:
                    LOG.warning("%s; version %d goes on answering", error, self._follower.number)
                self.problem = str(error)

    @property
    def version(self) -> Answer:
        """Returns the version that answers, with its age and no values."""
        with self._follower.side() as side:
            return self._answer(side, None)

    @property
    def tables(self) -> tuple[str, ...]:
        """Returns the names of the embedding tables."""
        with self._follower.side() as side:
            return tuple(table.name for table in side.served.layout.tables)

    def rows(self, table: str, ids: npt.ArrayLike) -> Answer:
        """Returns the embedding vectors of `ids`, zeros for ids never trained.

        In a hashed table other ids may have trained their rows.
        Shapes: ids any integers, as in the dataset; the values are [N, D] float32.
        Raises UserError if there is no such table, and for ids that aren't integers.
        """
        values = as_ids(ids)
        with self._follower.side() as side:
            layout = side.served.layout
            index = next((i for i, t in enumerate(layout.tables) if t.name == table), None)
            if index is None:
                known = ", ".join(t.name for t in layout.tables)
                raise UserError(f"there is no table {table!r}; this run has: {known}")
            hashing = layout.tables[index].config.hash
            if hashing is not None:
                values = hash_ids(values, rounds=hashing.rounds, size=hashing.size)
            found = np.empty((len(values), layout.tables[index].dim), np.float32)
            side.tables[index].lookup(mix(values), found)
            answer = self._answer(side, found)
        if hashing is None:
            return answer
        summed = found.reshape(-1, hashing.rounds, found.shape[1]).sum(axis=1)
        return dataclasses.replace(answer, values=summed)

    def pooled(self, features: Mapping[str, Any]) -> Answer:
        """Returns what the model would get of each feature, but of those that it gets as sequences.

        features: of each feature, by name, an id for one request, or a list of B ids for a batch; of a
        multi-hot one a list of ids, or B such lists; see `LoadedRun.score`.

        Shapes: the values are by feature [D] for one request, [B, D] for a batch, float32.
        Raises UserError for what is missing, unknown or of another form.
        """
        with self._follower.side() as side:
            served = side.served
            one_hot = self._one_hot(served)
            if one_hot is not None and (found := one_hot.pooled(side, features)) is not None:
                return self._answer(side, found)
            schema = dataclasses.replace(served.schema, dense_names=())
            sample, single = named_samples(
                schema, features, None, self._texts(served), served.config.features_of_sequences
            )
            with self._turn:
                worker, drawing = self._worker(served)
                if drawing.names:
                    sample = drawing.add_none(sample)
                batch = worker.prepare(
                    sample, step=1, trainer=0, num_global=sample.num_samples, evaluation=True
                )
                request = worker.request(batch)
                answer = _rows(side, request.keys.part(0), request.counts.part(0))
                rows = worker.assemble(batch, answer)
            values = pooled_vectors(served.layout, rows)
            return self._answer(side, {n: v[0] for n, v in values.items()} if single else values)

    def predict(self, features: Mapping[str, Any], dense: Any = None) -> Answer:
        """Returns what the model predicts for one request or a batch, as `LoadedRun.score` does.

        The model, and torch with it, is loaded by the first call.

        Shapes: the values are float32 [O] for one request, [B, O] for a batch, for O outputs.
        Raises UserError as `pooled` does, and for another user's run that names code, without `trust`.
        """
        with self._follower.side() as side:
            served = side.served
            sample, single = named_samples(
                served.schema, features, dense, self._texts(served), served.config.features_of_sequences
            )
            self._load(side)
            self._predicts = True  # so newer versions get theirs before they answer
            scores = side.more.scorer.predictions(sample)
            return self._answer(side, scores[0] if single else scores)

    def _worker(self, served: Served) -> tuple[EmbeddingWorker, Drawing]:
        if self._worker_of is None or self._worker_of[0] is not served:
            config = served.config
            if config.data.transform is not None:
                self._agree(served)
            worker = EmbeddingWorker(served.layout, seed=config.seed, transform=config.data.transform)
            self._worker_of = served, worker, Drawing(config, None)
        return self._worker_of[1:]

    def _one_hot(self, served: Served) -> OneHot | None:
        known = self._one_hot_of
        if known is None or known[0] is not served:
            self._one_hot_of = known = served, OneHot.of(served)
        return known[1]

    def _agree(self, served: Served) -> None:
        """Says, once, which code of the run is imported."""
        if self._agreed is not served:
            agree_to_import(served.config, self.directory, trust=self._trust)
            self._agreed = served

    def _texts(self, served: Served) -> TextIds:
        content = served.encoding
        fits = content is not None and content.get("digest") == served.schema.encoding
        return TextIds(served.schema.encoding, content if fits else None)

    def _prepare(self, side: Side) -> None:
        """Loads the model of a newer version, if there were predictions of an older one.

        Opens the file of training's progress anew if the run was started again, or is another one.
        """
        export = side.served.export
        if self._progress.export != export:
            self._progress = _Progress(self.directory / PROGRESS, export)
        if self._predicts:
            self._load(side)

    def _load(self, side: Side) -> None:
        """Loads the model of a version if it isn't there."""
        if side.more is None or side.more.served is not side.served:
            self._agree(side.served)
            side.keep(_Scoring(side))
        side.more.load(side)

    def _answer(self, side: Side, values: Any) -> Answer:
        version = side.version
        reached = self._progress.step()
        age_steps = None if reached is None else max(0, reached - version["step"])
        age_seconds = max(0.0, time.time() - version["time"])
        return Answer(values, version["version"], version["step"], age_steps, age_seconds)


class _Progress:
    """Is the file in which a run says how far it is; closed when no thread needs it."""

    def __init__(self, path: Path, export: str = "") -> None:
        """export: the id of the run's start."""
        self.export = export
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)

    def step(self) -> int | None:
        """Returns the last step of training, None if nothing says it."""
        told = b"" if self._file is None else os.pread(self._file, _PROGRESS.size, 0)
        return int(_PROGRESS.unpack(told)[0]) if len(told) == _PROGRESS.size else None


def _end(closed: threading.Event, thread: threading.Thread) -> None:
    closed.set()
    thread.join()


class _Scoring:
    """Holds the model of a side, with the dense part of one version."""

    def __init__(self, side: Side) -> None:
        """Builds the model.

        Raises UserError for what can't be imported or built.
        """
        from persia_hpc.models import build_model
        from persia_hpc.trainer.batch import make_inputs

        from .scoring import Scorer

        self.served = side.served
        config, layout = self.served.config, self.served.layout
        inputs = make_inputs(layout, self.served.schema)
        self._model = build_model(config.model.class_name, inputs, dict(config.model.arguments))
        self.scorer: Scorer = Scorer(config, layout, inputs, self._model, partial(_rows, side))
        self._number = 0

    def load(self, side: Side) -> None:
        """Gives the model what the side's version has."""
        import torch

        from persia_hpc.trainer.dense.state import DenseState

        if self._number == side.number:
            return
        content = io.BytesIO(side.dense())
        try:
            state = DenseState.of(torch.load(content, map_location="cpu", weights_only=True))
            state.load_model(self._model, averaged=True)
        except UserError:
            raise
        except Exception as error:  # torch says very different things
            raise DataError(
                f"the dense part of version {side.number} can't be read ({' '.join(str(error).split())})"
            ) from error
        self._model.eval()
        self._number = side.number


def _rows(side: Side, keys: Array, counts: Array) -> list[Array]:
    """Returns the rows of keys for each dim group, [U_g, D_g]."""
    layout = side.served.layout
    groups = layout.dim_group_of_table
    sizes = [0] * len(layout.dim_groups)
    for group, count in zip(groups, counts.tolist(), strict=True):
        sizes[group] += count
    out = [np.empty((n, d), np.float32) for n, d in zip(sizes, layout.dim_groups, strict=True)]
    lookup_served(side.tables, keys, counts, groups, out)
    return out


def pooled_vectors(layout: Layout, batch: RowBatch) -> dict[str, Array]:
    """Returns the pooled vectors of each feature that isn't a sequence, by name.

    Shapes: [B, D] float32.
    """
    bounds = batch.feature_offsets.tolist()
    found: dict[str, Array] = {}
    for i, feature in enumerate(layout.features):
        if feature.pooling in ("sequence", "jagged"):
            continue
        group = layout.tables[feature.table].dim_group
        rows = batch.rows[group][batch.indices[bounds[i] : bounds[i + 1]]]
        name = feature.shares or feature.name
        if not feature.multi:
            found[feature.name] = rows
            continue
        offsets = batch.bag_offsets[name].astype(np.int64)
        if feature.name in batch.id_weights:
            rows = rows * batch.id_weights[feature.name][:, None]
        found[feature.name] = _pooled(feature, rows, offsets)
    return found


def _pooled(feature: FeatureLayout, rows: Array, offsets: Array) -> Array:
    counts = np.diff(offsets)
    sums = np.zeros((len(counts), rows.shape[1]), np.float32)
    filled = counts > 0
    if filled.any():
        sums[filled] = np.add.reduceat(rows, offsets[:-1][filled], axis=0)
    ids = np.maximum(counts // feature.rounds, 1)[:, None].astype(np.float32)
    if feature.pooling == "mean" and not feature.weighted:
        sums /= ids
    if feature.pooling == "sqrtn":
        sums /= np.sqrt(ids)
    return sums
