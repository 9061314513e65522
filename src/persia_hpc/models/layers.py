"""Computes DLRM's linear layers on a CPU with native kernels, which take half of torch's time.

B samples, K inputs and N outputs of a layer, V vectors, D dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc import _native


class Team:
    """Holds the threads of a model's native layers: as many as torch has. Copies have their own."""

    def __init__(self) -> None:
        self._size, self._threads = 0, _native.ThreadTeam(1)

    def threads(self) -> _native.ThreadTeam:
        """Returns the threads, begun anew when torch's number has changed."""
        if self._size != torch.get_num_threads():
            self._size = torch.get_num_threads()
            self._threads = _native.ThreadTeam(self._size)
        return self._threads

    def __reduce__(self) -> tuple[type[Team], tuple[()]]:
        """Lets a model be copied and pickled."""
        return Team, ()


def has_hooks(module: nn.Module) -> bool:
    """Returns whether somebody looks at what goes into the module, comes out of it, or at their gradients."""
    kinds = ("forward", "forward_pre", "backward", "backward_pre")
    return any(getattr(module, f"_{kind}_hooks") for kind in kinds)


def layers_of(module: nn.Module) -> list[nn.Module]:
    """Returns the layers of what `perceptron` made; of what somebody changed, the module as the only one."""
    return list(module) if type(module) is nn.Sequential and not has_hooks(module) else [module]


def is_native(layers: Sequence[nn.Module], *inputs: Tensor | None) -> bool:
    """Returns whether the kernels compute what torch would: float32 on a CPU, and nobody looks in between.

    That is so without autocast, torch.compile, hooks, and layers that were replaced.
    """
    tensors = [tensor for tensor in inputs if tensor is not None]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            if layer.bias is None or not type(layer).__module__.startswith(("torch.nn.modules", __package__)):
                return False
            tensors += [layer.weight, layer.bias]
        elif type(layer) is not nn.ReLU:
            return False
        if has_hooks(layer):
            return False
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in tensors):
        return False
    return not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def run_layers(layers: Sequence[nn.Module], x: Tensor, team: Team) -> Tensor:
    """Computes linear layers, each with the ReLU behind it, by the kernels if they can.

    Shapes: [B, K] of the first in, [B, N] of the last out.
    """
    native = is_native(layers, x)
    for before, layer, following in zip([None, *layers], layers, [*layers[1:], None], strict=False):
        if native and isinstance(layer, nn.Linear):
            x = linear(layer, x, relu=isinstance(following, nn.ReLU), team=team)
        elif not (native and isinstance(before, nn.Linear)):  # else the ReLU of that layer
            x = layer(x)
    return x


def linear(layer: nn.Linear, x: Tensor, *, relu: bool, team: Team) -> Tensor:
    """Computes a layer natively, and the ReLU behind it if `relu`.

    Shapes: [B, K] in, [B, N] out.
    """
    result: Tensor = _Linear.apply(x, None, None, 0, layer.weight, layer.bias, relu, team)  # type: ignore[no-untyped-call]
    return result


def linear_of_interaction(
    layer: nn.Linear, first: Tensor | None, rest: Tensor, num_copied: int, *, relu: bool, team: Team
) -> Tensor:
    """Computes a layer natively on the interaction of vectors, which is never written to memory.

    Shapes: `first` [B, D], if it is given, and `rest` [B, V or V - 1, D] in, [B, N] out.
    """
    result: Tensor = _Linear.apply(None, first, rest, num_copied, layer.weight, layer.bias, relu, team)  # type: ignore[no-untyped-call]
    return result


class _Linear(torch.autograd.Function):
    """A layer's native forward and backward, on values or on the interaction of vectors."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor | None,
        first: Tensor | None,
        rest: Tensor | None,
        num_copied: int,
        weight: Tensor,
        bias: Tensor,
        relu: bool,
        team: Team,
    ) -> Tensor:
        values, first, rest = (
            None if tensor is None else tensor.contiguous() for tensor in (values, first, rest)
        )
        weight = weight.contiguous()
        given = values if rest is None else rest
        assert given is not None
        out = given.new_empty(len(given), len(weight))
        ctx.num_copied, ctx.relu, ctx.team = num_copied, relu, team
        _native.linear_forward(
            _array(values),
            _array(first),
            _array(rest),
            num_copied=num_copied,
            weight=_array(weight),
            bias=_array(bias.contiguous()),
            relu=relu,
            out=_array(out),
            team=team.threads(),
        )
        ctx.save_for_backward(values, first, rest, weight, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, first, rest, weight, out = ctx.saved_tensors
        wanted = any(ctx.needs_input_grad[:3])
        to_values, to_first, to_rest = (
            torch.empty_like(tensor) if wanted and tensor is not None else None
            for tensor in (values, first, rest)
        )
        to_weight, to_bias = torch.empty_like(weight), weight.new_empty(len(weight))
        _native.linear_backward(
            _array(values),
            _array(first),
            _array(rest),
            num_copied=ctx.num_copied,
            weight=_array(weight),
            relu=ctx.relu,
            out=_array(out),
            gradient=_array(gradient.contiguous()),
            values_gradient=_array(to_values),
            first_gradient=_array(to_first),
            rest_gradient=_array(to_rest),
            weight_gradient=_array(to_weight),
            bias_gradient=_array(to_bias),
            team=ctx.team.threads(),
        )
        return to_values, to_first, to_rest, None, to_weight, to_bias, None, None


def _array(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().numpy()
