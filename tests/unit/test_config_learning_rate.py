"""Learning-rate schedules equal torch's, step by step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, StepLR

from persia_hpc.config import load_config
from persia_hpc.config.learning_rate import LearningRate
from persia_hpc.errors import UserError
from persia_hpc.trainer.dense.optimizer import set_learning_rate
from tests.support.schedules import LR, torch_rates

MINIMAL = {"data": {"train": ["a"]}, "model": {"class": "dlrm"}}


def rates(options, num_steps):
    config = load_config({**MINIMAL, "train": {"schedule": options}})
    rate = LearningRate(config.train.schedule, num_steps)
    return [LR * rate.factor(step) for step in range(1, num_steps + 1)], rate


warmups = st.integers(0, 12), st.floats(0.001, 1)


@settings(deadline=None, max_examples=60)
@given(*warmups, st.integers(1, 30))
def test_constant_with_warm_up_is_torchs_linear_lr(warmup_steps, warmup_start, num_steps):
    got, rate = rates({"warmup_steps": warmup_steps, "warmup_start": warmup_start}, num_steps)
    expected = torch_rates(lambda o: ConstantLR(o, 1.0, 1), num_steps, warmup_steps, warmup_start)
    assert got == pytest.approx(expected, rel=1e-9)
    assert rate.varies == (warmup_steps > 0)


@settings(deadline=None, max_examples=60)
@given(*warmups, st.integers(1, 40), st.floats(0, 1))
def test_cosine_is_torchs_over_the_steps_left_after_warm_up(warmup_steps, warmup_start, steps, final):
    options = {"name": "cosine", "warmup_steps": warmup_steps, "warmup_start": warmup_start, "final": final}
    total = warmup_steps + steps
    expected = torch_rates(
        lambda o: CosineAnnealingLR(o, T_max=steps, eta_min=final * LR), total, warmup_steps, warmup_start
    )
    assert rates(options, total)[0] == pytest.approx(expected, rel=1e-7, abs=1e-12)
    # `steps` given: the same, whatever the length of the training, and the final value from then on.
    longer, _ = rates({**options, "steps": steps}, total + 5)
    assert longer[:total] == pytest.approx(expected, rel=1e-7, abs=1e-12)
    assert longer[total:] == pytest.approx([final * LR] * 5, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(*warmups, st.integers(1, 30), st.integers(1, 9), st.floats(0.01, 1))
def test_step_is_torchs(warmup_steps, warmup_start, num_steps, every, gamma):
    options = {"name": "step", "warmup_steps": warmup_steps, "warmup_start": warmup_start}
    got, _ = rates({**options, "every": every, "gamma": gamma}, num_steps)
    expected = torch_rates(lambda o: StepLR(o, every, gamma), num_steps, warmup_steps, warmup_start)
    assert got == pytest.approx(expected, rel=1e-9)


def test_a_warm_up_as_long_as_the_training_is_no_error():
    got, _ = rates({"name": "cosine", "warmup_steps": 10, "warmup_start": 0.5}, 3)
    assert got == pytest.approx([0.15, 0.165, 0.18])


def test_an_optimizers_groups_follow_and_a_constant_rate_leaves_them_alone():
    def optimizer():
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.02)]
        return torch.optim.SGD(groups)

    ours, theirs = optimizer(), optimizer()
    scheduler = CosineAnnealingLR(theirs, T_max=9)
    _, rate = rates("cosine", 9)
    for step in range(1, 10):
        set_learning_rate(ours, rate, step)
        got, expected = ([g["lr"] for g in o.param_groups] for o in (ours, theirs))
        assert got == pytest.approx(expected)
        theirs.step()
        scheduler.step()
    _, constant = rates("constant", 9)
    ours.param_groups[0]["lr"] = 7.0
    set_learning_rate(ours, constant, 1)
    assert ours.param_groups[0]["lr"] == 7.0


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"tables.a.schedule": "cosin"}, ["tables.a.schedule.name = 'cosin'", "did you mean 'cosine'"]),
        ({"tables.a.schedule": {"every": 5}}, ["every is not an option of 'constant'", "warmup_steps"]),
        ({"tables.a.schedule": "step"}, ["tables.a.schedule.every is missing", "every = 1000"]),
        ({"train.schedule": {"name": "cosine", "final": 2}}, ["train.schedule.final = 2:", "from 0 to 1"]),
        ({"train.schedule": {"warmup_start": 0}}, ["train.schedule.warmup_start = 0:", "above 0 to 1"]),
        ({"train.schedule": {"warmup_steps": 1.5}}, ["train.schedule.warmup_steps = 1.5", "an integer of"]),
    ],
)
def test_mistakes_are_named(changes, parts):
    with pytest.raises(UserError) as caught:
        load_config(MINIMAL, changes)
    for part in parts:
        assert part in str(caught.value)
