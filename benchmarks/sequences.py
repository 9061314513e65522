"""What padding costs: gather and backward of a history, jagged and padded in turns, and in plain torch.

    taskset -c 0 python benchmarks/sequences.py [--batch 128] [--length 200] [--most N] [--dim 64] [--layer]

Lengths are skewed: exponential with the mean that is asked for, cut to `--most`, which is ten times that by
default; ids follow a Zipf law. A turn is a batch's rows to vectors and, with a ready gradient, back to row
gradients; with `--layer` a linear layer and a ReLU on the vectors and their mean lie between. Plain torch
gathers the same rows without padding by an index of a tensor that wants its gradient. Prints medians and
quartiles of the process's own time, with one thread, so that other work on the machine matters less.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from persia_hpc._native import decode_rows, encode_rows, keep_freed_memory
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.protocol.wire import WIRES
from persia_hpc.trainer.batch import Inputs
from persia_hpc.trainer.pooling.embed import Pooling

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.row_batches import make_inputs, make_row_batch


def batch_of(inputs: Inputs, options: argparse.Namespace) -> RowBatch:
    """Returns the same batch for every kind of feature."""
    rng = np.random.default_rng(1)
    most = options.most or 10 * options.length
    lengths = np.minimum(rng.exponential(options.length, options.batch), most).astype(int)
    ids = {"h": [(rng.zipf(1.2, n) % 1_000_000).tolist() for n in lengths]}
    row_batch = make_row_batch(inputs, ids, rng)
    row_batch.rows = [encode_rows(rows, options.wire) for rows in row_batch.rows]
    return row_batch


def turn_of(kind: str, options: argparse.Namespace) -> Callable[[], None]:
    """Returns what one turn of a kind does."""
    inputs = make_inputs([("h", options.dim, "sequence" if kind == "padded" else "jagged", True)])
    row_batch = batch_of(inputs, options)
    pooling = Pooling(inputs, gradients=options.wire)
    torch.manual_seed(1)
    layer = nn.Sequential(nn.Linear(options.dim, options.dim), nn.ReLU())
    gradients: dict[str, torch.Tensor] = {}
    indices = torch.from_numpy(row_batch.indices.astype(np.int64))

    def turn() -> None:
        if kind == "torch":
            rows = torch.from_numpy(decode_rows(row_batch.rows[0], options.dim)).requires_grad_()
            values = rows[indices]
        else:
            batch, given = pooling.embed(row_batch, training=True)
            values = batch.jagged["h"].values if kind == "jagged" else batch.sequence["h"][0]
        out = values
        if options.layer and kind == "padded":
            mask = batch.sequence["h"][1]
            out = (layer(values) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        elif options.layer:
            jagged = batch.jagged["h"]
            out = jagged.with_values(layer(values)).mean()
        if kind not in gradients:
            gradients[kind] = torch.randn(out.shape)
        out.backward(gradients[kind])
        if kind == "torch":
            encode_rows(rows.grad.numpy(), options.wire)
        else:
            given.arrays()

    return turn


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=200, help="mean number of ids (default: 200)")
    parser.add_argument("--most", type=int, help="cut of the lengths, as by max_length")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--wire", choices=list(WIRES), default="fp32")
    parser.add_argument("--layer", action="store_true")
    parser.add_argument("--repeats", type=int, default=41)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    kinds = ["padded", "jagged"] + ([] if options.layer else ["torch"])
    turns = {kind: turn_of(kind, options) for kind in kinds}
    lengths = np.diff(batch_of(make_inputs([("h", 1, "jagged", True)]), options).bag_offsets["h"])
    share = lengths.sum() / (len(lengths) * lengths.max())
    print(f"{lengths.sum()} ids, longest {lengths.max()}, {1 - share:.0%} of the places are padding")
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for repeat in range(options.repeats + 3):
        for kind in kinds if repeat % 2 else kinds[::-1]:
            begin = time.process_time()
            turns[kind]()
            if repeat >= 3:
                times[kind].append(time.process_time() - begin)
    for kind in kinds:
        low, middle, high = (1e3 * q for q in statistics.quantiles(times[kind], n=4))
        ratios = [a / b for a, b in zip(times[kind], times["jagged"], strict=True)]
        low_ratio, ratio, high_ratio = statistics.quantiles(ratios, n=4)
        print(
            f"{kind:<8} {middle:8.2f} ms ({low:.2f} to {high:.2f}), jagged takes 1/{ratio:.2f} of it "
            f"({low_ratio:.2f} to {high_ratio:.2f})"
        )


if __name__ == "__main__":
    main()
