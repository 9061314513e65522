"""Mixed precision: in what the dense part computes, and the loss scale that fp16 needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .pooling import RowGradients

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """`train.amp`. With fp16 one loss scale serves dense and row gradients: torch's GradScaler chooses it.

    A step in which any trainer's dense or row gradient overflows is skipped by all, dense parameters and rows
    alike, and the scale is lowered.
    """

    def __init__(self, amp: str, device: torch.device):
        self.autocast_dtype = DTYPES.get(amp)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        self._device = device
        self.skipped_steps = 0

    @property
    def scales(self) -> bool:
        """Whether losses are scaled: gradients are then known to be good only after `apply`."""
        return self.scaler.is_enabled()

    def autocast(self) -> Any:
        """The context for a forward."""
        dtype = self.autocast_dtype
        return torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None)

    def backward(self, loss: Tensor, gradients: RowGradients) -> None:
        """The loss's backward, scaled; row gradients are without the scale again when they travel."""
        if self.scales:
            # Ask the scaler for 1 * scale: on a GPU its number must not come to the host.
            gradients.factor = self.scaler.scale(torch.ones(1, device=self._device)).reciprocal()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def share_overflow(self, optimizer: torch.optim.Optimizer | None, gradients: RowGradients) -> None:
        """Before AllReduce: makes a row gradient that isn't finite known to all, by way of a dense one."""
        if self.scales and optimizer is not None:
            first = optimizer.param_groups[0]["params"][0]
            if first.grad is None:
                first.grad = torch.zeros_like(first)
            first.grad.view(-1)[0] += gradients.overflow()

    def apply(self, optimizer: torch.optim.Optimizer, clip_norm: float | None) -> bool:
        """One step of the optimizer with the reduced gradients; False if they overflowed: skipped."""
        self.scaler.unscale_(optimizer)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip_norm)
        before = self.scaler.get_scale() if self.scales else 1.0
        self.scaler.step(optimizer)
        self.scaler.update()
        good = not self.scales or self.scaler.get_scale() >= before
        self.skipped_steps += not good
        return good

    def state(self) -> dict[str, Any]:
        """For a checkpoint; {} without a loss scale."""
        return dict(self.scaler.state_dict())

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on with a checkpoint's scale, if both have one."""
        if self.scales and state:
            self.scaler.load_state_dict(state)
