"""Models, losses and metrics that tests name by import path."""

from __future__ import annotations

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
        return self.head(torch.tanh(self.body(torch.cat(parts, dim=1))))


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


def steep_at_5(logits, batch):
    """The row gradients of trainer 1 overflow in step 5, in fp32 too; those of others don't."""
    losses = squared(logits, batch)
    if batch.step == 5:
        from horovod.torch import rank

        if rank() == 1:
            inf = torch.full((), torch.inf)
            losses = losses + (batch.pooled["user"] * 1e-30).sum(dim=1, keepdim=True) * inf
    return losses


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
