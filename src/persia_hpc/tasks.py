"""Says which labels a model learns: those of `[tasks]`, or without them every label of the data.

Shape letters: B samples, L labels of the data, T tasks, O outputs of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from .arrays import Array
from .config import Config
from .config.losses import BINARY_LOSSES
from .errors import UserError
from .samples.schema import DatasetSchema
from .samples.validity import InvalidRowError


@dataclass(frozen=True)
class Task:
    """Describes a task as all ranks see it: columns of the data's labels, and how wide the model's output is.

    where: the label that must be 1 for the task's own to count; None if it always does.
    loss: the name of its loss, which says what labels it takes and what the outputs mean.
    """

    name: str
    label: int
    where: int | None = None
    loss: str = "bce"
    num_outputs: int = 1

    @property
    def outputs(self) -> list[str]:
        """Returns names of the outputs: the task's own, or one for each of its classes."""
        if self.num_outputs == 1:
            return [self.name]
        return [f"{self.name}_{i}" for i in range(self.num_outputs)]

    def labels(self, columns: Array) -> Array:
        """Returns the task's labels, NaN where one is missing or doesn't count.

        Shapes: columns float32 [B, L] in, float32 [B] out.
        Raises InvalidRowError, with its place among these, for a label that its loss can't take.
        """
        labels = columns[:, self.label]
        if self.where is not None:
            where = columns[:, self.where]
            self._check(where, np.isin(where, (0, 1)), "0 or 1 in the label of `where`")
            labels = np.where(where == 1, labels, np.float32(np.nan))
        if self.loss in BINARY_LOSSES:
            self._check(labels, (labels == 0) | (labels == 1), "0 or 1")
        elif self.loss == "softmax":
            fits = (labels >= 0) & (labels < self.num_outputs) & (labels == np.floor(labels))
            self._check(labels, fits, f"a class from 0 to {self.num_outputs - 1}")
        elif self.loss == "poisson":
            self._check(labels, labels >= 0, "a count, 0 or more")
        return labels

    def predictions(self, logits: Array) -> Array:
        """Returns what the outputs predict: probabilities, or with "mse" and "poisson" the label itself.

        With "in_batch_softmax" they are scores.

        Shapes: float32 [B, outputs of the task] in and out.
        """
        if self.loss in ("mse", "in_batch_softmax"):
            return logits
        if self.loss == "poisson":
            return np.exp(logits)
        if self.loss == "softmax":
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares: Array = powers / powers.sum(axis=1, keepdims=True)
            return shares
        probabilities: Array = 1.0 / (1.0 + np.exp(-logits))
        return probabilities

    def _check(self, labels: Array, fits: Array, expected: str) -> None:
        wrong = ~fits & ~np.isnan(labels)
        if wrong.any():
            row = int(wrong.argmax())
            raise InvalidRowError(
                row,
                f"tasks.{self.name}: got a label of {labels[row]:g}, expected {expected} (NaN if it is "
                f"missing), as its loss {self.loss!r} needs; use another, or prepare the data again",
            )


@dataclass(frozen=True)
class Tasks:
    """Holds the tasks in their order; `configured` says whether `[tasks]` names them."""

    each: tuple[Task, ...] = ()
    configured: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the tasks."""
        return tuple(task.name for task in self.each)

    def select(self, columns: Array) -> Array:
        """Returns the labels of all tasks; of data without labels none.

        Shapes: columns float32 [B, L] in, float32 [B, T] out; [B, 0] stays what it is.
        Raises InvalidRowError, with its place among these, for a label that a loss can't take.
        """
        if not self.configured or not columns.shape[1]:
            return columns
        return np.ascontiguousarray(np.stack([task.labels(columns) for task in self.each], axis=1))

    def predictions(self, logits: Array) -> Array:
        """Returns what the outputs of all tasks predict.

        Shapes: float32 [B, O] in and out.
        """
        ends = np.cumsum([task.num_outputs for task in self.each])[:-1]
        parts = zip(self.each, np.split(logits, ends, axis=1), strict=True)
        return np.concatenate([task.predictions(part) for task, part in parts], axis=1)


def make_tasks(config: Config, schema: DatasetSchema) -> Tasks:
    """Returns the tasks in their order; without `[tasks]` one for each label, whose labels are what they are.

    Raises UserError for a task whose labels the data don't have, and for a loss that needs groups that they
    don't have.
    """
    names = schema.label_names
    if "bpr" in config.loss_names and names and not schema.has_group:
        raise UserError(
            'the loss "bpr" compares the samples of a group (a user or a session), but the data have no '
            "/group; prepare them with one, or use another loss"
        )
    if not config.tasks and "in_batch_softmax" in config.loss_names and len(names) > 1:
        raise UserError(
            f'train.loss = "in_batch_softmax" learns one label, but the data have {", ".join(names)}; write '
            'the one as [tasks.LABEL] loss = "in_batch_softmax"'
        )
    if not config.tasks:
        return Tasks(tuple(Task(name, i, loss=config.train.loss) for i, name in enumerate(names)))
    tasks = []
    for name, task in config.tasks.items():
        label = _place(f"tasks.{name}", "label", task.label or name, names)
        where = None if task.where is None else _place(f"tasks.{name}", "where", task.where, names)
        tasks.append(Task(name, label, where, str(task.loss["name"]), task.num_outputs))
    return Tasks(tuple(tasks), configured=True)


def label_check(config: Config, schema: DatasetSchema) -> Callable[[Array], object] | None:
    """Returns what refuses labels as they are read, or None where `data.transform` may still mend them.

    Raises UserError as `make_tasks` does.
    """
    tasks = make_tasks(config, schema)
    return tasks.select if tasks.configured and config.data.transform is None else None


def _place(path: str, key: str, label: str, names: tuple[str, ...]) -> int:
    if label not in names:
        close = get_close_matches(label, names, n=1)
        raise UserError(
            f"{path}: the data have no label {label!r}; set {path}.{key} to one of "
            f"{', '.join(names) or 'none: they have no labels'}"
            + (f"; did you mean {close[0]!r}?" if close else "")
        )
    return names.index(label)
