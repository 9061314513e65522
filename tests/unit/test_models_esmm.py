"""ESMM is what its paper writes, also where probabilities are nearly 0 or 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from persia_hpc.models import build_model
from persia_hpc.trainer.batch import Batch, Inputs
from persia_hpc.trainer.pooling.embed import Pooling
from tests.support.row_batches import make_inputs, make_row_batch, random_ids

FEATURES = [("a", 4, "sum", False), ("b", 2, "mean", True), ("c", 4, "sum", False)]


def built(name: str, inputs: Inputs, **options: Any) -> Any:
    torch.manual_seed(1)
    return build_model(name, inputs, options)


def batch_of(inputs: Inputs, num_samples: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    row_batch = make_row_batch(inputs, random_ids(inputs, num_samples, rng), rng)
    return Pooling(inputs).embed(row_batch, training=True)[0]


def flat(batch: Batch, inputs: Inputs) -> Tensor:
    return torch.cat([batch.dense, *(batch.pooled[name] for name in inputs.pooled)], dim=1)


def test_esmm_gives_the_logits_of_a_click_and_of_the_product() -> None:
    inputs = make_inputs(FEATURES, labels=2)
    model = built("esmm", inputs, hidden=[6])
    batch = batch_of(inputs, 50)
    x = flat(batch, inputs)
    click, conversion = (torch.sigmoid(tower(x)) for tower in (model.click, model.conversion))
    expected = torch.cat([click, click * conversion], dim=1)
    torch.testing.assert_close(torch.sigmoid(model(batch)), expected)


@pytest.mark.parametrize("bias", [-200.0, -20.0, 0.0, 20.0, 200.0])
def test_esmm_stays_finite_where_probabilities_are_0_or_1(bias: float) -> None:
    inputs = make_inputs(FEATURES, labels=2)
    model = built("esmm", inputs, hidden=[6])
    with torch.no_grad():
        for tower in (model.click, model.conversion):
            tower[-1].bias += bias
    logits = model(batch_of(inputs, 10))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    if bias == 20:  # 1 - pq is lost in fp32 if it is formed by subtraction
        x = flat(batch_of(inputs, 10), inputs).double()
        product = torch.sigmoid(model.click.double()(x)) * torch.sigmoid(model.conversion.double()(x))
        expected = torch.log(product / (1 - product))
        torch.testing.assert_close(logits[:, 1:].double(), expected, rtol=1e-4, atol=1e-4)
