"""Pools embeddings with torch operations, on any device, as the native kernels do.

No atomic adds: the backward gathers the gradients in the order of the transpose and sums those of each row in
ascending id order, so it gives the same bits every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.protocol.wire import Wire, wire_of

from .groups import DimGroup
from .wire_torch import decode, encode, to_array


def tensor_of(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Returns the array on the device.

    On the CPU it shares the array's memory, except if that is read-only: tensors can't be, so it is copied.
    """
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device, non_blocking=True)


def _segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """Sums each segment in ascending order: values [n, D], offsets [S+1] -> [S, D]; empty ones are zeros."""
    segments = offsets.shape[0] - 1
    if segments == 0 or values.shape[0] == 0:
        return values.new_zeros(segments, values.shape[1])
    return torch.segment_reduce(values, "sum", offsets=offsets, axis=0, initial=0, unsafe=True)


class _Feature:
    """Holds one feature's ids in a batch, on the device."""

    def __init__(
        self,
        first: int,
        end: int,
        pooling: str,
        bags: npt.NDArray[np.uint32] | None,
        weights: npt.NDArray[np.float32] | None,
        num_samples: int,
        device: torch.device,
    ) -> None:
        self.weights = None if weights is None else tensor_of(weights, device)  # [n] of its rows
        self.first, self.end = first, end
        self.is_sequence, self.is_jagged = pooling == "sequence", pooling == "jagged"
        self.length = 1
        self.offsets = self.sizes = self.scale = None
        self.samples = torch.arange(num_samples, device=device)  # [n] the sample of each id
        self.places = torch.zeros_like(self.samples)  # [n] its place in the bag
        if bags is None or self.is_jagged:
            self.sizes = torch.ones_like(self.samples)
            return
        self.length = max(1, int(np.diff(bags).max(initial=0)))
        self.offsets = tensor_of(bags, device).to(torch.int64)
        self.sizes = self.offsets.diff()
        self.samples = self.samples.repeat_interleave(self.sizes, output_size=end - first)
        self.places = torch.arange(end - first, device=device) - self.offsets[self.samples]
        if pooling in ("mean", "sqrtn"):
            sizes = self.sizes.clamp(min=1).to(torch.float32)
            self.scale = 1 / (sizes if pooling == "mean" else sizes.sqrt())


