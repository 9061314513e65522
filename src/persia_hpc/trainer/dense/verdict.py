"""Judges whether a step's loss and gradients are finite, alike on all trainers that reduce gradients.

What only one trainer knows, of its loss and its row gradients, travels with the dense gradients: they are
summed anyway. A dense gradient that isn't finite on one trainer isn't in the sum either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from persia_hpc.trainer.pooling.gradients import RowGradients


@dataclass(frozen=True)
class Verdict:
    """Says of a step what wasn't finite."""

    bad_losses: int = 0  # trainers whose loss wasn't
    bad_rows: int = 0  # trainers with row gradients that weren't
    bad_dense: bool = False  # the sum of the dense gradients wasn't
    overflowed: bool = False  # fp16's loss scale was too large, which was then lowered
    loss: float | None = None  # of this trainer's batch, if it has samples

    @property
    def good(self) -> bool:
        """Returns whether the step may change anything."""
        return not (self.bad_losses or self.bad_rows or self.bad_dense or self.overflowed)

    def __str__(self) -> str:
        if self.overflowed:
            return "gradients overflowed, and fp16's loss scale was lowered"
        bad = [
            name
            for name, is_bad in (
                ("the loss", self.bad_losses),
                ("row gradients", self.bad_rows and not self.bad_losses),
                ("dense gradients", self.bad_dense and not self.bad_losses),
            )
            if is_bad
        ]
        return f"{' and '.join(bad)} had NaN or infinity"


def told_parameter(parameters: Sequence[nn.Parameter] = ()) -> nn.Parameter:
    """Returns what stands for `DenseSync.told` beside these parameters."""
    device = parameters[0].device if parameters else None
    return nn.Parameter(torch.zeros(2, device=device), requires_grad=False)


def tell(told: nn.Parameter, loss: Tensor | None, gradients: RowGradients) -> None:
    """Puts into the gradient of `told` what this trainer knows; must be called before the reduction.

    loss: None for a trainer without samples.
    """
    if loss is None:
        told.grad = None
        return
    if loss.device.type == "cpu" and math.isfinite(float(loss)) and not math.isnan(gradients.overflow()):
        told.grad = None  # as if it were zeros
        return
    bad = torch.stack([loss.detach().isfinite().logical_not(), gradients.overflow().isnan()])
    told.grad = bad.to(told.device, torch.float32)


def values(gradient: Tensor) -> Tensor:
    """Returns what a gradient holds, as a tensor that isn't sparse; it can be changed there."""
    return gradient._values() if gradient.is_sparse else gradient


def judge(parameters: Sequence[nn.Parameter], told: nn.Parameter, loss: Tensor | None) -> Verdict:
    """Returns the verdict on reduced gradients; waits, once, for the device that has them.

    loss: the same as for `tell`.
    """
    assert told.grad is not None, "reduce gives every parameter a gradient"
    # What GradScaler looks for overflows with: one pass over all gradients, which it multiplies by 1.
    found, one = torch.zeros(1, device=told.device), torch.ones(1, device=told.device)
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for gradient in (p.grad for p in parameters):
        if gradient is not None:
            by_type.setdefault(gradient.dtype, []).append(values(gradient))
    for gradients in by_type.values():
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, one)
    if told.device.type == "cpu":
        losses, rows, bad_dense = *told.grad.tolist(), found.item()
        mean = [] if loss is None else [loss.item()]
    else:  # all in one transfer
        mine = [] if loss is None else [loss.detach().float().reshape(1)]
        losses, rows, bad_dense, *mean = torch.cat([told.grad, found, *mine]).tolist()
    return Verdict(round(losses), round(rows), bool(bad_dense), loss=mean[0] if mean else None)
