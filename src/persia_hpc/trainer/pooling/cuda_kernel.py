"""Pools embeddings with the CUDA kernels: one launch a direction for all features of a batch.

With a CPU device the kernels' code runs on the host, one thread after the other: for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persia_hpc.arrays import Array
from persia_hpc.errors import PersiaError
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.protocol.wire import WIRES, Wire, wire_of
from persia_hpc.trainer.batch import POOLED

from .groups import DimGroup
from .row_rings import RowRings
from .staging import ALIGNMENT, Staging

# native/include/persia/pool_batch_types.h: BatchFeature, BatchGroup, LongPiece, BatchFlags.
_FEATURE = np.dtype(
    [(name, "u8") for name in ("bags", "rows", "values", "mask", "weights")]
    + [(name, "u4") for name in ("first", "num_rows", "dim", "length", "stride")]
    + [("pooling", "u1"), ("wire", "u1"), ("bf16", "?"), ("_", "u1")]
)
_GROUP = np.dtype(
    [("gradients", "u8"), ("partials", "u8")]
    + [(name, "u4") for name in ("first_row", "num_rows", "dim", "first_feature", "num_features")]
    + [("wire", "u1"), ("_0", "u1"), ("_1", "u2")]
)
_BAD_INDEX, _NONFINITE, _NUM_LONG, _NUM_FLAGS = 0, 1, 2, 3
_POOLINGS = ("sum", "mean", "sqrtn", "sequence", "jagged")
_WIRES = tuple(WIRES)
_AHEAD, _LONG_ROW, _PIECE, _LONG_PIECE_WORDS = 4, 64, 512, 3  # kAhead, kLongRow, kPiece
_WARP = 32


def cuda_module(device: torch.device) -> tuple[ModuleType | None, str]:
    """Returns the module with the kernels for this device and "", or None and why there is none."""
    try:
        from persia_hpc import _cuda
    except ImportError:
        return None, "persia_hpc was built without CUDA kernels (`persia-hpc doctor` tells more)"
    index = device.index
    if index is None:
        index = torch.cuda.current_device() if torch.cuda.is_available() else 0
    problem = str(_cuda.problem(index) or "")
    return (None, problem) if problem else (_cuda, "")


def _as_blocks(gradient: Tensor) -> Tensor:
    """Returns the gradient with what a sample has in one piece; samples may lie apart, as in a wider tensor.

    It is copied where that makes loads of four elements possible, which costs less than loads of single ones.

    Shapes: [B, P, D], or [n, D] of jagged ids.
    """
    if gradient.dim() == 2:  # of jagged ids
        return _as_blocks(gradient.unsqueeze(1)).squeeze(1)
    _, num_vectors, dim = gradient.shape
    whole = (num_vectors == 1 or gradient.stride(1) == dim) and (dim == 1 or gradient.stride(2) == 1)
    aligned = gradient.data_ptr() % (4 * gradient.element_size()) == 0 and gradient.stride(0) % 4 == 0
    well = whole and gradient.stride(0) < 2**32 and (aligned or dim % 4 != 0)
    return gradient if well else gradient.clone(memory_format=torch.contiguous_format)


class CudaKernel:
    """Runs forward and backward of one batch with the CUDA kernels. See `Kernel`."""

    def __init__(
        self,
        groups: Sequence[DimGroup],
        row_batch: RowBatch,
        staging: Staging,
        rings: RowRings,
        launch: Any,
        pooled: torch.dtype = torch.float32,
    ) -> None:
        """Copies the batch to the device.

        launch: the module with the kernels, `_native` on the host; that ends the process if it is given the
        addresses of a GPU, so nothing is the default. pooled: the type of pooled vectors.
        """
        self.staged = staging.arrive(row_batch)
        self._groups = groups
        self._row_batch = row_batch
        self._staging = staging
        self._launch = launch
        self._device = staging.device
        self._pooled = pooled
        self.flags = torch.zeros(_NUM_FLAGS, dtype=torch.int32, device=self._device)
        self._samples = torch.empty(len(row_batch.indices), dtype=torch.int32, device=self._device)
        self._complete: list[Tensor] | None = None  # rows, if some were on the device already
        if row_batch.places is not None:
            arrived = [self.staged.tensor(f"rows {g}", rows) for g, rows in enumerate(row_batch.rows)]
            places = self.staged.tensor("places", row_batch.places.view(np.int32))
            self._complete = rings.complete(row_batch, arrived, places)
        self._features = self._describe()
        self._returned: list[tuple[Array, Any]] = []
        self._kept: list[Tensor] = []  # what launches were given, until the batch is done with
        self.masks: list[Tensor] = []

    def _describe(self) -> Array:
        """Describes all features, group by group, without the addresses of their values and masks."""
        row_batch, records = self._row_batch, []
        for group in self._groups:
            rows = row_batch.rows[group.number]
            wire = _WIRES.index(wire_of(rows, group.dim).name)
            address = self.staged.pointer(f"rows {group.number}")
            if self._complete is not None:
                address = self._complete[group.number].data_ptr()
            num_rows = row_batch.num_rows(group.number)
            for (_, spec), (first, end, pooling, bags), weights in zip(
                group.features, group.parts(row_batch), group.weights(row_batch), strict=True
            ):
                sequence, jagged = pooling == "sequence", pooling == "jagged"
                length = max(1, int(np.diff(bags).max(initial=0))) if sequence and bags is not None else 1
                stride = length * group.dim if sequence else len(group.pooled) * group.dim
                at = self.staged.pointer(f"bags {spec.bags}") if bags is not None else 0
                if jagged:  # each id is for itself
                    at, length, stride = 0, end - first, group.dim
                by = 0 if weights is None else self.staged.pointer(f"weights {spec.name}")
                numbers = (first, num_rows, group.dim, length, stride, _POOLINGS.index(pooling))
                records.append((at, address, 0, 0, by, *numbers, wire, False, 0))
        return np.array(records, _FEATURE)

    def _upload(self, records: Array) -> Tensor:
        # From memory that is not pinned the driver has taken its copy when this returns.
        uploaded = torch.from_numpy(records.view(np.uint8)).to(self._device, non_blocking=True)
        self._kept.append(uploaded)
        return uploaded

    def _call(self, launch: Any, **arguments: Any) -> None:
        if self._device.type != "cuda":
            launch(**arguments, stream=0)
            return
        with torch.cuda.device(self._device):
            launch(**arguments, stream=torch.cuda.current_stream().cuda_stream)

    def _place(self, tensors: Sequence[Tensor | None]) -> Array:
        """Returns the features with `values` in these tensors: each group's block, then its sequences."""
        features, at, remaining = self._features.copy(), 0, list(tensors)
        for group in self._groups:
            block = remaining.pop(0) if group.pooled else None
            slot = 0
            for _, spec in group.features:
                if spec.pooling not in POOLED:
                    values = remaining.pop(0)
                    if values is not None:
                        features["values"][at] = values.data_ptr()
                        features["stride"][at] = values.stride(0)
                elif block is not None:
                    features["values"][at] = block.data_ptr() + block.element_size() * slot * group.dim
                    features["stride"][at] = block.stride(0)
                    features["bf16"][at] = block.dtype == torch.bfloat16
                    slot += 1
                at += 1
        return features

    def forward(self) -> list[Tensor]:
        row_batch, device = self._row_batch, self._device
        outputs: list[Tensor] = []
        masks: list[int] = []
        at = 0
        for group in self._groups:
            if group.pooled:
                shape = (row_batch.num_samples, len(group.pooled), group.dim)
                # Where vectors are multiplied afterwards, rounding them first would round twice.
                dtype = self._pooled if group.scales is None else torch.float32
                outputs.append(torch.empty(shape, dtype=dtype, device=device))
            for _, spec in group.features:
                length = int(self._features["length"][at])
                at += 1
                if spec.pooling != "sequence":
                    masks.append(0)
                    if spec.pooling == "jagged":
                        outputs.append(torch.empty(length, group.dim, device=device))
                    continue
                outputs.append(torch.empty(row_batch.num_samples, length, group.dim, device=device))
                self.masks.append(torch.empty(row_batch.num_samples, length, dtype=torch.bool, device=device))
                masks.append(self.masks[-1].data_ptr())
        features = self._place(outputs)
        features["mask"] = masks
        records = self._upload(features)
        self._call(
            self._launch.pool_batch_forward,
            features=records.data_ptr(),
            num_features=len(features),
            num_samples=row_batch.num_samples,
            indices=self.staged.pointer("indices"),
            narrow=row_batch.indices.dtype == np.uint16,
            samples=self._samples.data_ptr(),
            flags=self.flags.data_ptr(),
            most_threads=self._forward_tasks(features),
        )
        return outputs

    def _forward_tasks(self, features: Array) -> int:
        """Returns what threads have to do for a feature, at most: as `forward_tasks` counts it."""
        single = (features["bags"] == 0) & (features["pooling"] != _POOLINGS.index("sequence"))
        num_samples, lengths = self._row_batch.num_samples, features["length"].astype(np.int64)
        count = np.where(features["pooling"] == _POOLINGS.index("jagged"), lengths, num_samples)
        places = np.where(single, -(-count // _AHEAD), num_samples * lengths)
        return int((places * ((features["dim"].astype(np.int64) + 3) // 4)).max(initial=0))

    def backward(
        self, gradients: Sequence[Tensor | None], wire: Wire, factor: Tensor | None = None
    ) -> list[Array | None]:
        gradients = [None if g is None else _as_blocks(g) for g in gradients]
        features, groups, sizes = self._place(gradients), [], []
        partials: list[int] = []  # floats of each group
        first_feature, size, threads = 0, ALIGNMENT, 0  # the flags lie before the first group's rows
        for group in self._groups:
            rows = self._row_batch.num_rows(group.number)
            row_bytes = wire.row_bytes(group.dim)
            first_row = int(self._row_batch.dim_group_offsets[group.number])
            number = _WIRES.index(wire.name)
            count = len(group.features)
            groups.append((size, 0, first_row, rows, group.dim, first_feature, count, number, 0, 0))
            ids = int(self._row_batch.row_offsets[first_row + rows] - self._row_batch.row_offsets[first_row])
            partials.append(-(-ids // (_PIECE // 2)) * -(-group.dim // 4) * 4)
            sizes.append((size, rows * row_bytes))
            threads = max(threads, rows * min(_WARP, 1 << max(0, (group.dim + 3) // 4 - 1).bit_length()))
            first_feature += count
            size += -(-rows * row_bytes // ALIGNMENT) * ALIGNMENT
        block = torch.empty(size, dtype=torch.uint8, device=self._device)
        described = np.array(groups, _GROUP)
        described["gradients"] += np.uint64(block.data_ptr())
        sums = torch.empty(sum(partials), dtype=torch.float32, device=self._device)
        described["partials"] = sums.data_ptr() + 4 * np.cumsum([0, *partials[:-1]]).astype(np.uint64)
        records, group_records = self._upload(features), self._upload(described)
        num_ids = len(self._row_batch.indices)
        long_pieces = torch.empty(
            (num_ids // _LONG_ROW + 1) * _LONG_PIECE_WORDS, dtype=torch.int32, device=self._device
        )
        self._kept += [block, sums, long_pieces, *(g for g in gradients if g is not None)]
        self.flags[_NUM_LONG:].zero_()  # what was not finite in an earlier backward still counts
        self._call(
            self._launch.pool_batch_backward,
            features=records.data_ptr(),
            groups=group_records.data_ptr(),
            num_groups=len(groups),
            samples=self._samples.data_ptr(),
            row_offsets=self.staged.pointer("row_offsets"),
            positions=self.staged.pointer("positions"),
            factor=0 if factor is None else factor.data_ptr(),
            long_pieces=long_pieces.data_ptr(),
            flags=self.flags.data_ptr(),
            most_threads=threads,
        )
        block[: 4 * _NUM_FLAGS].view(torch.int32).copy_(self.flags)
        host, there = self._staging.give(block)
        self._returned.append((host, there))
        arrays: list[Array | None] = []
        for group, (begin, length) in zip(self._groups, sizes, strict=True):
            shape = wire.shape(self._row_batch.num_rows(group.number), group.dim)
            arrays.append(host[begin : begin + length].view(wire.dtype).reshape(shape))
        return arrays

    def overflow(self) -> Tensor:
        return torch.where(self.flags[_NONFINITE] != 0, torch.nan, 0.0)

    def let_go(self) -> None:
        """Waits until the row batch has left the host, and frees what launched kernels were given."""
        self.staged.wait()
        self.staged.free()
        self._kept.clear()
        self._complete = None

    def wait(self) -> None:
        """Waits as `Kernel.wait` says.

        Raises PersiaError if the batch has an index that is no row of its group.
        """
        self.staged.wait()
        bad = False
        for host, there in self._returned:
            if there is not None:
                there.synchronize()
            bad |= bool(host[: 4 * _NUM_FLAGS].view(np.int32)[_BAD_INDEX])
        if not self._returned:
            bad = bool(self.flags[_BAD_INDEX].item())
        if bad:
            raise PersiaError(
                f"step {self._row_batch.step}: an index of the batch is no row of its group; the batch was "
                "damaged on its way to the GPU"
            )
