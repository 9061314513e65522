"""Mixed precision: in what the dense part computes, and the loss scale that fp16 needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.trainer.pooling.gradients import RowGradients

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """`train.amp`. With fp16 one loss scale serves dense and row gradients: torch's GradScaler chooses it.

    A step in which a dense or row gradient of any trainer overflows (in fp32, scaled back) is skipped by all,
    dense parameters and rows alike, and the scale is lowered.
    """

    def __init__(self, amp: str, device: torch.device, *, cache: bool = True):
        """`cache`: whether autocast may keep casts of parameters, which CUDA graphs can't have."""
        self.autocast_dtype = DTYPES.get(amp)
        self._device = device
        self._cache = cache
        self._messenger: nn.Parameter | None = None
        self._make_scaler(amp == "fp16")

    def _make_scaler(self, enabled: bool) -> None:
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=enabled)
        # It exists from its first use on; a trainer's first step may have no samples, and no loss.
        self.scaler.scale(torch.ones(1, device=self._device))
        self._scale = self.scaler.get_scale()

    def attach(self, reduced: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer | None) -> None:
        """Takes note of the parameters whose gradients are reduced; without any there is no loss scale."""
        own = {id(p) for group in optimizer.param_groups for p in group["params"]} if optimizer else set()
        self._messenger = next((p for p in reduced if id(p) in own and p.numel()), None)
        if self._messenger is None:
            self._make_scaler(False)

    @property
    def scales(self) -> bool:
        """Whether losses are scaled: gradients are then known to be good only after `apply`."""
        return self.scaler.is_enabled()

    def autocast(self) -> Any:
        """The context for a forward."""
        dtype = self.autocast_dtype
        return torch.autocast(
            self._device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=self._cache
        )

    def backward(self, loss: Tensor, gradients: RowGradients) -> None:
        """The loss's backward, scaled; row gradients are without the scale again when they travel."""
        if self.scales:
            # Ask the scaler for 1 * scale: on a GPU its number must not come to the host.
            gradients.factor = self.scaler.scale(torch.ones(1, device=self._device)).reciprocal()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def share_overflow(self, gradients: RowGradients) -> None:
        """Before AllReduce: makes a row gradient that isn't finite known to all, by way of a dense one."""
        if self.scales and (p := self._messenger) is not None:
            p.grad = (torch.zeros_like(p) if p.grad is None else p.grad) + gradients.overflow()

    def apply(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], clip_norm: float | None
    ) -> bool:
        """One step of the optimizer with the reduced gradients; False if they overflowed: skipped."""
        self.scaler.unscale_(optimizer)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        before, self._scale = self._scale, self.scaler.get_scale() if self.scales else 1.0
        return self._scale >= before

    def state(self) -> dict[str, Any]:
        """For a checkpoint; {} without a loss scale."""
        return dict(self.scaler.state_dict())

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on with a checkpoint's scale, if both have one."""
        if self.scales and state:
            self.scaler.load_state_dict(state)
            self._scale = self.scaler.get_scale()
