"""Trainers sum gradients of one small model: `dense_sums.py REDUCER...`; prints a digest of each one's sums.

Each sum is compared with the gradients that all ranks had, added in the order of ranks. Steps of every kind:
all gradients, an unused layer, a trainer without samples, a value that isn't finite, a gradient of one
trainer that changes after backward. The reducers "nodes" and "gloo_nodes" are "mpi" and "gloo" on nodes of
two ranks each, whose hosts have one name.
"""

from __future__ import annotations

import hashlib
import sys
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn

from persia_hpc.config.types import TrainConfig, TransportConfig
from persia_hpc.runtime.watchdog import Watchdog
from persia_hpc.trainer.dense.allreduce import make_dense_reducer
from persia_hpc.trainer.dense.mpi_sums import MpiSums, on_one_node
from persia_hpc.trainer.dense.nccl_sums import NcclSums
from persia_hpc.trainer.dense.reducers import make_sums
from persia_hpc.trainer.dense.sums import Sums
from persia_hpc.trainer.serve import MpiPeers

comm = MPI.COMM_WORLD
torch.set_num_threads(1)
one_node = len(set(comm.allgather(MPI.Get_processor_name()))) == 1
WIRES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KINDS = ("all", "unused", "empty", "nan", "changed", "all")
RANKS_OF_NODE = 2


class Nodes(MPI.Intracomm):
    """Is told that its ranks are on several nodes."""

    def Split_type(self, *_: object) -> MPI.Intracomm:  # noqa: N802
        return self.Split(self.rank // RANKS_OF_NODE)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(40, 40) for _ in range(3)])

    def forward(self, x: Tensor, unused: bool) -> Tensor:
        for layer in self.layers[: 2 if unused else 3]:
            x = torch.tanh(layer(x))
        return x


def gradients(net: Net, kind: str, step: int) -> None:
    torch.manual_seed(100 * step + comm.rank)
    x = torch.randn(8, 40)
    if kind == "nan" and comm.rank == comm.size - 1:
        x[0, 0] = torch.nan
    loss = net(x, kind == "unused").square().sum()
    loss.backward()
    if kind == "changed" and comm.rank == comm.size - 1:
        for p in net.layers[2].parameters():  # whose bucket is the first
            assert p.grad is not None
            p.grad *= 3


def make(name: str, train: TrainConfig) -> Sums | None:
    if name.startswith("gloo"):
        one_node = on_one_node(Nodes(comm) if name == "gloo_nodes" else comm)
        assert one_node == (name == "gloo" or comm.size <= RANKS_OF_NODE)
        with pytest.MonkeyPatch.context() as patch:
            if not one_node:  # then no file is shared
                patch.setattr(torch.distributed, "FileStore", None)
            return NcclSums(comm, "gloo", one_node=one_node)
    return MpiSums(Nodes(comm)) if name == "nodes" else make_sums(train, comm)


def expected(name: str, mine: Tensor, wire: torch.dtype) -> Tensor:
    every = [gradient.to(wire).float() for gradient in comm.allgather(mine)]
    if name != "nodes" or comm.size <= RANKS_OF_NODE:
        return reduce(add, every)
    nodes = [every[i : i + RANKS_OF_NODE] for i in range(0, comm.size, RANKS_OF_NODE)]
    return reduce(add, [reduce(add, node).to(wire) for node in nodes]).float()


def run(name: str, wire: str, bucket_bytes: int) -> str:
    train = TrainConfig(reducer=name, dense_wire=wire, bucket_bytes=bucket_bytes)
    reducer = make_dense_reducer(
        train, make(name, train), MpiPeers(comm, Watchdog("test", TransportConfig()))
    )
    torch.manual_seed(comm.rank)
    net = Net()
    reducer.attach(net)
    digest = hashlib.sha256()
    for step, kind in enumerate(KINDS):
        reference = Net()
        reference.load_state_dict(net.state_dict())
        empty = kind == "empty" and comm.rank == 0
        for each in (net, reference):
            for p in each.parameters():
                p.grad = None
            if not empty:
                if each is net:
                    reducer.begin()
                gradients(each, kind, step)
        reducer.told.grad = torch.tensor([float(comm.rank), 0.0]) if kind == "nan" else None
        reducer.reduce()
        for p, q in zip(net.parameters(), reference.parameters(), strict=True):
            mine = torch.zeros_like(q) if q.grad is None else q.grad
            assert p.grad is not None
            in_order = name == "nodes" or (name == "mpi" and one_node)  # these add in an order that is known
            exact = in_order or (comm.size == 2 and wire == "fp32")
            tolerance = 0.0 if exact else {"fp32": 1e-5, "fp16": 1e-2, "bf16": 8e-2}[wire]
            right = expected(name, mine, WIRES[wire])
            assert (p.grad.shape, p.grad.dtype) == (right.shape, right.dtype)
            # torch.testing would import all of torch.distributed.tensor.
            np.testing.assert_allclose(p.grad.numpy(), right.numpy(), rtol=tolerance, atol=tolerance)
            digest.update(p.grad.nan_to_num(7).numpy().tobytes())  # NaN has many bit patterns
        assert reducer.told.grad is not None
        assert reducer.told.grad[0] == (sum(range(comm.size)) if kind == "nan" else 0)
    reducer.close()
    assert len(set(comm.allgather(digest.hexdigest()))) == 1
    return digest.hexdigest()[:16]


for name in sys.argv[1:]:
    for wire in WIRES if name in ("mpi", "nodes") else ("fp32", "fp16"):
        for bucket_bytes in (7000, 1 << 20):
            found = run(name, wire, bucket_bytes)
            if comm.rank == 0:
                print(name, wire, found, flush=True)
    comm.Barrier()
