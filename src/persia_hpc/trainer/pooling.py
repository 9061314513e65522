"""From a fed batch to a model's input and, after its backward, to the gradients of the unique rows.

One autograd function covers all groups: its forward and backward are a kernel's, native on the CPU, torch
operations elsewhere (`pooling_torch.py`). Both sum in the same order, without atomics: results repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from persia_hpc import _native
from persia_hpc.errors import UserError
from persia_hpc.feed import FeedBatch

from .batch import POOLED, Batch, FeatureSpec, Inputs
from .pooling_torch import TorchKernel, tensor_of

ROUNDS_POWER = {"sum": 0.0, "mean": 1.0, "sqrtn": 0.5}


class Kernel(Protocol):
    """Forward and backward of one batch.

    Outputs are, group by group, its block [B, P, D] if it has pooled features, then the values [B, L, D] of
    each sequence feature. After forward, `masks` holds the sequences' [B, L] of bool in the same order.
    """

    masks: list[Tensor]

    def forward(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Rows [U_g, D_g] of each group -> outputs."""
        ...

    def backward(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients of the outputs -> gradients of the rows; None, here and there, stands for zeros."""
        ...


class GroupFeatures:
    """The features of one group by the number that their ids have in the batch."""

    def __init__(self, inputs: Inputs, group: int) -> None:
        members = [(i, f) for i, f in enumerate(inputs.features) if f.group == group]
        self.group = group
        self.features: tuple[tuple[int, FeatureSpec], ...] = tuple(members)
        self.dim = members[0][1].dim
        self.pooled = tuple(f.name for _, f in members if f.pooling in POOLED)
        self.sequences = tuple((f.name, f.rounds) for _, f in members if f.pooling not in POOLED)
        # Kernels count rows, users ids: the mean of ids that are sums of r rows is r times that of the rows.
        scales = [f.rounds ** ROUNDS_POWER[f.pooling] for _, f in members if f.pooling in POOLED]
        self.scales = torch.tensor(scales)[:, None] if any(s != 1 for s in scales) else None

    def parts(self, feed: FeedBatch) -> list[tuple[int, int, str, npt.NDArray[np.uint32] | None]]:
        """(first id, end id, pooling, bag offsets or None) of each feature: what the native kernels take."""
        offsets = feed.feature_offsets
        return [
            (int(offsets[i]), int(offsets[i + 1]), f.pooling, feed.bag_offsets[f.name] if f.multi else None)
            for i, f in self.features
        ]


class NativeKernel:
    """The C++ kernels on NumPy views of CPU tensors."""

    def __init__(self, groups: Sequence[GroupFeatures], feed: FeedBatch) -> None:
        self._groups = groups
        self._feed = feed
        self._parts = [group.parts(feed) for group in groups]
        self.masks: list[Tensor] = []

    def forward(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """See `Kernel`."""
        outputs: list[Tensor] = []
        for group, parts, tensor in zip(self._groups, self._parts, rows, strict=True):
            block, sequences = _native.gather_pool_forward(
                tensor.numpy(), self._feed.indices, features=parts, num_samples=self._feed.num_samples
            )
            if group.pooled:
                outputs.append(torch.from_numpy(block))
            for values, mask in sequences:
                outputs.append(torch.from_numpy(values))
                self.masks.append(torch.from_numpy(mask))
        return outputs

    def backward(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """See `Kernel`."""
        feed = self._feed
        arrays = [None if g is None else g.contiguous().numpy() for g in gradients]
        outputs: list[Tensor | None] = []
        for group, parts in zip(self._groups, self._parts, strict=True):
            block = arrays.pop(0) if group.pooled else None
            values = [arrays.pop(0) for _ in group.sequences]
            if block is None and all(v is None for v in values):
                outputs.append(None)
                continue
            begin, end = feed.group_offsets[group.group], feed.group_offsets[group.group + 1]
            rows = _native.gather_pool_backward(
                block,
                values,
                feed.row_offsets[begin : end + 1],
                feed.positions,
                features=parts,
                num_samples=feed.num_samples,
                dim=group.dim,
            )
            outputs.append(torch.from_numpy(rows))
        return outputs


class _Embed(torch.autograd.Function):
    """Rows of all groups -> the kernel's outputs."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, *rows: Tensor) -> tuple[Tensor, ...]:
        ctx.kernel = kernel
        ctx.set_materialize_grads(False)
        return tuple(kernel.forward([r.detach() for r in rows]))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, *ctx.kernel.backward(gradients))


