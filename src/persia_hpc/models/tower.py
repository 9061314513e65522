"""The paper's model: one tower of fully connected layers over everything."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from persia_hpc.trainer.batch import Batch, Inputs

from .parts import flat_inputs, flat_width, layer_options, perceptron, widths


class Tower(nn.Module):
    """Passes dense features and embeddings, side by side, through `hidden` layers.

    The default widths are those of the Persia paper.
    """

    narrow_pooled = True  # the first layer casts them anyway

    def __init__(
        self,
        inputs: Inputs,
        hidden: Sequence[int] = (4096, 2048, 1024, 512, 256),
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        layers = layer_options("tower", activation, dropout, batch_norm)
        self.inputs = inputs
        self.layers = perceptron(
            flat_width("tower", inputs),
            widths("tower", "hidden", hidden),
            outputs=inputs.num_outputs,
            **layers,
        )

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, labels]."""
        logits: Tensor = self.layers(flat_inputs(batch, self.inputs))
        return logits
