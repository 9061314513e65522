"""Whether the trainers of a job need Horovod, and what is said where it is missing."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from persia_hpc.errors import UserError
from persia_hpc.trainer.dense.allreduce import check_horovod


@pytest.mark.parametrize(("trainers", "mode"), [(1, "sync"), (1, "hybrid"), (3, "async")])
def test_horovod_is_not_needed_where_it_reduces_nothing(
    monkeypatch: pytest.MonkeyPatch, trainers: int, mode: str
) -> None:
    monkeypatch.setitem(sys.modules, "horovod", None)  # its import fails
    check_horovod(trainers, mode)


@pytest.mark.parametrize("mode", ["sync", "hybrid"])
def test_several_trainers_are_refused_in_one_line_without_it(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setitem(sys.modules, "horovod", None)
    with pytest.raises(UserError, match=r"^2 trainers need Horovod.*build_horovod.sh") as caught:
        check_horovod(2, mode)
    assert "\n" not in str(caught.value)


def test_several_trainers_pass_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("horovod", "horovod.torch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    check_horovod(2, "sync")
