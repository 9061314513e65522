"""Adam's and AdamW's direct steps: bit for bit torch's own, and torch's own wherever somebody looks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer

from persia_hpc.trainer.dense.direct_adam import FEW_VALUES, direct_adam

OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 1e-6},
    {"maximize": True},
    {"amsgrad": True},
    {"fused": False},
    {"lr": torch.tensor(0.02)},
]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(1)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((7, 3), (7,), (33, 7), (1,))]


def make(kind: Any, options: dict[str, Any], dtype: torch.dtype = torch.float32) -> torch.optim.Optimizer:
    """Two groups, of which the second has a rate of its own."""
    mine = parameters(dtype)
    made: torch.optim.Optimizer = kind(mine[:3], **{"lr": 0.01, "fused": True, **options})
    made.add_param_group({"params": mine[3:], "lr": 0.5})
    return made


def values(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    held = [p for group in optimizer.param_groups for p in group["params"]]
    return held + [tensor for p in held for tensor in optimizer.state[p].values()]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_and_state_are_torchs_own(kind: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    mine, theirs = make(direct_adam(kind), options, dtype), make(kind, options, dtype)
    generator = torch.Generator().manual_seed(2)
    for step in range(12):
        for groups in zip(mine.param_groups, theirs.param_groups, strict=True):
            for number, pair in enumerate(zip(*(g["params"] for g in groups), strict=True)):
                gradient = torch.randn(pair[0].shape, generator=generator, dtype=dtype)
                for parameter in pair:  # some have none in some steps, the second even in the first
                    parameter.grad = None if (step + number) % 5 == 1 else gradient.clone()
            if step == 6 and "lr" not in options:
                for group in groups:
                    group["lr"] *= 0.3
        if step == 8:
            mine.load_state_dict(copy.deepcopy(theirs.state_dict()))
        mine.step()
        theirs.step()
        for one, other in zip(values(mine), values(theirs), strict=True):
            assert torch.equal(one, other)
    mine.zero_grad()
    assert all(p.grad is None for group in mine.param_groups for p in group["params"])


def calls_of_torchs_step(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    inside = torch.optim.Adam._init_group

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return inside(*arguments)

    monkeypatch.setattr(torch.optim.Adam, "_init_group", counted)
    return calls


def step(optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step(*arguments)


def test_after_the_first_step_torchs_python_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_of_torchs_step(monkeypatch)
    optimizer = make(direct_adam(torch.optim.Adam), {})
    step(optimizer)
    assert len(calls) == 2  # groups
    step(optimizer)
    assert len(calls) == 2


@pytest.mark.parametrize("of_all", [False, True])
def test_hooks_see_every_step(of_all: bool) -> None:
    optimizer = make(direct_adam(torch.optim.Adam), {})
    step(optimizer)
    seen: list[str] = []
    owner: Any = torch_optimizer if of_all else optimizer
    names = [
        f"register_optimizer_step_{n}_hook" if of_all else f"register_step_{n}_hook" for n in ("pre", "post")
    ]
    hooks = [getattr(owner, name)(lambda *_, name=name: seen.append(name)) for name in names]
    try:
        step(optimizer)
        assert seen == names
    finally:
        for hook in hooks:
            hook.remove()
    step(optimizer)
    assert seen == names


def test_a_profiler_sees_a_step_by_its_name() -> None:
    optimizer = make(direct_adam(torch.optim.Adam), {})
    step(optimizer)
    with torch.profiler.profile() as profile:
        step(optimizer)
    assert "Optimizer.step#Adam.step" in {event.name for event in profile.events()}


def test_a_closure_is_called_and_its_loss_returned() -> None:
    optimizer = make(direct_adam(torch.optim.Adam), {})
    step(optimizer)
    assert optimizer.step(lambda: 3.0) == 3.0


def test_other_optimizers_are_as_they_were() -> None:
    for kind in (torch.optim.SGD, torch.optim.NAdam, torch.optim.SparseAdam):
        assert direct_adam(kind) is kind


@pytest.mark.parametrize(("count", "seen"), [(FEW_VALUES, [1]), (FEW_VALUES + 1, [3])])
def test_few_values_are_updated_by_one_thread(
    count: int, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = direct_adam(torch.optim.Adam)([nn.Parameter(torch.zeros(count))], fused=True)
    before, kernel, found = torch.get_num_threads(), torch._fused_adam_, []
    torch.set_num_threads(3)
    try:
        for _ in range(2):  # the first step is torch's own
            optimizer.param_groups[0]["params"][0].grad = torch.ones(count)
            optimizer.step()

        def fused(*arguments: Any, **options: Any) -> None:
            found.append(torch.get_num_threads())
            kernel(*arguments, **options)

        monkeypatch.setattr(torch, "_fused_adam_", fused)
        other = direct_adam(torch.optim.Adam)(optimizer.param_groups[0]["params"], fused=True)
        other.load_state_dict(optimizer.state_dict())
        other.step()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert found == seen
