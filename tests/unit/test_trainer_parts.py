"""A step in parts learns what the same step in one piece does, to rounding: dense parameters and rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import persia_hpc as ph
from persia_hpc.config import load_config
from persia_hpc.errors import UserError
from persia_hpc.samples.source import open_source
from persia_hpc.samples.writer import DatasetWriter
from tests.support.models import Small
from tests.support.tiny import SEQUENCES, tiny_config, trained_rows, write_sequences, write_tiny

SEEN: list[tuple[int, int]] = []  # step and samples of each training batch that a model got


class Seeing(Small):
    """Takes note of its training batches, and changes their vectors in place, which a model may."""

    def forward(self, batch: Any) -> torch.Tensor:
        if self.training:
            SEEN.append((batch.step, batch.num_samples))
            for jagged in batch.jagged.values():
                assert jagged.longest == max(1, int(jagged.lengths.max()))
                jagged.values.mul_(2.0)
        logits: torch.Tensor = super().forward(batch)
        return logits


def mean_of_known(logits: torch.Tensor, batch: Any) -> torch.Tensor:
    """The scalar mean over the samples of a batch."""
    return (logits - batch.labels.nan_to_num(nan=0.5)).square().mean()


def write(path: Path, num_samples: int, seed: int) -> str:
    """Writes sequences, weights of ids and of samples, groups, and labels of which some are missing."""
    plain = write_sequences(path.with_suffix(".plain.h5"), num_samples, seed=seed)
    rng = np.random.default_rng(seed)
    source = open_source([plain])
    batch, schema = source.read(0, num_samples), source.schema
    labels = np.where(rng.random(batch.labels.shape) < 0.2, np.nan, batch.labels).astype(np.float32)
    weight = rng.uniform(0, 3, num_samples).astype(np.float32)
    schema = dataclasses.replace(schema, has_weight=True)
    with DatasetWriter(path, schema, chunk_rows=64) as writer:
        writer.write(dataclasses.replace(batch, labels=labels, weight=weight))
    return str(path)


def train(folder: Path, name: str, data: str, accumulate: int, **changes: Any) -> dict[str, np.ndarray]:
    # Optimizers that don't make a step of full size out of a gradient that is 0 to rounding.
    adagrad = {"name": "adagrad", "lr": 0.1, "initial_accumulator_value": 0.01}
    config = tiny_config(data, run_dir=str(folder / name), **{**SEQUENCES, **changes})
    config["tables"]["default"]["optimizer"] = config["tables"]["item"]["optimizer"] = adagrad
    config["train"] |= {"accumulate": accumulate, "optimizer": {"name": "Adam", "lr": 0.01, "eps": 1e-3}}
    ph.train(config, quiet=True)
    rows = {f"{t}.{i}": a for t, arrays in trained_rows(folder / name).items() for i, a in enumerate(arrays)}
    dense = torch.load(folder / name / "latest" / "dense.pt", weights_only=True)["model"]
    return {**rows, **{f"dense.{key}": value.numpy() for key, value in dense.items()}}


@settings(deadline=None, max_examples=12)
@given(
    num_samples=st.integers(20, 90),
    batch_size=st.integers(2, 40),
    accumulate=st.integers(2, 50),
    seed=st.integers(0, 10**6),
    loss=st.sampled_from(["bce", "tests.unit.test_trainer_parts:mean_of_known"]),
)
def test_parts_learn_what_the_whole_batch_does(
    tmp_path_factory: pytest.TempPathFactory,
    num_samples: int,
    batch_size: int,
    accumulate: int,
    seed: int,
    loss: str,
) -> None:
    accumulate = min(accumulate, batch_size)
    folder = tmp_path_factory.mktemp("parts")
    data = write(folder / "data.h5", num_samples, seed)
    changes = {
        "data.batch_size": batch_size,
        "model.class": "tests.unit.test_trainer_parts:Seeing",
        "train.loss": loss,
    }
    whole = train(folder, "whole", data, 1, **changes)
    SEEN.clear()
    parts = train(folder, "parts", data, accumulate, **changes)
    assert parts.keys() == whole.keys()
    for name, expected in whole.items():
        np.testing.assert_allclose(parts[name], expected, rtol=2e-4, atol=2e-6, err_msg=name)
    sizes = [[n for s, n in SEEN if s == step] for step in range(1, SEEN[-1][0] + 1)]
    full = min(batch_size, num_samples)
    assert [sum(of_step) for of_step in sizes[:-1]] == [full] * (len(sizes) - 1)
    assert max(max(of_step) for of_step in sizes) <= -(-full // accumulate)
    assert max(len(of_step) for of_step in sizes) <= accumulate


@pytest.mark.parametrize("wire", ["fp32", "fp16"])
def test_row_gradients_are_rounded_once(wire: str, tmp_path: Path) -> None:
    """Not once for each part: on the wire they are what the whole batch gives."""
    data = write(tmp_path / "data.h5", 64, 3)
    changes = {"wire.gradients": wire, "data.batch_size": 64}
    whole = train(tmp_path, "whole", data, 1, **changes)
    parts = train(tmp_path, "parts", data, 16, **changes)
    for name, expected in whole.items():  # a gradient at fp16's least values differs by the last bit
        np.testing.assert_allclose(parts[name], expected, rtol=2e-3, atol=2e-5, err_msg=name)
    # Of one step the dense gradients differ in rounding, and most of those of rows not at all.
    if wire == "fp32":
        assert np.mean(parts["item.1"] == whole["item.1"]) > 0.5


def test_native_dlrm_in_parts(tmp_path: Path) -> None:
    data = write(tmp_path / "data.h5", 70, 5)
    names = ["item", "user", "tags"]
    changes = {"model.class": "dlrm", "data.features": names, "sequences": {}, "data.batch_size": 35}
    changes["features"] = {"item": {"table": "item"}, "tags": {"pooling": "mean"}}
    changes["tables.user.dim"] = 4
    whole = train(tmp_path, "whole", data, 1, **changes)
    parts = train(tmp_path, "parts", data, 4, **changes)
    for name, expected in whole.items():
        np.testing.assert_allclose(parts[name], expected, rtol=2e-4, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_narrow_types_are_summed_in_fp32(amp: str, tmp_path: Path) -> None:
    """Half precision rounds each product, so parts differ by that, but by no factor of the loss scale."""
    data = write(tmp_path / "data.h5", 64, 9)
    changes = {"train.amp": amp, "data.batch_size": 32}
    whole = train(tmp_path, "whole", data, 1, **changes)
    parts = train(tmp_path, "parts", data, 4, **changes)
    before = train(tmp_path, "before", data, 1, **{**changes, "train.max_steps": 1})
    for name in (name for name in whole if name.startswith("dense.")):
        moved = np.abs(whole[name] - before[name]).max()
        assert np.abs(parts[name] - whole[name]).max() < 0.1 * moved, name


def test_callbacks_events_and_progressive_metrics_see_whole_steps(tmp_path: Path) -> None:
    data = write(tmp_path / "data.h5", 90, 7)

    class Steps(ph.Callback):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def on_step(self, run: Any) -> None:
            self.seen.append(run.step)

    def run(name: str, accumulate: int) -> tuple[list[int], dict[str, Any]]:
        steps = Steps()
        config = tiny_config(data, run_dir=str(tmp_path / name), **SEQUENCES)
        config["train"] |= {"accumulate": accumulate, "progressive": 50, "metrics": ["ne"]}
        summary = ph.train(config, callbacks=[steps], quiet=True)
        return steps.seen, summary["progressive"]

    whole, parts = run("whole", 1), run("parts", 5)
    assert whole[0] == parts[0] == [1, 2, 3]
    assert parts[1]["samples"] == whole[1]["samples"] == 58
    assert parts[1]["ne"] == pytest.approx(whole[1]["ne"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.accumulate": 33}, "expected at most data.batch_size = 32"),
        ({"train.accumulate": 2, "train.cuda_graphs": True}, "leave one of them out"),
        ({"train.accumulate": 2, "train.loss": "bpr"}, "'bpr' compares the samples of a batch"),
        ({"train.accumulate": 2, "tasks": {"label": {"loss": "bpr"}}}, "'bpr' compares the samples"),
        ({"train.accumulate": 0}, "expected at least 1"),
    ],
)
def test_what_parts_would_change_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        load_config(tiny_config("data.h5", **changes))
    assert "train.accumulate" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_batch_that_is_scored_twice_counts_once_in_progressive_metrics(tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "data.h5", 90)

    def run(name: str, times: int) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def loop(session: ph.Session) -> None:
            torch.manual_seed(1)
            session.prepare(Small(session.inputs))
            for batch in session.batches(steps=3):
                for _ in range(times):
                    logits = session.forward(batch)
                session.step((logits - batch.labels).square())
            found.append(session.progressive.metrics())

        config = tiny_config(data, run_dir=str(tmp_path / name), mode="sync")
        config["train"] |= {"accumulate": 2, "progressive": 1000}
        ph.run(config, loop, quiet=True)
        return found[0]

    once, twice = run("once", 1), run("twice", 2)
    assert once["samples"] == 90
    assert twice == once
