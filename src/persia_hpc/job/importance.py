"""Measures how much a trained model relies on each feature, by permuting its values among samples.

That is the permutation importance of Breiman ("Random forests", Machine Learning 45, 2001).

B samples, N ids of a jagged feature.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persia_hpc.arrays import Array
from persia_hpc.config import Config
from persia_hpc.config.metric_names import asked_metrics, watch_problem
from persia_hpc.config.options import did_you_mean
from persia_hpc.config.watching import Watched, best_metric, watchable_names
from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch, Inputs
from persia_hpc.trainer.jagged import Jagged
from persia_hpc.trainer.metrics import Metrics, Wanted, evaluate_metrics
from persia_hpc.trainer.parts import cut
from persia_hpc.trainer.session import Session

AT_ONCE = 2048  # samples of a forward: more of them take longer each, as they leave the caches


@dataclass(frozen=True)
class Unit:
    """Holds what is permuted together: an id feature, all features of a sequence, or a dense column."""

    name: str
    kind: str  # feature, sequence or dense
    features: tuple[str, ...] = ()
    column: int = 0


def units_of(inputs: Inputs) -> list[Unit]:
    """Returns what is permuted: features in their order, sequences at their first feature, dense columns."""
    units: dict[tuple[str, str], Unit] = {}
    for feature in inputs.features:
        if feature.like is not None:
            continue  # nothing is drawn for samples that are evaluated
        if feature.sequence is None:
            units["feature", feature.name] = Unit(feature.name, "feature", (feature.name,))
        elif ("sequence", feature.sequence) not in units:
            together = inputs.features_of(feature.sequence)
            units["sequence", feature.sequence] = Unit(feature.sequence, "sequence", together)
    dense = [Unit(name, "dense", column=column) for column, name in enumerate(inputs.dense_names)]
    return [*units.values(), *dense]


def chosen_units(inputs: Inputs, names: Sequence[str]) -> list[Unit]:
    """Returns the units of these names, or all if there are none.

    Raises UserError for a name that none has.
    """
    units = units_of(inputs)
    known = [unit.name for unit in units]
    for name in names:
        if name not in known:
            raise UserError(
                f"--only {name}: expected what the model has: {', '.join(known)}{did_you_mean(name, known)}"
            )
    return [unit for unit in units if not names or unit.name in names]


def permuted(part: Batch, whole: Batch, unit: Unit, rows: Tensor) -> Batch:
    """Returns samples of a batch with the values that other samples have in one unit.

    part: the samples. whole: the batch that they are of. rows: of each of them the sample of `whole` whose
    values it gets.

    Shapes: rows int64 [B of the part].
    """
    if unit.kind == "dense":
        dense = part.dense.clone()
        dense[:, unit.column] = whole.dense[rows, unit.column]
        return replace(part, dense=dense)
    blocks, pooled = dict(part.blocks), dict(part.pooled)
    for names, block in whole.blocks.items():
        mine = [place for place, name in enumerate(names) if name in unit.features]
        if mine:
            changed = part.blocks[names].clone()
            for place in mine:
                changed[:, place] = block[rows, place]
            blocks[names] = changed
            pooled.update(zip(names, changed.unbind(1), strict=True))
    sequence, jagged = dict(part.sequence), dict(part.jagged)
    places: dict[int, tuple[Jagged, Tensor]] = {}  # of features of one sequence the very same
    for name in unit.features:
        if name in sequence:
            values, mask = whole.sequence[name]
            sequence[name] = (values[rows], mask[rows])
        elif name in jagged:
            feature = whole.jagged[name]
            if id(feature.offsets) not in places:
                places[id(feature.offsets)] = feature.taken(rows)
            own, ids = places[id(feature.offsets)]
            weights = None if feature.weights is None else feature.weights[ids]
            jagged[name] = replace(own, values=feature.values[ids], weights=weights)
    return replace(part, blocks=blocks, pooled=pooled, sequence=sequence, jagged=jagged)


class Importance:
    """Holds samples with their embeddings, looked up once, and what a model makes of them."""

    def __init__(self, session: Session, wanted: Wanted) -> None:
        """Looks the samples up: the only evaluation batch of the session's split "test"."""
        session.stream.begin_evaluation("test", session.step_number)
        row_batch = session.stream.next_evaluation(1)
        self.num_samples = row_batch.num_samples
        with torch.no_grad():
            self._batch, gradients = session.pooling.embed(row_batch, training=False)
        gradients.wait()
        self._labels = np.array(row_batch.labels)
        self._weight = None if row_batch.weight is None else np.array(row_batch.weight)
        self._group = None if row_batch.group is None else np.array(row_batch.group)
        row_batch.release()
        self._session, self._wanted = session, wanted

    def metrics(self, unit: Unit | None = None, order: Array | None = None) -> Metrics:
        """Returns metrics of the samples; with a unit, where sample i has what `order[i]` has in it.

        Shapes: order int64 [B].
        """
        logits = np.concatenate([self._forward(part) for part in self._parts(unit, order)])
        return evaluate_metrics(logits, self._labels, self._weight, self._group, self._wanted)

    def _forward(self, part: Batch) -> Array:
        with torch.no_grad():
            return self._session.forward(part).cpu().numpy().reshape(part.num_samples, -1)

    def _parts(self, unit: Unit | None, order: Array | None) -> Iterator[Batch]:
        for begin in range(0, self.num_samples, AT_ONCE):
            end = min(begin + AT_ONCE, self.num_samples)
            part = cut(self._batch, begin, end)
            if unit is None or order is None:
                yield part
            else:
                yield permuted(part, self._batch, unit, torch.from_numpy(order[begin:end]))


