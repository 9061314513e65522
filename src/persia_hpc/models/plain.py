"""Wraps a model so that it takes tensors and gives predictions, for graphs that other programs run.

B samples, K dense features, D dim, L length of a sequence, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.tasks import Tasks
from persia_hpc.trainer.batch import Batch, FeatureSpec, Inputs
from persia_hpc.trainer.jagged import Padded

DENSE = "dense"
SCORES = "scores"
LEAST_LENGTH = 2  # places of a sequence, filled or not


@dataclass(frozen=True)
class PlainInput:
    """Describes one input tensor; `shape` has names for the sizes that aren't fixed.

    kind: dense, pooled, or of a sequence its vectors, its mask, or the weights of its ids.
    """

    name: str
    kind: str
    shape: tuple[str | int, ...]
    dtype: str = "float32"
    feature: str | None = None

    def described(self) -> dict[str, Any]:
        """Returns it as the JSON beside a graph has it."""
        known = {} if self.feature is None else {"feature": self.feature}
        return {
            "name": self.name,
            "kind": self.kind,
            **known,
            "shape": list(self.shape),
            "dtype": self.dtype,
        }


def plain_inputs(inputs: Inputs) -> list[PlainInput]:
    """Returns the input tensors of a model in their order.

    A mask is that of all features of one [sequences.NAME]; features that are drawn have none.
    """
    found = [PlainInput(DENSE, "dense", ("batch", inputs.num_dense))] if inputs.num_dense else []
    streams: set[str] = set()
    for spec in _asked(inputs):
        if spec.name in inputs.pooled:
            found.append(PlainInput(f"pooled.{spec.name}", "pooled", ("batch", spec.dim), feature=spec.name))
            continue
        stream = _stream(spec)
        length = f"length of {stream}"
        found.append(
            PlainInput(f"sequence.{spec.name}", "sequence", ("batch", length, spec.dim), feature=spec.name)
        )
        if spec.weighted and spec.pooling == "jagged":
            name = f"weights.{spec.name}"
            found.append(PlainInput(name, "weights", ("batch", length), feature=spec.name))
        if stream not in streams:
            streams.add(stream)
            found.append(PlainInput(f"mask.{stream}", "mask", ("batch", length), "bool", spec.name))
    return found


def plain_tensors(batch: Batch, inputs: Inputs) -> list[Tensor]:
    """Returns a batch as these tensors, with `LEAST_LENGTH` places at least for each sequence."""
    tensors = []
    for described in plain_inputs(inputs):
        name = described.feature or ""
        if described.kind == "dense":
            tensors.append(batch.dense)
        elif described.kind == "pooled":
            tensors.append(batch.pooled[name])
        elif name in batch.sequence:
            tensors.append(_lengthened(batch.sequence[name][described.kind == "mask"]))
        else:
            jagged = batch.jagged[name]
            if described.kind == "mask":
                tensors.append(_lengthened(jagged.mask()))
            elif described.kind == "weights":
                assert jagged.weights is not None
                tensors.append(_lengthened(jagged.with_values(jagged.weights).padded()))
            else:
                tensors.append(_lengthened(jagged.padded()))
    return tensors


class PlainModel(nn.Module):
    """Is a trained model from tensors, as `plain_inputs` lists them, to predictions [B, O] float32."""

    def __init__(self, model: nn.Module, inputs: Inputs, tasks: Tasks) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.names = [described.name for described in plain_inputs(inputs)]
        self.tasks = [(task.loss, task.num_outputs) for task in tasks.each]
        self.eval()

    def forward(self, *tensors: Tensor) -> Tensor:
        """Computes predictions as `Tasks.predictions` does."""
        logits = self.model(self.batch(dict(zip(self.names, tensors, strict=True)))).float()
        logits = logits.reshape(logits.shape[0], -1)
        parts = torch.split(logits, [size for _, size in self.tasks], dim=1)
        return torch.cat([_prediction(*pair) for pair in zip(parts, self.tasks, strict=True)], dim=1)

    def batch(self, tensors: Mapping[str, Tensor]) -> Batch:
        """Returns what the model's own forward gets."""
        first = next(iter(tensors.values()))
        count = first.shape[0]
        pooled: dict[str, Tensor] = {}
        sequence: dict[str, tuple[Tensor, Tensor]] = {}
        jagged: dict[str, Padded] = {}
        for spec in _asked(self.inputs):
            if spec.name in self.inputs.pooled:
                pooled[spec.name] = tensors[f"pooled.{spec.name}"]
                continue
            mask = tensors[f"mask.{_stream(spec)}"]
            values = tensors[f"sequence.{spec.name}"]
            if spec.pooling == "sequence":
                sequence[spec.name] = (values, mask)
            else:
                weights = tensors.get(f"weights.{spec.name}")
                jagged[spec.name] = Padded.of(values, mask, weights)
        return Batch(
            step=0,
            num_samples=count,
            dense=tensors.get(DENSE, first.new_zeros((count, 0))),
            labels=first.new_zeros((count, 0)),
            weight=None,
            group=None,
            pooled=pooled,
            sequence=sequence,
            blocks={},
            jagged=dict(jagged),
            plain=True,
        )


def _lengthened(padded: Tensor) -> Tensor:
    missing = LEAST_LENGTH - padded.shape[1]
    if missing <= 0:
        return padded
    return torch.cat([padded, padded.new_zeros(padded.shape[0], missing, *padded.shape[2:])], dim=1)


def _asked(inputs: Inputs) -> list[FeatureSpec]:
    return [spec for spec in inputs.features if spec.like is None]


def _stream(spec: FeatureSpec) -> str:
    return spec.name if spec.sequence is None else f"sequences.{spec.sequence}"


def _prediction(logits: Tensor, task: tuple[str, int]) -> Tensor:
    loss = task[0]
    if loss in ("mse", "in_batch_softmax"):
        return logits
    if loss == "poisson":
        return logits.exp()
    return torch.softmax(logits, dim=1) if loss == "softmax" else torch.sigmoid(logits)
