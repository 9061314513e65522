"""Implements mixed precision: the type that the dense part computes in, and fp16's loss scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.trainer.pooling.gradients import RowGradients

from .verdict import Verdict, values

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_SCALE, GROWTH, BACKOFF, PATIENCE = 2.0**16, 2.0, 0.5, 2000  # as torch's GradScaler has them
LEAST, MOST = 2.0**-126, 2.0**127  # so that it and what undoes it are float32


class LossScale:
    """Chooses fp16's loss scale as torch's GradScaler does, but on the host, which knows each step's verdict.

    So no step waits for a number of a GPU. A `scale` of None: losses aren't scaled.
    """

    def __init__(self, scale: float | None) -> None:
        self.scale = scale
        self._good = 0  # steps since the scale was changed

    def update(self, overflowed: bool) -> None:
        """Lowers the scale after an overflow, and raises it after many steps without one."""
        assert self.scale is not None
        self._good = 0 if overflowed else self._good + 1
        if overflowed:
            self.scale = max(self.scale * BACKOFF, LEAST)
        elif self._good == PATIENCE:
            self.scale, self._good = min(self.scale * GROWTH, MOST), 0

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint, by GradScaler's names; {} without a scale."""
        if self.scale is None:
            return {}
        return {
            "scale": self.scale,
            "growth_factor": GROWTH,
            "backoff_factor": BACKOFF,
            "growth_interval": PATIENCE,
            "_growth_tracker": self._good,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues with a checkpoint's scale, if both have one."""
        if self.scale is not None and state:
            self.scale, self._good = float(state["scale"]), int(state["_growth_tracker"])


class Precision:
    """Implements `train.amp`; with fp16 one loss scale serves all gradients.

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
        self.loss_scale = LossScale(FIRST_SCALE if amp == "fp16" else None)
        self._used: float | None = None  # the scale of the gradients that are there

    def attach(self, reduced: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer | None) -> None:
        """Takes note of the parameters whose gradients are reduced; without any there is no loss scale."""
        own = {id(p) for group in optimizer.param_groups for p in group["params"]} if optimizer else set()
        if not any(id(p) in own and p.numel() for p in reduced):
            self.loss_scale = LossScale(None)

    def autocast(self) -> Any:
        """Returns the context in which a forward runs."""
        dtype = self.autocast_dtype
        return torch.autocast(
            self._device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=self._cache
        )

    def pooled_dtype(self, model: nn.Module | None) -> torch.dtype:
        """Returns the type that pooled vectors may have: bfloat16 if the model would cast them to it."""
        narrow = self.autocast_dtype is torch.bfloat16 and getattr(model, "narrow_pooled", False)
        return torch.bfloat16 if narrow else torch.float32

    def backward(self, loss: Tensor, gradients: RowGradients) -> None:
        """Runs the backward of the scaled loss; row gradients are scaled back before they are sent."""
        if (scale := self.loss_scale.scale) is not None:
            gradients.scale_by(torch.full((1,), 1 / scale, device=self._device))
            loss = loss.to(torch.promote_types(loss.dtype, torch.float32)) * scale
        loss.backward()  # type: ignore[no-untyped-call]

    def judge(self, verdict: Verdict) -> Verdict:
        """Returns the last verdict on a step that updates parameters; adapts the loss scale to it.

        Must be called once for each such step, before `apply`, which uses the scale of its backward.
        """
        scale = self._used = self.loss_scale.scale
        if scale is None or verdict.bad_losses:
            return verdict
        self.loss_scale.update(not verdict.good)
        if verdict.good:
            return verdict
        # At a scale of 1 gradients are what they would be without it: no search for a scale any more.
        return dataclasses.replace(verdict, overflowed=scale > 1, bad_dense=True)

    def apply(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], clip_norm: float | None
    ) -> None:
        """Makes one step of the optimizer with the reduced gradients of a good step.

        parameters: those whose gradients were reduced.
        """
        if self._used is not None:
            every = (*parameters, *(p for group in optimizer.param_groups for p in group["params"]))
            gradients = {id(p): values(p.grad) for p in every if p.grad is not None}
            torch._foreach_mul_(list(gradients.values()), 1 / self._used)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()

    def state(self) -> dict[str, Any]:
        """Returns the loss scale's state for a checkpoint; {} without one."""
        return self.loss_scale.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues with a checkpoint's loss scale, if both have one."""
        self.loss_scale.restore(state)
