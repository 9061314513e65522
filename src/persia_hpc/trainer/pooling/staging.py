"""Copies batches to the device and their gradients back.

On a GPU each direction has a stream of its own, so that neither waits for what is being computed, and no
thread waits for the whole device. Memory that is in use by a copy is kept by torch's allocators.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persia_hpc.arrays import Array
from persia_hpc.protocol.row_batch import RowBatch

LOG = logging.getLogger("persia_hpc")
CUDA: Any = torch.cuda  # parts of it have no types
ALIGNMENT = 64  # bytes: of records in a ring, and kept on the device
_LOOSE = 4096  # bytes: unneeded ones that a copy of a whole record may include; else it is packed


def address_of(array: Array) -> int:
    """Returns the address at which an array's memory begins."""
    return int(array.__array_interface__["data"][0])


class StagedBatch:
    """Holds the arrays of a RowBatch on a device, in one block that was copied at once."""

    def __init__(self, row_batch: RowBatch, block: Tensor, places: dict[str, int], arrived: Any):
        """Takes the block.

        places: the byte of the block at which an array begins. arrived: a CUDA event, or None.
        """
        self.row_batch = row_batch
        self._block = block
        self._places = places
        self._arrived = arrived

    def use(self) -> None:
        """Makes all work that the current stream gets from now on wait for the copy."""
        if self._arrived is not None:
            stream = torch.cuda.current_stream(self._block.device)
            stream.wait_event(self._arrived)
            self._block.record_stream(stream)

    def wait(self) -> None:
        """Waits until the row batch's own memory isn't needed any more."""
        if self._arrived is not None:
            self._arrived.synchronize()

    def free(self) -> None:
        """Frees the block: whatever was launched before still finds the batch there."""
        self._block, self._places = self._block[:0].clone(), {}

    def pointer(self, name: str) -> int:
        """Returns the address on the device of an array by its name in `arrays_of`; 0 for an empty one."""
        return self._block.data_ptr() + self._places[name] if name in self._places else 0

    def tensor(self, name: str, array: Array) -> Tensor:
        """Returns the array on the device, as a view of the block."""
        kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
        if name not in self._places:
            return torch.empty(array.shape, dtype=kind, device=self._block.device)
        begin = self._places[name]
        return self._block[begin : begin + array.nbytes].view(kind).view(array.shape)


def arrays_of(row_batch: RowBatch) -> Iterator[tuple[str, Array]]:
    """Yields the arrays of a batch that are needed on the device, by name."""
    for group, rows in enumerate(row_batch.rows):
        yield f"rows {group}", rows
    if row_batch.places is not None:
        yield "places", row_batch.places
    yield "indices", row_batch.indices
    for name, bags in row_batch.bag_offsets.items():
        yield f"bags {name}", bags
    for name, weights in row_batch.id_weights.items():
        yield f"weights {name}", weights
    yield "row_offsets", row_batch.row_offsets
    yield "positions", row_batch.positions
    yield "dense", row_batch.dense
    yield "labels", row_batch.labels
    if row_batch.weight is not None:
        yield "weight", row_batch.weight
    if row_batch.group is not None:
        yield "group", row_batch.group


def _layout(named: Sequence[tuple[str, Array]]) -> tuple[int, int, dict[str, int]] | None:
    """Returns (address, bytes, place of each array) of the memory block that holds a record's arrays.

    None if they don't lie close together.
    """
    if not named or not all(array.flags.c_contiguous for _, array in named):
        return None
    spans = [(address_of(array), array.nbytes) for _, array in named]
    first = min(address for address, _ in spans) // ALIGNMENT * ALIGNMENT  # never across a page: readable
    length = max(address + size for address, size in spans) - first
    if length > sum(size for _, size in spans) + _LOOSE + ALIGNMENT * len(spans):
        return None
    return first, length, {name: a - first for (name, _), (a, _) in zip(named, spans, strict=True)}


