"""The dense optimizer: torch's by name, fused on the CPU, and the same maths either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import persia_hpc as ph
from persia_hpc.config import load_config
from persia_hpc.config.learning_rate import LearningRate
from persia_hpc.errors import UserError
from persia_hpc.models import build_model
from persia_hpc.trainer.dense.optimizer import make_optimizer, set_learning_rate
from tests.support.row_batches import make_inputs
from tests.support.tiny import tiny_config, write_tiny

SETTINGS: list[dict[str, Any]] = [
    {"name": "Adam", "lr": 0.01},
    {"name": "AdamW", "lr": 0.01, "weight_decay": 0.1},
    {"name": "SGD", "lr": 0.1, "momentum": 0.9},
    {"name": "Adagrad", "lr": 0.1},
]


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(1)
    return [nn.Parameter(torch.randn(shape)) for shape in ((7, 3), (7,), (1, 7))]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s["name"])
def test_fused_by_default_and_the_same_as_the_plain_loop(settings: dict[str, Any]) -> None:
    fused, plain = parameters(), parameters()
    optimizers = [make_optimizer(fused, settings), make_optimizer(plain, {**settings, "foreach": False})]
    assert [o.param_groups[0]["fused"] for o in optimizers] == [True, None]
    for step in range(20):
        for pair in zip(fused, plain, strict=True):
            gradient = torch.randn(pair[0].shape, generator=torch.Generator().manual_seed(step))
            for parameter in pair:
                parameter.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for pair in zip(fused, plain, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-6)


def test_settings_and_other_optimizers_choose_for_themselves() -> None:
    assert make_optimizer(parameters(), {"name": "Adam", "fused": False}).param_groups[0]["fused"] is False
    assert "fused" not in make_optimizer(parameters(), {"name": "RMSprop"}).param_groups[0]
    elsewhere = [nn.Parameter(p.to("meta")) for p in parameters()]
    assert make_optimizer(elsewhere, {"name": "Adam"}).param_groups[0]["fused"] is None


@pytest.mark.parametrize("name", ["Adagrad", "Adam"])
def test_an_optimizer_that_refuses_to_fuse_only_in_a_step_makes_plain_ones(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch 2.11's Adagrad on a GPU."""
    kind: Any = getattr(torch.optim, name)
    plain_step = kind.step

    def step(self: Any, *arguments: Any) -> Any:
        if self.param_groups[0]["fused"]:
            raise RuntimeError("`fused=True` requires parameters on other devices")
        return plain_step(self, *arguments)

    monkeypatch.setattr(kind, "step", step)
    mine = parameters()
    optimizer = make_optimizer(mine, {"name": name, "lr": 0.1})
    before = [p.detach().clone() for p in mine]
    for parameter in mine:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not any(torch.equal(p, b) for p, b in zip(mine, before, strict=True))


def test_refused_arguments_are_named_as_they_were_given() -> None:
    with pytest.raises(UserError, match=r"torch\.optim\.Adam refuses \{'lrr': 1\}"):
        make_optimizer(parameters(), {"name": "Adam", "lrr": 1})


def test_groups_have_arguments_of_their_own_and_the_rest_those_of_all() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    settings = {
        "name": "SGD",
        "lr": 0.5,
        "groups": [{"match": "2.*", "lr": 0.25}, {"match": "*.weight", "weight_decay": 0.1}],
    }
    optimizer = make_optimizer(list(model.parameters()), settings, model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        rate = 0.25 if name.startswith("2.") else 0.5
        gradient = 1 + (0.1 * before[name] if name == "0.weight" else 0)
        torch.testing.assert_close(parameter.detach(), before[name] - rate * gradient)
    set_learning_rate(optimizer, LearningRate(load_config(tiny_config("x")).train.schedule, 9), 1, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.025, 0.05, 0.05])


@pytest.mark.parametrize("name", ["mmoe", "ple", "esmm"])
def test_a_tasks_rate_is_that_of_its_own_layers(name: str) -> None:
    config = load_config(
        tiny_config("x")
        | {
            "tasks": {"click": {}, "buy": {"lr": 0.25}},
            "train": {"optimizer": {"name": "SGD", "lr": 0.5, "groups": [{"match": "*.bias", "lr": 1.0}]}},
        }
    )
    inputs = make_inputs([("a", 4, "sum", False)], labels=2)
    model = build_model(name, inputs, {})
    optimizer = make_optimizer(list(model.parameters()), config.dense_optimizer, model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    own = {"mmoe": ["gates.1", "towers.1"], "ple": [".own.1.", ".gates.1.", "towers.1."], "esmm": ["conv"]}
    for parameter_name, parameter in model.named_parameters():
        mine = any(part in parameter_name for part in own[name])
        expected = 1.0 if parameter_name.endswith(".bias") else 0.25 if mine else 0.5
        assert rates[id(parameter)] == expected, parameter_name
    assert sum(rate == 0.25 for rate in rates.values()) >= 3


def test_a_task_without_layers_of_its_own_has_no_rate() -> None:
    config = load_config(tiny_config("x") | {"tasks": {"click": {"lr": 0.25}, "buy": {}}})
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    with pytest.raises(UserError, match=r"tasks\.click\.lr: Sequential has no layers of a task of its own"):
        make_optimizer(list(model.parameters()), config.dense_optimizer, model)


def test_a_tasks_rate_beside_an_optimizer_of_the_users_own_is_refused(tmp_path: Path) -> None:
    def main(session: Any) -> None:
        model = build_model("mmoe", session.inputs, {})
        session.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01))

    path = write_tiny(tmp_path / "train.h5", 64)
    config = tiny_config(path, tasks={"label": {"lr": 0.25}}, **{"train.save": False})
    with pytest.raises(UserError, match=r"tasks\.label\.lr: session\.prepare got an optimizer") as caught:
        ph.run(config, main)
    assert "\n" not in str(caught.value)
    ph.run(tiny_config(path, tasks={"label": {}}, **{"train.save": False}), main)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"match": "3.*", "lr": 1}], r"groups\[0\]: no parameter .* '3\.\*'; there are: 0.weight, 0.bias"),
        ([{"match": "0.*", "lr": 1}, {"match": "0.bias", "lr": 2}], r"groups\[1\]: no parameter"),
        ([{"match": "0.*", "rate": 1}], r"groups\[0\].rate: the optimizer has no such argument; .*lr"),
        ([{"match": "0.*", "params": []}], r"groups\[0\].params"),
        ([{"match": "0.*", "lr": -1}], "refuses"),
    ],
)
def test_groups_that_dont_fit_are_named(groups: list[dict[str, Any]], message: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    with pytest.raises(UserError, match=message):
        make_optimizer(list(model.parameters()), {"name": "Adam", "groups": groups}, model)
