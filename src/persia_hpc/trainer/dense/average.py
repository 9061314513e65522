"""Averages the dense parameters over steps (`train.average`), for evaluations and finished runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from persia_hpc.errors import UserError


class Average:
    """Keeps the exponential moving average of a model's trained parameters, in their own number format.

    After each step it is decay times itself plus 1 - decay times the parameters; it begins with what they are
    before the first one. That is Polyak averaging as torch's `AveragedModel` has it with `get_ema_avg_fn`.
    Buffers, such as the statistics of batch normalisation, are those of the model.
    """

    def __init__(self, decay: float | None) -> None:
        """decay: above 0 and below 1; None keeps nothing."""
        self._decay = decay
        self._parameters: dict[str, nn.Parameter] = {}
        self._average: dict[str, Tensor] = {}

    def attach(self, model: nn.Module, saved: Mapping[str, Tensor]) -> None:
        """Takes the parameters of a model, and their average until now if there is one.

        saved: by name; {} for none.
        Raises UserError for an average of other parameters.
        """
        if self._decay is None:
            return
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}
        if not saved:
            return
        shapes = {name: value.shape for name, value in saved.items()}
        if shapes != {name: value.shape for name, value in self._average.items()}:
            raise UserError(
                "the checkpoint's train.average is of other parameters than those that are trained now; "
                "freeze the same ones, or leave train.average out"
            )
        for name, value in saved.items():
            self._average[name].copy_(value)

    def update(self) -> None:
        """Takes in what a step of the optimizer has made of the parameters."""
        if self._average:
            assert self._decay is not None
            with torch.no_grad():
                now = [p.detach() for p in self._parameters.values()]
                torch._foreach_lerp_(list(self._average.values()), now, 1 - self._decay)

    @contextlib.contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Gives the model the average instead of its parameters for a while, if it is the model averaged."""
        mine = {id(p) for p in model.parameters()}
        if not self._average or not all(id(p) in mine for p in self._parameters.values()):
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        # Values, not tensors: compiled models and graphs know the parameters by their memory.
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                kept = parameter.detach().clone()
                parameter.copy_(self._average[name])
                self._average[name].copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """Returns the average by name; {} without one."""
        return self._average
