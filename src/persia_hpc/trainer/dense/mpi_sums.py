"""Sums buckets of dense gradients in memory that a node's trainers share, and through MPI between nodes.

No thread and no process of its own does it: trainers that wait for the others sleep.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mpi4py import MPI
from torch import Tensor

from persia_hpc._native import NodeSum
from persia_hpc.transport.progress import (
    REMOTE_SLEEP_PART,
    REMOTE_SLEEP_SECONDS,
    SLEEP_SECONDS,
    YIELD_PASSES,
    default_spin,
)
from persia_hpc.transport.window import Window, memory_problem, raise_together

WIRES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


class MpiSums:
    """Sums in the order of trainers within a node; then the first trainer of each sums over nodes.

    See `Sums`.
    """

    def __init__(self, comm: MPI.Intracomm, *, memory_grows: bool = False, spin: float | None = None) -> None:
        """Splits the trainers by node. memory_grows: see `window.memory_problem`; spin: see `Waiter`.

        Collective over the trainers, whose communicator is `comm`.
        """
        self._comm = comm
        self._memory_grows = memory_grows
        node_comm = comm.Split_type(MPI.COMM_TYPE_SHARED)
        assert isinstance(node_comm, MPI.Intracomm)
        self._node_comm = node_comm
        self._several_nodes = sum(comm.allgather(node_comm.rank == 0)) > 1
        self._leads = node_comm.rank == 0 and self._several_nodes
        self._leaders = comm.Split(0 if self._leads else MPI.UNDEFINED, comm.rank)
        self._spin = default_spin(MPI.COMM_WORLD.Get_size()) if spin is None else spin
        self._window: Window | None = None
        self._node: NodeSum
        self._sums: list[Tensor] = []
        self._op = MPI.SUM
        self._wire = torch.float32
        # Buckets since the start: posted, given to MPI, and there with all nodes' sums.
        self._posted = self._sent = self._published = 0
        self._requests: list[tuple[MPI.Request, Tensor, Tensor]] = []

    def attach(
        self, lengths: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> list[tuple[Tensor, Tensor]]:
        self._free()
        wire, node = WIRES[dtype], self._node_comm
        sizes = [NodeSum.bytes(lengths, wire, rank == 0) for rank in range(node.size)]
        problem = memory_problem(
            node,
            sizes[node.rank],
            memory_grows=self._memory_grows,
            what="the dense gradients",
            way_out='use train.reducer = "horovod"',
        )
        raise_together(self._comm, problem)
        self._window = window = Window(node, sizes[node.rank], shared=True)
        raise_together(self._comm, window.problem)
        window.open()
        self._comm.Barrier()  # all memory is zero before the first word is written
        members = [window.peer(rank)[:size] for rank, size in enumerate(sizes)]
        self._node = NodeSum(members, node.rank, lengths, wire)
        self._posted = self._sent = self._published = 0
        self._wire = dtype
        if dtype != torch.float32:  # MPI has no such numbers
            self._op = MPI.Op.Create(_adder(dtype), commute=True)
        split: Any = torch.split  # which has types only in part
        slots = split(torch.from_numpy(self._node.slots).view(dtype), list(lengths))
        self._sums = list(split(torch.from_numpy(self._node.sums), list(lengths)))
        return list(zip(slots, self._sums, strict=True))

    def start(self, index: int) -> None:
        self._node.post()
        self._posted += 1
        if self._leads:
            self._advance()

    def progress(self) -> None:
        if self._leads:
            self._advance()
        else:
            self._node.help()

    def finish(self, index: int) -> None:
        number = self._posted - len(self._sums) + index  # all buckets of the step were started
        if self._leads:
            self._lead(number)
            return
        wait = self._node.wait_published if self._several_nodes else self._node.wait_summed
        while not wait(number, self._spin, SLEEP_SECONDS):
            pass

    def _lead(self, number: int) -> None:
        passes, idle_since = 0, 0.0
        while True:
            before = self._sent, self._published
            self._advance()
            if self._published > number:
                return
            if (self._sent, self._published) != before:
                passes = 0
            elif not self._requests:  # this node's trainers come first
                self._node.wait_summed(self._sent, self._spin, SLEEP_SECONDS)
            elif passes < YIELD_PASSES:  # nobody rings a bell across nodes
                passes += 1
                idle_since = time.monotonic()
                os.sched_yield()
            else:
                least, most = REMOTE_SLEEP_SECONDS
                idle = time.monotonic() - idle_since
                time.sleep(min(max(least, REMOTE_SLEEP_PART * idle), most))

    def _advance(self) -> None:
        """Gives MPI what the node has summed, and tells the node what has come from the others."""
        self._node.help()
        count = len(self._sums)
        while self._sent < self._posted and self._node.summed(self._sent):
            sums = self._sums[self._sent % count]
            moved = sums if self._wire == torch.float32 else sums.to(self._wire)
            buffer = moved.view(torch.float32 if self._wire == torch.float32 else torch.int16).numpy()
            self._requests.append((self._leaders.Iallreduce(MPI.IN_PLACE, buffer, self._op), moved, sums))
            self._sent += 1
        while self._requests and self._requests[0][0].Test():
            _, moved, sums = self._requests.pop(0)
            if moved is not sums:
                sums.copy_(moved)
            self._published += 1
            self._node.publish()

    def _free(self) -> None:
        if self._op != MPI.SUM:
            self._op.Free()
            self._op = MPI.SUM
        if self._window is not None:
            self._sums = []
            del self._node
            self._window.free()
            self._window = None

    def close(self) -> None:
        """Frees the shared memory.

        Collective over trainers.
        """
        self._free()
        self._node_comm.Free()
        if self._leads:
            self._leaders.Free()


def on_one_node(comm: MPI.Intracomm) -> bool:
    """Returns whether all ranks of `comm` share memory. Names of hosts don't tell: containers' may be equal.

    Collective over `comm`.
    """
    node_comm = comm.Split_type(MPI.COMM_TYPE_SHARED)
    size: int = node_comm.size
    node_comm.Free()
    return size == comm.size


def _adder(dtype: torch.dtype) -> Callable[[Any, Any, Any], None]:
    def add(given: Any, sums: Any, _: Any) -> None:
        torch.frombuffer(sums, dtype=dtype).add_(torch.frombuffer(given, dtype=dtype))

    return add
