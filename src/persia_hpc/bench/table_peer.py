"""Runs FBGEMM's table for CPUs beside ours: a static one, without hashing, admission or eviction."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from persia_hpc.arrays import Array
from persia_hpc.errors import UserError

OPTIMIZERS = {"adagrad": "EXACT_ADAGRAD", "rowwise_adagrad": "EXACT_ROWWISE_ADAGRAD"}


class Fbgemm:
    """Holds a table of FBGEMM, as many rows as ours, and calls it with one id a sample.

    Raises UserError where FBGEMM can't be imported, or hasn't the optimizer.
    """

    def __init__(self, rows: int, dim: int, optimizer: str) -> None:
        """Makes the table; weight_decay is 0, since FBGEMM's CPU code ignores another one."""
        if optimizer not in OPTIMIZERS:
            raise UserError(
                f"--peer fbgemm: got --optimizers {optimizer}, expected {' or '.join(OPTIMIZERS)}"
            )
        code, configs = _imported()
        self._table: Any = code.SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, dim, code.EmbeddingLocation.HOST, code.ComputeDevice.CPU)],
            optimizer=getattr(configs.EmbOptimType, OPTIMIZERS[optimizer]),
            learning_rate=0.05,
            weight_decay=0.0,
        )
        self._table.init_embedding_weights_uniform(-0.01, 0.01)

    def calls(
        self, places: Sequence[Array], gradients: Array
    ) -> tuple[Callable[[], None], Callable[[], None]]:
        """Returns two functions: the forward pass of all calls, and forward, backward and update.

        Shapes: places has row numbers [n] for each call, gradients fp32 [most n, D].
        """
        ids = [torch.from_numpy(at.astype(np.int64)) for at in places]
        offsets = [torch.arange(len(at) + 1) for at in ids]
        given = torch.from_numpy(gradients)

        def forward() -> None:
            with torch.no_grad():
                for at, offset in zip(ids, offsets, strict=True):
                    self._table(at, offset)

        def whole() -> None:
            for at, offset in zip(ids, offsets, strict=True):
                self._table(at, offset).backward(given[: len(at)])

        return forward, whole


def check_peer(optimizers: Sequence[str]) -> None:
    """Refuses what a later `Fbgemm` would refuse.

    Raises UserError as `Fbgemm` does.
    """
    for optimizer in optimizers:
        Fbgemm(1, 4, optimizer)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Lets torch, and so FBGEMM, use so many threads inside the `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _imported() -> tuple[Any, Any]:
    package = "fbgemm_gpu"
    try:
        return (
            importlib.import_module(f"{package}.split_table_batched_embeddings_ops_training"),
            importlib.import_module(f"{package}.split_embedding_configs"),
        )
    except (ImportError, OSError, AttributeError) as error:
        raise UserError(
            f"--peer fbgemm: {package} can't be imported ({str(error).splitlines()[0]}); with torch 2.13: "
            "pip install --no-deps fbgemm-gpu-cpu==1.8.0"
        ) from error
