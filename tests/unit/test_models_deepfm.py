"""DeepFM is what its paper writes, with weights of ids that are learned from vectors or beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from persia_hpc.models import build_model
from persia_hpc.models.parts import masked_mean
from persia_hpc.trainer.pooling.embed import Pooling
from tests.support.row_batches import make_inputs, make_row_batch, random_ids

SAME_DIM = [
    ("a", 4, "sum", False),
    ("b", 4, "mean", True),
    ("c", 4, "sequence", True),
    ("d", 4, "sum", False),
]


def small(inputs: Any, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    return build_model("deepfm", inputs, {"hidden": [8], **options})


def batch_of(inputs: Any, num_samples: int) -> Any:
    rng = np.random.default_rng(0)
    row_batch = make_row_batch(inputs, random_ids(inputs, num_samples, rng), rng)
    return Pooling(inputs).embed(row_batch, training=True)[0]


def test_deepfm_is_its_definition() -> None:
    inputs = make_inputs(SAME_DIM)
    model: Any = small(inputs)
    batch = batch_of(inputs, 6)
    vectors = [*batch.pooled.values(), masked_mean(*batch.sequence["c"])]
    pairs = sum((vectors[i] * vectors[j]).sum(1, keepdim=True) for i in range(len(vectors)) for j in range(i))
    flat = torch.cat([batch.dense, *vectors], 1)
    torch.testing.assert_close(model(batch), model.first_order(flat) + pairs + model.deep(flat))


@pytest.mark.parametrize("hidden", [[], [8]])
def test_deepfm_with_a_weight_for_each_id_is_its_definition(hidden: list[int]) -> None:
    inputs = make_inputs(SAME_DIM)
    model: Any = small(inputs, id_weights=True, hidden=hidden)
    batch = batch_of(inputs, 6)
    whole = [*batch.pooled.values(), masked_mean(*batch.sequence["c"])]
    vectors = [v[:, :3] for v in whole]
    pairs = sum((vectors[i] * vectors[j]).sum(1, keepdim=True) for i in range(len(vectors)) for j in range(i))
    expected = model.first_order(batch.dense) + sum(v[:, 3:] for v in whole) + pairs
    if hidden:
        expected = expected + model.deep(torch.cat([batch.dense, *vectors], 1))
    torch.testing.assert_close(model(batch), expected)
