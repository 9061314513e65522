"""What sums the gradients of a job's trainers, and what is said where it is missing."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from persia_hpc.config import Config
from persia_hpc.config.types import DataConfig, ModelConfig, TrainConfig
from persia_hpc.errors import UserError
from persia_hpc.trainer.dense.reducers import check_reducer


def check(num_trainers: int, mode: str, reducer: str = "horovod", **train: Any) -> None:
    config = Config(
        mode=mode,
        data=DataConfig(train=["x"], batch_size=1),
        model=ModelConfig(class_name="dlrm"),
        train=TrainConfig(reducer=reducer, **train),
    )
    check_reducer(config, num_trainers)
    needed = num_trainers > 1 and mode != "async"
    assert config.reducer(num_trainers) == (reducer if needed else None)


@pytest.mark.parametrize("reducer", ["horovod", "nccl"])
@pytest.mark.parametrize(("trainers", "mode"), [(1, "sync"), (1, "hybrid"), (3, "async")])
def test_nothing_is_needed_where_there_is_nothing_to_sum(
    monkeypatch: pytest.MonkeyPatch, trainers: int, mode: str, reducer: str
) -> None:
    monkeypatch.setitem(sys.modules, "horovod", None)  # its import fails
    check(trainers, mode, reducer)


@pytest.mark.parametrize("mode", ["sync", "hybrid"])
def test_several_trainers_are_refused_in_one_line_without_horovod(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setitem(sys.modules, "horovod", None)
    with pytest.raises(
        UserError, match=r'^train.reducer = "horovod" .* 2 trainers .*build_horovod.sh'
    ) as caught:
        check(2, mode)
    assert "\n" not in str(caught.value)
    assert 'set train.reducer = "mpi"' in str(caught.value)
    check(2, mode, "mpi")


def test_several_trainers_pass_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("horovod", "horovod.torch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    check(2, "sync")


def test_nccl_is_refused_in_one_line_without_a_gpu_or_a_build_that_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(UserError, match=r'^train.reducer = "nccl".*built without NCCL.*"mpi"'):
        check(2, "sync", "nccl")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    with pytest.raises(UserError, match=r"compute on the CPU"):
        check(2, "sync", "nccl", device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"torch sees no GPU") as caught:
        check(2, "sync", "nccl")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check(2, "sync", "nccl")
