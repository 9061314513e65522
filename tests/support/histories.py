"""Batches of histories of any length, in all forms that models take."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from persia_hpc.trainer.batch import Batch, FeatureSpec, Inputs
from persia_hpc.trainer.jagged import Jagged

LENGTHS = [5, 0, 1, 9, 3, 9, 2]


def history_inputs(
    dim: int = 6, *, kind: str = "jagged", max_length: int | None = 9, num_dense: int = 2
) -> Inputs:
    """A user, an item, and a history of items with an action each (of dim 2) and the time before each."""
    return Inputs(
        (
            FeatureSpec("user", "user", 0, 3, "sum", False),
            FeatureSpec("item", "item", 1, dim, "sum", False),
            FeatureSpec("items", "item", 1, dim, kind, True, max_length=max_length),
            FeatureSpec("actions", "action", 2, 2, kind, True, max_length=max_length),
            FeatureSpec("gaps", "gap", 2, 2, kind, True, max_length=max_length, weighted=kind == "jagged"),
        ),
        num_dense,
        ("label0",),
    )


def history_batch(inputs: Inputs, lengths: list[int] = LENGTHS, seed: int = 0) -> Batch:
    """The same random vectors for every form; those of ids want gradients."""
    generator = torch.Generator().manual_seed(seed)
    num_samples, offsets = len(lengths), torch.tensor([0, *lengths]).cumsum(0)
    longest = max(1, *lengths)
    empty = Batch(1, num_samples, torch.empty(0), torch.empty(0), None, None, {}, {}, {})
    batch = replace(
        empty,
        dense=torch.randn(num_samples, inputs.num_dense, generator=generator),
        labels=torch.randint(0, 2, (num_samples, 1), generator=generator).float(),
    )
    for f in inputs.features:
        rows = num_samples if not f.multi else int(offsets[-1])
        values = torch.randn(rows, f.dim, generator=generator).requires_grad_()
        weights = torch.randint(0, 10**6, (rows,), generator=generator).float()
        if not f.multi:
            batch.pooled[f.name] = values
            continue
        jagged = Jagged(values, offsets, longest, weights if f.weighted or f.name == "gaps" else None)
        batch.jagged[f.name] = jagged
        if f.pooling == "sequence":
            batch.sequence[f.name] = jagged.padded(), jagged.mask()
            del batch.jagged[f.name]
    return batch


def sample_of(batch: Batch, number: int) -> Batch:
    """One sample of a batch with jagged histories."""
    parts = {}
    for name, jagged in batch.jagged.items():
        begin, end = jagged.offsets[number : number + 2].tolist()
        weights = None if jagged.weights is None else jagged.weights[begin:end]
        parts[name] = Jagged(
            jagged.values[begin:end], torch.tensor([0, end - begin]), max(1, end - begin), weights
        )
    return replace(
        batch,
        num_samples=1,
        dense=batch.dense[number : number + 1],
        labels=batch.labels[number : number + 1],
        pooled={name: values[number : number + 1] for name, values in batch.pooled.items()},
        jagged=parts,
    )


def gradients(output: Tensor, *wanted: Tensor) -> list[Tensor]:
    """Gradients of a sum of the output that weighs all its elements differently."""
    factors = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).view(output.shape)
    found = torch.autograd.grad((output * factors).sum(), wanted, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]
