"""W0 in Paddle's parameter server (2.6, the last whose wheel has one): one server, one trainer, async.

    build/paddle-venv/bin/python benchmarks/peers/paddle_w0.py --data DIR --batch 2048 --samples 500000

DIR as for torchrec_w0.py. Prints one line of JSON: samples per second of the second half. The table of each
feature has Paddle's default accessor (CTR statistics, Adagrad rows); the dense part is the same DLRM, with
Adam. One computing thread a process.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROWS, DIM = 1_000_000, 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--rank", choices=("server", "trainer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        _rank(options)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        **os.environ,
        "PADDLE_PSERVERS_IP_PORT_LIST": f"127.0.0.1:{port}",
        "PADDLE_TRAINERS_NUM": "1",
        "PADDLE_TRAINER_ID": "0",
        "PADDLE_TRAINER_ENDPOINTS": f"127.0.0.1:{port + 1}",
        "POD_IP": "127.0.0.1",
        "PADDLE_PORT": str(port),
        "PADDLE_WITH_GLOO": "0",
        "OMP_NUM_THREADS": "1",
        "CPU_NUM": "1",
        "FLAGS_call_stack_level": "1",
        "GLOG_minloglevel": "2",
    }
    own = [sys.executable, __file__, *sys.argv[1:]]
    server = subprocess.Popen(
        [*own, "--rank", "server"], env={**common, "TRAINING_ROLE": "PSERVER"}, stdout=subprocess.DEVNULL
    )
    try:
        trainer = subprocess.run(
            [*own, "--rank", "trainer"],
            env={**common, "TRAINING_ROLE": "TRAINER"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    finally:
        server.kill()  # it doesn't end by itself
    print(trainer.stdout.strip().splitlines()[-1])


def _network(paddle: Any, num_features: int, num_dense: int) -> tuple[Any, list[Any]]:
    """Mean loss and the inputs: DLRM 64-16 / 64-1 with the pairwise products of all vectors."""
    static, nn = paddle.static, paddle.static.nn
    dense = static.data("dense", [None, num_dense], "float32")
    label = static.data("label", [None, 1], "float32")
    ids = [static.data(f"f{i}", [None, 1], "int64") for i in range(num_features)]
    uniform = paddle.nn.initializer.Uniform(-0.01, 0.01)
    vectors = [
        nn.sparse_embedding(
            x, size=[ROWS, DIM], param_attr=paddle.ParamAttr(name=f"t{i}", initializer=uniform)
        )
        for i, x in enumerate(ids)
    ]
    bottom = nn.fc(nn.fc(dense, 64, activation="relu"), DIM, activation="relu")
    vectors = [bottom, *(paddle.reshape(v, [-1, DIM]) for v in vectors)]
    stacked = paddle.stack(vectors, axis=1)
    products = paddle.matmul(stacked, stacked, transpose_y=True)
    count = num_features + 1
    flat = paddle.reshape(products, [-1, count * count])
    pairs = np.flatnonzero(np.tril(np.ones((count, count), bool), -1).reshape(-1)).astype(np.int64)
    chosen = paddle.index_select(flat, paddle.assign(pairs), axis=1)
    logit = nn.fc(nn.fc(paddle.concat([bottom, chosen], axis=1), 64, activation="relu"), 1)
    loss = paddle.nn.functional.binary_cross_entropy_with_logits(logit, label)
    return loss, [dense, label, *ids]


def _rank(options: argparse.Namespace) -> None:
    import paddle
    from paddle.distributed import fleet

    ids, dense, labels = (
        np.load(options.data / f"{n}.npy", mmap_mode="r") for n in ("ids", "dense", "labels")
    )
    paddle.enable_static()
    fleet.init(fleet.PaddleCloudRoleMaker())
    loss, inputs = _network(paddle, ids.shape[1], dense.shape[1])
    strategy = fleet.DistributedStrategy()
    strategy.a_sync = True
    fleet.distributed_optimizer(paddle.optimizer.Adam(1e-3), strategy).minimize(loss)
    if fleet.is_server():
        fleet.init_server()
        fleet.run_server()
        return
    executor = paddle.static.Executor(paddle.CPUPlace())
    executor.run(paddle.static.default_startup_program())
    fleet.init_worker()
    steps = options.samples // options.batch
    num_batches = len(ids) // options.batch

    def batch(step: int) -> dict[str, np.ndarray]:
        rows = slice((step % num_batches) * options.batch, (step % num_batches + 1) * options.batch)
        columns = np.ascontiguousarray(ids[rows].T.astype(np.int64))[:, :, None]
        values = [np.ascontiguousarray(dense[rows]), np.ascontiguousarray(labels[rows]), *columns]
        return {x.name: value for x, value in zip(inputs, values, strict=True)}

    # Paddle does not pay for making its inputs.
    batches = [batch(step) for step in range(min(steps, num_batches))]
    begin, losses = 0.0, []
    for step in range(steps):
        if step == steps // 2:
            begin = time.perf_counter()
        losses.append(float(executor.run(feed=batches[step % len(batches)], fetch_list=[loss])[0]))
    seconds = time.perf_counter() - begin
    late = (steps - steps // 2) * options.batch
    figures = {"first_loss": losses[0], "last_loss": float(np.mean(losses[-5:]))}
    print(json.dumps({"samples_per_second": late / seconds, **figures}), flush=True)
    os._exit(0)  # its own way out waits for a server that never ends


if __name__ == "__main__":
    main()
