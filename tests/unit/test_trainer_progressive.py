"""The window holds the last steps as they were scored, and no more than it was told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from persia_hpc.trainer.interfaces import NoPeers
from persia_hpc.trainer.metrics import Wanted
from persia_hpc.trainer.progressive import Progressive
from persia_hpc.trainer.run_state import RunState


def batch(random: np.random.Generator, size: int) -> Any:
    labels = torch.from_numpy(random.integers(0, 2, (size, 1)).astype(np.float32))
    weight = torch.from_numpy(random.random(size).astype(np.float32))
    group = torch.from_numpy(random.integers(0, 3, size))
    return SimpleNamespace(labels=labels, weight=weight, group=group, num_samples=size)


def test_the_window_holds_the_fewest_last_steps_with_enough_samples() -> None:
    random, state = np.random.default_rng(0), RunState({})
    window = Progressive(100, Wanted(("click",), built_in=("gauc",)), NoPeers(), state)
    kept: list[tuple[Any, ...]] = []
    assert window.metrics() == {}
    for step in range(1, 20):
        given = batch(random, 30 if step % 4 else 45)
        logits = torch.from_numpy(random.normal(size=(given.num_samples, 1)).astype(np.float32))
        copies = (logits.numpy().copy(), given.labels.numpy().copy(), given.weight.numpy())
        assert window.score(given, logits) is logits
        logits.zero_()  # what a loop does with its tensors later doesn't count
        given.labels.zero_()
        with torch.no_grad():
            window.score(given, logits)  # an evaluation
        window.finish_part()
        good = step % 5 != 0
        window.finish_step(SimpleNamespace(num_global=given.num_samples), good=good)  # type: ignore[arg-type]
        kept += [copies] if good else []
        while sum(len(logits) for logits, *_ in kept[1:]) >= 100:
            kept.pop(0)
        found = window.metrics()
        scores, labels, weight = (np.concatenate(column) for column in zip(*kept, strict=True))
        assert found["samples"] == len(scores) < 145
        expected = roc_auc_score(labels[:, 0], scores[:, 0], sample_weight=weight)
        assert found["auc"] == pytest.approx(expected)
        assert {"gauc", "logloss"} <= set(found)
        assert state.results["progressive"] == found


def test_no_window_keeps_nothing() -> None:
    window = Progressive(0, Wanted(("click",)), NoPeers(), RunState({}))
    given = batch(np.random.default_rng(0), 5)
    window.score(given, torch.zeros(5, 1))
    window.finish_part()
    window.finish_step(SimpleNamespace(num_global=5), good=True)  # type: ignore[arg-type]
    assert window.metrics() == {}