class TorchKernel:
    """Runs forward and backward of one batch on any device. See `Kernel`."""

    def __init__(self, groups: Sequence[DimGroup], row_batch: RowBatch, device: torch.device) -> None:
        self._groups = groups
        self._row_batch = row_batch
        self._device = device
        self._indices = tensor_of(row_batch.indices, device).to(torch.int64)
        self._features = [
            [
                _Feature(*part, weights, row_batch.num_samples, device)
                for part, weights in zip(group.parts(row_batch), group.weights(row_batch), strict=True)
            ]
            for group in groups
        ]
        self._overflow = torch.zeros((), device=device)
        self.masks: list[Tensor] = []

    def forward(self) -> list[Tensor]:
        outputs: list[Tensor] = []
        for group, features, rows in zip(self._groups, self._features, self._row_batch.rows, strict=True):
            tensor = self._rows(rows, group.dim)
            pooled = [self._pool(f, tensor) for f in features if not (f.is_sequence or f.is_jagged)]
            if pooled:
                outputs.append(torch.stack(pooled, dim=1))
            for feature in features:
                if feature.is_jagged:
                    outputs.append(self._gather(feature, tensor))
                elif feature.is_sequence:
                    outputs.append(self._unroll(feature, tensor))
                    assert feature.sizes is not None
                    length = torch.arange(feature.length, device=self._device)
                    self.masks.append(length < feature.sizes[:, None])
        return outputs

    def backward(
        self, gradients: Sequence[Tensor | None], wire: Wire, factor: Tensor | None = None
    ) -> list[npt.NDArray[Any] | None]:
        remaining = list(gradients)
        outputs: list[npt.NDArray[Any] | None] = []
        for group, features in zip(self._groups, self._features, strict=True):
            block = remaining.pop(0) if group.pooled else None
            values = [remaining.pop(0) for _ in group.unpooled]
            if block is None and all(v is None for v in values):
                outputs.append(None)
            else:
                sums = self._sum_rows(group, features, block, values)
                if factor is not None:
                    sums *= factor
                self._overflow = torch.where(sums.isfinite().all(), self._overflow, torch.nan)
                outputs.append(to_array(encode(sums, wire), wire))
        return outputs

    def overflow(self) -> Tensor:
        return self._overflow

    def let_go(self) -> None:
        """Returns at once: the results were copied to the host."""

    def wait(self) -> None:
        """Returns at once: the results were copied to the host."""

    def _rows(self, rows: npt.NDArray[Any], dim: int) -> Tensor:
        words = rows.view(np.int16) if rows.dtype == np.uint16 else rows
        return decode(tensor_of(words, self._device), wire_of(rows, dim), dim)

    def _gather(self, feature: _Feature, rows: Tensor) -> Tensor:
        return rows.index_select(0, self._indices[feature.first : feature.end])

    def _pool(self, feature: _Feature, rows: Tensor) -> Tensor:
        gathered = self._gather(feature, rows)
        if feature.offsets is None:
            return gathered
        if feature.weights is not None:
            gathered = gathered * feature.weights[:, None]
        summed = _segment_sum(gathered, feature.offsets)
        return summed if feature.scale is None else summed * feature.scale[:, None]

    def _unroll(self, feature: _Feature, rows: Tensor) -> Tensor:
        num_samples = self._row_batch.num_samples
        values = rows.new_zeros(num_samples * feature.length, rows.shape[1])
        places = feature.samples * feature.length + feature.places
        return values.index_copy_(0, places, self._gather(feature, rows)).view(
            num_samples, feature.length, rows.shape[1]
        )

    def _sum_rows(
        self,
        group: DimGroup,
        features: Sequence[_Feature],
        block: Tensor | None,
        values: Sequence[Tensor | None],
    ) -> Tensor:
        """Sums each row's gradients, [U_g, D]: gathers those of its ids by the transpose, from one matrix."""
        row_batch = self._row_batch
        num_samples, num_pooled = row_batch.num_samples, len(group.pooled)
        places = torch.zeros(len(row_batch.indices), dtype=torch.int64, device=self._device)
        scales: Tensor | None = None
        matrices = [self._matrix(block, num_samples * num_pooled, group.dim)]
        base, slot = num_samples * num_pooled, 0
        remaining = list(values)
        for feature in features:
            ids = slice(feature.first, feature.end)
            if feature.is_jagged:
                count = feature.end - feature.first
                matrices.append(self._matrix(remaining.pop(0), count, group.dim))
                places[ids] = torch.arange(base, base + count, device=self._device)
                base += count
                continue
            if feature.is_sequence:
                matrices.append(self._matrix(remaining.pop(0), num_samples * feature.length, group.dim))
                places[ids] = base + feature.samples * feature.length + feature.places
                base += num_samples * feature.length
                continue
            places[ids] = feature.samples * num_pooled + slot
            slot += 1
            scale = feature.weights
            if feature.scale is not None:
                scale = feature.scale[feature.samples]
            if scale is not None:
                scales = torch.ones(len(places), device=self._device) if scales is None else scales
                scales[ids] = scale
        matrix = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
        begin, end = row_batch.dim_group_offsets[group.number], row_batch.dim_group_offsets[group.number + 1]
        offsets = row_batch.row_offsets[begin : end + 1]
        first = int(offsets[0])
        positions = tensor_of(row_batch.positions[first : offsets[-1]], self._device).to(torch.int64)
        gathered = matrix.index_select(0, places[positions])
        if scales is not None:
            gathered = gathered * scales[positions][:, None]
        return _segment_sum(gathered, tensor_of(offsets, self._device).to(torch.int64) - first)

    def _matrix(self, gradient: Tensor | None, num_rows: int, dim: int) -> Tensor:
        if gradient is None:
            return torch.zeros(num_rows, dim, device=self._device)
        return gradient.reshape(num_rows, dim)
