"""Makes the optimizer of the dense network, as configured."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.config.learning_rate import LearningRate
from persia_hpc.errors import UserError

from .direct_adam import direct_adam
from .without_compiler import without_compiler

WAYS = {"fused", "foreach", "capturable", "differentiable"}  # options that say how, not what, to compute


def make_optimizer(
    parameters: Any, settings: Mapping[str, Any], model: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Makes an optimizer of torch.optim by its name and arguments.

    It is fused (one kernel for all parameters) where torch offers that and `settings` doesn't choose
    otherwise. `settings["groups"]` are arguments for some parameters, by their names in `model`, or those of
    the layers that the model says to be a task's (`of_task`).

    Raises UserError for names and arguments that torch.optim doesn't have, and for a group that no parameter
    is in.
    """
    arguments = dict(settings)
    groups = arguments.pop("groups", [])
    name = str(arguments.pop("name", "Adam"))
    names = [n for n in dir(torch.optim) if isinstance(getattr(torch.optim, n), type) and n != "Optimizer"]
    if name not in names:
        raise UserError(f"train.optimizer.name = {name!r} is not in torch.optim; it has: {', '.join(names)}")
    parameters = list(parameters)
    optimizer: Any = direct_adam(without_compiler(getattr(torch.optim, name)))
    free = "fused" in signature(optimizer).parameters and not WAYS & arguments.keys()
    able = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    try:
        fused = {"fused": True} if free and able and _fuses(optimizer, arguments, parameters) else {}
        grouped = _grouped(parameters, groups, model, signature(optimizer).parameters)
        for group in grouped:  # each alone: torch looks only at the arguments of all
            optimizer(**{**arguments, **group})
        made: torch.optim.Optimizer = optimizer(grouped or parameters, **arguments, **fused)
    except (TypeError, ValueError) as error:
        given = {key: value for key, value in settings.items() if key != "name"}
        raise UserError(f"train.optimizer: torch.optim.{name} refuses {given}: {error}") from error
    return made


def _grouped(
    parameters: Sequence[nn.Parameter],
    groups: Sequence[Mapping[str, Any]],
    model: nn.Module | None,
    known: Collection[str],
) -> list[dict[str, Any]]:
    """Returns the parameters in groups: each in the first whose `match` fits its name, the others last.

    known: what the optimizer's constructor takes.
    Raises UserError for an argument that isn't known, and for a group without parameters.
    """
    if not groups or model is None:
        return []
    names = {id(p): name for name, p in model.named_parameters()}
    left = {names[id(p)]: p for p in parameters}
    made = []
    for number, group in enumerate(groups):
        own = {key: value for key, value in group.items() if key not in ("match", "task", "number")}
        path = f"tasks.{group['task']}" if "task" in group else f"train.optimizer.groups[{number}]"
        patterns = [group["match"]] if "match" in group else _of_task(model, group, path)
        if unknown := [key for key in own if key not in known or key == "params"]:
            text = f"{path}.{unknown[0]}: the optimizer has no such argument; it has: {_listed(known)}"
            raise UserError(text)
        mine = [name for name in left if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if not mine:
            raise UserError(
                f"{path}: no parameter that an earlier group has left fits match = "
                f"{' or '.join(map(repr, patterns))}; there are: {_listed(left)}"
            )
        made.append({"params": [left.pop(name) for name in mine], **own})
    return [*made, {"params": list(left.values())}] if left else made


def _of_task(model: nn.Module, group: Mapping[str, Any], path: str) -> Sequence[str]:
    """Returns patterns of the names of the parameters that are one task's.

    Raises UserError for a model without layers that are.
    """
    of_task = getattr(model, "of_task", None)
    if not callable(of_task):
        raise UserError(
            f"{path}.lr: {type(model).__name__} has no layers of a task of its own; use mmoe, ple or esmm, "
            "name layers in train.optimizer.groups, or give your model a method of_task(number) that returns "
            'patterns of names such as ["towers.0.*"]'
        )
    patterns: Sequence[str] = of_task(group["number"])
    return patterns


def _listed(names: Collection[str]) -> str:
    some = ", ".join(list(names)[:12])
    return f"{some} and {len(names) - 12} more" if len(names) > 12 else some or "none"


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
