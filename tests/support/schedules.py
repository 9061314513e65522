"""Learning rates by torch's own schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LinearLR, SequentialLR

LR = 0.3


def torch_rates(
    make: Callable[[Any], Any],
    num_steps: int,
    warmup_steps: int = 0,
    warmup_start: float = 0.01,
    lr: float = LR,
) -> list[float]:
    """The learning rate of each of `num_steps` steps with the scheduler that `make` makes of an optimizer."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimizer)
    if warmup_steps:
        warmup = LinearLR(optimizer, start_factor=warmup_start, total_iters=warmup_steps)
        scheduler = SequentialLR(optimizer, [warmup, scheduler], milestones=[warmup_steps])
    found = []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found
