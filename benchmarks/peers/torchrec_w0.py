"""W0 in TorchRec on CPU ranks (gloo): sharded by table, row-wise Adagrad inside FBGEMM, Adam for the rest.

    build/torchrec-venv/bin/python benchmarks/peers/torchrec_w0.py --data DIR --batch 2048 --samples 500000

DIR holds ids.npy [N, F] uint32, dense.npy [N, K] float32, labels.npy [N, 1] float32; `persia-hpc bench train`
makes them. Prints one line of JSON: samples per second of the second half, over all ranks. One thread a rank.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

ROWS, DIM = 1_000_000, 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True, help="global")
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    mp.spawn(_rank, (options,), nprocs=options.ranks)


def _rank(rank: int, options: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore")
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
    from torchrec.distributed.types import ShardingEnv, ShardingType
    from torchrec.models.dlrm import DLRM
    from torchrec.optim.keyed import KeyedOptimizerWrapper

    size = options.ranks
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    device = torch.device("cpu")
    ids, dense, labels = (
        np.load(options.data / f"{n}.npy", mmap_mode="r") for n in ("ids", "dense", "labels")
    )
    names = [f"f{i}" for i in range(ids.shape[1])]
    tables = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(name=f"t_{n}", embedding_dim=DIM, num_embeddings=ROWS, feature_names=[n])
            for n in names
        ],
    )
    # "bottom 64-16, top 64-1" as TorchRec counts the layers
    dlrm = DLRM(
        tables,
        dense_in_features=dense.shape[1],
        dense_arch_layer_sizes=[64, DIM],
        over_arch_layer_sizes=[64, 1],
    )
    sharder = EmbeddingBagCollectionSharder(
        fused_params={"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.05, "eps": 1e-8}
    )
    constraints = {
        f"t_{n}": ParameterConstraints(
            sharding_types=[ShardingType.TABLE_WISE.value], compute_kernels=["fused"]
        )
        for n in names
    }
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=size, compute_device="cpu", hbm_cap=0, ddr_cap=20 << 30),
        constraints=constraints,
    )
    plan = planner.collective_plan(dlrm, [sharder], dist.group.WORLD)
    model = DistributedModelParallel(
        dlrm,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=device,
        plan=plan,
        sharders=[sharder],
    )
    fused = set(model.fused_optimizer.params)
    rest = {name: p for name, p in model.named_parameters() if name not in fused and p.requires_grad}
    rest = {name: p for name, p in rest.items() if "embedding_bags" not in name}
    optimizer = KeyedOptimizerWrapper(rest, lambda p: torch.optim.Adam(p, lr=1e-3))
    loss = nn.BCEWithLogitsLoss()

    part = options.batch // size
    steps = options.samples // options.batch
    num_batches = len(ids) // options.batch
    lengths = torch.ones(len(names) * part, dtype=torch.int32)

    def batch(step: int) -> tuple[Tensor, KeyedJaggedTensor, Tensor]:
        begin = (step % num_batches) * options.batch + rank * part
        rows = slice(begin, begin + part)
        values = torch.from_numpy(np.ascontiguousarray(ids[rows].T).astype(np.int64).reshape(-1))
        sparse = KeyedJaggedTensor(names, values, lengths=lengths)
        return torch.from_numpy(dense[rows].copy()), sparse, torch.from_numpy(labels[rows].copy())

    # TorchRec does not pay for making its inputs.
    batches = [batch(step) for step in range(min(steps, num_batches))]
    begin = 0.0
    for step in range(steps):
        if step == steps // 2:
            dist.barrier()
            begin = time.perf_counter()
        x, sparse, y = batches[step % num_batches]
        optimizer.zero_grad()
        loss(model(x, sparse), y).backward()
        optimizer.step()
    dist.barrier()
    seconds = time.perf_counter() - begin
    if rank == 0:
        rate = (steps - steps // 2) * options.batch / seconds
        print(json.dumps({"samples_per_second": rate, "steps": steps - steps // 2}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
