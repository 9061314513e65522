"""Opens a trained run without MPI: rows of tables, metrics, predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from persia_hpc._native import hash_ids, mix
from persia_hpc.arrays import Array
from persia_hpc.checkpoint.choose import find_checkpoint, say_choice
from persia_hpc.checkpoint.manifest import read_manifest, read_schema
from persia_hpc.checkpoint.rows import load_rows
from persia_hpc.config import load_config
from persia_hpc.config.retrieval import ranked_metrics
from persia_hpc.errors import UserError
from persia_hpc.models import build_model
from persia_hpc.patterns import names_of
from persia_hpc.samples.catalogue import open_catalogue
from persia_hpc.samples.drawn import DrawnSource
from persia_hpc.samples.ids import TextIds, as_ids
from persia_hpc.samples.named import named_samples
from persia_hpc.samples.source import FileSource, Source, check_scorable, open_source
from persia_hpc.tasks import label_check
from persia_hpc.trainer.batch import make_inputs
from persia_hpc.trainer.dense.state import DenseState
from persia_hpc.trainer.metrics import Wanted
from persia_hpc.trainer.session import Session

from .consent import agree_to_import
from .facts import catalogue_columns, check_columns, make_facts
from .importance import Importance, chosen_units, measure, watched_metric
from .local_stream import LocalStream, local_server, rows_of
from .predictions import Columns, check_name, write_predictions
from .scoring import Scorer
from .training import make_session

IMPORTANCE_SAMPLES = 100_000  # by default: enough for an AUC to a thousandth


class LoadedRun:
    """Holds a checkpoint with all its tables in this process's memory; no method changes them."""

    def __init__(self, path: Path, set: Mapping[str, Any] | None = None, *, trust: bool = False):
        """Loads a checkpoint; `set` overrides configuration keys, such as {"data.test": ["other.h5"]}.

        trust: `model`, `evaluate` and `predict` may import the code that another user's run names.
        """
        self._trust = trust
        self.path = find_checkpoint(path)
        say_choice(path)
        manifest = read_manifest(self.path)
        self.config = load_config(manifest["config"], set)
        self.schema = read_schema(manifest)
        self.step: int = manifest["step"]
        facts = make_facts(self.config, self.schema, {})
        self.layout = facts.layout
        self._server = local_server(facts)
        load_rows(self.path, self._server)
        self.inputs = make_inputs(self.layout, self.schema)

    @property
    def tables(self) -> tuple[str, ...]:
        """Returns the names of the embedding tables."""
        return tuple(t.name for t in self.layout.tables)

    def score(self, features: Mapping[str, Any], dense: Any = None) -> Array:
        """Returns what the model predicts for one request or a batch: the numbers that `predict` writes.

        features: of each feature, by name, an id for one request, or a list of B ids for a batch; of a
        multi-hot one a list of ids, or B such lists. An id is an integer as in the dataset, or a text that
        `preprocess` would make one of. A weighted feature is {"ids": ..., "weights": ...}.
        dense: numbers by the names of the dense columns, or in their order, K or [B, K].
        Ids never trained count as zeros. The model is built by the first call; threads take turns.

        Shapes: float32 [O] for one request, [B, O] for a batch, for O outputs as in `predict`.
        Raises UserError for what is missing, unknown or of another form, and as `model` does.
        """
        sample, single = named_samples(
            self.schema, features, dense, self._texts, self.config.features_of_sequences
        )
        scores = self.scorer.predictions(sample)
        return scores[0] if single else scores

    @cached_property
    def _texts(self) -> TextIds:
        return TextIds.of_run(self.schema, self.path.parent)

    @cached_property
    def scorer(self) -> Scorer:
        """Returns what scores samples in memory; it holds the model."""
        rows = rows_of(self.config, self._server)
        return Scorer(self.config, self.layout, self.inputs, self.model(), rows)

    def rows(self, table: str, ids: npt.ArrayLike) -> Array:
        """Returns the embedding vectors of `ids`, zeros for ids never trained.

        In a hashed table other ids may have trained their rows.
        Shapes: ids any integers, as in the dataset; returns [N, D] float32.
        Raises UserError if there is no such table, and for ids that aren't integers.
        """
        if table not in self.tables:
            raise UserError(f"there is no table {table!r}; this checkpoint has: {', '.join(self.tables)}")
        index = self.tables.index(table)
        values = as_ids(ids)
        hashing = self.layout.tables[index].config.hash
        if hashing is not None:
            values = hash_ids(values, rounds=hashing.rounds, size=hashing.size)
        unique, inverse = np.unique(values, return_inverse=True)
        keys = mix(unique)
        order = np.argsort(keys)  # look-ups are in bucket order
        out = np.zeros((len(unique), self.layout.tables[index].dim), np.float32)
        native = self._server.tables[index]
        assert native is not None
        native.lookup(np.ascontiguousarray(keys[order]), out)
        rows = np.empty_like(out)
        rows[order] = out
        found = rows[inverse]
        return found if hashing is None else found.reshape(-1, hashing.rounds, found.shape[1]).sum(axis=1)

    def model(self) -> torch.nn.Module:
        """Returns the dense model with its parameters, or their average (`train.average`), on the CPU.

        Raises DataError for a damaged dense part, UserError for a model with other parameters and for another
        user's run that names code, unless it was loaded with `trust`.
        """
        agree_to_import(self.config, self.path, trust=self._trust)
        model = build_model(self.config.model.class_name, self.inputs, dict(self.config.model.arguments))
        DenseState.read(self.path).load_model(model, averaged=True)
        return model.eval()

    def items(self) -> Iterator[tuple[Array, Array]]:
        """Returns an iterator over ids and vectors of the catalogue's items, `data.items`, in its order.

        Shapes: uint64 [n] and float32 [n, W] at a time.
        Raises UserError without a catalogue, and for a model that is none for retrieval.
        """
        if not self.config.data.items:
            raise UserError("the run has no catalogue: items are the rows of data.items")
        catalogue = open_catalogue(self.config, self.schema, f"the training of {self.path}")
        size, feature = self.config.data.evaluate_batch_size, str(self.config.data.item_feature)
        for begin in range(0, catalogue.num_samples, size):
            sample = catalogue.read(begin, min(begin + size, catalogue.num_samples))
            yield sample.ids[feature].values, self.scorer.items(sample, catalogue.names)

    def evaluate(self, split: str = "test") -> dict[str, Any]:
        """Returns exact metrics on one of the configured splits.

        Raises UserError if there is no data for it, and for data without labels or of another encoding.
        """
        return self._session(self._patterns(split), labels=True).evaluate(split="test")

    def importance(
        self,
        split: str = "test",
        *,
        samples: int = IMPORTANCE_SAMPLES,
        repeats: int = 3,
        seed: int = 1,
        metric: str | None = None,
        only: str | Sequence[str] = (),
    ) -> dict[str, Any]:
        """Returns how much worse a metric gets when the values of one feature are permuted among samples.

        samples: so many of the split, drawn in blocks; 0: all. repeats: permutations of each feature, for a
        standard deviation. metric: one that evaluations report; by default that which the run watches. only:
        names of features, sequences and dense columns; all without any.
        Raises UserError as `evaluate` does, and for a metric that isn't reported or isn't defined.
        """
        for name, value, least in (("samples", samples, 0), ("repeats", repeats, 1), ("seed", seed, 0)):
            if value < least:
                raise UserError(f"--{name} {value}: expected at least {least}")
        inputs = self.inputs
        watched = watched_metric(self.config, inputs, metric)
        if watched.metric in ranked_metrics(self.config):
            raise UserError(
                f"{watched.metric} ranks the whole catalogue, which importance doesn't; name another metric "
                "with --metric, such as auc"
            )
        session = self._session(self._patterns(split), labels=True, draw=(samples, seed))
        units = chosen_units(inputs, names_of(only))
        wanted = dataclasses.replace(Wanted.of(self.config, inputs), slices=())
        return {"split": split, **measure(Importance(session, wanted), units, watched, repeats, seed)}

    def _patterns(self, split: str) -> Sequence[str]:
        patterns = getattr(self.config.data, split, None) if split in ("train", "valid", "test") else None
        if not patterns:
            raise UserError(
                f'there is no data for split {split!r}; set it with --set data.{split}=["file.h5"]'
            )
        return list(patterns)

    def predict(self, data: str | Sequence[str], out: str | Path, columns: str | Sequence[str] = ()) -> int:
        """Writes what the model predicts for all samples of `data`, in order, to `out`; returns their number.

        That are probabilities, or with the losses "mse" and "poisson" the labels. The samples need no labels.
        `.h5`: dataset /probability; `.csv`: one line a sample, a header with the names of the labels or tasks
        (of one with classes `NAME_0`, `NAME_1`...); `.parquet`: a column for each of these.
        columns: of the data, to write beside them: features with one id a sample, "group" and "time".

        Shapes: predictions [N, O] float32 for O outputs: as many as labels, but for classes.
        Raises UserError for another kind of file or unknown columns, and for data of another encoding than
        the model's.
        """
        out, data, columns = Path(out), names_of(data), names_of(columns)
        check_name(out)
        session = self._session(data, labels=False)
        outputs = [name for task in self.layout.tasks.each for name in task.outputs]
        source = self._open(data, labels=False)
        features = Columns.features(columns, source.schema, outputs)
        kinds = {name: "uint64" if name in features else "int64" for name in columns}
        parts = (self.layout.tasks.predictions(logits) for logits, _ in session.predictions(None, "test"))
        return write_predictions(Columns(source, columns).beside(parts), out, outputs, kinds)

    def _open(self, patterns: Sequence[str], *, labels: bool) -> FileSource:
        return open_source(
            list(patterns),
            features=list(self.schema.feature_names),
            sequences=self.config.features_of_sequences,
            schema_file=self.config.data.schema,
            labels=labels,
        )

    def _session(
        self, patterns: Sequence[str], *, labels: bool, draw: tuple[int, int] | None = None
    ) -> Session:
        """Returns a session whose split "test" are the samples of these files.

        draw: only so many samples (0: all), drawn by a seed, as a single batch.
        """
        source = self._open(patterns, labels=labels)
        check_scorable(source, self.schema, f"the training of {self.path}", labels=labels)
        check_columns(self.config, source.schema, source.encodings[0][0], labels=labels)
        source.check_labels_by(label_check(self.config, self.schema) if labels else None)
        source.check_sequences()
        model = self.model()  # before anything else that the run names is imported
        sync = dataclasses.replace(self.config, mode="sync", staleness_bound=0)
        samples: Source = source
        if draw is not None:
            samples = DrawnSource(source, draw[0] or source.num_samples, draw[1])
            data = dataclasses.replace(sync.data, evaluate_batch_size=max(1, samples.num_samples))
            sync = dataclasses.replace(sync, data=data)
        sources = {"test": samples}
        if labels and ranked_metrics(self.config):
            sources["items"] = open_catalogue(self.config, self.schema, f"the training of {self.path}")
        counts = {split: each.num_samples for split, each in sources.items()}
        facts = make_facts(sync, self.schema, counts, catalogue=catalogue_columns(sources))
        if not labels:  # whatever labels these samples have
            tasks = dataclasses.replace(facts.layout.tasks, configured=False)
            facts = dataclasses.replace(facts, layout=dataclasses.replace(facts.layout, tasks=tasks))
        stream = LocalStream(facts, sources, self._server)
        session = make_session(facts, stream, device=torch.device("cpu"))
        session.prepare(model)
        return session
