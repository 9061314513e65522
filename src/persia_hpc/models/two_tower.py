"""Two-tower retrieval (Yi et al., "Sampling-bias-corrected neural modeling", RecSys 2019).

B samples, C sampled negatives of a sample, W width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch, Inputs
from persia_hpc.trainer.retrieval import Matches

from .parts import check_flag, layer_options, masked_mean, perceptron, side_by_side, widths


class Tower(nn.Module):
    """Turns features, side by side, into a vector."""

    def __init__(
        self, inputs: Inputs, names: Sequence[str], hidden: Sequence[int], width: int, layers: dict[str, Any]
    ) -> None:
        super().__init__()
        self.names = [name for name in names if name not in inputs.dense_names]
        self.columns = [inputs.dense_names.index(name) for name in names if name in inputs.dense_names]
        size = len(self.columns) + sum(inputs.dims[name] for name in self.names)
        self.layers = perceptron(size, hidden, outputs=width, **layers)

    def forward(self, batch: Batch) -> Tensor:
        """Computes vectors of the batch's own features, [B, W]."""
        parts = [batch.dense[:, self.columns]] if self.columns else []
        parts += [_vector(batch, name) for name in self.names]
        vectors: Tensor = self.layers(side_by_side(parts))
        return vectors


class TwoTower(nn.Module):
    """Has a network for what is asked and one for items; the score is the inner product of their outputs.

    items: the features and dense columns of an item, its id first: those that the catalogue has.
    queries: others, of what asks. Sequences count with their mean.
    hidden: widths of the layers of each tower below its output of `width`; item_hidden: other ones for items.
    normalize: whether vectors have length 1, so that scores are cosines.

    Features with `sampled` are the item's features of sampled negatives: of each feature of the item one.
    """

    def __init__(
        self,
        inputs: Inputs,
        items: Sequence[str],
        queries: Sequence[str],
        hidden: Sequence[int] = (256, 128),
        item_hidden: Sequence[int] | None = None,
        width: int = 64,
        normalize: bool = True,
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        layers = layer_options("two_tower", activation, dropout, batch_norm)
        check_flag("two_tower", "normalize", normalize)
        self.normalize = normalize
        drawn = {f.like: f.name for f in inputs.features if f.like is not None}
        known = [f.name for f in inputs.features if f.like is None] + list(inputs.dense_names)
        self.item_names = _names("items", items, known)
        query_names = _names("queries", queries, [name for name in known if name not in self.item_names])
        self.item = self.item_names[0]
        self.negatives = [drawn[name] for name in self.item_names if name in drawn]
        _check_items(inputs, self.item_names, drawn)
        [width] = widths("two_tower", "width", [width])
        hidden = widths("two_tower", "hidden", hidden, empty=True)
        item_hidden = hidden if item_hidden is None else item_hidden
        inside = widths("two_tower", "item_hidden", item_hidden, empty=True)
        self.query_tower = Tower(inputs, query_names, hidden, width, layers)
        self.item_tower = Tower(inputs, self.item_names, inside, width, layers)

    def queries(self, batch: Batch) -> Tensor:
        """Computes vectors of what each sample asks for, [B, W]."""
        return self._scaled(self.query_tower(batch))

    def items(self, batch: Batch) -> Tensor:
        """Computes vectors of the samples' items, [B, W]."""
        return self._scaled(self.item_tower(batch))

    def matches(self, batch: Batch) -> Matches:
        """Returns each sample's query and item, with the negatives that are drawn for it.

        Raises UserError for items whose ids have no numbers.
        """
        if self.item not in batch.ids:
            raise UserError(
                f"model 'two_tower': the table of {self.item!r} is hashed in more than two rounds, which "
                "can't tell items apart; set hash.rounds to 1 or 2"
            )
        found = Matches(
            self.queries(batch), self.items(batch), batch.ids[self.item], log_q=batch.log_q.get(self.item)
        )
        if not self.negatives:
            return found
        drawn = self.negatives[0]
        shape = (batch.num_samples, -1)
        parts = [batch.jagged[name].values for name in self.negatives]
        vectors = self._scaled(self.item_tower.layers(side_by_side(parts)))
        log_q = batch.log_q.get(drawn)
        return Matches(
            found.queries,
            found.positives,
            found.ids,
            negatives=vectors.view(*shape, vectors.shape[1]),
            negative_ids=batch.ids[drawn].view(shape),
            log_q=found.log_q,
            negative_log_q=None if log_q is None else log_q.view(shape),
        )

    def forward(self, batch: Batch) -> Tensor:
        """Computes scores of the samples' own pairs, [B, 1]."""
        queries = self.queries(batch) if batch.queries is None else batch.queries
        return (queries.float() * self.items(batch).float()).sum(dim=1, keepdim=True)

    def _scaled(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors.float(), dim=1) if self.normalize else vectors


def _names(option: str, given: Sequence[str], known: Sequence[str]) -> list[str]:
    """Returns the names that an option gives.

    Raises UserError for none, unknown and repeated ones.
    """
    names = [given] if isinstance(given, str) else list(given)
    wrong = [name for name in names if name not in known or names.count(name) > 1]
    if wrong or not names:
        got = f"got {wrong[0]!r}" if wrong else "got none"
        raise UserError(
            f"model 'two_tower': {option} must name features or dense columns, each once and of one tower, "
            f"{got}; there are: {', '.join(known)}"
        )
    return names


def _check_items(inputs: Inputs, names: Sequence[str], drawn: Collection[str]) -> None:
    """Checks that the catalogue has the features of an item and the first tells items apart.

    drawn: features by what they are drawn like: those of all features of an item, or of none.
    Raises UserError if not.
    """
    single = [f.name for f in inputs.features if f.name in inputs.pooled and (not f.multi or f.rounds > 1)]
    if names[0] not in single:
        raise UserError(
            "model 'two_tower': items must begin with the feature that tells items apart, which has one id "
            f"in each sample, got {names[0]!r}"
        )
    lacking = [] if inputs.catalogue is None else [name for name in names if name not in inputs.catalogue]
    if lacking:
        raise UserError(
            f"model 'two_tower': items names {lacking[0]!r}, which the catalogue doesn't have; "
            f"it has: {', '.join(inputs.catalogue or ())}"
        )
    missing = [name for name in names if name not in drawn]
    if 0 < len(missing) < len(names):
        raise UserError(
            "model 'two_tower': all features of an item must be drawn for negatives, but none is "
            f"like {missing[0]!r}; add [features.NAME] sampled = {{ like = {missing[0]!r}, count = ... }}, "
            "or leave it out of items"
        )


def _vector(batch: Batch, name: str) -> Tensor:
    """Returns a feature's vector of each sample, [B, D]; a sequence's mean."""
    if name in batch.jagged:
        return batch.jagged[name].mean()
    return masked_mean(*batch.sequence[name]) if name in batch.sequence else batch.pooled[name]
