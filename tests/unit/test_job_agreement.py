"""Ranks that wait for slower ones leave them the cores; an error of any rank becomes every rank's."""

from __future__ import annotations

import time
from typing import Any

import pytest

from persia_hpc.errors import EXIT_FAILURE, AgreedError, UserError
from persia_hpc.job.agreement import agree

LATE_SECONDS = 0.4


class World:
    """Stands in for a communicator of two ranks; the other one comes late, with a problem or none."""

    def __init__(self, theirs: tuple[int, str] | None = None) -> None:
        self.theirs = theirs
        self.together_at = float("inf")

    def Ibarrier(self) -> World:  # noqa: N802
        self.together_at = time.monotonic() + LATE_SECONDS
        return self

    def Test(self) -> bool:  # noqa: N802
        return time.monotonic() >= self.together_at

    def allgather(self, mine: Any) -> list[Any]:
        assert self.Test(), "this call would poll without a pause"
        return [mine, self.theirs]


def test_a_rank_that_waits_takes_no_core() -> None:
    world: Any = World()
    begin, cpu = time.monotonic(), time.process_time()
    assert agree(world, lambda: 7) == 7
    assert time.monotonic() - begin >= LATE_SECONDS
    assert time.process_time() - cpu < LATE_SECONDS / 4


@pytest.mark.parametrize("mine", [None, UserError("ours"), ValueError("ours")])
def test_the_first_error_is_all_ranks(mine: Exception | None) -> None:
    def prepare() -> int:
        if mine is not None:
            raise mine
        return 7

    world: Any = World(theirs=(EXIT_FAILURE, "theirs"))
    with pytest.raises(AgreedError, match="theirs" if mine is None else "ours") as found:
        agree(world, prepare)
    assert found.value.exit_code == (UserError.exit_code if isinstance(mine, UserError) else EXIT_FAILURE)
