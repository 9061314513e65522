"""The built-in loss: PyTorch's where labels are known, and nothing at all where they are missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import persia_hpc as ph
from persia_hpc.trainer.losses import load_loss
from tests.support.tiny import SCHEMA, tiny_batch, tiny_config


def losses_and_gradients(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    x = logits.clone().requires_grad_()
    losses = load_loss("bce")(x, SimpleNamespace(labels=labels))  # type: ignore[arg-type]
    losses.mean().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return losses.detach(), x.grad


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 3), st.floats(0, 1))
def test_known_labels_give_what_pytorch_gives_bit_for_bit_and_missing_ones_give_nothing(
    seed: int, rows: int, width: int, rate: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = 10 * torch.randn(rows, width, generator=random)
    labels = torch.randint(0, 2, (rows, width), generator=random).float()
    missing = torch.rand(rows, width, generator=random) < rate
    losses, gradients = losses_and_gradients(logits, labels.masked_fill(missing, torch.nan))
    x = logits.clone().requires_grad_()
    expected = functional.binary_cross_entropy_with_logits(x, labels, reduction="none")
    expected.mean().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.equal(losses[~missing], expected.detach()[~missing])
    assert torch.equal(gradients[~missing], x.grad[~missing])
    assert not losses[missing].any()
    assert not gradients[missing].any()


def test_infinite_logits_of_missing_labels_do_no_harm() -> None:
    logits = torch.tensor([[torch.inf], [1.0]])
    losses, gradients = losses_and_gradients(logits, torch.tensor([[torch.nan], [1.0]]))
    assert losses.isfinite().all()
    assert gradients.isfinite().all()


@pytest.mark.parametrize("known", [0, 1])
def test_training_without_any_known_label_is_said(
    known: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    batch = tiny_batch(60)
    labels = np.full_like(batch.labels, np.nan)
    labels[:known] = 1.0
    with ph.DatasetWriter(tmp_path / "train.h5", SCHEMA) as writer:
        writer.write(replace(batch, labels=labels))
    with h5py.File(tmp_path / "train.h5", "r+") as file:  # as a file made by hand, which is taken
        del file.attrs["label_known"]
    ph.train(tiny_config(str(tmp_path / "train.h5"), run_dir=str(tmp_path / "run")), quiet=True)
    said = capfd.readouterr().err
    assert ("is missing in all of the last 60 samples: nothing is learned" in said) == (known == 0)
    assert ('"event": "warning"' in (tmp_path / "run/metrics.jsonl").read_text()) == (known == 0)
