"""Steps whose loss or gradients aren't finite: skipped as a whole, counted, and not for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import persia_hpc as ph
from persia_hpc.errors import PersiaError
from persia_hpc.trainer.skips import Buffers
from persia_hpc.trainer.suspects import suspects
from tests.support.models import Cliff, Small, Sparse, squared
from tests.support.row_batches import make_inputs, make_row_batch
from tests.support.tiny import run_digest, tiny_config, trained_rows, write_tiny

BAD = 5  # the step with the bad loss


def nan_loss(logits: torch.Tensor, batch: Any) -> torch.Tensor:
    """NaN everywhere: so are all gradients."""
    return squared(logits, batch) * (torch.nan if batch.step == BAD else 1)


def nan_constant(logits: torch.Tensor, batch: Any) -> torch.Tensor:
    """Only the loss is NaN; the gradients are what they always are."""
    return squared(logits, batch) + (torch.nan if batch.step == BAD else 0)


def infinite_rows(logits: torch.Tensor, batch: Any) -> torch.Tensor:
    """Only gradients of rows are infinite: the loss isn't, nor are dense gradients."""
    rows = batch.pooled["user"].sum(dim=1, keepdim=True)
    return squared(logits, batch) + (Cliff.apply(rows) if batch.step == BAD else 0)


def infinite_dense(logits: torch.Tensor, batch: Any) -> torch.Tensor:
    """Only gradients of the dense network are infinite."""
    return squared(logits, batch) + (Cliff.apply(logits.detach() * BIAS[0]) if batch.step == BAD else 0)


BIAS: list[torch.Tensor] = []


class Named(Small):
    """Lets a loss reach its bias; has running statistics."""

    def __init__(self, inputs: Any):
        super().__init__(inputs)
        self.norm = nn.BatchNorm1d(1)
        BIAS[:] = [self.head.bias]

    def forward(self, batch: Any) -> torch.Tensor:
        return self.norm(super().forward(batch))


class NanInput(Named):
    """Gets NaN in one dense column in the bad step: its running statistics would keep it."""

    def forward(self, batch: Any) -> torch.Tensor:
        if batch.step == BAD and self.training:
            batch.dense[3, 1] = torch.nan
        return super().forward(batch)


def always_nan(logits: torch.Tensor, batch: Any) -> torch.Tensor:
    return squared(logits, batch) * torch.nan


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("data") / "train.h5", 320)


def train(
    data: str, run_dir: Path, loss: Any = squared, model: type = Named, **changes: Any
) -> dict[str, Any]:
    names = {"train.loss": loss, "model.class": model}
    named = {key: f"{value.__module__}:{value.__name__}" for key, value in names.items()}
    changes = {"run_dir": str(run_dir), "train.evaluate_at_end": False, **named, **changes}
    return ph.train(tiny_config(data, **changes), quiet=True)


