"""DLRM's pairwise interaction: vectors beside the dot products of all their pairs.

B samples, V vectors, D dim, P = V (V - 1) / 2 pairs, C copied vectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from persia_hpc import _native

from .parts import side_by_side


class Interaction(nn.Module):
    """Concatenates the first `num_copied` of `num_vectors` vectors and the dot products of all pairs.

    The products are those of vectors (1, 0), (2, 0), (2, 1), (3, 0), ... Float32 CPU tensors take one native
    pass in each direction; everything else, and autocast, takes torch operations.
    """

    has_native_code = True
    pairs: Tensor
    pair_of_product: Tensor

    def __init__(self, num_vectors: int, num_copied: int) -> None:
        super().__init__()
        self.num_copied = num_copied
        row, column = torch.tril_indices(num_vectors, num_vectors, offset=-1)
        self.num_pairs = len(row)
        places = torch.full((num_vectors, num_vectors), self.num_pairs)
        places[row, column] = places[column, row] = torch.arange(self.num_pairs)
        self.register_buffer("pairs", row * num_vectors + column, persistent=False)
        self.register_buffer("pair_of_product", places.flatten(), persistent=False)

    def forward(self, first: Tensor | None, rest: Tensor) -> Tensor:
        """Computes the copied vectors and the products; `first` is vector 0, or None if it is in `rest`.

        Shapes: [B, D], if it is given, and [B, V or V - 1, D] in, [B, C D + P] out, for V vectors, C of them
        copied, and P pairs; on a GPU with the zero columns of `side_by_side`.
        """
        tensors = [rest] if first is None else [first, rest]
        plain = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
        if plain and not torch.is_autocast_enabled("cpu"):
            result: Tensor = _Native.apply(first, rest, self.num_copied)  # type: ignore[no-untyped-call]
            return result
        alone = first if self.num_copied == 1 else None
        if first is not None:
            rest = torch.cat([first.to(rest.dtype).unsqueeze(1), rest], dim=1)
        products: Tensor = _Products.apply(rest, self.pairs, self.pair_of_product)  # type: ignore[no-untyped-call]
        # Taken from `first` where it is that: through `rest` its gradient would be as large as all vectors.
        copied = rest[:, : self.num_copied].flatten(1) if alone is None else alone
        return side_by_side([copied.to(products.dtype), products])


class _Native(torch.autograd.Function):
    """The native kernels: vectors need not be concatenated first, nor results afterwards."""

    @staticmethod
    def forward(ctx: Any, first: Tensor | None, rest: Tensor, num_copied: int) -> Tensor:
        rest = rest.contiguous()
        first = None if first is None else first.contiguous()
        ctx.save_for_backward(first, rest)
        ctx.num_copied = num_copied
        num_samples, num_vectors, dim = rest.shape
        num_vectors += first is not None
        out = rest.new_empty(num_samples, num_copied * dim + num_vectors * (num_vectors - 1) // 2)
        _native.interaction_forward(_array(first), _array(rest), num_copied=num_copied, out=_array(out))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        first, rest = ctx.saved_tensors
        first_gradient = None if first is None else torch.empty_like(first)
        rest_gradient = torch.empty_like(rest)
        _native.interaction_backward(
            _array(first),
            _array(rest),
            num_copied=ctx.num_copied,
            gradient=_array(gradient.contiguous()),
            first_gradient=_array(first_gradient),
            rest_gradient=_array(rest_gradient),
        )
        return first_gradient, rest_gradient, None


def _array(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().numpy()


class _Products(torch.autograd.Function):
    """[B, V, D] -> [B, P].

    Selecting the pairs from all V * V products scatters in autograd's own backward; gathering each product's
    gradient to its two places instead takes a quarter of the time on a CPU, and no atomics on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, pairs: Tensor, pair_of_product: Tensor) -> Tensor:
        """`pairs` [P] are places among V * V products; `pair_of_product` [V * V] is P where there is none."""
        ctx.save_for_backward(vectors, pair_of_product)
        return torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, pairs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of product (i, j) goes to i times j and to j times i."""
        vectors, pair_of_product = ctx.saved_tensors
        num_vectors = vectors.shape[1]
        products = functional.pad(gradient, (0, 1)).index_select(1, pair_of_product)
        products = products.view(len(vectors), num_vectors, num_vectors)
        # under autocast the products, so their gradient, have the narrow type
        return torch.bmm(products, vectors.to(products.dtype)).to(vectors.dtype), None, None
