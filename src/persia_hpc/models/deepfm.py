"""DeepFM (Guo et al., IJCAI 2017): a factorisation machine and a deep network on the same embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch, Inputs

from .parts import (
    PaddedLinear,
    check_flag,
    common_dim,
    flat_inputs,
    flat_width,
    layer_options,
    perceptron,
    side_by_side,
    stacked_vectors,
    widths,
)


class DeepFM(nn.Module):
    """Adds a first-order term, pairwise products and deep layers; needs all features to have one dim.

    The paper gives each id a weight of its own for the first order. With `id_weights` that is the last value
    of the id's vector, which the other parts don't see, so tables have one dim more than vectors (equation 1
    of Rendle, ICDM 2010). Without it the weight is a learned linear function of the vector. With empty
    `hidden` there are no deep layers: a factorisation machine. With several labels they share the pairwise
    term, and the weights of ids.
    """

    def __init__(
        self,
        inputs: Inputs,
        hidden: Sequence[int] = (400, 400, 400),
        id_weights: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        layers = layer_options("deepfm", activation, dropout, batch_norm)
        check_flag("deepfm", "id_weights", id_weights)
        dim = common_dim("deepfm", inputs)
        width = flat_width("deepfm", inputs)
        if id_weights and dim < 2:
            raise UserError(
                f"model 'deepfm': id_weights takes one value of a vector, but dim is {dim}; give tables at "
                "least 2"
            )
        deep = widths("deepfm", "hidden", hidden, empty=True)
        self.inputs = inputs
        self.id_weights = id_weights
        self.first_order = PaddedLinear(inputs.num_dense if id_weights else width, inputs.num_outputs)
        self.deep: nn.Sequential | None = None
        if deep:
            self.deep = perceptron(
                width - len(inputs.features) if id_weights else width,
                deep,
                outputs=inputs.num_outputs,
                **layers,
            )

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, labels]."""
        vectors = stacked_vectors(batch, self.inputs).float()  # [B, F, D]
        if self.id_weights:
            weights, vectors = vectors[:, :, -1], vectors[:, :, :-1]
            dense = [batch.dense] if self.inputs.num_dense else []
            linear = self.first_order(batch.dense) + weights.sum(dim=1, keepdim=True)
            flat = side_by_side([*dense, vectors.flatten(1)])
        else:
            flat = flat_inputs(batch, self.inputs)
            linear = self.first_order(flat)
        # The sum over pairs of dot products, without forming the pairs: a small difference of large numbers,
        # so never in bf16.
        pairs = (vectors.sum(dim=1).square() - vectors.square().sum(dim=1)).sum(dim=1, keepdim=True) / 2
        logits: Tensor = linear + pairs
        return logits if self.deep is None else logits + self.deep(flat)
