"""Defines how retrieval models are trained: queries, the items that are right for them, and a softmax loss.

A retrieval model is a module with three more methods than others:

- `queries(batch)` and `items(batch)` return vectors [B, W]: what a sample asks for, and its item. The score
  of a pair is their inner product. A catalogue is ranked by them.
- `matches(batch)` returns the `Matches` of a training batch.

Its `forward(batch)` returns the score of each sample's own pair, [B, 1].

B samples, P positions, W width, C sampled negatives of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from persia_hpc.errors import UserError

from .batch import Batch

METHODS = ("queries", "items", "matches")


@dataclass(frozen=True)
class Matches:
    """Holds what a retrieval model learns from a batch: a query at each position, and its right item.

    A position is a sample, or with `samples` a place in a sample's sequence. `ids` and `negative_ids` tell
    items apart: equal for equal items (`Batch.ids`). `negatives` are a sample's own, for all its positions.
    `log_q` and `negative_log_q` are logarithms of how often training has an item (`Batch.log_q`).

    Shapes: queries, positives [P, W]; ids int64 [P]; samples int64 [P], ascending, or None where P is B;
    negatives [B, C, W] and negative_ids int64 [B, C], or None; log_q [P], negative_log_q [B, C], or None.
    """

    queries: Tensor
    positives: Tensor
    ids: Tensor
    samples: Tensor | None = None
    negatives: Tensor | None = None
    negative_ids: Tensor | None = None
    log_q: Tensor | None = None
    negative_log_q: Tensor | None = None

    def scores(self) -> Tensor:
        """Returns the inner product of each query and its right item, float32 [P]."""
        return (self.queries.float() * self.positives.float()).sum(dim=1)

    def per_sample(self, values: Tensor, num_samples: int) -> Tensor:
        """Returns values of samples whose mean is that of the values of all positions.

        Shapes: values [P] in, [B] out.
        """
        if self.samples is None:
            return values
        total = values.new_zeros(num_samples).index_add(0, self.samples, values)
        return total * (num_samples / max(1, len(values)))


def check_matches(matches: Any, num_samples: int) -> None:
    """Checks what a model's `matches` has returned: its type, and that shapes fit together and the batch.

    Raises UserError if they don't.
    """
    if not isinstance(matches, Matches):
        raise UserError(
            f"the model's `matches` returned {type(matches).__name__}, expected persia_hpc.trainer.retrieval"
            ".Matches"
        )
    count, width = matches.queries.shape if matches.queries.dim() == 2 else (-1, -1)
    expected: dict[str, tuple[int, ...]] = {"positives": (count, width), "ids": (count,)}
    if matches.samples is not None:
        expected["samples"] = (count,)
    elif count != num_samples:
        expected["queries"] = (num_samples, width)
    if matches.log_q is not None:
        expected["log_q"] = (count,)
    if matches.negatives is not None:
        drawn = tuple(matches.negatives.shape[1:2])
        expected["negatives"] = (num_samples, *drawn, width)
        expected["negative_ids"] = (num_samples, *drawn)
    if matches.negative_log_q is not None:
        expected["negative_log_q"] = expected.get("negative_ids", ())
    for name, shape in expected.items():
        value = getattr(matches, name)
        got = None if value is None else tuple(value.shape)
        if got != shape or count < 0:
            raise UserError(
                f"the model's matches have {name} of shape {got}, expected {shape}, for queries of shape "
                f"{tuple(matches.queries.shape)} and {num_samples} samples"
            )


class RetrievalModel(Protocol):
    """Is a module that has these methods besides `forward`; see above."""

    def queries(self, batch: Batch, /) -> Tensor:
        """Returns what samples ask for, [B, W]."""

    def items(self, batch: Batch, /) -> Tensor:
        """Returns the items of samples, [B, W]."""

    def matches(self, batch: Batch, /) -> Matches:
        """Returns what is learned from a training batch."""


def check_model(model: nn.Module, why: str) -> RetrievalModel:
    """Returns a model as the retrieval model that it is. why: what needs one, for the message.

    Raises UserError if it is none.
    """
    missing = [name for name in METHODS if not callable(getattr(model, name, None))]
    if missing:
        raise UserError(
            f"{why} needs a retrieval model, but {type(model).__name__} has no method {missing[0]!r}; use "
            'model.class = "two_tower", "sasrec" or "hstu" without `hidden`, or a module of your own with '
            "queries, items and matches"
        )
    return cast(RetrievalModel, model)


def in_batch_softmax(
    matches: Matches,
    *,
    temperature: float = 1.0,
    logq: bool = False,
    negatives: str = "batch",
    num_items: int = 0,
) -> Tensor:
    """Computes -log softmax of each query's right item among this trainer's other items of the batch.

    The scores are inner products over `temperature`. Candidates that are the right item once more (accidental
    hits) don't count.

    negatives: "batch" are the right items of other positions, "sampled" those of `matches.negatives`, which
    are drawn uniformly from `num_items`; "both" are all of them.

    logq: takes log p from each score, the right one's too, after the division by `temperature`, for p the
    chance that others have the item in a batch: equation 3 of Yi et al. ("Sampling-bias-corrected neural
    modeling", RecSys 2019). p says whether a batch has an item, not how often, so each item counts once. Then
    the best scores are log-probabilities up to a constant of the query. With "sampled" p is the same for all.

    Shapes: float32 [P].
    """
    queries, positives = matches.queries.float() / temperature, matches.positives.float()
    logq = logq and negatives != "sampled"
    columns: list[Tensor] = []
    if negatives != "sampled":
        scores = queries @ positives.T
        same = matches.ids[:, None] == matches.ids
        out = same | same.tril(-1).any(dim=1) if logq else same  # an item that came before
        out.fill_diagonal_(False)
        if logq:
            scores = scores - _log_chance(matches, matches.log_q, negatives, num_items)
        columns.append(scores.masked_fill(out, -torch.inf))
        target = torch.arange(len(queries), device=queries.device)
    else:
        columns.append((queries * positives).sum(dim=1, keepdim=True))
        target = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    if negatives != "batch":
        columns.append(_sampled_scores(matches, queries, logq=logq, num_items=num_items))
    return functional.cross_entropy(torch.cat(columns, dim=1), target, reduction="none")


def _sampled_scores(matches: Matches, queries: Tensor, *, logq: bool, num_items: int) -> Tensor:
    """Returns each position's scores of its sample's negatives, -inf for those that don't count, [P, C]."""
    assert matches.negatives is not None, "checked before"
    assert matches.negative_ids is not None, "checked before"
    vectors, ids, samples = matches.negatives.float(), matches.negative_ids, matches.samples
    out = torch.zeros_like(ids, dtype=torch.bool)
    chance = torch.zeros_like(ids, dtype=torch.float32)
    if logq:
        chance = _log_chance(matches, matches.negative_log_q, "both", num_items)
        ordered, order = ids.sort(dim=1, stable=True)
        again = functional.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
        out = torch.isin(ids, matches.ids) | out.scatter(1, order, again)
    if samples is None:
        scores = torch.bmm(vectors, queries.unsqueeze(2)).squeeze(2)
    else:
        # Padded to the most positions of a sample: each sample's negatives are read once.
        counts = torch.bincount(samples, minlength=len(vectors))
        places = torch.arange(len(samples), device=samples.device) - (counts.cumsum(0) - counts)[samples]
        padded = queries.new_zeros(len(vectors), int(counts.max()), queries.shape[1])
        padded = padded.index_put((samples, places), queries)
        scores = torch.bmm(padded, vectors.transpose(1, 2))[samples, places]
        ids, out, chance = ids[samples], out[samples], chance[samples]
    return (scores - chance).masked_fill(out | (ids == matches.ids[:, None]), -torch.inf)


def _log_chance(matches: Matches, log_q: Tensor | None, negatives: str, num_items: int) -> Tensor:
    """Returns the logarithm of the chance that items are among the others of a batch, or are drawn."""
    assert log_q is not None, "checked before"
    missing = max(1, len(matches.queries) - 1) * torch.log1p(-log_q.double().exp().clamp(max=1.0))
    if negatives == "both":
        assert matches.negatives is not None
        once = torch.tensor(-1.0 / num_items, dtype=torch.float64, device=log_q.device)
        missing = missing + matches.negatives.shape[1] * torch.log1p(once)
    return torch.log(-torch.expm1(missing)).float()


def counted(matches: Matches, batch: Batch) -> Matches:
    """Counts the right items of a training batch; returns the matches with log q of all items, by the counts.

    What is counted includes this batch, so that no right item has a share of 0.

    Raises UserError for ids that aren't those of the items' table (`Batch.ids`).
    """
    keys, counts = batch.item_keys, batch.item_counts
    assert keys is not None, "asked for with the configuration"
    assert counts is not None, "asked for with the configuration"
    positions, drawn = len(matches.ids), matches.negative_ids
    wanted = [matches.ids] if drawn is None else [matches.ids, drawn.reshape(-1)]
    numbers = torch.cat(wanted).cpu().numpy()
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(keys):
        raise UserError(
            f"step {batch.step}: the model's matches have ids that are no rows of the items' table, which "
            'logq = "counts" needs; take them from batch.ids of a feature that has the table of '
            "data.item_feature"
        )
    rows, times = np.unique(numbers[:positions], return_counts=True)
    counts.add(keys[rows], times, batch.step)
    rows, places = np.unique(numbers, return_inverse=True)
    log_q = torch.from_numpy(counts.log_q(keys[rows])[places]).to(matches.ids.device)
    of_drawn = None if drawn is None else log_q[positions:].view(drawn.shape)
    return replace(matches, log_q=log_q[:positions], negative_log_q=of_drawn)


class RetrievalLoss:
    """Computes the loss "in_batch_softmax" for the standard loop."""

    def __init__(self, options: dict[str, Any], num_items: int, weight: float = 1.0) -> None:
        """options, weight: as configured. num_items: of the catalogue; 0 if there is none."""
        self._weight = weight
        self._counts = options["logq"] == "counts" and options["negatives"] != "sampled"
        own = {key: value for key, value in options.items() if key != "halve_every"}  # that is the counts'
        self._options = {**own, "logq": options["logq"] != "off"}
        self._num_items = num_items
        negatives = options["negatives"]
        self._needed = [] if negatives == "batch" else ["negatives"]
        if options["logq"] == "weights" and negatives != "sampled":
            self._needed += ["log_q", "negative_log_q"] if negatives == "both" else ["log_q"]

    def __call__(self, matches: Matches, batch: Batch) -> Tensor:
        """Returns the losses of samples; 0 where the label isn't 1, whose items are others' negatives still.

        Shapes: [B].
        Raises UserError for matches without what the options need.
        """
        for name in self._needed:
            if getattr(matches, name) is None:
                raise UserError(
                    f'the loss "in_batch_softmax" needs {name} with these options, but the model\'s matches '
                    "have none"
                )
        if self._counts:
            matches = counted(matches, batch)
        if "log_q" in self._needed and matches.log_q is not None and not matches.log_q.isfinite().all():
            raise UserError(
                f"step {batch.step}: got an item to learn that the catalogue (data.items) lacks or gives the "
                'weight 0, but logq = "weights" needs to know how often training has it; prepare the '
                "catalogue with all items of data.train"
            )
        losses = in_batch_softmax(matches, **self._options, num_items=self._num_items)
        each = matches.per_sample(losses, batch.num_samples).masked_fill(batch.labels[:, 0] != 1, 0.0)
        return each if self._weight == 1 else each * self._weight
