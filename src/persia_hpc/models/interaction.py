"""DLRM's pairwise interaction: vectors beside the dot products of all their pairs.

B samples, V vectors, D dim, P = V (V - 1) / 2 pairs, C copied vectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import side_by_side


class Interaction(nn.Module):
    """Concatenates the first `num_copied` of `num_vectors` vectors and the dot products of all pairs.

    The products are those of vectors (1, 0), (2, 0), (2, 1), (3, 0), ... These are torch operations, for what
    the native network (`layers.py`) doesn't compute.
    """

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
        """Computes the copied vectors and the products, for V vectors, C of them copied, and P pairs.

        Shapes: as above in, [B, C D + P] out; on a GPU with the zero columns of `side_by_side`.
        """
        alone = first if self.num_copied == 1 else None
        if first is not None:
            rest = torch.cat([first.to(rest.dtype).unsqueeze(1), rest], dim=1)
        if torch.is_grad_enabled():
            products: Tensor = _Products.apply(rest, self.pairs, self.pair_of_product)  # type: ignore[no-untyped-call]
        else:  # in a graph that is exported nothing else than torch's operations may be
            products = _products(rest, self.pairs)
        # Taken from `first` where it is that: through `rest` its gradient would be as large as all vectors.
        copied = rest[:, : self.num_copied].flatten(1) if alone is None else alone
        return side_by_side([copied.to(products.dtype), products])


def _products(vectors: Tensor, pairs: Tensor) -> Tensor:
    """Computes [B, V, D] -> [B, P]; `pairs` [P] are places among V * V products."""
    return torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, pairs)


class _Products(torch.autograd.Function):
    """[B, V, D] -> [B, P].

    Selecting the pairs from all V * V products scatters in autograd's own backward; gathering each product's
    gradient to its two places instead takes a quarter of the time on a CPU, and no atomics on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, pairs: Tensor, pair_of_product: Tensor) -> Tensor:
        """`pairs` [P] are places among V * V products; `pair_of_product` [V * V] is P where there is none."""
        ctx.save_for_backward(vectors, pair_of_product)
        return _products(vectors, pairs)

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
