"""Reduces dense gradients through Horovod; no other file knows it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.errors import UserError
from persia_hpc.trainer.interfaces import BatchStream

from .verdict import told_parameter


def _gpu_of(parameters: list[nn.Parameter]) -> str:
    """Names the GPU of the parameters, alike in all processes that share it; "" if there is none."""
    if not parameters or parameters[0].device.type != "cuda":
        return ""
    device = parameters[0].device
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)  # not in torch 2.4
    return str(uuid or (platform.node(), os.environ.get("CUDA_VISIBLE_DEVICES"), device.index))


def check_horovod(num_trainers: int, mode: str) -> None:
    """Checks that Horovod can be imported, if these trainers need it: it reduces the gradients of several.

    Raises UserError if it can't.
    """
    if num_trainers == 1 or mode == "async":
        return
    try:
        import horovod.torch  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{num_trainers} trainers need Horovod, which can't be imported "
            f"({' '.join(str(error).split())}); tools/build_horovod.sh builds it; one trainer "
            '(ranks.trainers = 1) needs none, nor does mode = "async"'
        ) from error


class DenseReducer:
    """Sums dense gradients over the trainers in fixed fp32 buckets, always in one order. See `DenseSync`."""

    one_sided = False

    def __init__(self, comm: Any | None, bucket_bytes: int):
        """Starts Horovod, unless there is nothing to reduce: `comm` is None or has one rank.

        Collective over the trainers, whose communicator (mpi4py) is `comm`.
        """
        self.seconds = 0.0
        self._hvd: Any = None
        self._bucket_bytes = bucket_bytes
        self._on_host = False
        self.parameters: list[nn.Parameter] = []  # those whose gradients are reduced
        self.told = told_parameter()
        self._buckets: list[tuple[Tensor, Tensor, list[nn.Parameter]]] = []
        if comm is None or comm.size == 1:
            return
        # Fusing buckets that happen to be ready together would change the order of sums from run to run.
        os.environ.setdefault("HOROVOD_FUSION_THRESHOLD", "0")
        import horovod.torch as hvd

        hvd.init(comm=comm)
        self._hvd = hvd
        self._comm = comm

    def attach(self, model: nn.Module) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.told = told_parameter(self.parameters)
        self._buckets = []
        if self._hvd is None:
            return
        devices = self._comm.allgather(_gpu_of(self.parameters))
        # NCCL reduces in GPU memory, but refuses trainers that share a GPU; MPI wants host memory.
        self._on_host = not self._hvd.nccl_built() or len({d for d in devices if d}) < len(devices)
        self.broadcast(model.state_dict())
        bucket: list[nn.Parameter] = []
        size = 0
        for parameter in self.parameters:
            if bucket and size + 4 * parameter.numel() > self._bucket_bytes:
                self._close_bucket(bucket, size)
                bucket, size = [], 0
            bucket.append(parameter)
            size += 4 * parameter.numel()
        self._close_bucket([*bucket, self.told], size + 4 * self.told.numel())

    def _close_bucket(self, parameters: list[nn.Parameter], size: int) -> None:
        gathered = torch.zeros(size // 4, device=parameters[0].device)
        flat = gathered
        if self._on_host and gathered.device.type != "cpu":
            flat = torch.zeros(size // 4, pin_memory=True)
        self._buckets.append((flat, gathered, parameters))

    def broadcast(self, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        items = dict(tensors)
        if self._hvd is None or not items:
            return
        if not self._on_host:
            self._hvd.broadcast_parameters(items, root_rank=0)
            return
        on_host = {name: tensor.detach().cpu() for name, tensor in items.items()}
        self._hvd.broadcast_parameters(on_host, root_rank=0)
        with torch.no_grad():
            for name, tensor in items.items():
                if tensor.device.type != "cpu":
                    tensor.copy_(on_host[name])

    def reduce(self) -> None:
        if self._hvd is None:
            for p in (
                *self.parameters,
                self.told,
            ):  # as with several trainers: their number must change nothing
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
            return
        begin = time.perf_counter()
        handles = []
        for index, (flat, gathered, parameters) in enumerate(self._buckets):
            at = 0
            for p in parameters:
                part = gathered[at : at + p.numel()]
                if p.grad is None:
                    part.zero_()
                elif p.grad.is_sparse:
                    raise UserError(
                        f"a parameter of shape {list(p.shape)} has sparse gradients, which can't be summed "
                        "over trainers: make its layer with sparse=False, or train with one trainer"
                    )
                else:
                    part.copy_(p.grad.reshape(-1))
                at += p.numel()
            if flat is not gathered:
                flat.copy_(gathered)
            handles.append(self._hvd.allreduce_async_(flat, name=f"dense.{index}", op=self._hvd.Sum))
        for handle, (flat, gathered, parameters) in zip(handles, self._buckets, strict=True):
            self._hvd.synchronize(handle)
            if flat is not gathered:
                gathered.copy_(flat)
            at = 0
            for p in parameters:
                part = gathered[at : at + p.numel()].view_as(p)
                if p.grad is None:
                    p.grad = part.to(p.dtype, copy=True)
                else:
                    p.grad.copy_(part)
                at += p.numel()
        self.seconds += time.perf_counter() - begin

    def updates_with(self, num_samples: int) -> bool:
        return True

    def updated(self) -> None:
        """Does nothing: after a step of the optimizer the parameters are the same on all trainers."""

    def settle(self, stream: BatchStream, listen: Callable[[], None]) -> None:
        """Does nothing: the trainers' parameters are the same after every step."""

    def close(self) -> None:
        """Shuts Horovod down; must come before MPI finalises.

        Collective over trainers.
        """
        if self._hvd is not None:
            self._hvd.shutdown()
            self._hvd = None
