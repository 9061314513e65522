"""DCN-v2 (Wang et al., WWW 2021): explicit feature crosses beside or below a deep network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch, Inputs

from .parts import PaddedLinear, flat_inputs, flat_width, layer_options, perceptron, side_by_side, widths


class Cross(nn.Module):
    """Computes one cross layer, x0 * (W x + b) + x; with a rank, W is a product V U of that rank."""

    def __init__(self, width: int, rank: int | None) -> None:
        super().__init__()
        if rank is None:
            self.weight: nn.Module = PaddedLinear(width, width)
        else:
            self.weight = nn.Sequential(PaddedLinear(width, rank, bias=False), PaddedLinear(rank, width))

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """Computes the layer from the model's input `first` (x0) and the previous layer's output `x`.

        Zero columns behind the model's stay zero. Under bf16 autocast it is all bf16, as the inputs are.

        Shapes: [B, W or more] twice in, as many out.
        """
        if isinstance(self.weight, nn.Sequential):
            down, up = self.weight
            product = up(down(x), first.shape[1])
        else:
            product = self.weight(x, first.shape[1])
        crossed: Tensor = first * product + x
        return crossed


class DCNv2(nn.Module):
    """Combines `cross_layers` cross layers and `hidden` deep layers.

    `structure` is "parallel" (both see the input, and their outputs are concatenated) or "stacked" (the deep
    layers see the crosses' output). `low_rank` makes each cross's matrix a product of two of that rank.
    """

    narrow_pooled = True  # its inputs are cast anyway

    def __init__(
        self,
        inputs: Inputs,
        hidden: Sequence[int] = (512, 256, 128),
        cross_layers: int = 3,
        low_rank: int | None = None,
        structure: str = "parallel",
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        layers = layer_options("dcn_v2", activation, dropout, batch_norm)
        if structure not in ("parallel", "stacked"):
            raise UserError(f'model \'dcn_v2\': structure must be "parallel" or "stacked", got {structure!r}')
        if not isinstance(cross_layers, int) or cross_layers < 1:
            raise UserError(f"model 'dcn_v2': cross_layers must be at least 1, got {cross_layers!r}")
        if low_rank is not None and (not isinstance(low_rank, int) or low_rank < 1):
            raise UserError(f"model 'dcn_v2': low_rank must be a positive rank or left out, got {low_rank!r}")
        deep = widths("dcn_v2", "hidden", hidden)
        width = flat_width("dcn_v2", inputs)
        self.inputs = inputs
        self.parallel = structure == "parallel"
        self.crosses = nn.ModuleList(Cross(width, low_rank) for _ in range(cross_layers))
        self.deep = perceptron(width, deep, **layers)
        self.width = width
        self.head = PaddedLinear(deep[-1] + (width if self.parallel else 0), inputs.num_outputs)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, labels]."""
        first = flat_inputs(batch, self.inputs)
        x = first
        for cross in self.crosses:
            x = cross(first, x)
        x = side_by_side([x[:, : self.width], self.deep(first)]) if self.parallel else self.deep(x)
        logits: Tensor = self.head(x)
        return logits