def dense(run_dir: Path) -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = torch.load(run_dir / "latest" / "dense.pt", weights_only=True)["model"]
    return model


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_step_that_is_not_finite_changes_nothing(amp: str, data: str, tmp_path: Path) -> None:
    """Whatever isn't finite, the run is the same afterwards; and the step leaves all as it was."""
    cases = {
        "nan_loss": (nan_loss, Named),
        "nan_constant": (nan_constant, Named),
        "infinite_rows": (infinite_rows, Named),
        "infinite_dense": (infinite_dense, Named),
        "nan_input": (squared, NanInput),
    }
    digests = {}
    for name, (loss, model) in cases.items():
        summary = train(data, tmp_path / name, loss, model, **{"train.amp": amp})
        assert (summary["status"], summary["steps"], summary["skipped_steps"]) == ("completed", 10, 1), name
        digests[name] = run_digest(tmp_path / name)
        events = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert all(e["loss"] is not None for e in events if e["event"] == "train")
        (skip,) = [e for e in events if e["event"] == "skip"]
        assert (skip["step"], skip["skipped_steps"]) == (BAD, 1)
        if amp == "fp16":  # an overflow lowers the scale, a loss that is NaN doesn't
            saved = torch.load(tmp_path / name / "latest" / "dense.pt", weights_only=True)
            assert saved["scaler"]["scale"] == 2.0 ** (15 if name.startswith("infinite") else 16)
    assert len(set(digests.values())) == 1, digests
    before = train(data, tmp_path / "before", **{"train.amp": amp, "train.max_steps": BAD - 1})
    after = train(data, tmp_path / "after", nan_loss, **{"train.amp": amp, "train.max_steps": BAD})
    assert after["embedding"]["applied_rows"] == before["embedding"]["applied_rows"]
    assert after["embedding"]["nonfinite_rows"] > 0
    for name, value in dense(tmp_path / "before").items():
        assert torch.equal(value, dense(tmp_path / "after")[name]), name
    for table, (keys, rows, state, _) in trained_rows(tmp_path / "before").items():
        found = trained_rows(tmp_path / "after")[table]
        kept = np.isin(found[0], keys)
        assert np.array_equal(found[1][kept], rows)
        assert np.array_equal(found[2][kept], state)


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_too_many_in_a_row_end_the_run(amp: str, data: str, tmp_path: Path) -> None:
    changes = {"train.amp": amp, "train.max_skipped": 3}
    with pytest.raises(PersiaError, match=r"4 skipped in a row.*_skipped = 3: step 4 was skipped: the loss"):
        train(data, tmp_path / "run", always_nan, **changes)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_the_message_names_columns_and_the_last_good_checkpoint(data: str, tmp_path: Path) -> None:
    changes = {"train.max_skipped": 0, "checkpoint.every": 2}
    with pytest.raises(PersiaError) as raised:
        train(data, tmp_path / "run", nan_loss, **changes)
    text = str(raised.value)
    assert "step 5" in text
    assert "dense column x" in text
    assert f"Last good checkpoint: {tmp_path / 'run' / 'step-00000004'}" in text
    with pytest.raises(PersiaError, match="There is no checkpoint yet"):
        train(data, tmp_path / "none", nan_loss, **{"train.max_skipped": 0})


def test_the_search_for_a_loss_scale_is_no_failure(data: str, tmp_path: Path) -> None:
    changes = {"train.amp": "fp16", "train.loss": "tests.support.models:steep", "train.max_skipped": 0}
    summary = ph.train(tiny_config(data, run_dir=str(tmp_path / "run"), **changes), quiet=True)
    assert summary["skipped_steps"] > 1


def test_skipped_steps_are_counted_over_a_resume(data: str, tmp_path: Path) -> None:
    train(data, tmp_path / "run", nan_loss, **{"train.max_steps": 7})
    summary = train(data, tmp_path / "run", nan_loss, **{"checkpoint.resume": True})
    assert (summary["steps"], summary["skipped_steps"]) == (10, 1)


def test_a_model_that_is_not_finite_is_never_completed(data: str, tmp_path: Path) -> None:
    """Its last step has thrown it out: no step after it could notice."""
    huge = {"train.optimizer": {"name": "SGD", "lr": 3e38}, "train.max_steps": 1}
    huge["train.loss"] = "tests.support.models:steep"
    for name, changes in {"saved": {}, "not": {"train.save": False}}.items():
        with pytest.raises(PersiaError, match="NaN or infinity after step 1: training has diverged"):
            train(data, tmp_path / name, **huge, **changes)
        assert not (tmp_path / name / "summary.json").exists()
        assert not list((tmp_path / name).glob("step-*"))


class Masked(Named):
    """Has a causal mask, and a statistic."""

    def __init__(self, inputs: Any):
        super().__init__(inputs)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
        self.register_buffer("peak", torch.zeros(1))


class Peak(Masked):
    """Loses a statistic in the bad step, though the loss stays finite."""

    def forward(self, batch: Any) -> torch.Tensor:
        if batch.step == BAD and self.training:
            self.peak.fill_(torch.inf)
        return super().forward(batch)


def test_a_constant_that_is_not_finite_is_no_divergence(data: str, tmp_path: Path) -> None:
    changes = {"checkpoint.every": 2, "train.max_steps": 6}
    assert train(data, tmp_path / "run", model=Masked, **changes)["status"] == "completed"
    changes = {**changes, "train.max_steps": 8, "checkpoint.resume": True}
    summary = train(data, tmp_path / "run", model=Masked, **changes)
    assert (summary["status"], summary["steps"]) == ("completed", 8)
    assert dense(tmp_path / "run")["mask"].isinf().sum() == 6


