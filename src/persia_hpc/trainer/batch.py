"""Defines what a model gets: the inputs in its constructor, a batch in its `forward`.

B samples, F features, D dim, K dense features, L labels or sequence length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.arrays import Array
from persia_hpc.errors import UserError
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.table_layout import Layout

from .item_counts import ItemCounts
from .jagged import Jagged

POOLED = ("sum", "mean", "sqrtn")


@dataclass(frozen=True)
class FeatureSpec:
    """Describes one id feature to a model's constructor."""

    name: str
    table: str
    dim_group: int  # features of one have rows of one dim in one block
    dim: int
    pooling: str  # sum, mean, sqrtn, sequence or jagged
    multi: bool  # several rows per sample
    rounds: int = 1  # rows that stand for one id, summed
    sequence: str | None = None  # the [sequences.NAME] that it is part of
    shares: str | None = None  # the feature whose bag offsets are its own
    weighted: bool = False  # its ids have weights
    like: str | None = None  # the feature of the catalogue that its ids are drawn for (`sampled`)
    max_length: int | None = None  # so many ids of a sample are kept at most

    @property
    def bags(self) -> str:
        """Returns the feature under whose name its bag offsets travel."""
        return self.shares or self.name


@dataclass(frozen=True)
class Inputs:
    """Holds what a model's constructor gets: the features, in the order of the dataset, and the widths."""

    features: tuple[FeatureSpec, ...]
    num_dense: int
    labels: tuple[str, ...]  # of the tasks, by their names
    dense_names: tuple[str, ...] = ()
    outputs: tuple[int, ...] = ()  # widths that tasks' losses want; empty: each label has one output
    catalogue: tuple[str, ...] | None = (
        None  # features and dense columns that `data.items` has, if there is one
    )

    @property
    def output_widths(self) -> tuple[int, ...]:
        """Returns how many logits each label has: one, or as many as it has classes."""
        return self.outputs or (1,) * len(self.labels)

    @property
    def num_outputs(self) -> int:
        """Returns how many logits a sample has."""
        return sum(self.output_widths)

    @cached_property
    def dims(self) -> dict[str, int]:
        """Returns the embedding dim of each feature by name."""
        return {f.name: f.dim for f in self.features}

    @cached_property
    def pooled(self) -> tuple[str, ...]:
        """Returns the names of the features that arrive as one vector per sample."""
        return tuple(f.name for f in self.features if f.pooling in POOLED)

    @cached_property
    def sequences(self) -> tuple[str, ...]:
        """Returns the names of the features that arrive as a padded sequence of vectors and a mask."""
        return tuple(f.name for f in self.features if f.pooling == "sequence")

    @cached_property
    def jagged(self) -> tuple[str, ...]:
        """Returns the names of the features that arrive as sequences without padding."""
        return tuple(f.name for f in self.features if f.pooling == "jagged")

    @cached_property
    def unpooled(self) -> tuple[str, ...]:
        """Returns the names of the features that have a vector for each id, padded or not."""
        return tuple(f.name for f in self.features if f.pooling not in POOLED)

    def features_of(self, sequence: str) -> tuple[str, ...]:
        """Returns the names of the features of a [sequences.NAME], which have the same offsets.

        Raises UserError if the configuration has no such sequence.
        """
        found = tuple(f.name for f in self.features if f.sequence == sequence)
        if not found:
            known = sorted({f.sequence for f in self.features if f.sequence is not None})
            raise UserError(
                f"got sequence {sequence!r}, expected one of {', '.join(known) or 'none'}: the configuration "
                "declares them as [sequences.NAME]"
            )
        return found

    @property
    def pooled_width(self) -> int:
        """Returns the sum of the dims of the pooled features."""
        return sum(self.dims[name] for name in self.pooled)

    @property
    def embedding_width(self) -> int:
        """Returns the sum of the dims of all features, sequences included."""
        return sum(f.dim for f in self.features)


class Made:
    """Holds what a model's `ahead` has made of dense features, for one forward under the same conditions."""

    def __init__(self, model: nn.Module, dense: Tensor, value: Any) -> None:
        self._model, self._dense, self._value = model, dense, value
        self._conditions = _conditions(model, dense)

    def value(self, model: nn.Module, dense: Tensor) -> Any:
        """Returns it, or None where `model.ahead(dense)` might be something else now."""
        same = model is self._model and dense is self._dense
        return self._value if same and _conditions(model, dense) == self._conditions else None


def _conditions(model: nn.Module, dense: Tensor) -> tuple[Any, ...]:
    """Returns what results depend on but for values, and how often these have been written to."""
    kind = dense.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    versions = [(id(parameter), parameter._version) for parameter in model.parameters()]
    return model.training, torch.is_grad_enabled(), dtype, dense._version, versions


