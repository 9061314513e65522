"""What a server's loop does ahead of a step, with a stub in place of its engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from persia_hpc.parameter_server.serve import ServerLoop


class Stub:
    """Stands for the loop, its engine, phases and rings; `sent` has what went to the worker."""

    def __init__(self, remote: bool, wishes: int, portions: int) -> None:
        self.engine = self.phases = self
        self._remote = remote
        self.asked: list[str] = []
        self.sent: list[str] = []
        ring = SimpleNamespace(rate=1e6, post=lambda *_, **__: self.sent.append("wish"))
        self.workers = [SimpleNamespace(pushes=ring, patches=ring)]
        packed = (1, 1, 0, 0, [])
        wish = SimpleNamespace(
            pull=SimpleNamespace(worker=0), message=lambda: SimpleNamespace(pack=lambda: packed)
        )
        self._wishes, self._portions = [wish] * wishes, ["rows"] * portions

    def add(self, *_: Any) -> float:
        return 0.0

    def mark_next(self) -> bool:
        return False

    def early_pulls(self) -> list[Any]:
        return []

    def want_first(self, most_bytes: float) -> list[Any]:
        self.asked.append("want_first")
        return self._wishes

    def final_rows(self) -> list[str]:
        self.asked.append("final_rows")
        return self._portions

    def _send_patches(self, portions: list[str], begin: float) -> float:
        self.sent += portions
        return begin


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(("wishes", "portions"), [(0, 0), (1, 0), (0, 2)])
def test_only_a_server_of_a_far_worker_looks_for_what_may_go_first_and_what_it_sends_is_a_move(
    remote: bool, wishes: int, portions: int
) -> None:
    stub = Stub(remote, wishes, portions)
    assert ServerLoop._look_ahead(cast(ServerLoop, stub)) == (remote and wishes + portions > 0)
    assert stub.asked == ["want_first", "final_rows"] * remote
    assert stub.sent == (["wish"] * wishes + ["rows"] * portions) * remote
