"""Tells tables their learning rates, by schedule and by what `train.plateau` decides."""

from __future__ import annotations

import numpy as np

from persia_hpc._native import TableSet
from persia_hpc.table_layout import Layout, rate_schedules


class Rates:
    """Holds the rates of tables, and from which steps on factors apply to them."""

    def __init__(self, layout: Layout, num_steps: int) -> None:
        self._rates = np.array([float(table.config.optimizer["lr"]) for table in layout.tables])
        self._schedules = rate_schedules(layout, num_steps)
        self._factors = [(0, 1.0)]  # each from a step on

    def begin(self, first: int, factor: float) -> None:
        """Takes note that from step `first` on rates are `factor` times what schedules say."""
        if first > self._factors[-1][0] and factor != self._factors[-1][1]:
            self._factors = [self._factors[-1], (first, factor)]  # steps before may still be applied

    def set(self, tables: TableSet, step: int) -> None:
        """Sets the rates for updates with gradients of `step`.

        The gradient's step counts: in `hybrid` the batches of several steps come in any order.
        """
        factor = next(factor for first, factor in reversed(self._factors) if first <= step)
        if self._schedules or len(self._factors) > 1:
            rates = self._rates * factor
            for rate, of_tables in self._schedules:
                rates[of_tables] *= rate.factor(step)
            tables.set_lr(rates)
