"""Sums buckets of dense gradients in GPU memory through torch.distributed's NCCL."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from persia_hpc.errors import UserError

from .sums import gpus_in_use

dist: Any = torch.distributed  # which has types only in part
# Longer than any wait for a trainer: the job's own watchdog decides, not torch's.
_PATIENCE = datetime.timedelta(days=30)


class NcclSums:
    """Sums each bucket with an AllReduce of its own. See `Sums`."""

    def __init__(self, comm: Any, backend: str = "nccl", *, one_node: bool) -> None:
        """Makes torch's default process group of the trainers; tests choose another `backend`.

        one_node: whether all trainers are on one node, alike on all of them.
        Collective over the trainers, whose communicator (mpi4py) is `comm`.
        """
        self._comm = comm
        self._one_node = one_node
        self._backend = backend
        self._folder = ""
        dist.init_process_group(
            backend, store=self._store(), rank=comm.rank, world_size=comm.size, timeout=_PATIENCE
        )
        self._buffers: list[Tensor] = []
        self._works: dict[int, Any] = {}

    def _store(self) -> Any:
        """Returns what tells the processes of each other: a file on one node, so that no port is open."""
        comm = self._comm
        if self._one_node:
            if comm.rank == 0:
                self._folder = tempfile.mkdtemp(prefix="persia-hpc-nccl-")
            folder = comm.bcast(self._folder)
            if all(comm.allgather(os.path.isdir(folder))):  # containers of one node may differ in /tmp
                return dist.FileStore(os.path.join(folder, "store"), comm.size)
        store = None
        if comm.rank == 0:
            store = dist.TCPStore(
                platform.node(), 0, comm.size, is_master=True, wait_for_workers=False, timeout=_PATIENCE
            )
        host, port = comm.bcast((platform.node(), store.port if store is not None else 0))
        return store or dist.TCPStore(host, port, comm.size, is_master=False, timeout=_PATIENCE)

    def attach(
        self, lengths: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> list[tuple[Tensor, Tensor]]:
        gpus = gpus_in_use(self._comm, device)
        if self._backend == "nccl" and len({name for name in gpus if name}) < len(gpus):
            lacks = "share a GPU" if all(gpus) else "have none"
            raise UserError(
                f'train.reducer = "nccl" needs a GPU for each trainer, but of {len(gpus)} some {lacks}; '
                'start as many trainers as there are GPUs, or use train.reducer = "mpi"'
            )
        self._buffers = [torch.zeros(length, dtype=dtype, device=device) for length in lengths]
        return [(buffer, buffer) for buffer in self._buffers]

    def start(self, index: int) -> None:
        self._works[index] = dist.all_reduce(self._buffers[index], async_op=True)

    def progress(self) -> None:
        """Does nothing: NCCL's kernels run by themselves."""

    def finish(self, index: int) -> None:
        self._works.pop(index).wait()

    def close(self) -> None:
        """Ends the process group.

        Collective over trainers.
        """
        dist.destroy_process_group()
        self._comm.Barrier()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
