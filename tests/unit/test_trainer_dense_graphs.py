"""What a CUDA graph is given is the batch; on a GPU, if there is one, a graph gives what the model does."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from persia_hpc.errors import UserError
from persia_hpc.trainer.dense.graphs import GraphedModel, graphed
from persia_hpc.trainer.pooling.embed import Pooling
from tests.support.models import Small
from tests.support.row_batches import make_inputs, make_row_batch, random_ids

POOLED = [("a", 4, "sum", False), ("b", 3, "mean", True), ("c", 4, "sqrtn", True)]


class Normed(Small):
    def __init__(self, inputs: Any):
        super().__init__(inputs)
        self.norm = torch.nn.BatchNorm1d(inputs.num_dense)

    def forward(self, batch: Any) -> torch.Tensor:
        assert batch.stacked(["a", "c"]).shape == (batch.num_samples, 2, 4)
        return super().forward(batch) + self.norm(batch.dense).sum(1, keepdim=True) * batch.weight[:, None]


def plain(module: torch.nn.Module, tensors: tuple[torch.Tensor, ...]) -> Any:
    """In place of a capture, which needs a GPU: it runs the module as often."""
    for _ in range(3):
        module(*tensors).sum().backward()
    module.zero_grad(set_to_none=True)
    return lambda *given: module(*given)


WAYS = [("cpu", {"graph": plain}), pytest.param(("cuda", {}), marks=pytest.mark.gpu)]


@pytest.mark.parametrize("way", WAYS)
def test_graphs_give_what_the_model_gives(way: tuple[str, dict[str, Any]]) -> None:
    device, options = way
    inputs = make_inputs(POOLED)
    torch.manual_seed(1)
    model = Normed(inputs).to(device)
    twin = copy.deepcopy(model)
    run = GraphedModel(model, **options)
    pooling = Pooling(inputs, device)
    rng = np.random.default_rng(1)
    kept = []
    for num_samples in (16, 16, 5, 16):
        row_batch = make_row_batch(inputs, random_ids(inputs, num_samples, rng), rng)
        row_batch.weight = rng.random(num_samples, np.float32)
        results = []
        for call, its in ((run, model), (twin, twin)):
            batch, gradients = pooling.embed(row_batch, training=True)
            logits = call(batch)
            logits.square().sum().backward()
            kept.append((logits, logits.detach().clone()))
            results.append([logits, *(p.grad for p in its.parameters()), *its.buffers()])
            results[-1] += [torch.from_numpy(a) for a in gradients.arrays()]
            its.zero_grad(set_to_none=True)
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(now, then) for now, then in kept)
    model.eval(), twin.eval()
    assert torch.allclose(run(batch), twin(batch), atol=1e-6)


def test_where_there_can_be_no_graph(caplog: pytest.LogCaptureFixture) -> None:
    inputs = make_inputs([*POOLED, ("d", 4, "sequence", True)])
    model = torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match="sequence feature 'd'"):
        graphed(model, inputs, torch.device("cpu"))
    assert graphed(model, make_inputs(POOLED), torch.device("cpu")) is model
    assert "does nothing on cpu" in caplog.text


class Dropping(Small):
    def forward(self, batch: Any) -> torch.Tensor:
        return torch.nn.functional.dropout(super().forward(batch))


@pytest.mark.parametrize("way", WAYS)
def test_capturing_draws_no_random_numbers(way: tuple[str, dict[str, Any]]) -> None:
    device, options = way
    inputs = make_inputs(POOLED)
    rng = np.random.default_rng(1)
    row_batch = make_row_batch(inputs, random_ids(inputs, 16, rng), rng)
    model = Dropping(inputs).to(device)
    run = GraphedModel(model, **options)
    drawn = []
    for _ in range(2):  # captures in the first turn only
        torch.manual_seed(3)
        batch, _ = Pooling(inputs, device).embed(row_batch, training=True)
        drawn.append(run(batch).detach())
    assert torch.equal(*drawn)
