"""DLRM is its published formula, by native kernels and with layers that only torch has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from persia_hpc.models import build_model
from persia_hpc.models.parts import masked_mean
from persia_hpc.trainer.batch import Batch, Inputs
from persia_hpc.trainer.pooling.embed import Pooling
from tests.support.row_batches import make_inputs, make_row_batch, random_ids

FEATURES = [
    ("a", 4, "sum", False),
    ("b", 4, "mean", True),
    ("c", 4, "sequence", True),
    ("d", 4, "sum", False),
]


def built(inputs: Inputs, **options: Any) -> Any:
    torch.manual_seed(1)
    return build_model("dlrm", inputs, {"hidden": [8], "bottom": [8], **options})


def batch_of(inputs: Inputs, num_samples: int) -> Batch:
    rng = np.random.default_rng(0)
    row_batch = make_row_batch(inputs, random_ids(inputs, num_samples, rng), rng)
    return Pooling(inputs).embed(row_batch, training=True)[0]


def test_dlrm_is_its_definition() -> None:
    inputs = make_inputs(FEATURES)
    model = built(inputs)
    batch = batch_of(inputs, 6)
    dense = model.bottom(batch.dense)
    vectors = [dense, *batch.pooled.values(), masked_mean(*batch.sequence["c"])]
    products = [(vectors[i] * vectors[j]).sum(1) for i in range(len(vectors)) for j in range(i)]
    expected = model.top(torch.cat([dense, torch.stack(products, 1)], 1))
    torch.testing.assert_close(model(batch), expected)
    through = list(batch.blocks.values())
    for one, other in zip(
        torch.autograd.grad(model(batch).square().sum(), through, retain_graph=True),
        torch.autograd.grad(expected.square().sum(), through),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_dlrm_heeds_hooks_and_what_takes_the_place_of_its_layers() -> None:
    inputs = make_inputs(FEATURES, num_dense=3)
    model = built(inputs)
    batch = batch_of(inputs, 40)
    expected, seen = model(batch), []
    for layers in (model.bottom, model.top):
        layers.register_forward_hook(lambda module, *_: seen.append(module))
    torch.testing.assert_close(model(batch), expected)
    assert seen == [model.bottom, model.top]

    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    model.top = Doubled(model.top)
    torch.testing.assert_close(model(batch), 2 * expected)


@pytest.mark.parametrize("num_dense", [0, 3])
def test_dlrm_with_other_layers_is_its_definition_too(num_dense: int) -> None:
    """Normalised, with another activation and in training with dropout, whose draws are made alike."""
    inputs = make_inputs(FEATURES, num_dense=num_dense)
    options = {"batch_norm": True, "activation": "silu", "dropout": 0.5, "bottom_dropout": 0.3}
    model = built(inputs, **options)
    batch = batch_of(inputs, 20)
    drawn = torch.Generator().manual_seed(3)

    def layer(linear: Any, norm: Any, x: Tensor, share: float) -> Tensor:
        x = linear(x)
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
        x = x * torch.sigmoid(x)
        kept = torch.rand(x.shape, generator=drawn) >= share
        masks.append((kept / (1 - share)).float())
        return x * masks[-1]

    masks: list[Tensor] = []
    vectors = [*batch.pooled.values(), masked_mean(*batch.sequence["c"])]
    copied = vectors
    if num_dense:
        kinds = [type(m).__name__ for m in model.bottom]
        assert kinds == ["PaddedLinear", "BatchNorm", "SiLU", "Dropout", "Linear", "SiLU"]
        first, norm, _, _, last, _ = model.bottom
        x = last(layer(first, norm, batch.dense, 0.3))
        copied = [x * torch.sigmoid(x)]
        vectors = [*copied, *vectors]
    products = [(vectors[i] * vectors[j]).sum(1) for i in range(len(vectors)) for j in range(i)]
    linear, norm, _, _, last = model.top
    expected = last(layer(linear, norm, torch.cat([*copied, torch.stack(products, 1)], 1), 0.5))
    drops = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert [drop.p for drop in drops] == ([0.3, 0.5] if num_dense else [0.5])
    for drop, mask in zip(drops, masks, strict=True):
        drop.register_forward_hook(lambda _, given, out, mask=mask: given[0] * mask)
    torch.testing.assert_close(model(batch), expected)


@pytest.mark.parametrize(
    ("options", "native"),
    [({}, True), ({"activation": "silu"}, False), ({"dropout": 0.1}, False), ({"batch_norm": True}, False)],
)
@pytest.mark.parametrize("num_dense", [0, 3])
def test_native_kernels_compute_what_they_know(options: dict[str, Any], native: bool, num_dense: int) -> None:
    inputs = make_inputs(FEATURES, num_dense=num_dense)
    model, calls = built(inputs, **options).eval(), []
    run = model._run_native
    model._run_native = lambda *given: calls.append(1) or run(*given)
    model(batch_of(inputs, 6))
    assert bool(calls) == native
