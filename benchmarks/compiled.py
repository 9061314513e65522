"""What `train.compile` makes of the built-in models: steps of the dense network, plain and compiled in turns.

    python benchmarks/compiled.py [--models dlrm tower] [--batch 2048] [--device cuda] [--amp bf16]

A step is forward, backward and Adam on vectors that are already there: 26 one-hot features of dim 16 and 13
dense ones, the models' default widths (on a CPU the tower's are 512-256). Prints, per model, the seconds that
compiling took, and the median and quartiles of plain time / compiled time over pairs. On a CPU it counts the
process's own time, with one thread, so that other work on the machine matters less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from persia_hpc.models import build_model
from persia_hpc.trainer.batch import Batch, FeatureSpec, Inputs

FEATURES, DIM, DENSE = 26, 16, 13
MODELS = ("dlrm", "dcn_v2", "deepfm", "tower")
STEPS = 4  # between two looks at the clock
NAMES = [f"f{i:02d}" for i in range(FEATURES)]


def make_batch(size: int, device: str) -> Batch:
    """Returns a batch of random values."""
    block = torch.empty(size, FEATURES, DIM, device=device).uniform_(-0.01, 0.01).requires_grad_()
    dense = torch.randn(size, DENSE, device=device)
    labels = torch.randint(0, 2, (size, 1), device=device).float()
    pooled = dict(zip(NAMES, block.unbind(1), strict=True))
    return Batch(1, size, dense, labels, None, None, pooled, {}, {tuple(NAMES): block})


def clock(device: str) -> float:
    """Returns the seconds that count: the process's on a CPU, the wall clock's once a GPU is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(name: str, options: argparse.Namespace) -> None:
    """Prints one model's line."""
    torch.compiler.reset()
    specs = tuple(FeatureSpec(n, n, 0, DIM, "sum", False) for n in NAMES)
    widths = {"hidden": [512, 256]} if (name, options.device) == ("tower", "cpu") else {}
    model: nn.Module = build_model(name, Inputs(specs, DENSE, ("click",)), widths).to(options.device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    batches = [make_batch(options.batch, options.device) for _ in range(STEPS)]
    amp = options.amp == "bf16"

    def steps(forward: Callable[[Batch], Tensor]) -> float:
        begin = clock(options.device)
        for batch in batches:
            with torch.autocast(options.device, dtype=torch.bfloat16, enabled=amp):
                logits = forward(batch)
            functional.binary_cross_entropy_with_logits(logits.float(), batch.labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return clock(options.device) - begin

    compiled = torch.compile(model)
    begin = time.perf_counter()
    steps(compiled)
    seconds = time.perf_counter() - begin
    steps(model)
    ratios = []
    for pair in range(options.pairs):
        if pair % 2:
            plain, fast = steps(model), steps(compiled)
        else:
            fast, plain = steps(compiled), steps(model)
        ratios.append(plain / fast)
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"| {name} | {seconds:.0f} | {middle:.2f} ({low:.2f}-{high:.2f}) |", flush=True)


def main() -> None:
    """Runs all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--amp", default="off", choices=("off", "bf16"))
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    print("| model | compiling, s | plain / compiled |\n|---|---|---|", flush=True)
    for name in options.models:
        measure(name, options)


if __name__ == "__main__":
    main()