def test_a_buffer_that_training_has_lost_is_never_saved(data: str, tmp_path: Path) -> None:
    with pytest.raises(PersiaError, match=r"^peak of the dense model has NaN or infinity after step 6: "):
        train(data, tmp_path / "run", model=Peak, **{"checkpoint.every": 2})
    assert (tmp_path / "run" / "latest").resolve().name == "step-00000004"


def test_a_row_that_is_not_finite_is_never_saved(data: str, tmp_path: Path) -> None:
    """Finite gradients may throw it out, in the last step of a run too; large values are only large."""
    changes: dict[str, Any] = {"train.loss": "tests.support.models:steep", "train.max_steps": 1}
    table = {"dim": 4, "optimizer": {"name": "sgd", "lr": 3e38}, "capacity": "1 MiB"}
    with pytest.raises(PersiaError, match=r"table item: \d+ of \d+ rows have NaN or infinity"):
        train(data, tmp_path / "run", **changes, **{"tables.item": table})
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not list((tmp_path / "run").glob("step-????????"))
    bound = {**table, "value_bound": 3e38}
    assert train(data, tmp_path / "bound", **changes, **{"tables.item": bound})["status"] == "completed"


def test_a_loss_that_is_absurd_is_said(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = train(data, tmp_path / "run", absurd)
    assert summary["skipped_steps"] == 0
    assert capsys.readouterr().err.count("the loss is 1e+28") == 1


def absurd(logits: torch.Tensor, batch: Any) -> torch.Tensor:
    return logits * 0 + 1e28


class Half(Small):
    """Is trained in part: gradients of its other layer are nobody's."""


def test_gradients_that_no_optimizer_takes_do_not_pile_up(data: str) -> None:
    def main(session: Any) -> None:
        model = Half(session.inputs)
        session.prepare(model, torch.optim.SGD(model.head.parameters(), lr=0.01))
        for batch in session.batches():
            session.step(squared(session.forward(batch), batch))
            assert all(p.grad is None for p in model.parameters())

    ph.run(tiny_config(data, **{"train.save": False}), main)


def infinite_sparse(logits: torch.Tensor, batch: Any) -> torch.Tensor:
    return squared(Cliff.apply(logits) if batch.step == BAD else logits, batch)


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_sparse_gradients_are_judged_too(amp: str, data: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"train.amp": amp, "train.optimizer": {"name": "SparseAdam", "lr": 0.01}}
    cases = {"rows": infinite_rows, "all": infinite_sparse}
    digests = set()
    for name, loss in cases.items():
        summary = train(data, tmp_path / name, loss, Sparse, **changes)
        assert (summary["status"], summary["skipped_steps"]) == ("completed", 1), name
        digests.add(run_digest(tmp_path / name))
    assert len(digests) == 1
    bias = dense(tmp_path / "all")["bias.weight"]
    assert bias.isfinite().all()
    train(data, tmp_path / "before", squared, Sparse, **changes, **{"train.max_steps": 1})
    first = dense(tmp_path / "before")["bias.weight"]
    assert (bias[:3] != first[:3]).all()
    assert torch.equal(bias[3:], first[3:])


def test_suspects_name_what_is_not_finite_and_then_what_is_large() -> None:
    rng = np.random.default_rng(1)
    inputs = make_inputs([("a", 4, "sum", False), ("b", 4, "sum", True)])
    batch = make_row_batch(inputs, {"a": [[1], [2]], "b": [[], [7, 8]]}, rng)
    batch.dense = np.array([[1, 1e30], [np.nan, -2]], np.float32)
    batch.rows[0][:] = 1
    b = batch.indices[batch.feature_offsets[1]]
    batch.rows[0][b] = 5e5
    named = suspects(batch, inputs).split("; ")
    assert named[:3] == [
        "dense column 0 NaN or infinite in 1 of 2 values, else 1 to 1",
        "dense column 1 -2 to 1e+30",
        "embeddings of b 1 to 5e+05",
    ]


def test_buffers_are_restored_though_they_change_between_batches() -> None:
    model = nn.BatchNorm1d(2)
    buffers = Buffers(model)
    for mean in (1.0, 2.0):
        model(torch.full((4, 2), mean))
        buffers.keep()
        kept = {k: v.clone() for k, v in model.named_buffers()}
        model(torch.full((4, 2), torch.nan))
        assert model.running_mean.isnan().all()
        buffers.restore()
        assert all(torch.equal(v, kept[k]) for k, v in model.named_buffers())
