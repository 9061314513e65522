"""MMoE (Ma et al., KDD 2018): multi-task learning with a multi-gate mixture of experts.

B samples, E experts, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch, Inputs

from .parts import flat_inputs, flat_width, layer_options, perceptron, widths


class Gate(nn.Module):
    """Mixes experts by a softmax of what it sees; without `hidden` that is one matrix, as in the paper."""

    def __init__(self, num_inputs: int, hidden: Sequence[int], num_experts: int, **layers: Any) -> None:
        super().__init__()
        self.layers = perceptron(num_inputs, hidden, outputs=num_experts, **layers)

    def forward(self, x: Tensor, experts: Tensor) -> Tensor:
        """Computes the mixture; `x` [B, inputs] and `experts` [B, E, W] in, [B, W] out."""
        shares = torch.softmax(self.layers(x).float(), dim=1).to(experts.dtype)
        return torch.bmm(shares.unsqueeze(1), experts).squeeze(1)


def positive(model: str, option: str, value: int, least: int = 1) -> int:
    """Returns a count that an option gives.

    Raises UserError, which names the model and the option, unless it is an integer of at least `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"model {model!r}: {option} must be an integer of at least {least}, got {value!r}")
    return value


class MMoE(nn.Module):
    """Has experts that all tasks share, and for each task a gate that mixes them and a tower above.

    y_k = tower_k(sum over e of softmax(gate_k(x))_e expert_e(x)), equations 6 and 7. x are all inputs side by
    side; `expert`, `gate` and `tower` are widths of hidden layers.
    """

    narrow_pooled = True  # its inputs are cast anyway

    def __init__(
        self,
        inputs: Inputs,
        experts: int = 8,
        expert: Sequence[int] = (512, 256, 128),
        gate: Sequence[int] = (),
        tower: Sequence[int] = (128, 64),
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        layers = layer_options("mmoe", activation, dropout, batch_norm)
        number = positive("mmoe", "experts", experts)
        inside, above = widths("mmoe", "expert", expert), widths("mmoe", "tower", tower, empty=True)
        gates = widths("mmoe", "gate", gate, empty=True)
        width = flat_width("mmoe", inputs)
        self.inputs = inputs
        self.experts = nn.ModuleList(perceptron(width, inside, **layers) for _ in range(number))
        self.gates = nn.ModuleList(Gate(width, gates, number, **layers) for _ in inputs.labels)
        self.towers = nn.ModuleList(
            perceptron(inside[-1], above, outputs=size, **layers) for size in inputs.output_widths
        )

    def of_task(self, number: int) -> list[str]:
        """Returns patterns of the names of the parameters that only this task has."""
        return [f"gates.{number}.*", f"towers.{number}.*"]

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, outputs]."""
        x = flat_inputs(batch, self.inputs)
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)
        logits = [tower(gate(x, experts)) for gate, tower in zip(self.gates, self.towers, strict=True)]
        return torch.cat(logits, dim=1)
