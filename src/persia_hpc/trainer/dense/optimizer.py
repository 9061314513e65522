"""Makes the optimizer of the dense network, as configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.config.learning_rate import LearningRate
from persia_hpc.errors import UserError

from .without_compiler import without_compiler

WAYS = {"fused", "foreach", "capturable", "differentiable"}  # options that say how, not what, to compute


def make_optimizer(parameters: Any, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Makes an optimizer of torch.optim by its name and arguments.

    It is fused (one kernel for all parameters) where torch offers that and `settings` doesn't choose
    otherwise.

    Raises UserError for names and arguments that torch.optim doesn't have.
    """
    arguments = dict(settings)
    name = str(arguments.pop("name", "Adam"))
    names = [n for n in dir(torch.optim) if isinstance(getattr(torch.optim, n), type) and n != "Optimizer"]
    if name not in names:
        raise UserError(f"train.optimizer.name = {name!r} is not in torch.optim; it has: {', '.join(names)}")
    parameters = list(parameters)
    optimizer: Any = without_compiler(getattr(torch.optim, name))
    free = "fused" in signature(optimizer).parameters and not WAYS & arguments.keys()
    able = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    try:
        fused = {"fused": True} if free and able and _fuses(optimizer, arguments, parameters) else {}
        made: torch.optim.Optimizer = optimizer(parameters, **arguments, **fused)
    except (TypeError, ValueError) as error:
        raise UserError(f"train.optimizer: torch.optim.{name} refuses {arguments}: {error}") from error
    return made


def _fuses(optimizer: Any, arguments: Mapping[str, Any], parameters: Sequence[Tensor]) -> bool:
    """Returns whether a fused step works where the parameters are.

    Some optimizers refuse that only when they make one, such as torch 2.11's Adagrad on a GPU.
    """
    for device, dtype in {(p.device, p.dtype) for p in parameters}:
        probe = nn.Parameter(torch.zeros(1, dtype=dtype, device=device))
        probe.grad = torch.zeros_like(probe)
        try:
            optimizer([probe], **arguments, fused=True).step()
        except RuntimeError:
            return False
    return True


def base_rate(optimizer: torch.optim.Optimizer) -> float:
    """Returns the learning rate of the first parameter group before any schedule's factor."""
    group = optimizer.param_groups[0]
    return float(group.get("initial_lr", group["lr"]))


def set_learning_rate(
    optimizer: torch.optim.Optimizer, rate: LearningRate, step: int, factor: float = 1.0
) -> None:
    """Gives each parameter group the learning rate of `step`, times `factor`.

    Keeps its first one as torch's schedulers do. Does nothing for a constant rate, so that a scheduler of the
    user's own is not disturbed.
    """
    if rate.varies or factor != 1:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * rate.factor(step) * factor
