"""PLE is what its paper writes, computed level by level and expert by expert."""

from __future__ import annotations

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
@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(0, 10**6))
def test_ple_is_its_definition(tasks: int, own: int, shared: int, levels: int, seed: int) -> None:
    inputs = make_inputs(FEATURES, labels=tasks)
    model = built("ple", inputs, experts=[[6, 5]] * levels, own=own, shared=shared, tower=[4])
    batch = random_batch(inputs, 5, seed)
    logits = model(batch)
    whole = side_by_side(batch, inputs)
    of_tasks, of_all = [whole] * tasks, whole
    for number, level in enumerate(model.levels):
        common = [expert(of_all) for expert in level.shared]
        mine = [[expert(of_tasks[k]) for expert in level.own[k]] for k in range(tasks)]

        def mix(gate: Any, x: Tensor, experts: list[Tensor]) -> Tensor:
            shares = torch.softmax(gate.layers(x), dim=1)
            assert shares.shape[1] == len(experts)
            return sum((shares[:, e : e + 1] * y for e, y in enumerate(experts)), torch.zeros(()))

        before = of_all
        if number < levels - 1:
            of_all = mix(level.shared_gate, before, [y for ys in mine for y in ys] + common)
        else:
            assert level.shared_gate is None
        of_tasks = [mix(level.gates[k], of_tasks[k], mine[k] + common) for k in range(tasks)]
    torch.testing.assert_close(logits, torch.cat([model.towers[k](of_tasks[k]) for k in range(tasks)], dim=1))
