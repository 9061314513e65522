"""The generators that a model may draw from: seeded, saved and restored, so that equal runs are equal."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.trainer.dense.optimizer import make_optimizer
from persia_hpc.trainer.dense.state import DenseState, random_state, seed_generators, set_random_state
from tests.support.models import Small
from tests.support.tiny import run_digest, tiny_config, write_tiny


class Drawing(Small):
    """Draws from every generator, when it is made and in every step."""

    def __init__(self, inputs: Any):
        super().__init__(inputs)
        with torch.no_grad():
            self.head.bias += random.random() + np.random.rand()

    def forward(self, batch: Any) -> torch.Tensor:
        logits = super().forward(batch)
        if not self.training:
            return logits
        return logits * (torch.rand(batch.num_samples, 1) + random.random() + np.random.rand())


def drawn() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(()).item()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("data") / "train.h5", 200)


def train(data: str, run_dir: Path, **changes: Any) -> None:
    changes = {"model": {"class": f"{__name__}:Drawing"}, "data.valid": [data], **changes}
    ph.train(tiny_config(data, run_dir=str(run_dir), **changes), quiet=True)


@pytest.mark.parametrize("seed", [0, 7, (1 << 63) - 1])
def test_a_seed_and_a_saved_state_decide_all_numbers(seed: int) -> None:
    seed_generators(seed)
    first, state = drawn(), random_state()
    second = drawn()
    seed_generators(seed)
    assert drawn() == first
    set_random_state(state)
    assert drawn() == second
    seed_generators(seed + 1 if seed < 100 else 3)
    assert all(a != b for a, b in zip(drawn(), first, strict=True))


def test_equal_runs_have_no_difference_and_others_are_told_apart(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("a", "b", "other")):
        random.seed(number)  # whatever the process has drawn before
        np.random.seed(number)
        torch.manual_seed(number)
        train(data, tmp_path / name, **({"seed": 8} if name == "other" else {}))
    assert main(["checkpoint", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    capsys.readouterr()
    assert main(["checkpoint", "diff", str(tmp_path / "a"), str(tmp_path / "other")]) == 1
    out = capsys.readouterr().out
    for generator in ("torch", "numpy", "python"):
        assert f"dense random.0.{generator}" in out
    assert "dense model.head.bias" in out


def test_a_resumed_run_draws_what_the_run_would_have_drawn(data: str, tmp_path: Path) -> None:
    changes = {"train.epochs": 2, "checkpoint.every": 4}
    train(data, tmp_path / "alone", **changes)
    train(data, tmp_path / "run", **changes, **{"train.max_steps": 8})
    random.seed(1)
    train(data, tmp_path / "run", **changes, **{"checkpoint.resume": True})
    assert run_digest(tmp_path / "run") == run_digest(tmp_path / "alone")


@pytest.mark.parametrize("way", [{"foreach": True}, {"foreach": False}, {}])
@pytest.mark.parametrize("saved_way", [{"foreach": True}, {}])
def test_a_loaded_optimizer_computes_in_its_own_way(way: dict[str, Any], saved_way: dict[str, Any]) -> None:
    """torch takes over the saved groups' `fused`, even where there is no such kernel."""

    def make(options: dict[str, Any]) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(torch.ones(3))
        made = make_optimizer([parameter], {"name": "Adam", "lr": 0.1, **options})
        return parameter, made

    def step(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        parameter.grad = torch.tensor([1.0, -2.0, 3.0])
        optimizer.step()

    parameter, optimizer = make(saved_way)
    step(parameter, optimizer)
    state = DenseState(1, 1, {}, copy.deepcopy(optimizer.state_dict()), [])
    mine, loaded = make(way)
    before = {k: loaded.param_groups[0][k] for k in ("fused", "foreach", "capturable")}
    with torch.no_grad():
        mine.copy_(parameter)
    state.load_optimizer(loaded)
    assert {k: loaded.param_groups[0][k] for k in before} == before
    step(parameter, optimizer)
    step(mine, loaded)
    torch.testing.assert_close(mine, parameter, rtol=1e-6, atol=1e-7)


def test_only_a_trainer_that_uses_a_gpu_keeps_its_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for it would make a context, of hundreds of MB, for each trainer on the CPU of a GPU node."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.arange(16, dtype=torch.uint8))
    taken: list[torch.Tensor] = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", taken.append)
    for initialized in (False, True):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda initialized=initialized: initialized)
        state = random_state()
        assert ("cuda" in state) == initialized
        set_random_state(state)
        assert len(taken) == initialized


def test_complex_parameters_are_those_of_another_model() -> None:
    """Torch takes them for a real model's, without their imaginary parts."""
    layer = torch.nn.Linear(2, 1)
    saved = {name: value.to(torch.complex64) for name, value in layer.state_dict().items()}
    with pytest.raises(ph.UserError, match="the dense model there is not this one: weight is complex"):
        DenseState(1, 1, saved, {}, []).load_model(layer)
