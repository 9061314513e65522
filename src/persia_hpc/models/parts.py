"""What the built-in models share.

B samples, F features, K dense features, D dim, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch, Inputs


def widths(model: str, option: str, value: Sequence[int], *, empty: bool = False) -> list[int]:
    """Layer widths from an option, checked. Raises UserError naming the model and the option."""
    ok = isinstance(value, (list, tuple)) and (empty or len(value) > 0)
    if not ok or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in value):
        raise UserError(
            f"model {model!r}: {option} must be a list of positive widths like [256, 128], got {value!r}"
        )
    return list(value)


def perceptron(num_inputs: int, hidden: Sequence[int], *, outputs: int | None = None) -> nn.Sequential:
    """Linear and ReLU per hidden width, then a plain Linear to `outputs` if given."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(num_inputs, width), nn.ReLU()]
        num_inputs = width
    if outputs is not None:
        layers.append(nn.Linear(num_inputs, outputs))
    return nn.Sequential(*layers)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[B, L, D] and [B, L] -> [B, D]: the mean where the mask is true, zeros where it never is."""
    weights = mask.to(values.dtype)
    total = (values * weights.unsqueeze(-1)).sum(dim=1)
    return total / weights.sum(dim=1, keepdim=True).clamp(min=1)


def stacked_vectors(batch: Batch, inputs: Inputs) -> Tensor:
    """[B, F, D]: pooled features, then sequences by their mean; all of one dim. No copy without sequences."""
    if not inputs.sequences:
        return batch.stacked(inputs.pooled)
    means = [masked_mean(*batch.sequence[name]) for name in inputs.sequences]
    return torch.stack([*(batch.pooled[name] for name in inputs.pooled), *means], dim=1)


def flat_inputs(batch: Batch, inputs: Inputs) -> Tensor:
    """[B, K + W]: dense features, then pooled features, then sequences by their mean."""
    parts = [batch.dense] if inputs.num_dense else []
    parts += [batch.concatenated(inputs.pooled)] if inputs.pooled else []
    parts += [masked_mean(*batch.sequence[name]) for name in inputs.sequences]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def flat_width(model: str, inputs: Inputs) -> int:
    """Width of flat_inputs. Raises UserError when there is nothing to learn from."""
    width = inputs.num_dense + inputs.embedding_width
    if width == 0:
        raise UserError(f"model {model!r}: the dataset has neither id features nor dense features")
    return width


def common_dim(model: str, inputs: Inputs) -> int:
    """The dim that all features share. Raises UserError when they differ or there are none."""
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
