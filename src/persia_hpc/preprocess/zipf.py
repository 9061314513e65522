"""Draws Zipf-distributed ranks without a table, by rejection-inversion (Hörmann and Derflinger 1996)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .splitting import uniform

Floats = npt.NDArray[np.float64]


class Zipf:
    """Draws ranks 1..V with probability proportional to rank^-exponent, for V up to 10^13.

    Exponent 0 is the uniform distribution.
    """

    def __init__(self, exponent: float, num_ids: int) -> None:
        self._exponent = exponent
        self._num_ids = num_ids
        low, middle, high = self._integral(np.array([1.5, 2.5, num_ids + 0.5]))
        self._top, self._bottom = float(low) - 1.0, float(high)
        # Ranks this close to the point drawn are accepted at once.
        self._near = 2.0 - float(self._inverse(middle - self._density(np.array([2.0])))[0])

    def _density(self, x: Floats) -> Floats:
        return np.power(x, -self._exponent)

    def _integral(self, x: Floats) -> Floats:
        logs = np.log(x)
        if self._exponent == 1:
            return logs
        power = 1.0 - self._exponent
        return np.expm1(power * logs) / power

    def _inverse(self, y: Floats) -> Floats:
        if self._exponent == 1:
            return np.exp(y)
        power = 1.0 - self._exponent
        # Rounding may take the product below -1, where there is no logarithm.
        return np.exp(np.log1p(np.maximum(y * power, -1.0)) / power)

    def draw(self, counters: npt.NDArray[np.uint64], seed: int, stream: int) -> npt.NDArray[np.uint64]:
        """Returns a rank for each counter, which depends on (counter, seed, stream) only.

        It uses the streams from `stream` on, one for each attempt.
        Shapes: [N] uint64.
        """
        ranks = np.empty(len(counters), np.float64)
        left = np.arange(len(counters))
        attempt = 0
        with np.errstate(divide="ignore"):
            while len(left):
                draws = uniform(counters[left], seed, stream + attempt)
                y = self._bottom + draws * (self._top - self._bottom)
                x = self._inverse(y)
                rank = np.clip(np.floor(x + 0.5), 1.0, float(self._num_ids))
                good = rank - x <= self._near
                good |= y >= self._integral(rank + 0.5) - self._density(rank)
                ranks[left[good]] = rank[good]
                left = left[~good]
                attempt += 1
        return ranks.astype(np.uint64)
