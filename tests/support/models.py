"""Models, losses and metrics that tests name by import path."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn


class Small(nn.Module):
    """Everything that a batch has, into two layers."""

    def __init__(self, inputs, hidden=8):
        super().__init__()
        self.inputs = inputs
        self.body = nn.Linear(inputs.num_dense + inputs.embedding_width, hidden)
        self.head = nn.Linear(hidden, len(inputs.labels))

    def forward(self, batch):
        parts = [batch.dense]
        parts += [batch.pooled[name] for name in self.inputs.pooled]
        for name in self.inputs.sequences:
            values, mask = batch.sequence[name]
            parts.append((values * mask.unsqueeze(-1)).sum(dim=1) / 3.0)
        for name in self.inputs.jagged:
            jagged = batch.jagged[name]
            times = 1 if jagged.weights is None else jagged.weights.unsqueeze(-1)
            parts.append(jagged.with_values(jagged.values * times).mean())
        return self.head(torch.tanh(self.body(torch.cat(parts, dim=1))))


class Early(Small):
    """Has a part that needs no embeddings, and draws random numbers in it and behind it."""

    def __init__(self, inputs):
        super().__init__(inputs)
        self.bottom = nn.Sequential(nn.Linear(inputs.num_dense, len(inputs.labels)), nn.Dropout(0.3))
        self.calls = 0

    def ahead(self, dense):
        self.calls += 1
        return self.bottom(dense)

    def forward(self, batch):
        made = batch.made_ahead(self)
        logits = super().forward(batch) + (self.ahead(batch.dense) if made is None else made)
        return nn.functional.dropout(logits, 0.1, self.training)


class Normed(Small):
    """Has statistics of its batches, which evaluations use."""

    def __init__(self, inputs):
        super().__init__(inputs)
        self.body = nn.Sequential(self.body, nn.BatchNorm1d(8))


class Noting(Small):
    """Leaves a file named `evaluating` in the current directory when it evaluates."""

    def forward(self, batch):
        if not self.training:
            Path("evaluating").touch()
        return super().forward(batch)


class Sleepy(Small):
    """Takes a millisecond a batch and a tenth of one a sample, whatever else the machine does."""

    def forward(self, batch):
        time.sleep(1e-3 + 1e-4 * batch.num_samples)
        return super().forward(batch)


def squared(logits, batch):
    return (torch.sigmoid(logits) - batch.labels) ** 2


def steep(logits, batch):
    """Overflows in fp16 until the loss scale has come down."""
    return 300 * squared(logits, batch)


class Cliff(torch.autograd.Function):
    """Is 0 with an infinite slope."""

    @staticmethod
    def forward(ctx, x):
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, torch.inf)


def steep_at_5(logits, batch):
    """The row gradients of trainer 1 are infinite in step 5; nothing else is, nor other trainers'."""
    losses = squared(logits, batch)
    if batch.step == 5:
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1:
            losses = losses + Cliff.apply(batch.pooled["user"].sum(dim=1, keepdim=True))
    return losses


def nan_at_5(logits, batch):
    """Is NaN in step 5."""
    return squared(logits, batch) * (torch.nan if batch.step == 5 else 1)


def nan_at_5_of_one(logits, batch):
    """Is NaN in step 5 of the last rank, a trainer, whose gradients stay what they are."""
    from mpi4py import MPI

    last = MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1
    return squared(logits, batch) + (torch.nan if batch.step == 5 and last else 0)


def nan_from_5(logits, batch):
    """Is NaN from step 5 on for the last rank, a trainer."""
    from mpi4py import MPI

    last = MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1
    return squared(logits, batch) * (torch.nan if batch.step >= 5 and last else 1)


class Peak(Small):
    """Loses a statistic in step 5 on the last rank, a trainer; the loss stays finite."""

    def __init__(self, inputs):
        super().__init__(inputs)
        self.register_buffer("peak", torch.zeros(1))

    def forward(self, batch):
        from mpi4py import MPI

        if self.training and batch.step == 5 and MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1:
            self.peak.fill_(torch.nan)
        return super().forward(batch)


class Sparse(nn.Module):
    """Has only sparse gradients, of the rows that a batch uses."""

    def __init__(self, inputs):
        super().__init__()
        self.bias = nn.Embedding(10, 1, sparse=True)

    def forward(self, batch):
        rows = batch.pooled["user"].sum(dim=1, keepdim=True)
        return rows + self.bias(torch.arange(batch.num_samples) % 3)


class Bare(nn.Module):
    """Has nothing to train but rows."""

    def __init__(self, inputs):
        super().__init__()

    def forward(self, batch):
        return batch.pooled["item"].sum(dim=1, keepdim=True)


def mean_logit(logits, labels, weight, group):
    return float(np.mean(logits))


class Slow(Small):
    """Takes 20 ms a step more, so that a run of a hundred steps can be disturbed in its middle."""

    def forward(self, batch):
        time.sleep(0.02)
        return super().forward(batch)


class VerySlow(Small):
    """Takes 4 s a step."""

    def forward(self, batch):
        time.sleep(4)
        return super().forward(batch)


class FailsAtStep5(Small):
    def __init__(self, inputs):
        super().__init__(inputs)
        self.step = 0

    def forward(self, batch):
        self.step += 1
        if self.step == 5:
            raise ArithmeticError("the model can't do step 5")
        return super().forward(batch)


class TooWide(Small):
    """Expects one dense feature more than there is."""

    def __init__(self, inputs):
        super().__init__(inputs)
        self.body = nn.Linear(inputs.num_dense + inputs.embedding_width + 1, 8)


class TwoLogits(Small):
    def __init__(self, inputs):
        super().__init__(inputs)
        self.head = nn.Linear(8, 2)


def bad_loss(logits, batch):
    raise ArithmeticError("no loss today")


FALLING = iter(range(0, -1000, -1))


def falling(logits, labels, weight, group):
    """A metric that is worse at each evaluation."""
    return float(next(FALLING))


SCRIPT: list[float | Exception | None] = []


def scripted(logits, labels, weight, group):
    """A metric with the values that a test has put into SCRIPT, one an evaluation; then it isn't defined."""
    value = SCRIPT.pop(0) if SCRIPT else None
    if isinstance(value, Exception):
        raise value
    return value


def unfinished(logits, labels, weight, group):
    """A metric with a mistake that only a run shows; the environment says that it is mended."""
    return 0.5 if "MENDED" in os.environ else labels.no_such_thing


def masked(logits, batch):
    """Cross-entropy of labels of which -1 stands for a missing one, a convention of the user's own."""
    known = batch.labels >= 0
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits, batch.labels.clamp(min=0), reduction="none"
    )
    return losses * known
