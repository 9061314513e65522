"""The loss scale of fp16, on a CPU: what it does where there is little to scale."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import persia_hpc as ph
from persia_hpc.config import Config
from persia_hpc.trainer.batch import Inputs
from persia_hpc.trainer.dense import precision as module
from persia_hpc.trainer.dense.optimizer import make_optimizer
from persia_hpc.trainer.dense.precision import Precision
from persia_hpc.trainer.dense.verdict import Verdict, judge, told_parameter
from persia_hpc.trainer.pooling.embed import Pooling
from tests.support.tiny import tiny_config, trained_rows, write_tiny

CPU, GOOD = torch.device("cpu"), Verdict()


def made(*, frozen: bool) -> tuple[Precision, nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    if frozen:
        model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    precision = Precision("fp16", CPU)
    precision.attach([p for p in model.parameters() if p.requires_grad], optimizer)
    return precision, model, optimizer


def step(precision: Precision, model: nn.Module, optimizer: Any, verdict: Verdict = GOOD) -> Verdict:
    last = precision.judge(verdict)
    if last.good:
        precision.apply(optimizer, [p for p in model.parameters() if p.requires_grad], 1.0)
    return last


@pytest.mark.parametrize("frozen", [False, True])
def test_an_overflow_of_any_trainers_rows_lowers_the_scale(frozen: bool) -> None:
    precision, model, optimizer = made(frozen=frozen)
    verdict = step(precision, model, optimizer, Verdict(bad_rows=1))
    assert verdict.overflowed
    assert not verdict.good
    assert precision.loss_scale.scale == 2.0**15


def test_a_loss_that_is_nan_leaves_the_scale_alone() -> None:
    precision, model, optimizer = made(frozen=False)
    verdict = step(precision, model, optimizer, Verdict(bad_losses=1, bad_dense=True))
    assert (verdict.good, verdict.overflowed) == (False, False)
    assert precision.loss_scale.scale == 2.0**16


def test_below_a_scale_of_1_an_overflow_is_no_search() -> None:
    precision, model, optimizer = made(frozen=False)
    bad = Verdict(bad_dense=True)
    assert sum(step(precision, model, optimizer, bad).overflowed for _ in range(300)) == 16  # from 2^16 to 1
    scale = precision.loss_scale.scale
    assert scale is not None
    assert np.isfinite(np.float32(1 / scale))


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adagrad"])
def test_scales_and_weights_are_those_of_torchs_grad_scaler(
    clip: float | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, over overflows and a scale that grows again; a checkpoint of either continues the other."""
    monkeypatch.setattr(module, "PATIENCE", 3)
    losses = [1.0] * 4 + [1e36] * 3 + [1.0, -2.0, 3.0] * 3 + [1e36] + [0.5] * 8
    made_by: list[list[torch.Tensor]] = []
    scales: list[list[float]] = [[], []]
    torch.manual_seed(3)
    first, inputs = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), torch.randn(5, 3)
    for own in (True, False):
        model = copy.deepcopy(first)
        parameters = list(model.parameters())
        optimizer = make_optimizer(parameters, {"name": name, "lr": 0.1})
        precision = Precision("fp16", CPU)
        precision.attach(parameters, optimizer)
        scaler = torch.amp.GradScaler("cpu", growth_interval=3)
        for number, factor in enumerate(losses):
            loss = model(inputs).mean() * factor
            optimizer.zero_grad()
            if own:
                precision.backward(loss, Nothing())  # type: ignore[arg-type]
                verdict = judge(parameters, told(), loss.detach())
                if precision.judge(verdict).good:
                    precision.apply(optimizer, parameters, clip)
            else:
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                if clip is not None:
                    nn.utils.clip_grad_norm_(parameters, clip)
                scaler.step(optimizer)
                scaler.update()
            if number == len(losses) // 2:  # a resume, from what the other kind would have written
                state = {**(precision.state() if own else scaler.state_dict())}
                restored = torch.amp.GradScaler("cpu", growth_interval=3)
                restored.load_state_dict(state)
                precision.restore(state)
                scaler = restored
            scales[own].append(precision.state()["scale"] if own else scaler.get_scale())
        made_by.append(parameters)
    assert scales[True] == scales[False]
    assert min(scales[True]) < scales[True][0] < max(scales[True])
    assert all(torch.equal(a, b) for a, b in zip(*made_by, strict=True))


class Nothing:
    """The row gradients of a model without any."""

    def scale_by(self, factor: torch.Tensor) -> None:
        assert torch.isfinite(factor).all()


def told() -> nn.Parameter:
    parameter = told_parameter()
    parameter.grad = torch.zeros(2)
    return parameter


def test_a_clip_counts_what_the_optimizer_does_not_have_unscaled_too() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False))
    precision = Precision("fp16", CPU)
    optimizer = torch.optim.SGD(model[1].parameters(), lr=1.0)
    parameters = list(model.parameters())
    precision.attach(parameters, optimizer)
    for p in parameters:
        p.grad = torch.full_like(p, 2.0**16)
    assert precision.judge(Verdict()).good
    precision.apply(optimizer, parameters, 1.0)
    assert parameters[1].grad is not None
    assert torch.allclose(parameters[1].grad, torch.full((2,), 8**-0.5))  # of 8 gradients of 1


def test_a_first_step_without_a_loss() -> None:
    """Of a trainer that has no samples in it: its gradients are the other trainers'."""
    precision, model, optimizer = made(frozen=False)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = [p.clone() for p in model.parameters()]
    assert step(precision, model, optimizer).good
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

    def pooling(config: Config, inputs: Inputs, device: torch.device) -> Pooling:
        return Pooling(inputs, device, gradients=config.wire.gradients, kernel="cuda")

    def embed(self: Pooling, *arguments: Any, **options: Any) -> Any:
        result = plain(self, *arguments, **options)
        seen.append({values.dtype for values in result[0].pooled.values()})
        return result

    plain = Pooling.embed
    monkeypatch.setattr(Pooling, "of", pooling)
    monkeypatch.setattr(Pooling, "embed", embed)
    ph.train(tiny_config(data, run_dir=str(tmp_path / "narrow"), **config), quiet=True)
    assert {torch.bfloat16} in seen
    assert {torch.float32} in seen
    native, narrow = (trained_rows(tmp_path / name) for name in ("native", "narrow"))
    for table, arrays in native.items():
        assert all(np.array_equal(a, b) for a, b in zip(arrays, narrow[table], strict=True))
