"""MMoE is what its paper writes, computed sample by sample and expert by expert."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from persia_hpc.models import build_model
from persia_hpc.trainer.batch import Inputs
from tests.support.row_batches import make_inputs, random_batch, side_by_side

FEATURES = [("a", 4, "sum", False), ("b", 2, "mean", True), ("c", 4, "sum", False)]


def built(name: str, inputs: Inputs, **options: Any) -> Any:
    torch.manual_seed(1)
    return build_model(name, inputs, options)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from([(), (5,)]), st.integers(0, 10**6))
def test_mmoe_is_its_definition(experts: int, tasks: int, gate: tuple[int, ...], seed: int) -> None:
    inputs = replace(make_inputs(FEATURES, labels=tasks), outputs=(1,) * (tasks - 1) + (3,))
    model = built("mmoe", inputs, experts=experts, expert=[6, 5], tower=[4], gate=list(gate))
    batch = random_batch(inputs, 7, seed)
    logits = model(batch)
    assert logits.shape == (7, tasks + 2)
    x = side_by_side(batch, inputs)
    for i in range(7):
        row: list[Tensor] = []
        for k in range(tasks):
            shares = torch.softmax(model.gates[k].layers(x[i : i + 1])[0], dim=0)
            mixed = sum(shares[e] * model.experts[e](x[i : i + 1]) for e in range(experts))
            row.append(model.towers[k](mixed)[0])
        torch.testing.assert_close(logits[i], torch.cat(row))


def test_only_a_tasks_own_loss_reaches_what_is_a_tasks() -> None:
    inputs = make_inputs(FEATURES, labels=3)
    model = built("mmoe", inputs, experts=2, expert=[6], tower=[4])
    logits = model(random_batch(inputs, 7, 1))
    names = [name for name, _ in model.named_parameters()]
    for task in range(3):
        found = torch.autograd.grad(logits[:, task].sum(), list(model.parameters()), retain_graph=True)
        reached = {name for name, gradient in zip(names, found, strict=True) if gradient.any()}
        own = {name for name in names if any(fnmatchcase(name, p) for p in model.of_task(task))}
        assert f"towers.{task}.2.bias" in reached
        assert {name for name in reached if not name.startswith("experts.")} <= own
        assert len(own) == 6
