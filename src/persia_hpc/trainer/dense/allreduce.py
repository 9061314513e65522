"""Reduces dense gradients in fixed buckets, which begin their way to the other trainers during backward."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.config.types import TrainConfig
from persia_hpc.errors import UserError
from persia_hpc.trainer.interfaces import BatchStream, Peers

from .buckets import Bucket, divide
from .sums import Sums
from .verdict import told_parameter

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class DenseReducer:
    """Sums dense gradients over the trainers in fixed buckets, always in one order. See `DenseSync`.

    Buckets go from the last parameters to the first, as gradients come. Those of which all gradients are
    there start while backward goes on; if one of them changes afterwards on any trainer, as it does where a
    model runs a backward of its own inside, all trainers sum all buckets again.
    """

    one_sided = False

    def __init__(
        self, sums: Sums | None, peers: Peers, bucket_bytes: int, *, wire: str = "fp32", overlap: bool = True
    ):
        """Takes what sums, None for a single trainer. overlap: whether buckets may start during backward."""
        self.seconds = 0.0
        self.parameters: list[nn.Parameter] = []  # those whose gradients are reduced
        self.told = told_parameter()
        self._sums = sums
        self._peers = peers
        self._bucket_bytes = bucket_bytes
        self._dtype = DTYPES[wire]
        self._overlap = overlap
        self._buckets: list[Bucket] = []
        self._late = told_parameter()  # its gradient says whether one has changed after it was sent
        self._hooks: list[Any] = []
        self._started = 0  # buckets of this step
        self._expecting = False

    def attach(self, model: nn.Module) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.told = told_parameter(self.parameters)
        self._late = nn.Parameter(self.told.detach().new_zeros(1), requires_grad=False)
        if self._sums is None:
            return
        self._check_alike(model)
        self.broadcast(model.state_dict())
        groups = divide(self.parameters, self._bucket_bytes)
        groups[-1] += [self.told, self._late]  # of a whole step: known last
        lengths = [sum(p.numel() for p in group) for group in groups]
        with self._peers.wait():
            memory = self._sums.attach(lengths, self._dtype, self.told.device)
        self._buckets = [Bucket(group, *pair) for group, pair in zip(groups, memory, strict=True)]
        # Copies from a GPU to the host would hold backward up.
        overlap = self._overlap and not any(bucket.copied for bucket in self._buckets)
        self._remove_hooks()
        self._hooks = [
            _after_gradient(parameter, partial(self._arrived, bucket))
            for bucket in (self._buckets[:-1] if overlap else [])
            for parameter in bucket.parameters
        ]

    def _check_alike(self, model: nn.Module) -> None:
        """Checks that this trainer's gradients are of what trainer 0's are of: sums don't know names.

        Raises UserError if not.
        """
        mine = [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
        first = self._peers.broadcast(mine)
        if mine == first:
            return
        raise UserError(
            f"trainer {self._peers.rank} trains {_named(mine, first)}, trainer 0 {_named(first, mine)}: make "
            "the same model on all trainers, and freeze the same parameters"
        )

    def broadcast(self, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        items = dict(tensors)
        if self._sums is None or not items:
            return
        values = self._peers.broadcast([t.detach().cpu() for t in items.values()])
        if self._peers.rank == 0:
            return
        with torch.no_grad():
            for tensor, value in zip(items.values(), values, strict=True):
                tensor.copy_(value)

    def begin(self) -> None:
        self._expecting = bool(self._hooks)
        for bucket in self._buckets[:-1]:
            bucket.expect()

    def _arrived(self, bucket: Bucket, _: Tensor) -> None:
        """Takes note of a parameter's gradient during backward; starts the buckets that are whole."""
        if not self._expecting:
            return
        bucket.count()
        while self._started < len(self._buckets) - 1 and self._buckets[self._started].whole:
            if self._buckets[self._started].sparse:
                self._expecting = False  # `reduce` refuses it
                return
            self._start(self._started)
            self._started += 1
        assert self._sums is not None
        self._sums.progress()

    def _start(self, index: int) -> None:
        assert self._sums is not None
        self._buckets[index].fill()
        self._sums.start(index)

    def reduce(self) -> None:
        self._expecting = False
        if self._sums is None:
            for p in (*self.parameters, self.told):  # as with several trainers: their number changes nothing
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
            return
        begin = time.perf_counter()
        changed = any(bucket.changed() for bucket in self._buckets[: self._started])
        self._late.grad = torch.ones_like(self._late) if changed else None
        self._sum(self._started)
        # Whether to look must be the same on all trainers, and not all may have hooks (CPUs beside GPUs).
        if self._overlap and len(self._buckets) > 1 and self._buckets[-1].sum_of(-1).item() != 0:
            self._late.grad = None
            self._sum(0)
        self._started = 0
        for bucket in self._buckets:
            bucket.give_back()
        self.seconds += time.perf_counter() - begin

    def _sum(self, first: int) -> None:
        """Starts the buckets from `first` on, and waits for all."""
        assert self._sums is not None
        for index in range(first, len(self._buckets)):
            self._start(index)
        with self._peers.wait():
            for index, bucket in enumerate(self._buckets):
                self._sums.finish(index)
                bucket.land()

    def updates_with(self, num_samples: int) -> bool:
        return True

    def updated(self) -> None:
        """Does nothing: after a step of the optimizer the parameters are the same on all trainers."""

    def settle(self, stream: BatchStream, listen: Callable[[], None]) -> None:
        """Does nothing: the trainers' parameters are the same after every step."""

    def close(self) -> None:
        """Frees what sums; must come before MPI finalises.

        Collective over trainers.
        """
        self._remove_hooks()
        self._buckets = []
        if self._sums is not None:
            self._sums.close()
            self._sums = None

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _named(parameters: Sequence[Any], others: Sequence[Any]) -> str:
    """Returns the parameters that the others lack, for a message."""
    lacking = [f"{name} {list(shape)}" for name, shape in parameters if (name, shape) not in others]
    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    return ", ".join(lacking[:3]) + more if lacking else "no others, or in another order"


def _after_gradient(parameter: nn.Parameter, call: Callable[[Tensor], None]) -> Any:
    hook: Any = parameter.register_post_accumulate_grad_hook(call)  # type: ignore[no-untyped-call]
    return hook


def make_dense_reducer(train: TrainConfig, sums: Sums | None, peers: Peers) -> DenseReducer:
    """Returns the reducer that `train` asks for; sums: None for a single trainer."""
    # A graph's backward is one call: its gradients come all at once.
    return DenseReducer(sums, peers, train.bucket_bytes, wire=train.dense_wire, overlap=not train.cuda_graphs)
