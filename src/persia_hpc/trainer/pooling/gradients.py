"""Holds the gradients of a batch's unique rows, in their wire format."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from persia_hpc import _native
from persia_hpc.arrays import Array
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.protocol.wire import Wire

from .groups import DimGroup, Kernel


class RowGradients:
    """Holds the gradients of a batch's unique rows after its backward, summed over the ids that use a row."""

    def __init__(self, groups: Sequence[DimGroup], row_batch: RowBatch, wire: Wire, kernel: Kernel) -> None:
        self.wire = wire
        self._factor: Tensor | None = None  # what undoes a loss scale, [1] on the device
        self._kernel = kernel
        self._dims = [group.dim for group in groups]
        self._num_rows = [row_batch.num_rows(group.number) for group in groups]
        self._arrays: list[Array | None] = [None] * len(groups)

    def scale_by(self, factor: Tensor) -> None:
        """Multiplies what arrives from now on by `factor`, [1] on the device, which undoes a loss scale."""
        self._factor = factor

    def arrays(self) -> list[Array]:
        """Returns the gradients of each dim group's rows; zeros where no gradient arrived.

        Waits until they, and the batch, have left the device; the row batch's memory may be released then.

        Shapes: for each dim group U_g rows of dim D_g in the wire format.
        """
        self.wait()
        return [
            np.zeros(self.wire.shape(num_rows, dim), self.wire.dtype) if array is None else array
            for array, num_rows, dim in zip(self._arrays, self._num_rows, self._dims, strict=True)
        ]

    def let_go(self) -> None:
        """Waits until the row batch's memory isn't needed any more; no backward may follow."""
        self._kernel.let_go()

    def wait(self) -> None:
        """Waits until the row batch's memory isn't needed any more."""
        self._kernel.wait()

    def poison(self) -> list[Array]:
        """Returns NaNs in place of `arrays`, for a step whose loss scale was too large.

        Servers skip and count them.
        """
        self.wait()
        return [
            _native.encode_rows(np.full((num_rows, dim), np.nan, np.float32), self.wire.name)
            for num_rows, dim in zip(self._num_rows, self._dims, strict=True)
        ]

    def overflow(self) -> Tensor:
        """Returns a scalar on the device: NaN if a gradient is not finite, else 0."""
        return self._kernel.overflow()

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Takes the outputs' gradients of one backward; those of a second one are added to the first's."""
        arrays = self._kernel.backward(gradients, self.wire, self._factor)
        if any(array is not None for array in self._arrays):
            self._kernel.wait()  # what is added must be there
        for group, (dim, new) in enumerate(zip(self._dims, arrays, strict=True)):
            old = self._arrays[group]
            if old is not None and new is not None:
                total = _native.decode_rows(old, dim) + _native.decode_rows(new, dim)
                self._arrays[group] = _native.encode_rows(total, self.wire.name)
            elif new is not None:
                self._arrays[group] = new
