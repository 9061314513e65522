"""Turns a batch from a worker into a model's input and, after its backward, gradients of the unique rows.

One autograd function covers all groups: its forward and backward are a kernel's, native on the CPU, CUDA
(`cuda_kernel.py`) on GPUs, torch operations elsewhere (`torch_kernel.py`). Each sums in a fixed order of its
own, without atomics, so that results repeat.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from persia_hpc import _native
from persia_hpc.config import Config
from persia_hpc.config.retrieval import retrieval_loss
from persia_hpc.errors import UserError
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.protocol.wire import WIRES, wire_of
from persia_hpc.trainer.batch import Batch, Inputs
from persia_hpc.trainer.item_counts import ItemCounts
from persia_hpc.trainer.jagged import Jagged

from .cuda_kernel import CudaKernel, cuda_module
from .gradients import RowGradients
from .groups import DimGroup, Kernel
from .native_kernel import NativeKernel
from .row_rings import RowRings
from .staging import Staging
from .torch_kernel import TorchKernel, tensor_of

LOG = logging.getLogger("persia_hpc")


class _Embed(torch.autograd.Function):
    """Computes the kernel's outputs. Rows are no tensors: their gradients go, encoded, to a RowGradients."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, gradients: RowGradients, _: Tensor) -> tuple[Tensor, ...]:
        """Runs the kernel; the tensor is empty, and only makes autograd call `backward`."""
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
        number_ids: bool = False,
        item_feature: str | None = None,
        item_counts: ItemCounts | None = None,
    ) -> None:
        """Chooses the kernel.

        number_ids: whether training batches have `Batch.ids`. item_feature: the one that tells items apart.
        item_counts: what batches are given to count items with.
        gradients: the wire format of row gradients. kernel: native (CPU only), cuda or torch, else the best
        one for the device; on the CPU the latter two are slow, for comparing them.

        Raises UserError for a kernel that can't run on the device.
        """
        self.inputs = inputs
        self.device = torch.device(device)
        self.kernel, self._launch = _choose_kernel(self.device, kernel)
        self.staging = Staging(self.device)
        self._rings = RowRings()
        self._wire = WIRES[gradients]
        num_dim_groups = max((f.dim_group for f in inputs.features), default=-1) + 1
        self._groups = [DimGroup(inputs, group, self.device) for group in range(num_dim_groups)]
        self.item_counts = item_counts
        self._number_ids = number_ids
        self._item_table = next((f.table for f in inputs.features if f.name == item_feature), None)

    @classmethod
    def of(cls, config: Config, inputs: Inputs, device: torch.device) -> Pooling:
        """Returns what a configuration describes."""
        loss = retrieval_loss(config)
        return cls(
            inputs,
            device,
            gradients=config.wire.gradients,
            number_ids=loss is not None,
            item_feature=config.data.item_feature,
            item_counts=ItemCounts(loss["halve_every"]) if loss and loss["logq"] == "counts" else None,
        )

    def embed(
        self,
        row_batch: RowBatch,
        *,
        training: bool,
        pooled: torch.dtype = torch.float32,
        dense: Tensor | None = None,
    ) -> tuple[Batch, RowGradients]:
        """Returns the batch for `model.forward`, and what holds its row gradients after `loss.backward()`.

        pooled: the type that pooled vectors may have, float32 or bfloat16; only the CUDA kernel writes the
        latter, others give float32. dense: its dense features, if `dense` was asked for them.

        Without `training` no gradient is tracked. The row batch's arrays must stay valid until the backward
        has run; the batch itself shares nothing with them. A row batch that leaves out rows sent before must
        be embedded once, in order of step. Needs no other rank.

        Raises UserError when the row batch does not fit the inputs.
        """
        self._check(row_batch)
        kernel: Kernel
        if row_batch.places is not None and self.kernel != "cuda":
            self._complete(row_batch)
        if self.kernel == "native":
            kernel = NativeKernel(self._groups, row_batch)
        elif self.kernel == "cuda":
            kernel = CudaKernel(self._groups, row_batch, self.staging, self._rings, self._launch, pooled)
        else:
            kernel = TorchKernel(self._groups, row_batch, self.device)
        gradients = RowGradients(self._groups, row_batch, self._wire, kernel)
        if training and self._groups:
            token = torch.empty(0, device=self.device, requires_grad=True)
            outputs: Sequence[Tensor] = _Embed.apply(kernel, gradients, token)  # type: ignore[no-untyped-call]
        else:
            outputs = kernel.forward()
        batch = self._batch(row_batch, kernel, list(outputs), kernel.masks, dense)
        if training and self._number_ids:
            self._add_ids(batch, row_batch)
        return batch, gradients

    def dense(self, row_batch: RowBatch) -> Tensor:
        """Returns a row batch's dense features on the device, before the batch is embedded."""
        tensor = tensor_of(row_batch.dense, self.device)
        return tensor.clone() if self.device.type == "cpu" else tensor

    def _add_ids(self, batch: Batch, row_batch: RowBatch) -> None:
        """Numbers the ids by their rows. Ids that are sums of more than two rows have no number."""
        if self.item_counts is not None and row_batch.item_keys is not None:
            batch.item_keys, batch.item_counts = row_batch.item_keys.copy(), self.item_counts
        for i, feature in enumerate(self.inputs.features):
            part = slice(int(row_batch.feature_offsets[i]), int(row_batch.feature_offsets[i + 1]))
            rows = row_batch.indices[part].astype(np.int64)
            if feature.rounds <= 2:
                numbers = rows if feature.rounds == 1 else rows[::2] << 32 | rows[1::2]
                batch.ids[feature.name] = torch.from_numpy(numbers).to(self.device)
            if row_batch.log_q is not None and feature.table == self._item_table:
                batch.log_q[feature.name] = torch.from_numpy(row_batch.log_q[rows]).to(self.device)

    def _complete(self, row_batch: RowBatch) -> None:
        """Puts the rows of earlier batches in their places; keeps the rings on the host."""
        assert row_batch.places is not None
        rows = [tensor_of(array, torch.device("cpu")) for array in row_batch.rows]
        places = tensor_of(row_batch.places.view(np.int32), torch.device("cpu"))
        complete = self._rings.complete(row_batch, rows, places)
        row_batch.rows = [c.numpy().view(a.dtype) for c, a in zip(complete, row_batch.rows, strict=True)]
        row_batch.places = None

    def _batch(
        self,
        row_batch: RowBatch,
        kernel: Kernel,
        outputs: list[Tensor],
        masks: list[Tensor],
        dense: Tensor | None,
    ) -> Batch:
        def own(name: str, array: npt.NDArray[Any]) -> Tensor:
            """Copies a small array to the device: users keep it, but the row batch's memory is released."""
            if isinstance(kernel, CudaKernel):
                return kernel.staged.tensor(name, array).clone()
            tensor = tensor_of(array, self.device)
            return tensor.clone() if self.device.type == "cpu" else tensor

        pooled: dict[str, Tensor] = {}
        sequence: dict[str, tuple[Tensor, Tensor]] = {}
        jagged: dict[str, Jagged] = {}
        offsets: dict[tuple[str, str], Tensor] = {}  # of each sequence, or of a feature that is in none
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
            for spec in group.unpooled:
                if spec.pooling == "jagged":
                    stream = ("", spec.name) if spec.sequence is None else ("sequences", spec.sequence)
                    bags = row_batch.bag_offsets.get(spec.bags)
                    if bags is None:
                        offsets[stream] = torch.arange(row_batch.num_samples + 1, device=self.device)
                    elif stream not in offsets:
                        # As int32 first: torch can do little with uint32.
                        starts = own(f"bags {spec.bags}", bags.view(np.int32)).to(torch.int64) & 0xFFFFFFFF
                        offsets[stream] = starts // spec.rounds
                    longest = 1 if bags is None else max(1, int(np.diff(bags).max(initial=0)) // spec.rounds)
                    values = _sum_rows(outputs.pop(0), spec.rounds)
                    weights = None
                    if spec.weighted:
                        weights = own(f"weights {spec.name}", row_batch.id_weights[spec.name])[:: spec.rounds]
                    jagged[spec.name] = Jagged(values, offsets[stream], longest, weights)
                else:
                    sequence[spec.name] = _sum_rounds(outputs.pop(0), masks.pop(0), spec.rounds)
        return Batch(
            step=row_batch.step,
            num_samples=row_batch.num_samples,
            dense=own("dense", row_batch.dense) if dense is None else dense,
            labels=own("labels", row_batch.labels),
            weight=None if row_batch.weight is None else own("weight", row_batch.weight),
            group=None if row_batch.group is None else own("group", row_batch.group),
            pooled={name: pooled[name] for name in self.inputs.pooled},
            sequence={name: sequence[name] for name in self.inputs.sequences},
            blocks=blocks,
            jagged={name: jagged[name] for name in self.inputs.jagged},
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
        missing = [f.name for f in self.inputs.features if f.multi and f.bags not in row_batch.bag_offsets]
        if missing:
            raise UserError(f"a batch has no bag offsets for the multi-hot feature {missing[0]!r}")
        bare = [f.name for f in self.inputs.features if f.weighted and f.name not in row_batch.id_weights]
        if bare:
            raise UserError(f"a batch has no weights for the ids of {bare[0]!r}")


def _choose_kernel(device: torch.device, name: str | None) -> tuple[str, Any]:
    """Returns the kernel's name, and the module that launches it: one whose addresses are the device's.

    Raises UserError for a kernel that was asked for and can't run there.
    """
    wrong = f'kernel = "{name}" on the device "{device}"'
    if name not in (None, "native", "cuda", "torch"):
        raise UserError(f"{wrong}: expected native, cuda or torch, or None for the best one")
    if device.type == "cpu":
        return name or "native", _native
    if name == "native" or (name == "cuda" and device.type != "cuda"):
        fitting = '"cuda" or "torch"' if device.type == "cuda" else '"torch"'
        raise UserError(f"{wrong}: its code would be given addresses of other memory; use {fitting} there")
    if name == "torch" or device.type != "cuda":
        return "torch", None
    module, problem = cuda_module(device)
    if module is not None:
        return "cuda", module
    if name == "cuda":
        raise UserError(f'{wrong}: {problem}; use "torch", which is slower')
    LOG.warning("embeddings are pooled by torch operations, slowly: %s", problem)
    return "torch", None


def _sum_rounds(values: Tensor, mask: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Sums the rows [B, rounds * L, D] of each id: returns its vectors [B, L, D] and their mask [B, L]."""
    if rounds == 1:
        return values, mask
    if values.shape[1] < rounds:  # no sample has an id: one place of zeros
        return values[:, :1], mask[:, :1]
    return values.view(len(values), -1, rounds, values.shape[2]).sum(dim=2), mask[:, ::rounds]


def _sum_rows(values: Tensor, rounds: int) -> Tensor:
    """Sums the rows [rounds * N, D] of each id: returns its vectors [N, D]."""
    return values if rounds == 1 else values.view(-1, rounds, values.shape[1]).sum(dim=1)
