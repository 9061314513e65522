"""Computes the losses of `train.loss` and `[tasks]`, per sample; a missing label (NaN) changes no gradient.

B samples, L labels, K outputs of a task.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from persia_hpc.config import Config
from persia_hpc.config.losses import LOSSES
from persia_hpc.errors import UserError
from persia_hpc.user_objects import load_object

from .batch import Batch

Loss = Callable[[Tensor, Batch], Tensor]


def bce(logits: Tensor, labels: Tensor, *, smoothing: float, pos_weight: float) -> Tensor:
    """Computes the binary cross-entropy of a sigmoid's logits.

    smoothing: the share of a label that is given to both values alike, y (1 - s) + s / 2 (Szegedy et al.,
    "Rethinking the Inception architecture", CVPR 2016, section 7). pos_weight: the factor of y log p, as
    `torch.nn.BCEWithLogitsLoss` has it.

    Shapes: any, the same for all.
    """
    if smoothing:
        labels = labels * (1 - smoothing) + smoothing / 2
    factor = logits.new_full((), pos_weight) if pos_weight != 1 else None
    return functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=factor, reduction="none")


def focal(logits: Tensor, labels: Tensor, *, gamma: float, alpha: float) -> Tensor:
    """Computes the focal loss, -a (1 - p)^gamma log p for p the probability of the true value.

    a is `alpha` for positives and 1 - alpha for negatives (Lin et al., ICCV 2017, equation 5).

    Shapes: any, the same for all.
    """
    losses = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    wrong = torch.sigmoid(torch.where(labels == 1, -logits, logits))  # 1 - p
    return torch.where(labels == 1, alpha, 1 - alpha) * wrong**gamma * losses


def mse(outputs: Tensor, labels: Tensor) -> Tensor:
    """Computes the squared error of outputs that are the predictions themselves.

    Shapes: any, the same for all.
    """
    return (outputs - labels).square()


def poisson(logs: Tensor, labels: Tensor) -> Tensor:
    """Computes the negative log-likelihood of counts, up to a constant, from the logarithm of their rate.

    Shapes: any, the same for all.
    """
    return logs.exp() - labels * logs


def softmax(logits: Tensor, labels: Tensor, *, classes: float, smoothing: float) -> Tensor:
    """Computes the cross-entropy of classes.

    Shapes: logits [B, K] for K `classes` and labels [B] in, [B] out.
    """
    return functional.cross_entropy(logits, labels.long(), reduction="none", label_smoothing=smoothing)


def bpr(scores: Tensor, labels: Tensor, group: Tensor) -> Tensor:
    """Computes the pairwise loss -log sigmoid(s_i - s_j) of Bayesian personalised ranking.

    That is equation 4 of Rendle et al. (UAI 2009) without its regularisation. i is a positive, j a negative
    of the same group among the samples of this trainer's batch. A positive has the mean over its negatives;
    0 if there are none, and so has a negative. Samples with another label (-1) have no part.

    Shapes: all [B].
    """
    positives, negatives = (labels == 1).nonzero()[:, 0], (labels == 0).nonzero()[:, 0]
    ordered, order = group[negatives].sort(stable=True)
    wanted = group[positives].contiguous()
    first = torch.searchsorted(ordered, wanted)
    counts = torch.searchsorted(ordered, wanted, right=True) - first
    pair = torch.repeat_interleave(torch.arange(len(positives), device=scores.device), counts)
    begins = counts.cumsum(0) - counts
    place = torch.arange(len(pair), device=scores.device) - begins[pair] + first[pair]
    margins = scores[positives[pair]] - scores[negatives[order[place]]]
    each = functional.softplus(-margins) / counts[pair]
    return torch.zeros_like(scores).index_add(0, positives[pair], each)


def load_loss(name: str, options: Mapping[str, Any] | None = None, key: str = "train.loss") -> Loss:
    """Returns a built-in loss or the user's function `module:function`, called as f(logits, batch).

    options: of a built-in one; its defaults if there are none. key: what names it, for messages.

    Shapes: logits [B, L], or [B, K] of one task; result [B] or [B, L].
    Raises UserError for a function that can't be imported.
    """
    if ":" in name:
        return cast(Loss, load_object(name, key))
    if name == "in_batch_softmax":
        raise UserError(
            f'{key} = "in_batch_softmax" is no function of logits: it learns from what a retrieval model\'s '
            "`matches` returns"
        )
    given = dict(LOSSES[name] if options is None else options)
    if name == "bpr":
        return lambda logits, batch: _each_column(logits, batch)
    functions: Mapping[str, Callable[..., Tensor]] = {
        "bce": bce,
        "focal": focal,
        "mse": mse,
        "poisson": poisson,
        "softmax": softmax,
    }
    function = functions[name]

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        """Leaves missing labels out. The mean isn't taken over the others instead: see `Session.step`."""
        missing = batch.labels.isnan()
        labels = batch.labels.masked_fill(missing, 0.0)
        if name != "bce":  # whose gradient of a finite label is finite everywhere
            logits = logits.masked_fill(missing, 0.0)
        if name == "softmax":
            missing, labels = missing[:, 0], labels[:, 0]
        return function(logits, labels, **given).masked_fill(missing, 0.0)

    return loss


