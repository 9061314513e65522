"""Chooses how the dense model is run: as it is, compiled, or as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from persia_hpc.config.types import TrainConfig
from persia_hpc.trainer.batch import Batch, Inputs
from persia_hpc.trainer.run_state import RunState

from .compiled import CompiledModel
from .graphs import graphed


class Forward:
    """Runs training batches of the full size in the way that `[train]` asks for, and others plainly.

    Others are the tail of an epoch and evaluations: they are too few, or of too many sizes, to be compiled or
    captured for. So an evaluation while training gives what one of its checkpoint does.
    """

    def __init__(
        self,
        model: nn.Module,
        train: TrainConfig,
        inputs: Inputs,
        device: torch.device,
        num_samples: int,
        state: RunState,
        warn: Callable[[int, str], None] | None = None,
    ):
        """Takes the model on its device.

        num_samples: of this trainer's full batches; 0 if it doesn't train. warn: takes a step and a text.

        Raises UserError for inputs that can't be captured.
        """
        self._model = model
        self._num_samples = num_samples
        self._full: Callable[[Batch], Tensor] = model
        if num_samples and train.compile:
            self._full = CompiledModel(model, state, warn)
        elif num_samples and train.cuda_graphs:
            self._full = graphed(model, inputs, device)

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the logits."""
        full = self._model.training and batch.num_samples == self._num_samples
        return self._full(batch) if full else self._model(batch)
