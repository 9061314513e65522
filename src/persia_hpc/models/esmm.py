"""ESMM (Ma et al., "Entire space multi-task model", SIGIR 2018): conversions learned over all impressions.

B samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch, Inputs

from .parts import flat_inputs, flat_width, layer_options, perceptron, widths


class ESMM(nn.Module):
    """Predicts clicks, and click and conversion together as the product of two probabilities.

    Two towers on the same embeddings give the probabilities of a click, pCTR, and of a conversion after a
    click, pCVR. The two outputs are the logits of pCTR and of pCTCVR = pCTR pCVR (equation 2), so the first
    label must be the click, and the second one a click that was followed by a conversion.
    """

    narrow_pooled = True  # its inputs are cast anyway

    def __init__(
        self,
        inputs: Inputs,
        hidden: Sequence[int] = (360, 200, 80),
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        layers = layer_options("esmm", activation, dropout, batch_norm)
        if len(inputs.labels) != 2 or inputs.num_outputs != 2:
            raise UserError(
                "model 'esmm' learns two labels, clicks and clicks with a conversion, but got "
                f"{', '.join(inputs.labels) or 'none'}; name two tasks in that order"
            )
        wide, width = widths("esmm", "hidden", hidden), flat_width("esmm", inputs)
        self.inputs = inputs
        self.click = perceptron(width, wide, outputs=1, **layers)
        self.conversion = perceptron(width, wide, outputs=1, **layers)

    def of_task(self, number: int) -> list[str]:
        """Returns patterns of the names of the parameters of the click's tower, or the conversion's."""
        return [f"{('click', 'conversion')[number]}.*"]

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, 2] of a click, and of a click and a conversion."""
        x = flat_inputs(batch, self.inputs)
        click, conversion = self.click(x).float(), self.conversion(x).float()
        both = functional.logsigmoid(click) + functional.logsigmoid(conversion)
        # log(1 - pq) as log((1 - p) + p (1 - q)), which stays exact where pq is near 1
        neither = torch.logaddexp(
            functional.logsigmoid(-click), functional.logsigmoid(click) + functional.logsigmoid(-conversion)
        )
        return torch.cat([click, both - neither], dim=1)
