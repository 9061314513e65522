"""From a fed batch to a model's input and, after its backward, to the gradients of the unique rows.

One autograd function covers all groups: its forward and backward are a kernel's, native on the CPU, CUDA
(`cuda_kernel.py`) on GPUs, torch operations elsewhere (`torch_kernel.py`). Each sums in an order of its
own, without atomics: results repeat.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from persia_hpc import _native
from persia_hpc.errors import UserError
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.protocol.wire import WIRES, Wire, wire_of
from persia_hpc.trainer.batch import POOLED, Batch, FeatureSpec, Inputs

from .cuda_kernel import CudaKernel, cuda_module
from .row_rings import RowRings
from .staging import Staging
from .torch_kernel import TorchKernel, tensor_of

ROUNDS_POWER = {"sum": 0.0, "mean": 1.0, "sqrtn": 0.5}
Array = npt.NDArray[Any]
LOG = logging.getLogger("persia_hpc")


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


class NativeKernel:
    """The C++ kernels on NumPy views of CPU tensors."""

    def __init__(self, groups: Sequence[DimGroup], row_batch: RowBatch) -> None:
        self._groups = groups
        self._row_batch = row_batch
        self._parts = [group.parts(row_batch) for group in groups]
        self._finite = True
        self.masks: list[Tensor] = []

    def forward(self) -> list[Tensor]:
        """See `Kernel`."""
        outputs: list[Tensor] = []
        row_batch = self._row_batch
        for group, parts, rows in zip(self._groups, self._parts, row_batch.rows, strict=True):
            block, sequences = _native.gather_pool_forward(
                rows, row_batch.indices, features=parts, num_samples=row_batch.num_samples, dim=group.dim
            )
            if group.pooled:
                outputs.append(torch.from_numpy(block))
            for values, mask in sequences:
                outputs.append(torch.from_numpy(values))
                self.masks.append(torch.from_numpy(mask))
        return outputs

    def backward(
        self, gradients: Sequence[Tensor | None], wire: Wire, factor: Tensor | None = None
    ) -> list[Array | None]:
        """See `Kernel`."""
        row_batch = self._row_batch
        arrays = [None if g is None else g.contiguous().numpy() for g in gradients]
        outputs: list[Array | None] = []
        for group, parts in zip(self._groups, self._parts, strict=True):
            block = arrays.pop(0) if group.pooled else None
            values = [arrays.pop(0) for _ in group.sequences]
            if block is None and all(v is None for v in values):
                outputs.append(None)
                continue
            rows = _native.gather_pool_backward(
                block,
                values,
                row_batch.indices,
                features=parts,
                num_samples=row_batch.num_samples,
                num_rows=row_batch.num_rows(group.number),
                dim=group.dim,
                wire=wire.name if factor is None else "fp32",
            )
            if factor is not None:
                rows *= factor.numpy()
                self._finite &= bool(np.isfinite(rows).all())
                rows = _native.encode_rows(rows, wire.name)
            outputs.append(rows)
        return outputs

    def overflow(self) -> Tensor:
        """See `Kernel`; only known of gradients that had a factor."""
        return torch.tensor(0.0 if self._finite else torch.nan)

    def wait(self) -> None:
        """See `Kernel`."""


class RowGradients:
    """Gradients of a batch's unique rows, once its backward has run; summed over the ids that use a row."""

    def __init__(self, groups: Sequence[DimGroup], row_batch: RowBatch, wire: Wire, kernel: Kernel) -> None:
        self.wire = wire
        self.factor: Tensor | None = None  # what undoes a loss scale, [1] on the device
        self._kernel = kernel
        self._dims = [group.dim for group in groups]
        self._num_rows = [row_batch.num_rows(group.number) for group in groups]
        self._arrays: list[Array | None] = [None] * len(groups)

    def arrays(self) -> list[Array]:
        """For each group its [U_g] rows of dim D_g in the wire format; zeros where no gradient arrived.

        Waits until they, and the batch, have left the device; the row batch's memory may go then.
        """
        self.wait()
        return [
            np.zeros(self.wire.shape(num_rows, dim), self.wire.dtype) if array is None else array
            for array, num_rows, dim in zip(self._arrays, self._num_rows, self._dims, strict=True)
        ]

    def wait(self) -> None:
        """Returns when the row batch's memory isn't needed any more."""
        self._kernel.wait()

    def poison(self) -> list[Array]:
        """Instead of `arrays`, for a step whose loss scale was too large: NaNs; servers skip and count."""
        self.wait()
        return [
            _native.encode_rows(np.full((num_rows, dim), np.nan, np.float32), self.wire.name)
            for num_rows, dim in zip(self._num_rows, self._dims, strict=True)
        ]

    def overflow(self) -> Tensor:
        """A scalar on the device: NaN if a gradient is not finite, else 0."""
        return self._kernel.overflow()

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Takes the outputs' gradients of one backward; those of a second one add to the first's."""
        arrays = self._kernel.backward(gradients, self.wire, self.factor)
        if any(array is not None for array in self._arrays):
            self._kernel.wait()  # what is added must be there
        for group, (dim, new) in enumerate(zip(self._dims, arrays, strict=True)):
            old = self._arrays[group]
            if old is not None and new is not None:
                total = _native.decode_rows(old, dim) + _native.decode_rows(new, dim)
                self._arrays[group] = _native.encode_rows(total, self.wire.name)
            elif new is not None:
                self._arrays[group] = new


class _Embed(torch.autograd.Function):
    """The kernel's outputs. Rows are no tensors: their gradients go, as they travel, to a RowGradients."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, gradients: RowGradients, _: Tensor) -> tuple[Tensor, ...]:
        """The tensor holds nothing: something must require gradients for autograd to come back here."""
        ctx.gradients = gradients
        ctx.set_materialize_grads(False)
        return tuple(kernel.forward())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None, None]:
        ctx.gradients.add(gradients)
        return None, None, None