def _each_column(logits: Tensor, batch: Batch) -> Tensor:
    assert batch.group is not None, "checked at the start"
    labels = batch.labels.nan_to_num(nan=-1.0)
    columns = [bpr(logits[:, i], labels[:, i], batch.group) for i in range(logits.shape[1])]
    return torch.stack(columns, dim=1)


class TaskLosses:
    """Adds up the losses of all tasks, each times its weight."""

    def __init__(self, config: Config) -> None:
        """Imports what the tasks name.

        Raises UserError for a function that can't be imported.
        """
        self._parts: list[tuple[str, Loss, int, float]] = []
        for name, task in config.tasks.items():
            options = {key: value for key, value in task.loss.items() if key != "name"}
            loss = load_loss(str(task.loss["name"]), options, f"tasks.{name}.loss")
            self._parts.append((name, loss, task.num_outputs, task.weight))

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns the weighted sum of the tasks' losses for each sample.

        Shapes: logits [B, all tasks' outputs] in, [B] out.
        Raises UserError for a function of the user's that gives something else.
        """
        total: Tensor | None = None
        begin = 0
        for i, (name, loss, width, weight) in enumerate(self._parts):
            own = dataclasses.replace(batch, labels=batch.labels[:, i : i + 1])
            losses = loss(logits[:, begin : begin + width], own)
            begin += width
            if losses.shape[:1] != (batch.num_samples,):
                raise UserError(
                    f"tasks.{name}.loss: the function returned shape {tuple(losses.shape)}, expected a loss "
                    f"for each of {batch.num_samples} samples"
                )
            part = losses.reshape(batch.num_samples, -1).mean(dim=1)
            if weight != 1:
                part = part * weight
            total = part if total is None else total + part
        assert total is not None
        return total


def make_loss(config: Config) -> Loss:
    """Returns the loss that a configuration trains on: that of its tasks, or `train.loss` of all labels.

    Of training data that have only the share w of their negatives it learns p = sigmoid(z - log w) instead of
    sigmoid(z). So the logits z are those of all data, whoever takes them: sigmoid(z) = p / (p + (1 - p) / w)
    (He et al., "Practical lessons from predicting clicks on ads at Facebook", ADKDD 2014, section 6.3).
    Raises UserError for a function that can't be imported.
    """
    loss = TaskLosses(config) if config.tasks else load_loss(config.train.loss)
    if config.data.keep_negatives == 1:
        return loss
    shift = math.log(config.data.keep_negatives)
    return lambda logits, batch: loss(logits - shift, batch)
