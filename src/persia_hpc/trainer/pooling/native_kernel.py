"""Pools embeddings with the C++ kernels, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from persia_hpc import _native
from persia_hpc.arrays import Array
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.protocol.wire import Wire

from .groups import DimGroup


class NativeKernel:
    """Runs the C++ kernels on NumPy views of CPU tensors. See `Kernel`."""

    def __init__(self, groups: Sequence[DimGroup], row_batch: RowBatch) -> None:
        self._groups = groups
        self._row_batch = row_batch
        self._parts = [group.parts(row_batch) for group in groups]
        self._weights = [group.weights(row_batch) for group in groups]
        self._finite = True
        self.masks: list[Tensor] = []

    def forward(self) -> list[Tensor]:
        outputs: list[Tensor] = []
        row_batch = self._row_batch
        for group, parts, weights, rows in zip(
            self._groups, self._parts, self._weights, row_batch.rows, strict=True
        ):
            block, sequences = _native.gather_pool_forward(
                rows,
                row_batch.indices,
                features=parts,
                num_samples=row_batch.num_samples,
                dim=group.dim,
                weights=weights,
            )
            if group.pooled:
                outputs.append(torch.from_numpy(block))
            for values, mask in sequences:
                outputs.append(torch.from_numpy(values))
                if mask is not None:
                    self.masks.append(torch.from_numpy(mask))
        return outputs

    def backward(
        self, gradients: Sequence[Tensor | None], wire: Wire, factor: Tensor | None = None
    ) -> list[Array | None]:
        row_batch = self._row_batch
        arrays = [None if g is None else g.contiguous().numpy() for g in gradients]
        outputs: list[Array | None] = []
        for group, parts, weights in zip(self._groups, self._parts, self._weights, strict=True):
            block = arrays.pop(0) if group.pooled else None
            values = [arrays.pop(0) for _ in group.unpooled]
            if block is None and all(v is None for v in values):
                outputs.append(None)
                continue
            rows, finite = _native.gather_pool_backward(
                block,
                values,
                row_batch.indices,
                features=parts,
                num_samples=row_batch.num_samples,
                num_rows=row_batch.num_rows(group.number),
                dim=group.dim,
                wire=wire.name if factor is None else "fp32",
                weights=weights,
            )
            self._finite &= finite
            if factor is not None:
                rows *= factor.numpy()
                self._finite &= bool(np.isfinite(rows).all())
                rows = _native.encode_rows(rows, wire.name)
            outputs.append(rows)
        return outputs

    def overflow(self) -> Tensor:
        return torch.tensor(0.0 if self._finite else torch.nan)

    def let_go(self) -> None:
        """Returns at once: nothing runs in the background."""

    def wait(self) -> None:
        """Returns at once: nothing runs in the background."""