@dataclass
class Batch:
    """Holds what a model's `forward` gets, on one device; its tensors are its own, so it may be kept.

    Shapes: embeddings are float32, also under autocast; pooled ones are bfloat16 where a model with
    `narrow_pooled` trains in it on a GPU. `pooled` has a view [B, D] per pooled feature,
    `sequence` a pair (values [B, L, D], mask [B, L] of bool) per sequence feature: left-aligned, with zeros
    after the last id, where L is the longest of the batch and at least 1. `jagged` has the same without
    padding, a `Jagged` per jagged feature.

    With the loss "in_batch_softmax" training batches have two numbers for each id of a feature, in the order
    of the ids: `ids`, int64 [N], are equal for equal ids of features that share a table, within the batch.
    `log_q`, float32 [N], of the features that share the items' table, and only with `logq = "weights"`, are
    logarithms of the item's share in the weights of the catalogue. With `"counts"` `item_keys`, uint64, are
    the keys of the rows that `ids` of these features number, and `item_counts` what was counted by them.

    `queries` are what a model's `queries` made of this batch, [B, W], where an evaluation that ranks has them
    already: its `forward` may use them instead of reading each history once more. `made` is what its `ahead`
    made: its `forward` asks `made_ahead` for it.
    """

    step: int
    num_samples: int
    dense: Tensor  # [B, K] float32
    labels: Tensor  # [B, L] float32
    weight: Tensor | None  # [B] float32
    group: Tensor | None  # [B] int64
    pooled: dict[str, Tensor]
    sequence: dict[str, tuple[Tensor, Tensor]]
    blocks: dict[tuple[str, ...], Tensor]  # pooled features that lie together -> [B, F, D]
    jagged: dict[str, Jagged] = field(default_factory=dict)
    ids: dict[str, Tensor] = field(default_factory=dict)
    log_q: dict[str, Tensor] = field(default_factory=dict)
    item_keys: Array | None = None
    item_counts: ItemCounts | None = None
    queries: Tensor | None = None
    made: Made | None = None
    plain: bool = False  # for a graph that is exported: the model may not depend on what tensors hold

    @property
    def device(self) -> torch.device:
        """Returns the device of all tensors of the batch."""
        return self.dense.device

    def made_ahead(self, model: nn.Module) -> Any:
        """Returns what a trainer had `model.ahead` make of `dense` for this batch, once, or None.

        None also if it would be something else now: for another model, or after a change of `dense`, of the
        model's parameters or of autocast.
        """
        value = None if self.made is None else self.made.value(model, self.dense)
        if value is not None:
            self.made = None  # its autograd graph goes through one backward
        return value

    def stacked(self, names: Sequence[str] | None = None) -> Tensor:
        """Returns pooled features as one tensor, without a copy for all features of one dim in their order.

        names: of the features; all pooled ones by default.

        Shapes: [B, F, D].
        Raises UserError when the dims differ, and for no or unknown features.
        """
        wanted = self._names(names)
        if wanted in self.blocks:
            return self.blocks[wanted]
        dims = {name: int(self.pooled[name].shape[1]) for name in wanted}  # a tensor while it is traced
        if len(set(dims.values())) != 1:
            raise UserError(
                f"stacked() needs features of one dim, got {dims or 'no pooled feature'}; use concatenated() "
                f"or give their tables one dim"
            )
        return torch.stack([self.pooled[name] for name in wanted], dim=1)

    def concatenated(self, names: Sequence[str] | None = None) -> Tensor:
        """Returns pooled features side by side, without a copy where `stacked` needs none.

        names: of the features; all pooled ones by default.

        Shapes: [B, sum of dims].
        Raises UserError for unknown features.
        """
        wanted = self._names(names)
        if wanted in self.blocks:
            return self.blocks[wanted].flatten(1)
        if not wanted:
            return self.dense.new_zeros(self.num_samples, 0)
        return torch.cat([self.pooled[name] for name in wanted], dim=1)

    def _names(self, names: Sequence[str] | None) -> tuple[str, ...]:
        wanted = tuple(self.pooled) if names is None else tuple(names)
        for name in wanted:
            if name not in self.pooled:
                kind = "a sequence, use batch.sequence" if name in self.sequence else "not a feature"
                kind = "jagged, use batch.jagged" if name in self.jagged else kind
                raise UserError(f"{name!r} is {kind}; pooled features: {', '.join(self.pooled) or 'none'}")
        return wanted


def on_backward(batch: Batch, reached: Callable[[object], None]) -> None:
    """Calls `reached` when the model's backward comes to the embeddings.

    Their pooling is left then, and in `fresh` what goes back through what `ahead` computed before them.
    """
    outputs = [*batch.blocks.values(), *(values for values, _ in batch.sequence.values())]
    outputs += [jagged.values for jagged in batch.jagged.values()]
    if outputs and outputs[0].grad_fn is not None:
        outputs[0].grad_fn.register_prehook(reached)  # all come from one function


def make_inputs(layout: Layout, schema: DatasetSchema, catalogue: tuple[str, ...] | None = None) -> Inputs:
    """Returns what a model's constructor gets. catalogue: what `data.items` has, if there is one."""
    specs = tuple(
        FeatureSpec(
            name=f.name,
            table=layout.tables[f.table].name,
            dim_group=layout.tables[f.table].dim_group,
            dim=layout.tables[f.table].dim,
            pooling=f.pooling,
            multi=f.multi,
            rounds=f.rounds,
            sequence=f.sequence,
            shares=f.shares,
            weighted=f.weighted,
            like=f.like,
            max_length=f.max_length,
        )
        for f in layout.features
    )
    return Inputs(
        features=specs,
        num_dense=len(schema.dense_names),
        labels=layout.tasks.names,
        dense_names=schema.dense_names,
        outputs=tuple(task.num_outputs for task in layout.tasks.each),
        catalogue=catalogue,
    )
