"""Keeps an optimizer from importing PyTorch's compiler, which takes as long as importing PyTorch."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

COMPILER = "torch._dynamo"


def without_compiler(kind: type[Optimizer]) -> type[Optimizer]:
    """Returns a class that computes what `kind`, one of torch.optim, does, and doesn't import the compiler.

    torch decorates methods of its optimizers for the case that a compiled function calls them; the decorators
    import the compiler at the first call, also where nothing is compiled. The class returned has the methods
    inside. It is `kind` itself where the compiler has been imported, or where torch decorates otherwise than
    is known here.
    """
    if COMPILER in sys.modules:
        return kind
    disabling = _code_of(getattr(torch, "_disable_dynamo", None))
    grad_setting = _code_of(getattr(torch_optimizer, "_use_grad_for_differentiable", None))
    members: dict[str, Any] = {}
    for name in dir(kind):
        member = getattr(kind, name)
        if getattr(member, "hooked", False):  # torch wraps the step of a class of which it has made one
            member = member.__wrapped__
        code, inner = getattr(member, "__code__", None), getattr(member, "__wrapped__", None)
        if code is None or inner is None:
            continue
        if code is disabling:
            members[name] = inner
        elif code is grad_setting:
            members[name] = _setting_grad(inner)
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "__doc__": kind.__doc__, **members})


def _code_of(decorator: Callable[..., Any] | None) -> Any:
    """Returns the code that all functions have which `decorator` has decorated; None if there is none."""
    if decorator is None:
        return None
    return getattr(decorator(lambda: None), "__code__", None)


def _setting_grad(step: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a step that records gradients only if the optimizer is asked to, as torch's own does."""

    @functools.wraps(step)
    def set_grad_and_step(self: Optimizer, *arguments: Any, **options: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *arguments, **options)

    return set_grad_and_step
