"""Zero columns behind inputs change nothing but rounding; bf16 inputs stay bf16 where that is safe."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from persia_hpc.models import build_model, parts
from persia_hpc.models.parts import BatchNorm, Dice, PaddedLinear, masked_mean, perceptron
from persia_hpc.trainer.batch import Batch, Inputs
from persia_hpc.trainer.pooling.embed import Pooling
from tests.support.row_batches import make_inputs, make_row_batch, random_ids

FEATURES = [("a", 5, "sum", False), ("b", 5, "mean", True), ("c", 5, "sequence", True)]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "dlrm": ("dlrm", {"hidden": [8], "bottom": [8]}),
    "dcn_v2": ("dcn_v2", {"hidden": [7]}),
    "stacked": ("dcn_v2", {"hidden": [16], "structure": "stacked"}),
    "low_rank": ("dcn_v2", {"hidden": [8], "low_rank": 3}),
    "deepfm": ("deepfm", {"hidden": [8]}),
    "tower": ("tower", {"hidden": [16, 8]}),
}
SAMPLES = 40


def make(name: str, inputs: Inputs) -> nn.Module:
    torch.manual_seed(1)
    known, options = MODELS[name]
    return build_model(known, inputs, options)


def batch_of(inputs: Inputs) -> tuple[Batch, Any]:
    rng = np.random.default_rng(2)
    row_batch = make_row_batch(inputs, random_ids(inputs, SAMPLES, rng), rng)
    return Pooling(inputs).embed(row_batch, training=True)


def autocast(amp: bool) -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16) if amp else contextlib.nullcontext()


def trained(name: str, inputs: Inputs, amp: bool) -> tuple[dict[str, torch.Tensor], set[int]]:
    """All that two steps of Adam give, and the widths of what `PaddedLinear`s got."""
    model = make(name, inputs)
    seen: set[int] = set()
    for layer in model.modules():
        if isinstance(layer, PaddedLinear):
            layer.register_forward_pre_hook(lambda _, given: seen.add(given[0].shape[1]))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    found: dict[str, torch.Tensor] = {}
    for step in range(2):
        batch, gradients = batch_of(inputs)
        with autocast(amp):
            logits = model(batch).float()
        nn.functional.binary_cross_entropy_with_logits(logits, batch.labels).backward()
        found |= {f"{step} logits": logits.detach()}
        found |= {f"{step} {k}": p.grad for k, p in model.named_parameters() if p.grad is not None}
        found |= {f"{step} rows {i}": torch.from_numpy(a) for i, a in enumerate(gradients.arrays())}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    found |= model.state_dict()
    for number, state in optimizer.state_dict()["state"].items():
        found |= {f"{number} {k}": v for k, v in state.items()}
    return found, seen


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_zero_columns_change_nothing_but_rounding(
    name: str, amp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs(FEATURES, num_dense=3)
    plain, widths = trained(name, inputs, amp)
    assert any(width % 16 for width in widths)
    monkeypatch.setattr(parts, "COLUMNS", {"cpu": 16})
    padded, widths = trained(name, inputs, amp)
    assert {width for width in widths if width % 16} <= {3 if name == "low_rank" else 0}  # the rank
    assert {k: v.shape for k, v in padded.items()} == {k: v.shape for k, v in plain.items()}
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if amp else {"rtol": 1e-5, "atol": 1e-6}
    for key, value in plain.items():
        torch.testing.assert_close(
            padded[key], value, msg=lambda text, key=key: f"{key}: {text}", **tolerance
        )


class Wide(TorchDispatchMode):
    """Notes operations that give fp32 as wide as the inputs of a batch."""

    def __init__(self, elements: int):
        super().__init__()
        self.elements = elements
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        wide = isinstance(result, torch.Tensor) and result.numel() >= self.elements
        if wide and result.dtype == torch.float32:
            self.found.append(str(function))
        return result


@pytest.mark.parametrize("name", [name for name in MODELS if name != "deepfm"])
def test_bf16_vectors_are_not_made_fp32_again(name: str) -> None:
    """The dense features are fp32, which must not widen what they are put beside."""
    inputs = make_inputs([(n, 16, "sum", False) for n in "abcd"], num_dense=3)
    batch, _ = batch_of(inputs)
    blocks = {names: block.detach().bfloat16() for names, block in batch.blocks.items()}
    pooled = {n: v for names, block in blocks.items() for n, v in zip(names, block.unbind(1), strict=True)}
    model = make(name, inputs)
    with torch.no_grad(), autocast(True), Wide(SAMPLES * 16) as wide:
        model(replace(batch, blocks=blocks, pooled=pooled))
    assert wide.found == []


def test_the_factorisation_machine_is_exact_also_for_bf16_vectors() -> None:
    inputs = make_inputs([(n, 64, "sum", False) for n in "abcdefgh"], num_dense=0)
    batch, _ = batch_of(inputs)
    rng = torch.Generator().manual_seed(1)
    block = (3 + torch.randn(SAMPLES, 8, 64, generator=rng)).bfloat16()
    names = tuple("abcdefgh")
    model = make("deepfm", inputs)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    given = replace(batch, blocks={names: block}, pooled=dict(zip(names, block.unbind(1), strict=True)))
    with torch.no_grad(), autocast(True):
        logits = model(given)
    exact = block.double()
    products = torch.einsum("bfd,bgd->bfg", exact, exact).triu(1).sum(dim=(1, 2))
    torch.testing.assert_close(logits[:, 0].double(), products, rtol=1e-5, atol=0)


@pytest.mark.parametrize("length", [3, 1001])
def test_a_mean_counts_all_of_a_long_sequence(length: int) -> None:
    values = torch.full((2, length, 4), 3.0, dtype=torch.bfloat16)
    mask = torch.arange(length).expand(2, length) < torch.tensor([[length], [length - 1]])
    assert masked_mean(values * mask.unsqueeze(-1), mask).tolist() == [[3.0] * 4] * 2


def test_dice_is_its_definition() -> None:
    layer = Dice(3)
    with torch.no_grad():
        layer.alpha += torch.tensor([0.1, 0.2, 0.3])
    x = torch.randn(20, 3)
    p = torch.sigmoid((x - x.mean(dim=0)) / torch.sqrt(x.var(dim=0, unbiased=False) + 1e-8))
    torch.testing.assert_close(layer(x), p * x + (1 - p) * torch.tensor([0.1, 0.2, 0.3]) * x)


def test_a_last_batch_of_one_sample_is_normalised_by_what_was_seen() -> None:
    layer, torchs = BatchNorm(3), nn.BatchNorm1d(3)
    many = torch.randn(20, 3)
    torch.testing.assert_close(layer(many), torchs(many))
    one = torch.randn(1, 3)
    torch.testing.assert_close(layer(one), torchs.eval()(one))
    with pytest.raises(ValueError, match="more than 1 value"):  # why it is needed
        torchs.train()(one)


def test_layers_have_the_order_linear_norm_activation_dropout() -> None:
    layers = perceptron(4, [8, 6], outputs=2, activation="silu", dropout=0.5, batch_norm=True)
    kinds = [type(layer).__name__ for layer in layers]
    one = ["BatchNorm", "SiLU", "Dropout"]
    assert kinds == ["PaddedLinear", *one, "Linear", *one, "Linear"]


def test_a_padded_layer_refuses_fewer_columns_than_its_own() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        PaddedLinear(5, 2)(torch.zeros(3, 4))
