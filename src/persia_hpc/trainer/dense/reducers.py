"""Chooses what sums the dense gradients of several trainers (`train.reducer`); checks that it is there."""

from __future__ import annotations

from typing import Any

import torch

from persia_hpc.config import Config
from persia_hpc.config.types import TrainConfig
from persia_hpc.errors import UserError

from .sums import Sums


def check_reducer(config: Config, num_trainers: int) -> None:
    """Checks that what sums the gradients of these trainers is there, if they need it.

    Raises UserError if it isn't.
    """
    name = config.reducer(num_trainers)
    if name == "horovod":
        from .horovod_sums import check_horovod

        check_horovod(num_trainers)
    elif name == "nccl":
        _check_nccl(config.train)


def _check_nccl(train: TrainConfig) -> None:
    lacks = None
    if not torch.distributed.is_available() or not torch.distributed.is_nccl_available():
        lacks = f"torch {torch.__version__} was built without NCCL"
    elif train.device == "cpu":
        lacks = 'train.device = "cpu" says to compute on the CPU'
    elif not torch.cuda.is_available():
        lacks = "torch sees no GPU"
    if lacks is not None:
        raise UserError(
            f'train.reducer = "nccl" sums gradients in GPU memory, but {lacks}; use train.reducer = "mpi", '
            'which works anywhere, or "horovod"'
        )


def make_sums(
    train: TrainConfig, comm: Any, *, memory_grows: bool = False, spin: float | None = None
) -> Sums | None:
    """Returns what `train.reducer` says for the trainers of `comm` (mpi4py); None if there is only one.

    memory_grows: see `transport.memory_grows`. spin: seconds, before a trainer that waits sleeps; by default
    the number of ranks and of cores decides.
    Collective over `comm`.
    """
    if comm.size == 1:
        return None
    if train.reducer == "mpi":
        from .mpi_sums import MpiSums

        return MpiSums(comm, memory_grows=memory_grows, spin=spin)
    if train.reducer == "nccl":
        from .mpi_sums import on_one_node
        from .nccl_sums import NcclSums

        return NcclSums(comm, one_node=on_one_node(comm))
    from .horovod_sums import HorovodSums

    return HorovodSums(comm)
