"""Provides what the built-in models share.

B samples, F features, K dense features, D dim, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch, Inputs

# To multiples of these, by device, the inputs of matrix products are filled with zero columns. A GPU loads
# 16 bytes at a time where every row begins at a multiple of them; a CPU needs nothing.
COLUMNS: Mapping[str, int] = {"cuda": 16}


class PaddedLinear(nn.Linear):
    """Takes inputs that may have zero columns behind its own; its parameters don't know of them.

    The weight is filled up in each forward. That moves its bytes once more, which for the paper's tower and
    65,536 samples is estimated at below 1 % of the layer's time. A parameter stored with the zeros would save
    that, but checkpoints, optimizers and weight decay would all have to leave the zeros out.
    """

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """Computes the layer; `outputs` asks for so many columns, of which those behind the layer's are zero.

        Shapes: [B, K or more] in, [B, outputs] out.
        """
        columns, rows = x.shape[1] - self.in_features, 0
        if outputs is not None:
            rows = outputs - self.out_features
        if columns < 0 or (not columns and not rows):  # torch refuses too few; padding would cut the weight
            return super().forward(x)
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if (dtype := narrow_dtype(x.device)) is not None:
            weight = weight.to(dtype)  # before it is copied
        weight = functional.pad(weight, (0, columns, 0, rows))
        if rows and bias is not None:
            bias = functional.pad(bias, (0, rows))
        return functional.linear(x, weight, bias)


def narrow_dtype(device: torch.device) -> torch.dtype | None:
    """Returns bfloat16 under its autocast, else None: fp16 doesn't have the range for inputs of all kinds."""
    if not torch.is_autocast_enabled(device.type):
        return None
    dtype = torch.get_autocast_dtype(device.type)
    return dtype if dtype == torch.bfloat16 else None


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Returns inputs of a `PaddedLinear` side by side, with the zero columns that make it fast.

    Under bf16 autocast they are bf16, as layers want them: cast before they are copied, not after. Without it
    none is: pooled vectors may be narrow also where a loop calls the model without autocast.

    Shapes: [B, W], for each part's own W, in; [B, their sum or more] out.
    """
    device = parts[0].device
    if (dtype := narrow_dtype(device)) is not None:
        parts = [part.to(dtype) for part in parts]
    else:
        parts = [part.float() if part.dtype == torch.bfloat16 else part for part in parts]
    missing = -sum(part.shape[1] for part in parts) % COLUMNS.get(device.type, 1)
    if missing:
        parts = [*parts, parts[-1].new_zeros(len(parts[-1]), missing)]
    return torch.cat(list(parts), dim=1) if len(parts) > 1 else parts[0]


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


class BatchNorm(nn.BatchNorm1d):
    """Is torch's, but takes a batch of one sample, which has no variance, with the running statistics.

    A trainer may have one sample left at the end of an epoch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Computes the normalisation; [B, W] in and out."""
        if self.training and len(x) < 2:
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


class Dice(nn.Module):
    """Weighs positive and negative inputs by where they stand in the batch.

    p x + a (1 - p) x for p = sigmoid(batch-normalised x) and a learned a for each unit, which begins with 0:
    equation 5 of DIN (Zhou et al., KDD 2018, arXiv 1706.06978). Its batch normalisation has an epsilon of
    1e-8, as there.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = BatchNorm(width, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Computes the activation; [B, W] in and out."""
        p = torch.sigmoid(self.norm(x))
        return p * x + self.alpha * (1 - p) * x


ACTIVATIONS: Mapping[str, Callable[[int], nn.Module]] = {
    "relu": lambda _: nn.ReLU(),
    "dice": Dice,
    "prelu": nn.PReLU,
    "silu": lambda _: nn.SiLU(),
    "gelu": lambda _: nn.GELU(),
    "tanh": lambda _: nn.Tanh(),
    "sigmoid": lambda _: nn.Sigmoid(),
}


def layer_options(
    model: str, activation: str, dropout: float, batch_norm: bool = False, *, named: str = "dropout"
) -> dict[str, Any]:
    """Returns the options that a model's layers share, checked, as `perceptron` takes them.

    named: the option that `dropout` is.

    Raises UserError, which names the model and the option, if one is wrong.
    """
    if activation not in ACTIVATIONS:
        raise UserError(
            f"model {model!r}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}"
        )
    number = isinstance(dropout, int | float) and not isinstance(dropout, bool)
    if not number or not 0 <= dropout < 1:
        raise UserError(f"model {model!r}: {named} must be a number from 0 to below 1, got {dropout!r}")
    check_flag(model, "batch_norm", batch_norm)
    return {"activation": activation, "dropout": dropout, "batch_norm": batch_norm}


def check_flag(model: str, option: str, value: bool) -> None:
    """Checks an option that is true or false: the text "false" would count as true.

    Raises UserError, which names the model and the option, for anything else.
    """
    if not isinstance(value, bool):
        raise UserError(f"model {model!r}: {option} must be true or false, got {value!r}")


def check_count(model: str, option: str, value: int, *, divides: int | None = None) -> None:
    """Checks an option that is a positive integer, and one that divides `divides`.

    Raises UserError, which names the model and the option, for anything else.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < 1:
        raise UserError(f"model {model!r}: {option} must be an integer of at least 1, got {value!r}")
    if divides is not None and divides % value:
        raise UserError(
            f"model {model!r}: {option} must divide the width of an event, {divides}, got {value}"
        )


def perceptron(
    num_inputs: int,
    hidden: Sequence[int],
    *,
    outputs: int | None = None,
    activation: str = "relu",
    dropout: float = 0.0,
    batch_norm: bool = False,
) -> nn.Sequential:
    """Returns a linear layer and an activation for each width, then a plain layer to `outputs` if given.

    With `batch_norm` the linear layer's results are normalised before the activation, with `dropout` that
    share of the activation's is dropped. The first layer takes what `side_by_side` makes.
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers.append(nn.Linear(num_inputs, width) if layers else PaddedLinear(num_inputs, width))
        layers += [BatchNorm(width)] if batch_norm else []
        layers.append(ACTIVATIONS[activation](width))
        layers += [nn.Dropout(dropout)] if dropout else []
        num_inputs = width
    if outputs is not None:
        layers.append(nn.Linear(num_inputs, outputs) if layers else PaddedLinear(num_inputs, outputs))
    return nn.Sequential(*layers)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean over the positions where the mask is true, zeros where it never is.

    It is summed and counted in fp32 at least: bf16 can't count beyond 256.

    Shapes: `values` [B, L, D] and `mask` [B, L] in, [B, D] out.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    total = (values * mask.to(values.dtype).unsqueeze(-1)).sum(dim=1, dtype=dtype)
    return total / mask.sum(dim=1, keepdim=True, dtype=dtype).clamp(min=1)


def sequence_means(batch: Batch, inputs: Inputs) -> list[Tensor]:
    """Returns the mean vector of each sequence feature, padded or jagged, in the order of the features.

    Shapes: [B, D] each, zeros for a sample without ids.
    """
    return [
        batch.jagged[name].mean() if name in batch.jagged else masked_mean(*batch.sequence[name])
        for name in inputs.unpooled
    ]


def stacked_vectors(batch: Batch, inputs: Inputs) -> Tensor:
    """Returns the vectors of all features: pooled ones, then means of sequences; no copy without those.

    Shapes: [B, F, D], for F features of one dim D.
    """
    if not inputs.unpooled:
        return batch.stacked(inputs.pooled)
    pooled = [batch.pooled[name] for name in inputs.pooled]
    means = sequence_means(batch, inputs)
    return torch.stack([*pooled, *(m.to(pooled[0].dtype) if pooled else m for m in means)], dim=1)


def flat_inputs(batch: Batch, inputs: Inputs) -> Tensor:
    """Returns all inputs side by side: dense features, then pooled features, then the means of sequences.

    Shapes: [B, K + W or more], for K dense features and embeddings of W values in all; see `side_by_side`.
    """
    parts = [batch.dense] if inputs.num_dense else []
    parts += [batch.concatenated(inputs.pooled)] if inputs.pooled else []
    parts += sequence_means(batch, inputs)
    return side_by_side(parts)


def flat_width(model: str, inputs: Inputs) -> int:
    """Returns the width of `flat_inputs`, zero columns left out.

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
