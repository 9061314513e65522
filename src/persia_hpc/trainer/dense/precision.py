"""Implements mixed precision: the type that the dense part computes in, and fp16's loss scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.trainer.pooling.gradients import RowGradients

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Implements `train.amp`; with fp16 one loss scale, chosen by torch's GradScaler, serves all gradients.

    A step in which a dense or row gradient of any trainer overflows (in fp32, scaled back) is skipped by all,
    for dense parameters and rows alike, and the scale is lowered.
    """

    def __init__(self, amp: str, device: torch.device, *, cache: bool = True):
        """Chooses the type of autocast.

        cache: whether it may keep casts of parameters, which CUDA graphs forbid.
        """
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
        """Returns whether losses are scaled: only `apply` then shows whether the gradients were good."""
        return self.scaler.is_enabled()

    def autocast(self) -> Any:
        """Returns the context in which a forward runs."""
        dtype = self.autocast_dtype
        return torch.autocast(
            self._device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=self._cache
        )

    def backward(self, loss: Tensor, gradients: RowGradients) -> None:
        """Runs the backward of the scaled loss; row gradients are scaled back before they are sent."""
        if self.scales:
            # Ask the scaler for 1 * scale: on a GPU its number must not come to the host.
            gradients.scale_by(self.scaler.scale(torch.ones(1, device=self._device)).reciprocal())
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def share_overflow(self, gradients: RowGradients) -> None:
        """Tells all trainers of a row gradient that isn't finite: puts NaN into a dense one.

        Must be called before AllReduce, which spreads it.
        """
        if self.scales and (p := self._messenger) is not None:
            p.grad = (torch.zeros_like(p) if p.grad is None else p.grad) + gradients.overflow()

    def apply(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], clip_norm: float | None
    ) -> bool:
        """Makes one step of the optimizer with the reduced gradients.

        Returns False if they overflowed: the parameters are as before then, and the loss scale is lower.
        """
        self.scaler.unscale_(optimizer)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        before, self._scale = self._scale, self.scaler.get_scale() if self.scales else 1.0
        return self._scale >= before

    def state(self) -> dict[str, Any]:
        """Returns the loss scale's state for a checkpoint; {} without one."""
        return dict(self.scaler.state_dict())

    def restore(self, state: dict[str, Any]) -> None:
        """Continues with a checkpoint's loss scale, if both have one."""
        if self.scales and state:
            self.scaler.load_state_dict(state)
            self._scale = self.scaler.get_scale()
