"""What every pooling kernel is given and offers: the features of a dim group, and the kernel's verbs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.protocol.wire import Wire
from persia_hpc.trainer.batch import POOLED, FeatureSpec, Inputs

Array = npt.NDArray[Any]
ROUNDS_POWER = {"sum": 0.0, "mean": 1.0, "sqrtn": 0.5}


class Kernel(Protocol):
    """Forward and backward of one batch.

    Outputs are, group by group, its block [B, P, D] if it has pooled features, then the values [B, L, D] of
    each sequence feature. After forward, `masks` holds the sequences' [B, L] of bool in the same order.
    """

    masks: list[Tensor]

    def forward(self) -> list[Tensor]:
        """The batch's rows, decoded as they are gathered -> outputs."""
        ...

    def backward(
        self, gradients: Sequence[Tensor | None], wire: Wire, factor: Tensor | None = None
    ) -> list[Array | None]:
        """Gradients of the outputs, times `factor` ([1], on the device), -> gradients of the rows of each
        group, as they travel; None: zeros. They may be read after `wait`.
        """
        ...

    def overflow(self) -> Tensor:
        """A scalar on the device: NaN if a backward gave gradients that are not finite (as fp32), else 0."""
        ...

    def wait(self) -> None:
        """Returns when neither the row batch's memory is needed any more nor gradients are on their way."""
        ...


class DimGroup:
    """The features of one group by the number that their ids have in the batch."""

    def __init__(self, inputs: Inputs, number: int, device: torch.device | str = "cpu") -> None:
        members = [(i, f) for i, f in enumerate(inputs.features) if f.dim_group == number]
        self.number = number
        self.features: tuple[tuple[int, FeatureSpec], ...] = tuple(members)
        self.dim = members[0][1].dim
        self.pooled = tuple(f.name for _, f in members if f.pooling in POOLED)
        self.sequences = tuple((f.name, f.rounds) for _, f in members if f.pooling not in POOLED)
        # Kernels count rows, users ids: the mean of ids that are sums of r rows is r times that of the rows.
        scales = [f.rounds ** ROUNDS_POWER[f.pooling] for _, f in members if f.pooling in POOLED]
        self.scales = torch.tensor(scales, device=device)[:, None] if any(s != 1 for s in scales) else None

    def parts(self, row_batch: RowBatch) -> list[tuple[int, int, str, npt.NDArray[np.uint32] | None]]:
        """(first id, end id, pooling, bag offsets or None) of each feature: what the native kernels take."""
        offsets = row_batch.feature_offsets
        return [
            (
                int(offsets[i]),
                int(offsets[i + 1]),
                f.pooling,
                row_batch.bag_offsets[f.name] if f.multi else None,
            )
            for i, f in self.features
        ]
