"""Measures gather_pool's CUDA kernels, and moving batches to a GPU and back, beside bare copies.

Bytes are those that must move: indices, each unique row once, outputs; backward the outputs' gradients, the
transpose, and each unique row's gradient. The limit copies half of them from one place of the device to
another, so it reads and writes as many. Staging is a batch's copy from registered memory, as from a ring, and
back to pinned memory, alone and both ways at once, beside a bare copy. With --device cpu the kernels' code
runs on the host: only to try this out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from persia_hpc import _native
from persia_hpc.errors import UserError
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.protocol.wire import WIRES
from persia_hpc.trainer.batch import FeatureSpec, Inputs
from persia_hpc.trainer.pooling.cuda_kernel import CudaKernel, cuda_module
from persia_hpc.trainer.pooling.groups import DimGroup
from persia_hpc.trainer.pooling.row_rings import RowRings
from persia_hpc.trainer.pooling.staging import Staging, arrays_of

from .dedup import zipf_ids
from .fed import lay_out
from .measure import Result, Timing, in_turns
from .pool import rate

LAUNCHES = 10
HOST_NUMBERS = 50_000_000  # gathered by each feature; beyond it the host is too slow
SUMMARY = "the GPU's kernels, and copies to it and back"
EXAMPLES = "example: persia-hpc bench gpu --dims 128 --wires fp16 --json gpu.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ... (default: cuda)")
    parser.add_argument("--batches", type=int, nargs="+", default=[16384, 65536], help="samples")
    parser.add_argument("--features", type=int, default=26, help="features (default: 26)")
    parser.add_argument("--ids-per-sample", type=int, nargs="+", default=[1, 10], help="ids of a feature")
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--wires", nargs="+", default=["fp32", "fp16", "scaled_fp16"], choices=list(WIRES))
    parser.add_argument("--exponent", type=float, default=1.2, help="of the ids' Zipf law (default: 1.2)")


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Measures forward, backward and staging of each combination, in GB/s.

    Raises UserError if torch can't use the device or the kernels can't be loaded.
    """
    device = torch.device(options.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {options.device}: torch sees no GPU")
        module, problem = cuda_module(device)
        if module is None:
            raise UserError(f"--device {options.device}: {problem}")
        torch.cuda.set_device(device)  # launches that are repeated go to the current one
    for batch in options.batches:
        for per_sample in options.ids_per_sample:
            for dim in options.dims:
                if device.type == "cpu" and batch * per_sample * dim > HOST_NUMBERS:
                    print(f"left out on a CPU: {batch} samples, {per_sample} ids, dim {dim}", file=sys.stderr)
                    continue
                for wire in options.wires:
                    inputs, row_batch = _row_batch(options, batch, per_sample, dim, wire)
                    case = {"batch": batch, "ids": per_sample, "dim": dim, "wire": wire}
                    yield from _kernels(options, device, inputs, row_batch, case)
                    if per_sample == 1:
                        yield from _staging(options, device, row_batch, case)


def _row_batch(
    options: argparse.Namespace, batch: int, per_sample: int, dim: int, wire: str
) -> tuple[Inputs, RowBatch]:
    generator = np.random.default_rng(1)
    count = batch * per_sample
    names = [f"f{i:02d}" for i in range(options.features)]
    multi = per_sample > 1
    inputs = Inputs(
        tuple(FeatureSpec(n, n, 0, dim, "sum", multi) for n in names), num_dense=13, labels=("click",)
    )
    dedup = _native.Deduplicator(
        tables=list(range(options.features)),
        groups=[0] * options.features,
        num_buckets=[1024] * options.features,
        bounds=[[0, 1024]] * options.features,
    ).run([zipf_ids(count, 1_000_000, options.exponent, generator) for _ in names])
    rows = generator.standard_normal((len(dedup.keys), dim), np.float32)
    bags = np.arange(0, count + 1, per_sample, dtype=np.uint32)
    return inputs, RowBatch(
        step=1,
        trainer=0,
        num_samples=batch,
        num_global=batch,
        rows=[_native.encode_rows(rows, wire)],
        indices=dedup.indices,
        feature_offsets=dedup.feature_offsets,
        bag_offsets=dict.fromkeys(names, bags) if multi else {},
        row_offsets=dedup.row_offsets,
        positions=dedup.positions,
        dim_group_offsets=dedup.group_offsets,
        dense=generator.standard_normal((batch, 13), np.float32),
        labels=np.zeros((batch, 1), np.float32),
    )


def _repeated(device: torch.device, run: Callable[[], object]) -> Callable[[], object]:
    """LAUNCHES times the same until a GPU is done: one would be over before the next is launched."""

    def repeat() -> None:
        for _ in range(LAUNCHES):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return repeat


def _seconds(device: torch.device, runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Of one run of each."""
    times = in_turns({name: _repeated(device, run) for name, run in runs.items()}, repeats)
    return {name: timing.scaled(1 / LAUNCHES) for name, timing in times.items()}


class _Recorder:
    """The module with the kernels; remembers what they were called with, to do it again without the rest."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._calls: dict[str, dict[str, Any]] = {}

    def pool_batch_forward(self, **arguments: Any) -> None:
        self._calls["forward"] = arguments
        self._module.pool_batch_forward(**arguments)

    def pool_batch_backward(self, **arguments: Any) -> None:
        self._calls["backward"] = arguments
        self._module.pool_batch_backward(**arguments)

    def forward(self) -> None:
        self._module.pool_batch_forward(**self._calls["forward"])

    def backward(self) -> None:
        self._module.pool_batch_backward(**self._calls["backward"])


def _kernels(
    options: argparse.Namespace,
    device: torch.device,
    inputs: Inputs,
    row_batch: RowBatch,
    case: dict[str, Any],
) -> Iterator[Result]:
    recorder = _Recorder(_native if device.type == "cpu" else cuda_module(device)[0])
    groups = [DimGroup(inputs, 0)]
    kernel = CudaKernel(groups, row_batch, Staging(device), RowRings(), recorder)
    outputs = kernel.forward()
    kernel.backward([torch.randn_like(o) for o in outputs], WIRES[case["wire"]])
    output_bytes = sum(4 * o.numel() for o in outputs)
    touched = {
        "forward": row_batch.rows[0].nbytes + row_batch.indices.nbytes + output_bytes,
        "backward": output_bytes
        + row_batch.positions.nbytes
        + row_batch.row_offsets.nbytes
        + row_batch.rows[0].nbytes,
    }
    sources = {n: torch.ones(size // 2, dtype=torch.uint8, device=device) for n, size in touched.items()}
    targets = {name: torch.zeros_like(source) for name, source in sources.items()}

    def backward() -> None:
        kernel.flags.zero_()  # it lists its long rows behind those of the last launch
        recorder.backward()

    times = _seconds(
        device,
        {
            "forward": recorder.forward,
            "forward copy": lambda: targets["forward"].copy_(sources["forward"]),
            "backward": backward,
            "backward copy": lambda: targets["backward"].copy_(sources["backward"]),
        },
        options.repeats,
    )
    for name, size in touched.items():
        yield Result(
            {"pass": name, **case},
            "GB/s",
            rate(times[name], size),
            {"device copy": rate(times[f"{name} copy"], size)},
            higher_is_better=True,
            notes={"us": times[name].median * 1e6},
        )


def _staging(
    options: argparse.Namespace, device: torch.device, row_batch: RowBatch, case: dict[str, Any]
) -> Iterator[Result]:
    staging, size = Staging(device), sum(array.nbytes for _, array in arrays_of(row_batch))
    memory, (fed,) = lay_out([row_batch])
    staging.register([memory])
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    block = torch.empty(size, dtype=torch.uint8, device=device)
    ways: dict[str, Callable[[], object]] = {
        "to": lambda: block.copy_(pinned, non_blocking=True),
        "batch to": lambda: staging.arrive(fed),
        "back": lambda: staging.give(block),
        "both": lambda: (staging.give(block), staging.arrive(fed)),
    }
    times = _seconds(device, ways, options.repeats)
    staging.close()
    limit = rate(times["to"], size)
    for name, moved in (("batch to", size), ("back", size), ("both", 2 * size)):
        yield Result(
            {"pass": f"staging {name}", **case},
            "GB/s",
            rate(times[name], moved),
            {"pinned copy": limit},
            higher_is_better=True,
            notes={"us": times[name].median * 1e6},
        )
