"""Optimizers that leave PyTorch's compiler alone: bit for bit torch's own, for each that torch has."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer

from persia_hpc.trainer.dense.optimizer import make_optimizer
from persia_hpc.trainer.dense.without_compiler import COMPILER, without_compiler
from tests.support.jobs import write_config
from tests.support.tiny import tiny_config, write_tiny

NAMES = [n for n in dir(torch.optim) if isinstance(getattr(torch.optim, n), type) and n != "Optimizer"]


def steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], *, sparse: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        for p in parameters:
            grad = torch.randn(p.shape, generator=generator)
            p.grad = grad.to_sparse() if sparse else grad
        optimizer.step(lambda: parameters[0].sum().detach()) if needs_closure(optimizer) else optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.zero_grad(set_to_none=True)


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    return isinstance(optimizer, torch.optim.LBFGS)


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(1)
    return [nn.Parameter(torch.randn(shape)) for shape in ((7, 3), (3, 5))]


@contextlib.contextmanager
def no_compiler() -> Iterator[None]:
    """Hides the compiler, which another test may have imported; none is imported in the context."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, COMPILER, raising=False)
        yield
        assert COMPILER not in sys.modules


@pytest.mark.parametrize("name", NAMES)
def test_each_optimizer_steps_as_torchs_own_without_the_compiler(name: str) -> None:
    mine, theirs = parameters(), parameters()
    with no_compiler():
        optimizer = make_optimizer(mine, {"name": name, "lr": 0.01})
        steps(optimizer, mine, sparse=name == "SparseAdam")
    assert type(optimizer) is not getattr(torch.optim, name)
    assert isinstance(optimizer, getattr(torch.optim, name))
    fused = {"fused": True} if optimizer.param_groups[0].get("fused") else {}
    steps(getattr(torch.optim, name)(theirs, lr=0.01, **fused), theirs, sparse=name == "SparseAdam")
    for pair in zip(mine, theirs, strict=True):
        assert torch.equal(*pair)


@pytest.mark.parametrize("differentiable", [False, True])
def test_a_step_records_gradients_only_if_it_is_asked_to(
    differentiable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[bool] = []
    monkeypatch.setattr(torch.optim.SGD, "_init_group", lambda *_: recorded.append(torch.is_grad_enabled()))
    with no_compiler():
        kind: Any = without_compiler(torch.optim.SGD)
        with contextlib.suppress(TypeError):  # of what goes on without the group
            kind(parameters(), lr=0.1, differentiable=differentiable).step()
    assert recorded == [differentiable]


def test_torchs_own_where_the_compiler_is_there_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, COMPILER, torch)
    assert without_compiler(torch.optim.Adam) is torch.optim.Adam


def test_decorators_that_are_not_known_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "_disable_dynamo")
    monkeypatch.delattr(torch_optimizer, "_use_grad_for_differentiable")
    with no_compiler():
        kind = without_compiler(torch.optim.Adam)
    for name in ("step", "zero_grad", "add_param_group", "state_dict", "load_state_dict"):
        assert getattr(kind, name) is getattr(torch.optim.Adam, name)


def test_a_whole_run_with_checkpoints_and_its_resumption_import_no_compiler(tmp_path: Path) -> None:
    config = tiny_config(write_tiny(tmp_path / "train.h5", 200))
    path = str(write_config(tmp_path / "job.toml", config))
    code = "import sys; from persia_hpc.cli import main\ncode = main(sys.argv[1:])\n"
    code += f"print(code, 'torch' in sys.modules, {COMPILER!r} in sys.modules)"
    run = ["train", path, "--one-process", "--quiet", "--run-dir", str(tmp_path / "run")]
    run += ["--set", "checkpoint.every=5"]
    for more in (["--set", "train.epochs=1"], ["--set", "train.epochs=2", "--resume"]):
        command = [sys.executable, "-c", code, *run, *more]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert done.stdout == "0 True False\n", done.stderr
