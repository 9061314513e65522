"""PLE (Tang et al., "Progressive layered extraction: a novel multi-task learning model", RecSys 2020).

B samples, E experts, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch, Inputs

from .mmoe import Gate, positive
from .parts import flat_inputs, flat_width, layer_options, perceptron, widths


class Extraction(nn.Module):
    """Is one level: experts of each task and shared ones, mixed by a gate for each task and a shared gate.

    A task's gate mixes its own experts and the shared ones; the shared gate mixes all.
    """

    def __init__(
        self,
        num_inputs: int,
        hidden: Sequence[int],
        gate: Sequence[int],
        *,
        tasks: int,
        own: int,
        shared: int,
        last: bool,
        **layers: Any,
    ) -> None:
        """Makes a level of `own` experts for each of `tasks`; the last one needs no shared gate."""
        super().__init__()

        def experts(number: int) -> nn.ModuleList:
            return nn.ModuleList(perceptron(num_inputs, hidden, **layers) for _ in range(number))

        self.own = nn.ModuleList(experts(own) for _ in range(tasks))
        self.shared = experts(shared)
        self.gates = nn.ModuleList(Gate(num_inputs, gate, own + shared, **layers) for _ in range(tasks))
        total = own * tasks + shared
        self.shared_gate = None if last else Gate(num_inputs, gate, total, **layers)

    def forward(self, of_tasks: Sequence[Tensor], of_all: Tensor) -> tuple[list[Tensor], Tensor]:
        """Computes the level; [B, inputs] of each task and of all in, [B, W] of each out."""
        shared = [expert(of_all) for expert in self.shared]
        own = []
        for experts, x in zip(self.own, of_tasks, strict=True):
            assert isinstance(experts, nn.ModuleList)
            own.append([expert(x) for expert in experts])
        mixed = [
            gate(x, torch.stack([*mine, *shared], dim=1))
            for gate, x, mine in zip(self.gates, of_tasks, own, strict=True)
        ]
        if self.shared_gate is None:
            return mixed, of_all
        everything = torch.stack([*(y for mine in own for y in mine), *shared], dim=1)
        return mixed, self.shared_gate(of_all, everything)


class PLE(nn.Module):
    """Separates what tasks share from what is their own, level by level; towers stand on the last one.

    Each entry of `experts` holds the widths of the experts' layers of one level. The shared gate mixes the
    experts of all tasks, as in the paper (figure 5); some libraries let it mix only the shared ones.
    """

    narrow_pooled = True  # its inputs are cast anyway

    def __init__(
        self,
        inputs: Inputs,
        experts: Sequence[Sequence[int]] = ((512, 256), (128,)),
        own: int = 2,
        shared: int = 1,
        gate: Sequence[int] = (),
        tower: Sequence[int] = (128, 64),
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        layers = layer_options("ple", activation, dropout, batch_norm)
        if not isinstance(experts, list | tuple) or not experts:
            raise UserError(
                "model 'ple': experts must be a list of levels, each of widths like [[256], [128]], got "
                f"{experts!r}"
            )
        levels = [widths("ple", "experts", level) for level in experts]
        gates, above = widths("ple", "gate", gate, empty=True), widths("ple", "tower", tower, empty=True)
        own, shared = positive("ple", "own", own), positive("ple", "shared", shared)
        width = flat_width("ple", inputs)
        self.inputs = inputs
        self.levels = nn.ModuleList()
        for number, level in enumerate(levels, 1):
            last = number == len(levels)
            tasks = len(inputs.labels)
            self.levels.append(
                Extraction(width, level, gates, tasks=tasks, own=own, shared=shared, last=last, **layers)
            )
            width = level[-1]
        self.towers = nn.ModuleList(
            perceptron(width, above, outputs=size, **layers) for size in inputs.output_widths
        )

    def of_task(self, number: int) -> list[str]:
        """Returns patterns of the names of the parameters of this task's own experts, gates and tower."""
        return [f"levels.*.own.{number}.*", f"levels.*.gates.{number}.*", f"towers.{number}.*"]

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, outputs]."""
        of_all = flat_inputs(batch, self.inputs)
        of_tasks = [of_all] * len(self.inputs.labels)
        for level in self.levels:
            of_tasks, of_all = level(of_tasks, of_all)
        return torch.cat([tower(x) for tower, x in zip(self.towers, of_tasks, strict=True)], dim=1)
