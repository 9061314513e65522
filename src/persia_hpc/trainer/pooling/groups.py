"""Declares what every pooling kernel is given, the features of a dim group, and what it offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from persia_hpc.arrays import Array
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.protocol.wire import Wire
from persia_hpc.trainer.batch import POOLED, FeatureSpec, Inputs

ROUNDS_POWER = {"sum": 0.0, "mean": 1.0, "sqrtn": 0.5}


class Kernel(Protocol):
    """Runs forward and backward of one batch.

    Shapes: outputs are, group by group, its block [B, P, D] if it has pooled features, then the values [B, L,
    D] of each sequence feature and [n, D] of each jagged one, for its n ids. After forward, `masks` holds the
    sequences' [B, L] of bool in the same order.
    """

    masks: list[Tensor]

    def forward(self) -> list[Tensor]:
        """Gathers, decodes and pools the batch's rows, and returns the outputs."""
        ...

    def backward(
        self, gradients: Sequence[Tensor | None], wire: Wire, factor: Tensor | None = None
    ) -> list[Array | None]:
        """Returns the gradients of each group's rows in the wire format, None for zeros.

        They may be read after `wait`. gradients: of the outputs. factor: multiplies them.

        Shapes: factor [1], on the device.
        """
        ...

    def overflow(self) -> Tensor:
        """Returns a scalar on the device: NaN if a backward gave gradients not finite as fp32, else 0."""
        ...

    def let_go(self) -> None:
        """Waits until the row batch's memory isn't needed any more; only `wait` may be called after this."""
        ...

    def wait(self) -> None:
        """Waits until the row batch's memory isn't needed any more and all gradients are on the host."""
        ...


class DimGroup:
    """Holds the features of one dim group with their positions in the batch."""

    def __init__(self, inputs: Inputs, number: int, device: torch.device | str = "cpu") -> None:
        members = [(i, f) for i, f in enumerate(inputs.features) if f.dim_group == number]
        self.number = number
        self.features: tuple[tuple[int, FeatureSpec], ...] = tuple(members)
        self.dim = members[0][1].dim
        self.pooled = tuple(f.name for _, f in members if f.pooling in POOLED)
        self.unpooled = tuple(f for _, f in members if f.pooling not in POOLED)
        # Kernels count rows, users ids: the mean of ids that are sums of r rows is r times that of the rows.
        # Where ids have weights, these make a mean of a sum.
        scales = [
            1.0 if f.weighted else f.rounds ** ROUNDS_POWER[f.pooling]
            for _, f in members
            if f.pooling in POOLED
        ]
        self.scales = torch.tensor(scales, device=device)[:, None] if any(s != 1 for s in scales) else None

    def parts(self, row_batch: RowBatch) -> list[tuple[int, int, str, npt.NDArray[np.uint32] | None]]:
        """Returns (first id, end id, pooling, bag offsets or None) of each feature, for native kernels."""
        offsets = row_batch.feature_offsets
        return [
            (
                int(offsets[i]),
                int(offsets[i + 1]),
                "sum" if f.weighted and f.pooling in POOLED else f.pooling,
                row_batch.bag_offsets[f.bags] if f.multi else None,
            )
            for i, f in self.features
        ]

    def weights(self, row_batch: RowBatch) -> list[npt.NDArray[np.float32] | None]:
        """Returns of each feature what its rows are multiplied by when they are summed, or None."""
        return [
            row_batch.id_weights[f.name] if f.weighted and f.pooling in POOLED else None
            for _, f in self.features
        ]
