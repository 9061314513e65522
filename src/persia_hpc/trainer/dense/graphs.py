"""Runs the dense model as a CUDA graph: one call launches all of its kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch, Inputs

from .state import random_state, set_random_state

LOG = logging.getLogger("persia_hpc")
Graph = Callable[[nn.Module, tuple[Tensor, ...]], Callable[..., Tensor]]


def _capture(module: nn.Module, tensors: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    make: Any = torch.cuda.make_graphed_callables  # which has types only in part
    captured: Callable[..., Tensor] = make(module, tensors, allow_unused_input=True)
    return captured


def _tensors(batch: Batch) -> list[Tensor]:
    present = [batch.dense, batch.labels, batch.weight, batch.group]
    return [t for t in present if t is not None] + list(batch.blocks.values())


class _OfTensors(nn.Module):
    """Wraps a model so that it takes the tensors of batches like `like`, as graphs need it."""

    def __init__(self, model: nn.Module, like: Batch):
        super().__init__()
        self.model = model
        # Of the batch only what isn't a tensor is kept.
        self._weight, self._group = like.weight is not None, like.group is not None
        self._blocks, self._order = tuple(like.blocks), tuple(like.pooled)
        self._step, self._num_samples = like.step, like.num_samples

    def forward(self, *tensors: Tensor) -> Tensor:
        remaining = list(tensors)
        dense, labels = remaining.pop(0), remaining.pop(0)
        weight = remaining.pop(0) if self._weight else None
        group = remaining.pop(0) if self._group else None
        pooled: dict[str, Tensor] = {}
        for names, block in zip(self._blocks, remaining, strict=True):
            pooled.update(zip(names, block.unbind(1), strict=True))
        batch = Batch(
            step=self._step,
            num_samples=self._num_samples,
            dense=dense,
            labels=labels,
            weight=weight,
            group=group,
            pooled={name: pooled[name] for name in self._order},
            sequence={},
            blocks=dict(zip(self._blocks, remaining, strict=True)),
        )
        logits: Tensor = self.model(batch)
        return logits


class GraphedModel:
    """Runs model(batch) as a graph for training batches of the first one's shape, and plainly for others."""

    def __init__(self, model: nn.Module, graph: Graph = _capture):
        self.model = model
        self._graph = graph
        self._captured: Callable[..., Tensor] | None = None
        self._shapes: list[tuple[int, ...]] = []

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the logits; later calls don't overwrite them."""
        if not self.model.training:
            return self._plain(batch)
        tensors = _tensors(batch)
        shapes = [tuple(t.shape) for t in tensors]
        if self._captured is None:
            self._shapes = shapes
            self._captured = self._first(batch, tensors)
        if shapes != self._shapes:  # the tail of an epoch
            return self._plain(batch)
        return self._captured(*tensors).clone()  # the next batch's go to the same place

    def _plain(self, batch: Batch) -> Tensor:
        logits: Tensor = self.model(batch)
        return logits

    def _first(self, batch: Batch, tensors: Sequence[Tensor]) -> Callable[..., Tensor]:
        samples = tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in tensors)
        # Capturing runs the model a few times: what that leaves behind is undone, such as statistics of a
        # BatchNorm and random numbers drawn.
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        random_numbers = random_state()
        captured = self._graph(_OfTensors(self.model, batch), samples)
        set_random_state(random_numbers)
        with torch.no_grad():
            for name, value in self.model.named_buffers():
                value.copy_(buffers[name])
        return captured


def graphed(model: nn.Module, inputs: Inputs, device: torch.device) -> Callable[[Batch], Tensor]:
    """Returns the model as a graph, or the model itself where the device has no graphs.

    Raises UserError for inputs whose shapes change from step to step.
    """
    if inputs.unpooled:
        raise UserError(
            f"train.cuda_graphs needs shapes that don't change from step to step, got the sequence feature "
            f"{inputs.unpooled[0]!r}; pool it, or leave cuda_graphs out"
        )
    if device.type != "cuda":
        LOG.warning("train.cuda_graphs does nothing on %s", device)
        return model
    return GraphedModel(model)
