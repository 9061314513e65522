"""Dense parameters that trainers share in `async`: several of them over one vector, taking turns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from persia_hpc.trainer.dense.shared import SharedDense
from persia_hpc.trainer.interfaces import NoPeers
from tests.support.fake_gpu import FakeGpu, fake_gpu

__all__ = ["fake_gpu"]


class Memory:
    """What the window of `SharedVector` is, in one process; the first to come says what is in it."""

    def __init__(self) -> None:
        self.values: Any = None

    def share(self, initial: Any) -> Memory:
        if self.values is None:
            self.values = np.array(initial)
        return self

    def add(self, delta: Any, out: Any) -> None:
        self.values += delta
        out[:] = self.values

    def read(self, out: Any) -> None:
        out[:] = self.values

    def free(self) -> None:
        pass


class Waits:
    """The part of a batch stream that is used."""

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        assert done(), what


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.one = nn.Linear(3, 2).to(dtype)
        self.frozen = nn.Linear(2, 2).to(dtype).requires_grad_(False)
        self.two = nn.Linear(2, 2, bias=False).to(dtype)
        self.two.weight = nn.Parameter(self.one.weight[:, :2].clone())


def trainers(count: int, dtype: torch.dtype = torch.float32) -> list[tuple[Net, SharedDense]]:
    memory = Memory()
    made = [(Net(dtype), SharedDense(NoPeers(), memory.share)) for _ in range(count)]
    for model, shared in made:
        shared.attach(model)
    return made


def change(model: nn.Module, amount: float) -> None:
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(amount)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def settle(made: list[tuple[Net, SharedDense]]) -> list[list[torch.Tensor]]:
    heard: list[int] = []
    for _, shared in made:  # as all have before they have met
        shared._arrive()
    for _, shared in made:
        shared.settle(Waits(), lambda: heard.append(1))  # type: ignore[arg-type]
    assert len(heard) == len(made)
    return [weights(model) for model, _ in made]


def test_everybodys_changes_are_in_what_all_have() -> None:
    made = trainers(3)
    before = weights(made[0][0])
    amounts = {0: 0.5, 1: -0.125, 2: 2.0}
    for turn in (0, 1, 1, 2, 0):
        model, shared = made[turn]
        change(model, amounts[turn])
        shared.updated()
        change(made[turn][0], 0.0)
    total = 2 * 0.5 - 2 * 0.125 + 2.0
    for found in settle(made):
        for p, now, then in zip(made[0][0].parameters(), found, before, strict=True):
            torch.testing.assert_close(now, then + total if p.requires_grad else then)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_that_changes_nothing_takes_nothing_away(dtype: torch.dtype) -> None:
    """Least of all what is too small for a trainer's own parameters to show."""
    made = trainers(2, dtype)
    vector = made[0][1]._vector
    assert isinstance(vector, Memory)
    change(made[0][0], 1.0)
    made[0][1].updated()
    made[0][1]._arrive()
    vector.values += 2.0**-12
    then = vector.values.copy()
    for model, shared in made * 3:
        change(model, 0.0)
        shared.updated()
        shared._arrive()
    assert np.array_equal(vector.values, then)
    one, other = settle(made)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_model_without_parameters_and_a_trainer_without_samples() -> None:
    shared = SharedDense(NoPeers(), Memory().share)
    shared.attach(nn.ReLU())
    shared.reduce()
    shared.updated()
    assert not shared.updates_with(0)
    assert shared.updates_with(1)
    model, shared = trainers(1)[0]
    shared.reduce()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert model.one.weight.grad is not None
    shared.close()


def test_a_gpu_is_waited_for_once_a_step(fake_gpu: FakeGpu) -> None:
    with fake_gpu:
        model = Net().to("cuda")
        shared = SharedDense(NoPeers(), Memory().share)
        shared.attach(model)
        change(model, 1.0)
        fake_gpu.waits.clear()
        shared.updated()
        assert fake_gpu.waits == ["cpu"]  # the change
        shared._arrive()
        assert fake_gpu.waits == ["cpu"] * 3  # the change, and what the parameters are now, to the bit


class Gate(Memory):
    """A vector that a peer outside MPI keeps waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()

    def add(self, delta: Any, out: Any) -> None:
        assert self.open.wait(30)
        super().add(delta, out)


def test_a_trainer_goes_on_while_its_changes_are_under_way() -> None:
    gate = Gate()
    model, shared = Net(), SharedDense(NoPeers(), gate.share)
    shared.attach(model)
    before, start = gate.values.copy(), weights(model)
    for _ in range(5):  # the first leave, the others wait for them
        change(model, 0.25)
        shared.updated()
    np.testing.assert_array_equal(gate.values, before)
    for now, then, p in zip(weights(model), start, model.parameters(), strict=True):
        torch.testing.assert_close(now, then + 1.25 if p.requires_grad else then)
    gate.values += 4.0  # another trainer's
    gate.open.set()
    assert shared._running is not None
    shared._running.result()
    np.testing.assert_allclose(gate.values, before + 4.25, rtol=1e-6)
    change(model, 0.25)
    shared.updated()
    for now, then, p in zip(weights(model), start, model.parameters(), strict=True):
        torch.testing.assert_close(now, then + 5.5 if p.requires_grad else then)
    (found,) = settle([(model, shared)])
    np.testing.assert_allclose(gate.values, before + 5.5, rtol=1e-6)
    for now, then, p in zip(found, start, model.parameters(), strict=True):
        torch.testing.assert_close(now, then + 5.5 if p.requires_grad else then)
    shared.close()


def test_what_fails_in_the_thread_fails_in_the_trainer() -> None:
    class Broken(Memory):
        def add(self, delta: Any, out: Any) -> None:
            raise OSError("the window is gone")

    model, shared = Net(), SharedDense(NoPeers(), Broken().share)
    shared.attach(model)
    shared.updated()
    with pytest.raises(OSError, match="the window is gone"):
        shared._arrive()
