"""DLRM (Naumov et al., 2019): dot products between all pairs of vectors.

B samples, V vectors, D dim, P = V (V - 1) / 2 pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from persia_hpc.trainer.batch import Batch, Inputs

from .parts import common_dim, flat_inputs, perceptron, stacked_vectors, widths


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


class DLRM(nn.Module):
    """`bottom` layers turn the dense features into one more vector; `hidden` layers see it and all products.

    Needs all features to have one dim D; a last bottom layer goes to D. Without dense features the embeddings
    themselves take that vector's place beside the products.
    """

    pairs: Tensor
    pair_of_product: Tensor

    def __init__(
        self, inputs: Inputs, hidden: Sequence[int] = (512, 256), bottom: Sequence[int] = (512, 256)
    ) -> None:
        super().__init__()
        dim = common_dim("dlrm", inputs)
        self.inputs = inputs
        bottom = widths("dlrm", "bottom", bottom, empty=True)
        num_vectors = len(inputs.features)
        direct = inputs.embedding_width
        self.bottom: nn.Sequential | None = None
        if inputs.num_dense:
            self.bottom = perceptron(inputs.num_dense, [*bottom, dim])
            num_vectors += 1
            direct = dim
        row, column = torch.tril_indices(num_vectors, num_vectors, offset=-1)
        num_pairs = len(row)
        places = torch.full((num_vectors, num_vectors), num_pairs)
        places[row, column] = places[column, row] = torch.arange(num_pairs)
        self.register_buffer("pairs", row * num_vectors + column, persistent=False)
        self.register_buffer("pair_of_product", places.flatten(), persistent=False)
        self.top = perceptron(
            direct + num_pairs, widths("dlrm", "hidden", hidden), outputs=len(inputs.labels)
        )

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, labels]."""
        vectors = stacked_vectors(batch, self.inputs)  # [B, V, D]
        if self.bottom is None:
            direct = flat_inputs(batch, self.inputs)
        else:
            direct = self.bottom(batch.dense)
            vectors = torch.cat([direct.to(vectors.dtype).unsqueeze(1), vectors], dim=1)
        products: Tensor = _Products.apply(vectors, self.pairs, self.pair_of_product)  # type: ignore[no-untyped-call]
        logits: Tensor = self.top(torch.cat([direct.to(products.dtype), products], dim=1))
        return logits