class Pooling:
    """Makes batches for a model with these inputs. Holds no parameters."""

    def __init__(
        self,
        inputs: Inputs,
        device: torch.device | str = "cpu",
        *,
        gradients: str = "fp32",
        kernel: str | None = None,
    ) -> None:
        """`gradients`: the wire format of row gradients. `kernel`: native (CPU only), cuda or torch, else the
        best one for the device; on the CPU the latter two are slow, for comparing them.
        """
        self.inputs = inputs
        self.device = torch.device(device)
        self.staging = Staging(self.device)
        self._rings = RowRings()
        self._wire = WIRES[gradients]
        self._launch: Any = _native
        if kernel is None:
            kernel = "native" if self.device.type == "cpu" else "torch"
            if self.device.type == "cuda":
                self._launch = cuda_module(self.device)
                if isinstance(self._launch, str):
                    LOG.warning("embeddings are pooled by torch operations, slowly: %s", self._launch)
                else:
                    kernel = "cuda"
        self.kernel = kernel
        num_dim_groups = max((f.dim_group for f in inputs.features), default=-1) + 1
        self._groups = [DimGroup(inputs, group, self.device) for group in range(num_dim_groups)]

    def embed(self, row_batch: RowBatch, *, training: bool) -> tuple[Batch, RowGradients]:
        """The batch for `model.forward`, and where its row gradients are after `loss.backward()`.

        Without `training` no gradient is tracked. The row batch's arrays must stay valid until the backward
        has run; the batch itself shares nothing with them. A batch that leaves rows out must be embedded
        once, in order of step. Not collective. Raises UserError when the row batch does not fit the inputs.
        """
        self._check(row_batch)
        kernel: Kernel
        if row_batch.places is not None and self.kernel != "cuda":
            self._complete(row_batch)
        if self.kernel == "native":
            kernel = NativeKernel(self._groups, row_batch)
        elif self.kernel == "cuda":
            kernel = CudaKernel(self._groups, row_batch, self.staging, self._rings, self._launch)
        else:
            kernel = TorchKernel(self._groups, row_batch, self.device)
        gradients = RowGradients(self._groups, row_batch, self._wire, kernel)
        if training and self._groups:
            token = torch.empty(0, device=self.device, requires_grad=True)
            outputs: Sequence[Tensor] = _Embed.apply(kernel, gradients, token)  # type: ignore[no-untyped-call]
        else:
            outputs = kernel.forward()
        return self._batch(row_batch, kernel, list(outputs), kernel.masks), gradients

    def _complete(self, row_batch: RowBatch) -> None:
        """The rows of earlier batches in their places; rings are kept on the host."""
        assert row_batch.places is not None
        rows = [tensor_of(array, torch.device("cpu")) for array in row_batch.rows]
        places = tensor_of(row_batch.places.view(np.int32), torch.device("cpu"))
        complete = self._rings.complete(row_batch, rows, places)
        row_batch.rows = [c.numpy().view(a.dtype) for c, a in zip(complete, row_batch.rows, strict=True)]
        row_batch.places = None

    def _batch(
        self, row_batch: RowBatch, kernel: Kernel, outputs: list[Tensor], masks: list[Tensor]
    ) -> Batch:
        def own(name: str, array: npt.NDArray[Any]) -> Tensor:
            """A copy on the device: small arrays that users keep, while the row batch's memory goes back."""
            if isinstance(kernel, CudaKernel):
                return kernel.staged.tensor(name, array).clone()
            tensor = tensor_of(array, self.device)
            return tensor.clone() if self.device.type == "cpu" else tensor

        pooled: dict[str, Tensor] = {}
        sequence: dict[str, tuple[Tensor, Tensor]] = {}
        blocks: dict[tuple[str, ...], Tensor] = {}
        masks = list(masks)
        for group in self._groups:
            if group.pooled:
                block = outputs.pop(0)
                if group.scales is not None:
                    block = block * group.scales
                blocks[group.pooled] = block
                # unbind, not one select per feature: its backward is one stack, not a block of zeros for each
                pooled.update(zip(group.pooled, block.unbind(1), strict=True))
            for name, rounds in group.sequences:
                sequence[name] = _sum_rounds(outputs.pop(0), masks.pop(0), rounds)
        return Batch(
            step=row_batch.step,
            num_samples=row_batch.num_samples,
            dense=own("dense", row_batch.dense),
            labels=own("labels", row_batch.labels),
            weight=None if row_batch.weight is None else own("weight", row_batch.weight),
            group=None if row_batch.group is None else own("group", row_batch.group),
            pooled={name: pooled[name] for name in self.inputs.pooled},
            sequence={name: sequence[name] for name in self.inputs.sequences},
            blocks=blocks,
        )

    def _check(self, row_batch: RowBatch) -> None:
        if len(row_batch.rows) != len(self._groups):
            raise UserError(
                f"a batch has rows of {len(row_batch.rows)} groups, the model's inputs {len(self._groups)}"
            )
        for group, rows in zip(self._groups, row_batch.rows, strict=True):
            wire_of(rows, group.dim)
        if len(row_batch.feature_offsets) != len(self.inputs.features) + 1:
            raise UserError(
                f"a batch has ids of {len(row_batch.feature_offsets) - 1} features, the model's inputs name "
                f"{len(self.inputs.features)}"
            )
        missing = [f.name for f in self.inputs.features if f.multi and f.name not in row_batch.bag_offsets]
        if missing:
            raise UserError(f"a batch has no bag offsets for the multi-hot feature {missing[0]!r}")


def _sum_rounds(values: Tensor, mask: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """One vector an id, [B, L, D], and its mask [B, L], of its rows [B, rounds * L, D]."""
    if rounds == 1:
        return values, mask
    if values.shape[1] < rounds:  # no sample has an id: one place of zeros
        return values[:, :1], mask[:, :1]
    return values.view(len(values), -1, rounds, values.shape[2]).sum(dim=2), mask[:, ::rounds]
