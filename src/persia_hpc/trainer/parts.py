"""Cuts a trainer's batch of a step into parts, whose gradients are summed (`train.accumulate`).

B samples, N ids of a jagged feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from persia_hpc.protocol.row_batch import RowBatch

from .batch import Batch
from .dense.precision import Precision
from .interfaces import DenseSync
from .jagged import Jagged
from .pooling.gradients import RowGradients

Keep = Callable[[Tensor], Tensor]


def part_size(num_samples: int, count: int) -> int:
    """Returns the samples of each part but the last, when so many are cut into at most `count` parts."""
    return max(1, -(-num_samples // count))


def cut(batch: Batch, begin: int, end: int, keep: Keep = lambda embeddings: embeddings) -> Batch:
    """Returns the samples [begin, end) of a batch, as views of it.

    keep: takes each tensor of embeddings of these samples, in a fixed order; returns what to give instead.
    """
    blocks = {names: keep(block[begin:end]) for names, block in batch.blocks.items()}
    columns = {
        name: column
        for names, block in blocks.items()
        for name, column in zip(names, block.unbind(1), strict=True)
    }
    sequence = {
        name: (keep(values[begin:end]), mask[begin:end]) for name, (values, mask) in batch.sequence.items()
    }
    offsets: dict[int, tuple[Tensor, int, int, int]] = {}  # of features of one sequence the very same
    jagged: dict[str, Jagged] = {}
    for name, feature in batch.jagged.items():
        if id(feature.offsets) not in offsets:
            bounds = feature.offsets[begin : end + 1]
            first, last, longest = torch.stack([bounds[0], bounds[-1], bounds.diff().max()]).tolist()
            offsets[id(feature.offsets)] = (bounds - first, first, last, max(1, longest))
        own, first, last, longest = offsets[id(feature.offsets)]
        weights = None if feature.weights is None else feature.weights[first:last]
        jagged[name] = Jagged(keep(feature.values[first:last]), own, longest, weights)
    return replace(
        batch,
        num_samples=end - begin,
        dense=batch.dense[begin:end],
        labels=batch.labels[begin:end],
        weight=None if batch.weight is None else batch.weight[begin:end],
        group=None if batch.group is None else batch.group[begin:end],
        pooled={name: columns[name] for name in batch.pooled},
        sequence=sequence,
        blocks=blocks,
        jagged=jagged,
        made=None,
    )


def _embeddings(batch: Batch) -> list[Tensor]:
    """Returns the tensors of embeddings of a batch, in the order in which `cut` keeps them."""
    found = [*batch.blocks.values(), *(values for values, _ in batch.sequence.values())]
    return found + [feature.values for feature in batch.jagged.values()]


@dataclass(frozen=True)
class Part:
    """Holds some samples of a batch that are trained together, and whether they are its last."""

    num_samples: int
    weight: Tensor | None  # as these were: a model may change its batch
    last: bool


class Parts:
    """Gives the parts of a batch one after the other, each for a forward and a backward of its own.

    The backward of a part ends at copies of its embeddings. What has arrived there goes through the pooling
    once, for the whole batch: so the row gradients are summed as without parts, and of a part nothing needs
    memory when the next one begins, but for its embeddings' gradients.
    """

    def __init__(self, row_batch: RowBatch, gradients: RowGradients, batch: Batch, count: int) -> None:
        """Takes a batch that tracks gradients, to be cut into at most `count` parts of one size."""
        self.row_batch = row_batch
        self.gradients = gradients
        self.part: Part | None = None  # that was given, until its loss is taken
        self._batch = batch
        self._size = part_size(batch.num_samples, count)
        self._leaves: list[list[Tensor]] = []  # of each part
        self._loss: Tensor | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Yields the parts; a batch without samples has none, and one that isn't cut is its only one."""
        num_samples = self._batch.num_samples
        for begin in range(0, num_samples, self._size):
            end = min(begin + self._size, num_samples)
            batch = self._batch if self._size >= num_samples else self._cut(begin, end)
            weight = None if batch.weight is None else batch.weight.clone()
            self.part = Part(end - begin, weight, end == num_samples)
            yield batch

    def _cut(self, begin: int, end: int) -> Batch:
        leaves: list[Tensor] = []

        def leaf(embeddings: Tensor) -> Tensor:
            leaves.append(embeddings.detach().requires_grad_())
            return leaves[-1].clone()  # which a model may change in place, as it may the batch's own

        self._leaves.append(leaves)
        return cut(self._batch, begin, end, leaf)

    def backward(self, losses: Tensor, reducer: DenseSync, precision: Precision) -> None:
        """Runs the backward of the part that was given, and after the last one's that of the pooling.

        Shapes: losses [B] or [B, L], or the scalar mean of the part.
        """
        part, self.part = self.part, None
        assert part is not None
        share = self._share(losses, part)
        loss = share.detach()
        self._loss = loss if self._loss is None else self._loss + loss
        if part.last:  # before it no gradient is whole that other trainers could be sent
            reducer.begin()
        precision.backward(share, self.gradients)
        if part.last:
            self._pool()

    def _share(self, losses: Tensor, part: Part) -> Tensor:
        """Returns a part's share of the step's loss, the mean over the samples of all trainers.

        It is divided by the samples of all trainers: so AllReduce's sum is exact with uneven parts.
        """
        num_global = self.row_batch.num_global
        if losses.dim() == 0:
            return losses * (part.num_samples / num_global)
        per_sample = losses.reshape(part.num_samples, -1).mean(dim=1)
        return (per_sample if part.weight is None else per_sample * part.weight).sum() / num_global

    def _pool(self) -> None:
        """Gives the pooling the gradients of all parts. It has those of a batch that isn't cut."""
        roots, gradients = [], []
        for root, leaves in zip(_embeddings(self._batch), zip(*self._leaves, strict=True), strict=False):
            if any(leaf.grad is not None for leaf in leaves):
                each = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
                roots.append(root)
                gradients.append(torch.cat(each))
        self._leaves = []
        if roots:
            torch.autograd.backward(roots, gradients)

    @property
    def mean_loss(self) -> Tensor:
        """Returns the mean loss of the whole batch, when the losses of all parts have been taken."""
        assert self._loss is not None
        return self._loss * (self.row_batch.num_global / self._batch.num_samples)
