"""What a training step of HSTU costs without padding, beside padded ones in plain torch.

    python benchmarks/hstu_step.py [--batch 128] [--length 200] [--most 1024] [--dim 64] [--threads 2]

Lengths are skewed: exponential with the mean that is asked for, cut to `--most`. A step is the states of all
events by HSTU's layers (the paper's form) and the gradients of their sum of squares. `jagged` is the built-in
model. The others are plain PyTorch with the same parameters: `padded` computes everything on [B, L, W] with a
mask, `loop` computes layers for all events at once and the attention of one sequence after the other.
Prints medians and quartiles of wall-clock and processor time of turns that alternate, and of their ratios.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from persia_hpc._native import keep_freed_memory
from persia_hpc.models.hstu import HSTU
from persia_hpc.trainer.batch import FeatureSpec, Inputs
from persia_hpc.trainer.jagged import Jagged

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.histories import history_batch


def model_of(options: argparse.Namespace) -> HSTU:
    """Returns the built-in model."""
    torch.manual_seed(1)
    features = (
        FeatureSpec("item", "item", 0, options.dim, "sum", False),
        FeatureSpec("items", "item", 0, options.dim, "jagged", True, max_length=options.most),
    )
    inputs = Inputs(features, 0, ("label",))
    return HSTU(inputs, layers=options.layers, heads=options.heads, dropout=0.0)


def attend(layer: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, n: int) -> Tensor:
    """Returns the attention [..., L, H, D] of sequences [..., L, H, D] that aren't jagged."""
    length = q.shape[-3]
    places = torch.arange(length)
    bias = layer.positions[(places[:, None] - places).clamp(min=0)]
    scores = q.transpose(-3, -2) @ k.transpose(-3, -2).transpose(-2, -1) + bias
    weights = (functional.silu(scores) / n).tril()
    return (weights @ v.transpose(-3, -2)).transpose(-3, -2)


def plain(model: HSTU, x: Tensor, places: Tensor, attention: Callable[..., Tensor]) -> Tensor:
    """Returns the states of events [..., W] at these places."""
    x = x * math.sqrt(model.width) + model.positions[places]
    for layer in model.blocks:
        mixed = functional.silu(layer.uvqk(layer.norm(x)))
        u, v, q, k = mixed.unflatten(-1, (4, layer.heads, -1)).unbind(-3)
        made = layer.attention_norm(attention(layer, q, k, v, model.length).flatten(-2))
        x = x + layer.output(u.flatten(-2) * made)
    return x


def states_of(kind: str, model: HSTU, events: Jagged, lengths: list[int]) -> Tensor:
    """Returns the states of all events, [N, W]."""
    if kind == "jagged":
        return model.states(None, events).values
    if kind == "padded":
        padded = events.padded()
        return events.unpadded(plain(model, padded, torch.arange(padded.shape[1]), attend)).values

    def loop(layer: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, n: int) -> Tensor:
        parts = zip(*(t.split(lengths) for t in (q, k, v)), strict=True)
        return torch.cat([attend(layer, *part, n) for part in parts])

    return plain(model, events.values, events.positions(), loop)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=200, help="mean number of events (default: 200)")
    parser.add_argument("--most", type=int, default=1024, help="cut of the lengths (default: 1024)")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--kinds", nargs="+", default=["jagged", "loop", "padded"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    model = model_of(options)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.empty(options.batch).exponential_(1 / options.length, generator=generator)
    lengths = [min(options.most, max(1, round(length))) for length in drawn.tolist()]
    events = history_batch(model.inputs, lengths).jagged["items"]
    share = sum(lengths) / (len(lengths) * max(lengths))
    print(f"{sum(lengths)} events, longest {max(lengths)}, {1 - share:.0%} of the places are padding")
    made: dict[str, list[Tensor]] = {}
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    times: dict[tuple[str, str], list[float]] = {(k, c): [] for k in options.kinds for c in clocks}
    for repeat in range(options.repeats + 1):
        for kind in options.kinds if repeat % 2 else options.kinds[::-1]:
            model.zero_grad()
            events.values.grad = None
            begin = {name: clock() for name, clock in clocks.items()}
            states = states_of(kind, model, events, lengths)
            states.square().sum().backward()
            for name, clock in clocks.items():
                if repeat:
                    times[kind, name].append(clock() - begin[name])
            made[kind] = [states.detach(), events.values.grad, *(p.grad for p in model.parameters())]
    for kind in options.kinds[1:]:
        for ours, theirs in zip(made["jagged"], made[kind], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    for kind, clock in times:
        low, middle, high = (1e3 * q for q in statistics.quantiles(times[kind, clock], n=4))
        ratios = [a / b for a, b in zip(times[kind, clock], times["jagged", clock], strict=True)]
        low_ratio, ratio, high_ratio = statistics.quantiles(ratios, n=4)
        print(
            f"{kind:<8} {clock:<10} {middle:8.1f} ms ({low:.1f} to {high:.1f}), jagged takes 1/{ratio:.2f} "
            f"of it ({low_ratio:.2f} to {high_ratio:.2f})"
        )


if __name__ == "__main__":
    main()
