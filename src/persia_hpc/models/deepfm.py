"""DeepFM (Guo et al., IJCAI 2017): a factorisation machine and a deep network on the same embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from persia_hpc.trainer.batch import Batch, Inputs

from .parts import (
    PaddedLinear,
    check_layers,
    common_dim,
    flat_inputs,
    flat_width,
    perceptron,
    stacked_vectors,
    widths,
)


class DeepFM(nn.Module):
    """Adds a first-order term, pairwise products and deep layers; needs all features to have one dim.

    The paper gives each id a weight of its own for the first order. A table holds one vector per id, so here
    the weight is a learned linear function of that vector. With several labels they share the pairwise term.
    """

    def __init__(
        self,
        inputs: Inputs,
        hidden: Sequence[int] = (400, 400, 400),
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        check_layers("deepfm", activation, dropout)
        common_dim("deepfm", inputs)
        width = flat_width("deepfm", inputs)
        self.inputs = inputs
        self.first_order = PaddedLinear(width, inputs.num_outputs)
        self.deep = perceptron(
            width,
            widths("deepfm", "hidden", hidden),
            outputs=inputs.num_outputs,
            activation=activation,
            dropout=dropout,
            batch_norm=batch_norm,
        )

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, labels]."""
        flat = flat_inputs(batch, self.inputs)
        vectors = stacked_vectors(batch, self.inputs).float()  # [B, F, D]
        # The sum over pairs of dot products, without forming the pairs: a small difference of large numbers,
        # so never in bf16.
        pairs = (vectors.sum(dim=1).square() - vectors.square().sum(dim=1)).sum(dim=1, keepdim=True) / 2
        logits: Tensor = self.first_order(flat) + pairs + self.deep(flat)
        return logits
