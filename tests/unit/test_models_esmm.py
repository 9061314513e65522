"""ESMM is what its paper writes, also where probabilities are nearly 0 or 1."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from persia_hpc.models import build_model
from persia_hpc.trainer.batch import Inputs
from tests.support.row_batches import make_inputs, random_batch, side_by_side

FEATURES = [("a", 4, "sum", False), ("b", 2, "mean", True), ("c", 4, "sum", False)]


def built(name: str, inputs: Inputs, **options: Any) -> Any:
    torch.manual_seed(1)
    return build_model(name, inputs, options)


def test_esmm_gives_the_logits_of_a_click_and_of_the_product() -> None:
    inputs = make_inputs(FEATURES, labels=2)
    model = built("esmm", inputs, hidden=[6])
    batch = random_batch(inputs, 50)
    x = side_by_side(batch, inputs)
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
    logits = model(random_batch(inputs, 10))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    if bias == 20:  # 1 - pq is lost in fp32 if it is formed by subtraction
        x = side_by_side(random_batch(inputs, 10), inputs).double()
        product = torch.sigmoid(model.click.double()(x)) * torch.sigmoid(model.conversion.double()(x))
        expected = torch.log(product / (1 - product))
        torch.testing.assert_close(logits[:, 1:].double(), expected, rtol=1e-4, atol=1e-4)
