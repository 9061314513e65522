"""Makes a step of a fused Adam or AdamW on a CPU by calling torch's kernel directly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

STATE = ("exp_avg", "exp_avg_sq", "step")
# Of so few values one thread makes the step in a tenth of a millisecond. Others, if they have no core at the
# moment, are waited for: that took up to 3 ms a step beside one other process.
FEW_VALUES = 1 << 18


def direct_adam(kind: type[Optimizer]) -> type[Optimizer]:
    """Returns a class that computes what `kind` does, an Adam or AdamW; any other as it is.

    For a small network torch's own step takes some tenths of a millisecond, nearly all of it in Python
    around one kernel. Where a step needs anything else, such as a hook, a first state or a GPU, it is
    that of `kind`.
    """
    kernels: list[Any] = [getattr(torch, name, None) for name in ("_fused_adam_", "_fused_adamw_")]
    if not issubclass(kind, torch.optim.Adam) or None in kernels:
        return kind
    full: Any = kind.step
    if not getattr(full, "hooked", False):  # what torch does when it makes the first of a class
        full = Optimizer.profile_hook_step(full)

    def step(self: Optimizer, closure: Any = None) -> Any:
        """Makes one step."""
        work = None if closure is not None or _is_watched(self) else _work(self)
        if work is None:
            return full(self) if closure is None else full(self, closure)
        threads = torch.get_num_threads()
        alone = sum(p.numel() for _, tensors, _ in work for p in tensors[0]) <= FEW_VALUES
        try:
            if alone:
                torch.set_num_threads(1)
            with torch.no_grad():
                for decoupled, tensors, options in work:
                    torch._foreach_add_(tensors[-1], 1)
                    kernels[decoupled](*tensors[:-1], [], tensors[-1], **options)
        finally:
            if alone:
                torch.set_num_threads(threads)
        return None

    def zero_grad(self: Optimizer, set_to_none: bool = True) -> None:
        """Drops the gradients, or fills them with zeros."""
        if not set_to_none:
            return kind.zero_grad(self, set_to_none=False)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        return None

    vars(step)["hooked"] = True  # else torch would wrap it once more
    members = {"__module__": kind.__module__, "__doc__": kind.__doc__, "step": step, "zero_grad": zero_grad}
    return type(kind.__name__, (kind,), members)


def _is_watched(optimizer: Any) -> bool:
    """Returns whether somebody is told of steps: hooks, a profiler, or a GradScaler's tensors."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
        or torch._C._autograd._profiler_enabled()
        or getattr(optimizer, "grad_scale", None) is not None
        or getattr(optimizer, "found_inf", None) is not None
    )


def _work(optimizer: Optimizer) -> list[tuple[bool, list[list[Tensor]], dict[str, Any]]] | None:
    """Returns each group's kind of weight decay, tensors and options; None if a group isn't plain.

    Plain are fused groups of float32 on a CPU, with a state and gradients that aren't sparse.
    """
    work = []
    for group in optimizer.param_groups:
        odd = group["amsgrad"] or group["differentiable"] or group["capturable"]
        betas = group["betas"]
        if not group["fused"] or odd or any(isinstance(v, Tensor) for v in (group["lr"], *betas)):
            return None
        parameters = [p for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters]
        if any(p.dtype != torch.float32 or not p.is_cpu for p in parameters):
            return None
        if any(g.is_sparse or g.dtype != torch.float32 for g in gradients):
            return None
        states = [optimizer.state[p] for p in parameters if optimizer.state.get(p)]
        if len(states) < len(parameters):
            return None
        if parameters:
            lists = [[state[name] for state in states] for name in STATE]
            options = {name: group[name] for name in ("lr", "weight_decay", "eps", "maximize")}
            options |= {"beta1": betas[0], "beta2": betas[1], "amsgrad": False}
            work.append((bool(group.get("decoupled_weight_decay")), [parameters, gradients, *lists], options))
    return work
