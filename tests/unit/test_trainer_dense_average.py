"""The average of dense parameters is torch's, evaluations use it, and training doesn't notice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

import persia_hpc as ph
from persia_hpc.errors import UserError
from persia_hpc.trainer.dense.average import Average
from persia_hpc.trainer.dense.state import DenseState
from tests.support.tiny import run_digest, tiny_config, write_tiny


def network() -> nn.Sequential:
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    layers[2].bias.requires_grad_(False)
    return layers


def test_it_is_torchs() -> None:
    model = network()
    average = Average(0.9)
    average.attach(model, {})
    theirs: Any = AveragedModel(model, avg_fn=get_ema_avg_fn(0.9))
    theirs.update_parameters(model)  # the first call copies
    for _ in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn_like(parameter)
        average.update()
        theirs.update_parameters(model)
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = dict(theirs.module.named_parameters())
    memory = {name: p.data_ptr() for name, p in model.named_parameters()}
    with average.in_place(model):
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name].detach())
            assert parameter.data_ptr() == memory[name]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach(), trained[name])
    assert set(average.state()) == set(trained) - {"2.bias"}


def test_a_shared_parameter_is_loaded_under_all_its_names() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    average = Average(0.5)
    average.attach(model, {})
    with torch.no_grad():
        model["a"].weight += 1
    average.update()
    wanted = average.state()["a.weight"].clone()
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    DenseState(1, 1, saved, {}, [], average=average.state()).load_model(model, averaged=True)
    assert torch.equal(model["b"].weight, wanted)
    assert not torch.equal(saved["a.weight"], wanted)


def test_another_model_and_no_decay_change_nothing() -> None:
    model, other = network(), network()
    before = other[0].weight.detach().clone()
    average = Average(0.5)
    average.attach(model, {})
    with average.in_place(other):
        assert torch.equal(other[0].weight.detach(), before)
    nothing = Average(None)
    nothing.attach(model, {"0.weight": torch.zeros(4, 3)})
    nothing.update()
    assert nothing.state() == {}


def test_an_average_of_other_parameters_is_refused() -> None:
    average = Average(0.5)
    with pytest.raises(UserError, match="of other parameters"):
        average.attach(network(), {"0.weight": torch.zeros(4, 3)})


def settings(data: list[str], run: Path, **changes: Any) -> dict[str, Any]:
    more = {"run_dir": str(run), "data.valid": [data[1]], "train.epochs": 3, "train.evaluate_every": 10}
    return tiny_config(data[0], **{**more, **changes})


def average_of(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run / "latest" / "dense.pt", weights_only=True)["average"]
    return found


def test_evaluations_and_the_finished_run_use_it_and_training_goes_on_without_it(tmp_path: Path) -> None:
    data = [write_tiny(tmp_path / "train.h5", 320), write_tiny(tmp_path / "valid.h5", 200, seed=1)]
    plain = ph.train(settings(data, tmp_path / "plain"), quiet=True)
    summary = ph.train(settings(data, tmp_path / "run", **{"train.average": 0.8}), quiet=True)
    assert run_digest(tmp_path / "plain") == run_digest(tmp_path / "run")
    assert summary["valid"]["logloss"] != plain["valid"]["logloss"]
    loaded = ph.load(tmp_path / "run")
    assert loaded.evaluate("valid")["logloss"] == pytest.approx(summary["valid"]["logloss"], rel=1e-6)
    for name, value in average_of(tmp_path / "run").items():
        assert torch.equal(loaded.model().state_dict()[name], value)


def test_a_resumed_run_goes_on_with_it(tmp_path: Path) -> None:
    data = [write_tiny(tmp_path / "train.h5", 320), write_tiny(tmp_path / "valid.h5", 200, seed=1)]
    on = {"train.average": 0.8}
    ph.train(settings(data, tmp_path / "whole", **on), quiet=True)
    for steps in (13, 30):
        more = {"train.max_steps": steps, "checkpoint.resume": True}
        ph.train(settings(data, tmp_path / "parts", **on, **more), quiet=True)
    whole, parts = average_of(tmp_path / "whole"), average_of(tmp_path / "parts")
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    ends = [json.loads((tmp_path / run / "summary.json").read_text())["valid"] for run in ("whole", "parts")]
    assert ends[0] == ends[1]


def test_another_run_begins_with_it(tmp_path: Path) -> None:
    data = [write_tiny(tmp_path / "train.h5", 320), write_tiny(tmp_path / "valid.h5", 200, seed=1)]
    ph.train(settings(data, tmp_path / "first", **{"train.average": 0.8}), quiet=True)
    still = {"train.optimizer": {"name": "SGD", "lr": 0.0}, "train.max_steps": 1}
    more = {"checkpoint.init_from": str(tmp_path / "first"), "checkpoint.init_parts": "dense"}
    ph.train(settings(data, tmp_path / "second", **still, **more), quiet=True)
    began = ph.load(tmp_path / "second").model().state_dict()
    for name, value in average_of(tmp_path / "first").items():
        assert torch.equal(began[name], value)