class Staging:
    """Brings batches to a device and gradients back. One thread uses it, and autograd's.

    A GPU copies by itself only from and to page-locked memory: rings that are registered, or torch's pinned
    memory. From any other the driver copies first, and the host waits for it.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._streams = (CUDA.Stream(device), CUDA.Stream(device)) if device.type == "cuda" else None
        self._ahead: StagedBatch | None = None
        self._registered: list[tuple[int, int]] = []  # (address, bytes)
        self.used_ahead = 0  # batches whose copy was begun before they were asked for

    def register(self, memory: Sequence[Array]) -> None:
        """Lets the device copy batches directly from memory (rings), until `close`."""
        for array in memory:
            error: Any = 0
            if self._streams is not None:
                error = CUDA.cudart().cudaHostRegister(address_of(array), array.nbytes, 0)
            if int(error) == 0:
                self._registered.append((address_of(array), array.nbytes))
            else:
                self._forget_error()
                LOG.warning(
                    "CUDA can't register %d bytes of ring memory (%s): batches are copied to the GPU more "
                    "slowly; raise the limit of locked memory (ulimit -l)",
                    array.nbytes,
                    error,
                )

    def _is_registered(self, first: int, length: int) -> bool:
        return any(begin <= first and first + length <= begin + size for begin, size in self._registered)

    def _forget_error(self) -> None:
        """Clears CUDA's last error, which would otherwise be reported for the next kernel."""
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device=self.device)

    def ahead(self, row_batch: RowBatch) -> None:
        """Begins to copy a batch that will be asked for next."""
        if self._ahead is None and self._streams is not None:
            self._ahead = self._copy(row_batch)

    def arrive(self, row_batch: RowBatch) -> StagedBatch:
        """Returns the batch on the device, ready for the current stream."""
        staged, self._ahead = self._ahead, None
        if staged is None or staged.row_batch is not row_batch:
            staged = self._copy(row_batch)
        else:
            self.used_ahead += 1
        staged.use()
        return staged

    def _copy(self, row_batch: RowBatch) -> StagedBatch:
        named = [(name, array) for name, array in arrays_of(row_batch) if array.nbytes]
        layout = _layout(named)
        # A record that came in chunks lies in one piece too, but in memory of the ring's receiver.
        if layout is None or not self._is_registered(*layout[:2]):
            host, places = self._pack(named)
        else:
            first, length, places = layout
            host = torch.frombuffer((ctypes.c_uint8 * length).from_address(first), dtype=torch.uint8)
        if self._streams is None:
            return StagedBatch(row_batch, host.clone(), places, None)
        with torch.cuda.stream(self._streams[0]):
            block = torch.empty(len(host), dtype=torch.uint8, device=self.device)
            block.copy_(host, non_blocking=True)
            arrived = CUDA.Event()
            arrived.record()
        return StagedBatch(row_batch, block, places, arrived)

    def _pack(self, named: Sequence[tuple[str, Array]]) -> tuple[Tensor, dict[str, int]]:
        places: dict[str, int] = {}
        size = 0
        for name, array in named:
            places[name] = size
            size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        host = torch.empty(size, dtype=torch.uint8, pin_memory=self._streams is not None)
        to = host.numpy()
        for name, array in named:
            begin = places[name]
            to[begin : begin + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        return host, places

    def give(self, block: Tensor) -> tuple[Array, Any]:
        """Copies a block to the host: returns its bytes and the event that makes them valid (None: now)."""
        if self._streams is None:
            return block.numpy(), None
        back = self._streams[1]
        back.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(back):
            host = torch.empty(len(block), dtype=torch.uint8, pin_memory=True)
            host.copy_(block, non_blocking=True)
            block.record_stream(back)
            there = CUDA.Event()
            there.record()
        return host.numpy(), there

    def close(self) -> None:
        """Drops a batch that was copied ahead, and unregisters memory, which is about to be freed."""
        if self._ahead is not None:
            self._ahead.wait()
            self._ahead = None
        if self._streams is not None:
            for address, _ in self._registered:
                if int(CUDA.cudart().cudaHostUnregister(address)) != 0:
                    self._forget_error()
        self._registered.clear()
