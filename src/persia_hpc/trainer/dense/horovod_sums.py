"""Sums buckets of dense gradients through Horovod; no other file knows it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from persia_hpc.errors import UserError

from .sums import gpus_in_use


def check_horovod(num_trainers: int) -> None:
    """Checks that Horovod can be imported.

    Raises UserError if it can't.
    """
    try:
        import horovod.torch  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'train.reducer = "horovod" (default) for {num_trainers} trainers needs Horovod, which can\'t '
            f'be imported ({" ".join(str(error).split())}); set train.reducer = "mpi", which needs nothing '
            "more, or build Horovod (tools/build_horovod.sh)"
        ) from error


class HorovodSums:
    """Sums each bucket with an AllReduce of its own, always in one order. See `Sums`."""

    def __init__(self, comm: Any) -> None:
        """Starts Horovod.

        Collective over the trainers, whose communicator (mpi4py) is `comm`.
        """
        # Fusing buckets that happen to be ready together would change the order of sums from run to run.
        os.environ.setdefault("HOROVOD_FUSION_THRESHOLD", "0")
        import horovod.torch as hvd

        hvd.init(comm=comm)
        self._hvd: Any = hvd
        self._comm = comm
        self._buffers: list[Tensor] = []
        self._handles: dict[int, Any] = {}

    def attach(
        self, lengths: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> list[tuple[Tensor, Tensor]]:
        gpus = gpus_in_use(self._comm, device)
        # NCCL reduces in GPU memory, but refuses trainers that share a GPU; MPI wants host memory.
        on_host = not self._hvd.nccl_built() or len({name for name in gpus if name}) < len(gpus)
        self._buffers = [
            torch.zeros(length, dtype=dtype, pin_memory=device.type != "cpu")
            if on_host
            else torch.zeros(length, dtype=dtype, device=device)
            for length in lengths
        ]
        return [(buffer, buffer) for buffer in self._buffers]

    def start(self, index: int) -> None:
        self._handles[index] = self._hvd.allreduce_async_(
            self._buffers[index], name=f"dense.{index}", op=self._hvd.Sum
        )

    def progress(self) -> None:
        """Does nothing: Horovod has a thread."""

    def finish(self, index: int) -> None:
        self._hvd.synchronize(self._handles.pop(index))

    def close(self) -> None:
        """Shuts Horovod down; must come before MPI finalises.

        Collective over trainers.
        """
        self._hvd.shutdown()
