"""Gives the factor by which a step's learning rate differs from the configured one.

A pure function of the step, so that every rank knows it, updates may come in any order, and nothing has to
be saved. Steps count from 1; the formulas are those of torch.optim.lr_scheduler, with i = step - 1 for its
epoch:

- warm-up: `LinearLR(start_factor=warmup_start, total_iters=warmup_steps)`, and then, as in `SequentialLR`,
  the schedule itself from i = 0. Goyal et al., "Accurate, large minibatch SGD" (arXiv 1706.02677), 2.2.
- cosine: `CosineAnnealingLR(T_max=steps, eta_min=final * lr)`, constant after `steps` (torch's rises again).
  Loshchilov and Hutter, "SGDR" (arXiv 1608.03983), equation 5.
- step: `StepLR(step_size=every, gamma=gamma)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Options of each schedule with their defaults; None: cosine takes all steps of the training that are left
# after the warm-up, and step must be given one.
WARMUP: dict[str, float | None] = {"warmup_steps": 0, "warmup_start": 0.01}
SCHEDULES: dict[str, dict[str, float | None]] = {
    "constant": WARMUP,
    "cosine": {**WARMUP, "steps": None, "final": 0.0},
    "step": {**WARMUP, "every": None, "gamma": 0.1},
}


@dataclass(frozen=True)
class LearningRate:
    """Gives the factor of each step for the checked options of a schedule.

    num_steps: the steps of the whole training.
    """

    schedule: Mapping[str, Any]
    num_steps: int

    @property
    def varies(self) -> bool:
        """Returns whether any step's factor differs from 1."""
        return bool(self.schedule["name"] != "constant" or self.schedule["warmup_steps"] > 0)

    def factor(self, step: int) -> float:
        """Returns the factor that the learning rate is multiplied by in a step; steps count from 1."""
        options, warmup = self.schedule, int(self.schedule["warmup_steps"])
        i = step - 1
        if i < warmup:
            start: float = options["warmup_start"]
            return start + (1 - start) * i / warmup
        i -= warmup
        if options["name"] == "cosine":
            steps, final = options["steps"] or max(1, self.num_steps - warmup), options["final"]
            return float(final + (1 - final) * (1 + math.cos(math.pi * min(i, steps) / steps)) / 2)
        if options["name"] == "step":
            return float(options["gamma"] ** (i // options["every"]))
        return 1.0