def watched_metric(config: Config, inputs: Inputs, metric: str | None) -> Watched:
    """Returns the metric to compare by: `metric`, else what the run watches, else the first it reports.

    Raises UserError for one that evaluations don't report.
    """
    names, asked = watchable_names(config, inputs.labels), asked_metrics(config)
    if metric is None:
        watched = best_metric(config)
        return watched if watched.metric in names else Watched.of({"metric": names[0]}, asked)
    if metric not in names:
        raise UserError(
            f"--metric {metric}: expected one that evaluations of this run report: {', '.join(names)}"
            f"{did_you_mean(metric, names)}; more are computed with --set 'train.metrics=[\"gauc\"]'"
        )
    if unwatchable := watch_problem(metric, asked):
        raise UserError(f"--metric {metric}: {unwatchable}")
    return Watched.of({"metric": metric}, asked)


def measure(
    importance: Importance, units: Sequence[Unit], watched: Watched, repeats: int, seed: int
) -> dict[str, Any]:
    """Returns how much worse the metric gets by permuting each unit, the most important first.

    Raises UserError if the metric isn't defined on the samples.
    """
    base = _value(importance.metrics(), watched)
    sign = 1 if watched.mode == "max" else -1
    found: list[dict[str, Any]] = []
    for unit in units:
        drops = []
        for repeat in range(repeats):
            random = np.random.default_rng([seed, repeat])  # the same orders for all
            order = random.permutation(importance.num_samples)
            drops.append(sign * (base - _value(importance.metrics(unit, order), watched)))
        spread = statistics.stdev(drops) if repeats > 1 else None
        entry = {"name": unit.name, "kind": unit.kind, "drop": statistics.fmean(drops), "std": spread}
        together = {"features": list(unit.features)} if unit.kind == "sequence" else {}
        found.append({**entry, "drops": drops, **together})
    found.sort(key=lambda entry: -entry["drop"])
    return {
        "metric": watched.metric,
        "mode": watched.mode,
        "value": base,
        "samples": importance.num_samples,
        "repeats": repeats,
        "seed": seed,
        "features": found,
    }


def _value(metrics: Metrics, watched: Watched) -> float:
    value = metrics.get(watched.metric)
    if value is None:
        why = metrics.get("undefined", {}).get(watched.metric, "no label is learned that has it")
        raise UserError(
            f"{watched.metric} isn't defined on these {metrics['samples']} samples: {why}; name another one "
            "with --metric, or take more samples"
        )
    return float(value)
