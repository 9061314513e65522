"""Computes causal attention within sequences that aren't padded.

N events of B sequences, G sequences of a block, L the longest of these, H heads, D dim of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from persia_hpc import _native
from persia_hpc.trainer.jagged import Jagged, Padded

from .layers import Team

SHORTEST = 0.75  # of a block's sequences, of its longest one
# Logarithmic buckets of a time difference in seconds, which the authors of HSTU have: floor(ln(t) / 0.301).
TIME_BUCKETS = 129
BUCKET_WIDTH = 0.301


@dataclass(frozen=True)
class Bias:
    """Holds what HSTU adds to a score, from how far apart two events are.

    positions: by their distance, from 0. times: by the bucket of the seconds between the time of the event
    behind the one that looks, `until`, and that of the one it looks at, `since`. These are float64: float32
    tells seconds apart only within 194 days.

    Shapes: positions [n], for sequences of at most n events; times [129]; until and since float64 [N].
    """

    positions: Tensor | None = None
    times: Tensor | None = None
    until: Tensor | None = None
    since: Tensor | None = None


def softmax_attention(like: Jagged, q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0) -> Tensor:
    """Returns the attention of each event to itself and those before it, by torch's own kernels.

    Shapes: `like` has the offsets; q, k and v [N, H, D] in, [N, H, D] out.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return out.transpose(1, 2)

    return _by_blocks(like, (q, k, v), attend)


def silu_attention(
    like: Jagged, vqk: Tensor, *, scale: float, divisor: float, bias: Bias | None = None, team: Team
) -> Tensor:
    """Returns, for each event, the sum of SiLU(scale q·k + bias) v / divisor over itself and those before.

    In float32 on a CPU native kernels compute it; elsewhere torch does on padded scores.

    Shapes: `like` has the offsets; vqk [N, 3, H, D] in, [N, H, D] out.
    """
    bias = bias or Bias()
    tensors = (vqk, bias.positions, bias.times)
    native = all(t is None or (t.device.type == "cpu" and t.dtype == torch.float32) for t in tensors)
    native = native and not torch.is_autocast_enabled("cpu") and not isinstance(like, Padded)
    if native:
        out: Tensor = _SiluAttention.apply(
            like.offsets, *tensors, bias.until, bias.since, scale, divisor, team
        )  # type: ignore[no-untyped-call]
        return out
    return padded_silu_attention(like, vqk, scale=scale, divisor=divisor, bias=bias)


def padded_silu_attention(like: Jagged, vqk: Tensor, *, scale: float, divisor: float, bias: Bias) -> Tensor:
    """Returns what `silu_attention` does, by torch's operations alone."""

    def attend(v: Tensor, q: Tensor, k: Tensor, *times: Tensor) -> Tensor:
        scores = scale * (q.transpose(1, 2) @ k.permute(0, 2, 3, 1))  # [G, H, L, L]
        if bias.positions is not None:
            places = torch.arange(scores.shape[-1], device=scores.device)
            scores = scores + bias.positions[(places[:, None] - places).clamp(min=0)]
        if bias.times is not None:
            until, since = times
            scores = scores + bias.times[time_buckets(until[:, :, None] - since[:, None])].unsqueeze(1)
        weights = (functional.silu(scores) / divisor).tril()
        return (weights @ v.transpose(1, 2)).transpose(1, 2)

    times = [t for t in (bias.until, bias.since) if t is not None]
    return _by_blocks(like, (*vqk.unbind(1), *times), attend)


class _SiluAttention(torch.autograd.Function):
    """The native forward and backward, each in one call."""

    @staticmethod
    def forward(ctx: Any, offsets: Tensor, *arguments: Any) -> Tensor:
        *tensors, scale, divisor, team = arguments
        ctx.save_for_backward(offsets, *tensors)
        ctx.options = scale, divisor, team
        return torch.from_numpy(_native.silu_attention_forward(**_arrays(offsets, *arguments)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        arrays = _arrays(*ctx.saved_tensors, *ctx.options)
        made = _native.silu_attention_backward(**arrays, gradient=gradient.contiguous().numpy())
        gradients = (None if array is None else torch.from_numpy(array) for array in made)
        return None, *gradients, None, None, None, None, None


def _arrays(
    offsets: Tensor,
    vqk: Tensor,
    positions: Tensor | None,
    times: Tensor | None,
    until: Tensor | None,
    since: Tensor | None,
    scale: float,
    divisor: float,
    team: Team,
) -> dict[str, Any]:
    """Returns the arguments that both calls take."""
    edges = None if times is None else bucket_edges()
    bias = [_array(tensor) for tensor in (positions, times, edges, until, since)]
    return {
        "vqk": _array(vqk),
        "offsets": _array(offsets),
        "bias": bias,
        "scale": scale,
        "divisor": divisor,
        "team": team.threads(),
    }


def _array(tensor: Tensor | None) -> npt.NDArray[Any] | None:
    return None if tensor is None else tensor.detach().contiguous().numpy()


def time_buckets(seconds: Tensor) -> Tensor:
    """Returns the bucket, 0 to 128, of time differences; they count without their sign, and from 1 second."""
    return torch.bucketize(seconds.abs(), bucket_edges(seconds.device), right=True)


def bucket_edges(device: torch.device | None = None) -> Tensor:
    """Returns where buckets 1, 2, ... begin, in seconds, float64 [128]."""
    numbers = torch.arange(1, TIME_BUCKETS, dtype=torch.float64, device=device)
    return torch.exp(BUCKET_WIDTH * numbers)


def _by_blocks(like: Jagged, values: Sequence[Tensor], attend: Callable[..., Tensor]) -> Tensor:
    """Returns what `attend` makes of sequences that are padded in blocks of about the same length.

    What is behind a sequence's end changes nothing before it, as attention is causal. On a GPU there is one
    block, since the lengths aren't known to the host.

    Shapes: values [N, ...] each; `attend` gets and returns [G, L, ...].
    """
    if _in_one_block(like):
        padded = attend(*(like.with_values(each).padded() for each in values))
        return like.unpadded(padded).values
    made, sources = [], []
    for samples in _blocks(like.lengths):
        block, source = like.taken(samples)
        padded = attend(*(block.with_values(each[source]).padded() for each in values))
        made.append(block.unpadded(padded).values)
        sources.append(source)
    if not made:
        return values[0]
    out = torch.cat(made)
    return torch.empty_like(out).index_copy(0, torch.cat(sources), out)


def _in_one_block(like: Jagged) -> bool:
    return like.offsets.device.type != "cpu" or isinstance(like, Padded)


def _blocks(lengths: Tensor) -> list[Tensor]:
    """Returns the numbers of the samples of each block, which together are all that have events."""
    lengths, order = lengths.sort()
    ends: list[int] = [len(order)]
    first = int((lengths == 0).sum())
    while ends[-1] > first:
        shortest = SHORTEST * float(lengths[ends[-1] - 1])
        ends.append(max(first, int(torch.searchsorted(lengths, shortest))))
    return [order[begin:end] for end, begin in pairwise(ends)]
