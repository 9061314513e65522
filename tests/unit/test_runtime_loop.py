"""A polling loop ends with the pass that makes it done, whether or not that pass moved anything."""

from __future__ import annotations

from typing import Any

import pytest

from persia_hpc.runtime.loop import PollingLoop, RankContext
from persia_hpc.runtime.stop import StopSignals


class Counter:
    """Stands in for waiter and watchdog; counts waits."""

    def __init__(self) -> None:
        self.waits = 0

    def busy(self) -> None: ...

    def moved(self) -> None: ...

    def idle(self) -> None:
        self.waits += 1


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("passes", [1, 2, 5])
def test_it_does_not_wait_for_news_when_it_is_done(moves: bool, passes: int) -> None:
    polled: list[None] = []
    counter: Any = Counter()
    watchdog: Any = Counter()

    def poll() -> bool:
        polled.append(None)
        return moves

    loop = PollingLoop(RankContext(counter, watchdog, StopSignals(), counter), poll, lambda number: None)
    loop.run(lambda: len(polled) == passes)
    assert len(polled) == passes
    assert counter.waits == watchdog.waits == (0 if moves else passes - 1)
