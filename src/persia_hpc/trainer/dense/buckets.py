"""Holds gradients that are summed over the trainers in one go."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from persia_hpc.errors import UserError


def divide(parameters: Sequence[nn.Parameter], most_bytes: int) -> list[list[nn.Parameter]]:
    """Divides parameters, from the last to the first, into groups of at most `most_bytes` of fp32.

    A group has at least one element, if any parameter has; a larger parameter is a group of its own.
    """
    groups: list[list[nn.Parameter]] = [[]]
    size = 0
    for parameter in reversed(parameters):
        num_bytes = 4 * parameter.numel()
        if size and size + num_bytes > most_bytes:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += num_bytes
    return groups


class Bucket:
    """Holds the gradients of some parameters one after the other, and their sums when they are there."""

    def __init__(self, parameters: Sequence[nn.Parameter], filled: Tensor, summed: Tensor) -> None:
        """Takes where `Sums` wants the gradients, and where it leaves their sums."""
        self.parameters = parameters
        self._filled, self._summed = filled, summed
        device = parameters[0].device
        gathered, landed = (
            flat if flat.device == device else torch.empty_like(flat, device=device)
            for flat in (filled, summed)
        )
        self.copied = gathered is not filled  # to another device
        self._gathered, self._landed = gathered, landed
        self._parts, self._sums = _cut(gathered, parameters), _cut(landed, parameters)
        self._missing = len(parameters)
        self._given: list[tuple[Tensor | None, int]] = []  # the gradients, and their versions then

    @property
    def whole(self) -> bool:
        """Returns whether all gradients of this backward have come."""
        return self._missing <= 0

    @property
    def sparse(self) -> bool:
        """Returns whether a gradient is sparse."""
        return any(p.grad is not None and p.grad.is_sparse for p in self.parameters)

    def expect(self) -> None:
        """Begins to count gradients."""
        self._missing = len(self.parameters)

    def count(self) -> None:
        """Counts a gradient that has come."""
        self._missing -= 1

    def fill(self) -> None:
        """Takes the gradients as they are now; a missing one is zeros.

        Raises UserError for a sparse one.
        """
        parts, gradients = [], []
        for part, p in zip(self._parts, self.parameters, strict=True):
            if p.grad is None:
                part.zero_()
            elif p.grad.is_sparse:
                raise UserError(
                    f"a parameter of shape {list(p.shape)} has sparse gradients, which can't be summed "
                    "over trainers: make its layer with sparse=False, or train with one trainer"
                )
            else:
                parts.append(part)
                gradients.append(p.grad.detach())
        if parts:
            torch._foreach_copy_(parts, gradients)
        if self.copied:
            self._filled.copy_(self._gathered)
        self._given = [(p.grad, 0 if p.grad is None else p.grad._version) for p in self.parameters]

    def changed(self) -> bool:
        """Returns whether a gradient isn't any more what was taken."""
        return any(
            p.grad is not gradient or (gradient is not None and gradient._version != version)
            for p, (gradient, version) in zip(self.parameters, self._given, strict=True)
        )

    def land(self) -> None:
        """Brings the sums to the parameters' device."""
        if self._landed is not self._summed:
            self._landed.copy_(self._summed)

    def sum_of(self, index: int) -> Tensor:
        """Returns the sum of one parameter's gradients, once they have landed."""
        return self._sums[index]

    def give_back(self) -> None:
        """Makes the sums the parameters' gradients."""
        self._given = []
        gradients, sums = [], []
        for part, p in zip(self._sums, self.parameters, strict=True):
            if p.grad is None:
                p.grad = part.to(p.dtype, copy=True)
            else:
                gradients.append(p.grad.detach())
                sums.append(part)
        if gradients:
            torch._foreach_copy_(gradients, sums)


def _cut(flat: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    parts = torch.split(flat, [p.numel() for p in parameters])
    return [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]
