"""The loss scale of fp16, on a CPU: what it does where there is little to scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import persia_hpc as ph
from persia_hpc.trainer.dense.precision import Precision
from persia_hpc.trainer.dense.verdict import Verdict
from persia_hpc.trainer.pooling.embed import Pooling
from tests.support.tiny import tiny_config, trained_rows, write_tiny

CPU = torch.device("cpu")


def made(*, frozen: bool) -> tuple[Precision, nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    if frozen:
        model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    precision = Precision("fp16", CPU)
    precision.attach([p for p in model.parameters() if p.requires_grad], optimizer)
    return precision, model, optimizer


@pytest.mark.parametrize("frozen", [False, True])
def test_an_overflow_of_any_trainers_rows_lowers_the_scale(frozen: bool) -> None:
    precision, model, optimizer = made(frozen=frozen)
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    before = [p.clone() for p in model.parameters()]
    scale = precision.scaler.get_scale()
    verdict = precision.apply(optimizer, list(model.parameters()), 1.0, Verdict(bad_rows=1))
    assert verdict.overflowed
    assert not verdict.good
    assert precision.scaler.get_scale() == scale / 2
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_loss_that_is_nan_leaves_the_scale_alone() -> None:
    precision, model, optimizer = made(frozen=False)
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.nan)
    scale = precision.scaler.get_scale()
    verdict = precision.apply(
        optimizer, list(model.parameters()), None, Verdict(bad_losses=1, bad_dense=True)
    )
    assert (verdict.good, verdict.overflowed) == (False, False)
    assert precision.scaler.get_scale() == scale


def test_below_a_scale_of_1_an_overflow_is_no_search() -> None:
    precision, model, optimizer = made(frozen=False)
    searched = 0
    for _ in range(40):
        for p in model.parameters():
            p.grad = torch.full_like(p, torch.inf)
        searched += precision.apply(
            optimizer, list(model.parameters()), None, Verdict(bad_dense=True)
        ).overflowed
    assert searched == 16  # from 2^16 to 1


def test_a_first_step_without_a_loss() -> None:
    """Of a trainer that has no samples in it: its gradients are the other trainers'."""
    precision, model, optimizer = made(frozen=False)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = [p.clone() for p in model.parameters()]
    assert precision.apply(optimizer, list(model.parameters()), None, Verdict()).good
    assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_without_dense_parameters_nothing_is_scaled(tmp_path: Any) -> None:
    data = write_tiny(tmp_path / "train.h5", 100)
    for amp in ("off", "fp16"):
        changes = {"train.amp": amp, "model": {"class": "tests.support.models:Bare"}}
        ph.train(tiny_config(data, run_dir=str(tmp_path / amp), **changes), quiet=True)
    off, fp16 = (trained_rows(tmp_path / amp) for amp in ("off", "fp16"))
    assert np.array_equal(off["item"][1], fp16["item"][1])


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_pooled_vectors_are_narrow_for_models_that_say_so(amp: str) -> None:
    precision, plain = Precision(amp, CPU), nn.Linear(2, 1)
    assert precision.pooled_dtype(plain) == torch.float32
    plain.narrow_pooled = True  # type: ignore[assignment]
    assert precision.pooled_dtype(plain) == (torch.bfloat16 if amp == "bf16" else torch.float32)


def test_a_run_with_narrow_pooled_vectors_trains_the_same(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the GPU's code on the host. The model is evaluated in between, on fp32 vectors."""
    data, seen = write_tiny(tmp_path / "train.h5", 100), []
    config = {
        "train.amp": "bf16",
        "data.valid": [data],
        "train.evaluate_every": 2,
        "model": {"class": "tower"},
    }
    ph.train(tiny_config(data, run_dir=str(tmp_path / "native"), **config), quiet=True)

    def pooling(*arguments: Any, **options: Any) -> Pooling:
        return Pooling(*arguments, **options, kernel="cuda")

    def embed(self: Pooling, *arguments: Any, **options: Any) -> Any:
        result = plain(self, *arguments, **options)
        seen.append({values.dtype for values in result[0].pooled.values()})
        return result

    plain = Pooling.embed
    monkeypatch.setattr("persia_hpc.trainer.session.Pooling", pooling)
    monkeypatch.setattr(Pooling, "embed", embed)
    ph.train(tiny_config(data, run_dir=str(tmp_path / "narrow"), **config), quiet=True)
    assert {torch.bfloat16} in seen
    assert {torch.float32} in seen
    native, narrow = (trained_rows(tmp_path / name) for name in ("native", "narrow"))
    for table, arrays in native.items():
        assert all(np.array_equal(a, b) for a, b in zip(arrays, narrow[table], strict=True))
