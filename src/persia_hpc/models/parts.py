"""Provides what the built-in models share.

B samples, F features, K dense features, D dim, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch, Inputs


def widths(model: str, option: str, value: Sequence[int], *, empty: bool = False) -> list[int]:
    """Returns the layer widths that an option gives, checked; `empty` allows none.

    Raises UserError, which names the model and the option, unless it is a list of positive integers.
    """
    ok = isinstance(value, (list, tuple)) and (empty or len(value) > 0)
    if not ok or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in value):
        raise UserError(
            f"model {model!r}: {option} must be a list of positive widths like [256, 128], got {value!r}"
        )
    return list(value)


def perceptron(num_inputs: int, hidden: Sequence[int], *, outputs: int | None = None) -> nn.Sequential:
    """Returns a Linear and a ReLU for each hidden width, then a plain Linear to `outputs` if given."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(num_inputs, width), nn.ReLU()]
        num_inputs = width
    if outputs is not None:
        layers.append(nn.Linear(num_inputs, outputs))
    return nn.Sequential(*layers)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean over the positions where the mask is true, zeros where it never is.

    Shapes: `values` [B, L, D] and `mask` [B, L] in, [B, D] out.
    """
    weights = mask.to(values.dtype)
    total = (values * weights.unsqueeze(-1)).sum(dim=1)
    return total / weights.sum(dim=1, keepdim=True).clamp(min=1)


def stacked_vectors(batch: Batch, inputs: Inputs) -> Tensor:
    """Returns the vectors of all features: pooled ones, then means of sequences; no copy without those.

    Shapes: [B, F, D], for F features of one dim D.
    """
    if not inputs.sequences:
        return batch.stacked(inputs.pooled)
    means = [masked_mean(*batch.sequence[name]) for name in inputs.sequences]
    return torch.stack([*(batch.pooled[name] for name in inputs.pooled), *means], dim=1)


def flat_inputs(batch: Batch, inputs: Inputs) -> Tensor:
    """Returns all inputs side by side: dense features, then pooled features, then the means of sequences.

    Shapes: [B, K + W], for K dense features and embeddings of W values in all.
    """
    parts = [batch.dense] if inputs.num_dense else []
    parts += [batch.concatenated(inputs.pooled)] if inputs.pooled else []
    parts += [masked_mean(*batch.sequence[name]) for name in inputs.sequences]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def flat_width(model: str, inputs: Inputs) -> int:
    """Returns the width of `flat_inputs`.

    Raises UserError if it is 0, so that there is nothing to learn from.
    """
    width = inputs.num_dense + inputs.embedding_width
    if width == 0:
        raise UserError(f"model {model!r}: the dataset has neither id features nor dense features")
    return width


def common_dim(model: str, inputs: Inputs) -> int:
    """Returns the dim that all features share.

    Raises UserError if they differ or there are none.
    """
    dims = inputs.dims
    if not dims:
        raise UserError(
            f'model {model!r} needs at least one id feature, the dataset has none; use "tower" or "dcn_v2"'
        )
    if len(set(dims.values())) > 1:
        raise UserError(
            f"model {model!r} multiplies the vectors of features with each other, so all dims must be equal, "
            f'got {dims}; give their tables one dim, or use "tower" or "dcn_v2"'
        )
    return next(iter(dims.values()))
