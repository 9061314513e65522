"""Computes DLRM on a CPU with native kernels, each way in one call.

B samples, K dense features, V vectors, D dim, N labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc import _native

# With 512 and 256 the kernels take 0.83 of torch's time, with layers of 1024 1.1 (benchmarks/RESULTS.md).
WIDEST = 512


class Team:
    """Holds the threads of a model's native network: as many as torch has. Copies have their own."""

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

    That is so for linear layers with a ReLU between any two, without hooks or replaced layers, and, where the
    processor multiplies bf16, also under its autocast. Wide layers are left to torch, which is faster there.
    """
    tensors = [tensor for tensor in inputs if tensor is not None]
    for place, layer in enumerate(layers):
        if place % 2:
            if type(layer) is not nn.ReLU:
                return False
        elif (
            not isinstance(layer, nn.Linear)
            or layer.bias is None
            or not type(layer).__module__.startswith(("torch.nn.modules", __package__))
            or layer.out_features > WIDEST
        ):
            return False
        else:
            tensors += [layer.weight, layer.bias]
        if has_hooks(layer):
            return False
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in tensors):
        return False
    if not torch.is_autocast_enabled("cpu"):
        return True
    return torch.get_autocast_dtype("cpu") == torch.bfloat16 and _native.has_bf16()


def run_dlrm(
    dense: Tensor | None,
    vectors: Tensor,
    num_copied: int,
    bottom: Sequence[nn.Module],
    top: Sequence[nn.Module],
    team: Team,
) -> Tensor:
    """Computes all of DLRM natively, each way in one call: `dense` through `bottom`, the interaction, `top`.

    Under autocast factors of the layers' products are rounded to bf16; all else is float32, also the logits.

    Shapes: `dense` [B, K], if there is a bottom, and `vectors` [B, V or V - 1, D] in, [B, N] out.
    """
    linear = [[layer for layer in layers if isinstance(layer, nn.Linear)] for layers in (bottom, top)]
    parameters = [p for layer in [*linear[0], *linear[1]] for p in (layer.weight, layer.bias)]
    logits: Tensor = _DLRM.apply(  # type: ignore[no-untyped-call]
        dense, vectors, num_copied, len(linear[0]), team, torch.is_autocast_enabled("cpu"), *parameters
    )
    return logits


class _DLRM(torch.autograd.Function):
    """The network's native forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        dense: Tensor | None,
        vectors: Tensor,
        num_copied: int,
        num_bottom: int,
        team: Team,
        bf16: bool,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(dense, vectors, *parameters)
        ctx.options = num_copied, num_bottom, team, bf16
        arrays = _arrays(dense, vectors, parameters, *ctx.options)
        logits, ctx.kept = _native.dlrm_forward(**arrays)
        return torch.from_numpy(logits)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dense, vectors, *parameters = ctx.saved_tensors
        made = _native.dlrm_backward(
            **_arrays(dense, vectors, parameters, *ctx.options),
            kept=ctx.kept,
            gradient=gradient.contiguous().numpy(),
            wants_dense=ctx.needs_input_grad[0],
            wants_vectors=ctx.needs_input_grad[1],
        )
        to_dense, to_vectors = (None if array is None else torch.from_numpy(array) for array in made[:2])
        return to_dense, to_vectors, None, None, None, None, *map(torch.from_numpy, made[2])


def _arrays(
    dense: Tensor | None,
    vectors: Tensor,
    parameters: Sequence[Tensor],
    num_copied: int,
    num_bottom: int,
    team: Team,
    bf16: bool,
) -> dict[str, Any]:
    """Returns the arguments that both calls take."""
    arrays = [tensor.detach().contiguous().numpy() for tensor in parameters]
    layers = list(zip(arrays[::2], arrays[1::2], strict=True))
    return {
        "dense": None if dense is None else dense.detach().contiguous().numpy(),
        "vectors": vectors.detach().contiguous().numpy(),
        "num_copied": num_copied,
        "bottom": layers[:num_bottom],
        "top": layers[num_bottom:],
        "team": team.threads(),
        "bf16": bf16,
    }
