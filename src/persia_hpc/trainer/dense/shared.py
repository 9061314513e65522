"""Shares dense parameters without AllReduce (`mode = "async"`): every trainer updates them on its own.

They are a vector in the trainers' RMA windows. A thread adds what a trainer's steps have changed, and gets
back what the vector then is, other trainers' changes included. The trainer goes on meanwhile; after the step
in which that is there, it continues with it and its own changes since then. Optimizer state (momentum, Adam's
moments) stays each trainer's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from persia_hpc.trainer.interfaces import BatchStream, Peers

from .verdict import told_parameter


class Vector(Protocol):
    """Declares what the vectors of `transport.shared_vector` offer; elements are float32."""

    def add(self, delta: Any, out: Any) -> None:
        """Adds `delta` to the vector, and writes what the vector then is into `out`.

        Shapes: delta, out [n] float32.
        """

    def read(self, out: Any) -> None:
        """Writes the vector into `out`, with all trainers' changes; none may add meanwhile.

        Shapes: out [n] float32.
        Collective over trainers.
        """

    def free(self) -> None:
        """Frees the vector's memory.

        Collective over trainers.
        """


class SharedDense:
    """Takes the place of `DenseReducer`: reduces nothing; `updated` shares changes. See `DenseSync`."""

    one_sided = True  # others read and write this trainer's memory while it computes

    def __init__(self, peers: Peers, share: Callable[[Any], Vector]):
        """Remembers `share`, which makes the shared vector from trainer 0's values and is collective."""
        self.seconds = 0.0
        self.parameters: list[nn.Parameter] = []
        self.told = told_parameter()
        self._peers = peers
        self._share = share
        self._vector: Vector | None = None
        # What the parameters were when changes left last, and what the vector was when it had got them.
        self._last = self._now = np.zeros(0, np.float32)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dense")
        self._running: Future[None] | None = None

    def attach(self, model: nn.Module) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.told = told_parameter(self.parameters)
        self.broadcast(model.state_dict())
        self._free()
        self._last = self._flat()
        self._now = np.empty_like(self._last)
        self._vector = self._share(self._last)

    def broadcast(self, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        items = dict(tensors)
        values = self._peers.broadcast([t.detach().cpu() for t in items.values()])
        with torch.no_grad():
            for tensor, value in zip(items.values(), values, strict=True):
                tensor.copy_(value)

    def begin(self) -> None:
        """Does nothing: gradients aren't summed."""

    def reduce(self) -> None:
        """Gives parameters without a gradient zeros, as AllReduce does. Needs no other trainer."""
        for p in (*self.parameters, self.told):
            if p.grad is None:
                p.grad = torch.zeros_like(p)

    def updates_with(self, num_samples: int) -> bool:
        return num_samples > 0

    def updated(self) -> None:
        """Takes over what others have changed and sends this trainer's changes, if those before have arrived.

        Waits for nobody: else they go with those of a later step.
        """
        if self._running is None or self._running.done():
            begin = time.perf_counter()
            self._exchange()
            self.seconds += time.perf_counter() - begin

    def _exchange(self) -> None:
        assert self._vector is not None
        flat = self._flat()
        changes = flat - self._last
        if self._running is None:
            self._last = flat
        else:
            self._running.result()
            self._now += changes
            self._take()
        self._running = self._thread.submit(self._vector.add, changes, self._now)

    def _arrive(self) -> None:
        """Returns when all of this trainer's changes are in the vector."""
        self._exchange()
        assert self._running is not None
        self._running.result()
        self._running = None

    def settle(self, stream: BatchStream, listen: Callable[[], None]) -> None:
        if self._vector is None:  # no model yet
            return
        begin = time.perf_counter()
        self._arrive()
        met = self._peers.meet()

        def all_met() -> bool:
            listen()
            return met()

        stream.wait_until(all_met, "the other trainers, which go on by themselves")
        self._vector.read(self._now)
        self._take()
        stream.wait_until(self._peers.meet(), "the other trainers")  # no trainer adds before all have read
        self.seconds += time.perf_counter() - begin

    def _take(self) -> None:
        flat, at = torch.from_numpy(self._now), 0
        if self.parameters:
            flat = flat.to(self.parameters[0].device)
        with torch.no_grad():
            for p in self.parameters:
                p.copy_(flat[at : at + p.numel()].view_as(p))
                at += p.numel()
        self._last = self._flat()  # rounded, where parameters aren't float32: only steps are changes

    def _flat(self) -> Any:
        parts = [p.detach().reshape(-1).float() for p in self.parameters]
        return (torch.cat(parts).cpu() if parts else torch.zeros(0)).numpy()  # a GPU's in one transfer

    def close(self) -> None:
        self._free()
        self._thread.shutdown()

    def _free(self) -> None:
        if self._running is not None:
            self._running.result()
            self._running = None
        if self._vector is not None:
            self._vector.free()
            self._vector = None
