"""Implements mixed precision: the type that the dense part computes in, and fp16's loss scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.trainer.pooling.gradients import RowGradients

from .verdict import Verdict, values

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Implements `train.amp`; with fp16 one loss scale, chosen by torch's GradScaler, serves all gradients.

    The scale is lowered in a step in which a dense or row gradient of any trainer overflows (in fp32, scaled
    back), but not because of a loss that isn't finite, which no scale would mend.
    """

    def __init__(self, amp: str, device: torch.device, *, cache: bool = True):
        """Chooses the type of autocast.

        cache: whether it may keep casts of parameters, which CUDA graphs forbid.
        """
        self.autocast_dtype = DTYPES.get(amp)
        self._device = device
        self._cache = cache
        self._make_scaler(amp == "fp16")

    def _make_scaler(self, enabled: bool) -> None:
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=enabled)
        # It exists from its first use on; a trainer's first step may have no samples, and no loss.
        self.scaler.scale(torch.ones(1, device=self._device))
        self._scale = self.scaler.get_scale()

    def attach(self, reduced: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer | None) -> None:
        """Takes note of the parameters whose gradients are reduced; without any there is no loss scale."""
        own = {id(p) for group in optimizer.param_groups for p in group["params"]} if optimizer else set()
        if not any(id(p) in own and p.numel() for p in reduced):
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

    def pooled_dtype(self, model: nn.Module) -> torch.dtype:
        """Returns the type that pooled vectors may have: bfloat16 if the model would cast them to it."""
        narrow = self.autocast_dtype is torch.bfloat16 and getattr(model, "narrow_pooled", False)
        return torch.bfloat16 if narrow else torch.float32

    def backward(self, loss: Tensor, gradients: RowGradients) -> None:
        """Runs the backward of the scaled loss; row gradients are scaled back before they are sent."""
        if self.scales:
            # Ask the scaler for 1 * scale: on a GPU its number must not come to the host.
            gradients.scale_by(self.scaler.scale(torch.ones(1, device=self._device)).reciprocal())
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def apply(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        clip_norm: float | None,
        verdict: Verdict,
    ) -> Verdict:
        """Makes one step of the optimizer with the reduced gradients, unless they aren't good.

        Returns the last verdict: scaled gradients may overflow here, and the loss scale is lowered then. The
        parameters are as before after a step that isn't good.
        """
        if not verdict.good and (verdict.bad_losses or not self.scales):
            return verdict
        if not verdict.good:  # the scaler looks at the optimizer's gradients only
            own = (p.grad for group in optimizer.param_groups for p in group["params"])
            next(v for g in own if g is not None and (v := values(g)).numel()).fill_(torch.nan)
        self.scaler.unscale_(optimizer)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        before, self._scale = self._scale, self.scaler.get_scale() if self.scales else 1.0
        if self._scale >= before:
            return verdict
        # At a scale of 1 gradients are what they would be without it: no search for a scale any more.
        return dataclasses.replace(verdict, overflowed=before > 1, bad_dense=True)

    def state(self) -> dict[str, Any]:
        """Returns the loss scale's state for a checkpoint; {} without one."""
        return dict(self.scaler.state_dict())

    def restore(self, state: dict[str, Any]) -> None:
        """Continues with a checkpoint's loss scale, if both have one."""
        if self.scales and state:
            self.scaler.load_state_dict(state)
            self._scale = self.scaler.get_scale()