class Pooling:
    """Makes batches for a model with these inputs. Holds no parameters and no state."""

    def __init__(self, inputs: Inputs, *, native: bool = True) -> None:
        """`native=False` uses the torch kernels on the CPU too: slower, for comparing the two."""
        self.inputs = inputs
        self._native = native
        num_groups = max((f.group for f in inputs.features), default=-1) + 1
        self._groups = [GroupFeatures(inputs, group) for group in range(num_groups)]

    def embed(
        self, feed: FeedBatch, device: torch.device | str, *, training: bool
    ) -> tuple[Batch, list[Tensor]]:
        """The batch for `model.forward`, and one float32 leaf [U_g, D_g] per group.

        With `training` the leaves require gradients: after `loss.backward()` they have them, summed over the
        ids that use a row (see `row_gradients`). On the CPU the leaves are views of float32 rows: the feed's
        arrays must stay valid until then; the batch itself shares nothing with them. Not collective. Raises
        UserError when the feed does not fit the inputs.
        """
        self._check(feed)
        device = torch.device(device)
        leaves = [tensor_of(r, device).to(torch.float32) for r in feed.rows]
        kernel: Kernel
        if device.type == "cpu" and self._native:
            kernel = NativeKernel(self._groups, feed)
        else:
            kernel = TorchKernel(self._groups, feed, device)
        outputs: Sequence[Tensor]
        if training and leaves:
            leaves = [leaf.requires_grad_() for leaf in leaves]
            outputs = _Embed.apply(kernel, *leaves)  # type: ignore[no-untyped-call]
        else:
            outputs = kernel.forward(leaves)
        return self._batch(feed, device, list(outputs), kernel.masks), leaves

    def _batch(
        self, feed: FeedBatch, device: torch.device, outputs: list[Tensor], masks: list[Tensor]
    ) -> Batch:
        pooled: dict[str, Tensor] = {}
        sequence: dict[str, tuple[Tensor, Tensor]] = {}
        blocks: dict[tuple[str, ...], Tensor] = {}
        masks = list(masks)
        for group in self._groups:
            if group.pooled:
                block = outputs.pop(0)
                if group.scales is not None:
                    block = block * group.scales.to(device)
                blocks[group.pooled] = block
                # unbind, not one select per feature: its backward is one stack, not a block of zeros for each
                pooled.update(zip(group.pooled, block.unbind(1), strict=True))
            for name, rounds in group.sequences:
                sequence[name] = _sum_rounds(outputs.pop(0), masks.pop(0), rounds)
        return Batch(
            step=feed.step,
            num_samples=feed.num_samples,
            dense=_own(feed.dense, device),
            labels=_own(feed.labels, device),
            weight=None if feed.weight is None else _own(feed.weight, device),
            group=None if feed.group is None else _own(feed.group, device),
            pooled={name: pooled[name] for name in self.inputs.pooled},
            sequence={name: sequence[name] for name in self.inputs.sequences},
            blocks=blocks,
        )

    def _check(self, feed: FeedBatch) -> None:
        expected = [group.dim for group in self._groups]
        got = [r.shape[1] for r in feed.rows]
        if got != expected:
            raise UserError(f"a batch has rows of dims {got}, the model's inputs say {expected}")
        if len(feed.feature_offsets) != len(self.inputs.features) + 1:
            raise UserError(
                f"a batch has ids of {len(feed.feature_offsets) - 1} features, the model's inputs name "
                f"{len(self.inputs.features)}"
            )
        missing = [f.name for f in self.inputs.features if f.multi and f.name not in feed.bag_offsets]
        if missing:
            raise UserError(f"a batch has no bag offsets for the multi-hot feature {missing[0]!r}")


def _sum_rounds(values: Tensor, mask: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """One vector an id, [B, L, D], and its mask [B, L], of its rows [B, rounds * L, D]."""
    if rounds == 1:
        return values, mask
    if values.shape[1] < rounds:  # no sample has an id: one place of zeros
        return values[:, :1], mask[:, :1]
    return values.view(len(values), -1, rounds, values.shape[2]).sum(dim=2), mask[:, ::rounds]


def _own(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A copy on the device: small arrays that users keep, while the feed's memory goes back to its ring."""
    return tensor_of(array, device).clone() if device.type == "cpu" else tensor_of(array, device)


def row_gradients(leaves: Sequence[Tensor]) -> list[Tensor]:
    """[U_g, D_g] float32 per group after backward; zeros where no gradient arrived. On the leaves' device."""
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
