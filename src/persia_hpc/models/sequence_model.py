"""Provides what models that read a history event by event share: inputs, the user's vector, layers above.

B samples, N events of all of them, W width of an event, V width of an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch, Inputs
from persia_hpc.trainer.jagged import Jagged

from .histories import Attend, events_of, last_of, padded, pairs_of
from .parts import masked_mean, perceptron, side_by_side, widths


class SequenceModel(nn.Module):
    """Turns a history into a vector of the user, by the `states` of a subclass.

    attend: one pair of target and history as in DIN, or without it the sequence that shares its table with
    a pooled feature; the history may have further features behind those that it shares with the target.
    hidden: widths of the layers above, which see all other inputs too and give logits; without it a sample's
    score is the product of the vectors of user and target.
    """

    def __init__(
        self, model: str, inputs: Inputs, attend: Attend | None, hidden: Sequence[int] | None, **layers: Any
    ) -> None:
        super().__init__()
        pairs = pairs_of(model, inputs, attend, more=True)
        if len(pairs) != 1:
            raise UserError(
                f"model {model!r} reads one history, got {', '.join('+'.join(names) for _, names in pairs)}; "
                'name one, as in attend = [{ targets = ["item"], histories = ["clicks"] }]'
            )
        self.model, self.inputs = model, inputs
        self.targets, self.histories = pairs[0]
        dims = inputs.dims
        self.width = sum(dims[name] for name in self.histories)
        self.item_width = sum(dims[name] for name in self.targets)
        self.max_length = self._max_length()
        self.others = tuple(name for name in inputs.unpooled if name not in self.histories)
        same = self.width == self.item_width
        self.to_item = nn.Identity() if same else nn.Linear(self.width, self.item_width, bias=False)
        self.layers: nn.Sequential | None = None
        if hidden is not None:
            num_others = sum(dims[name] for name in self.others)
            self.layers = perceptron(
                inputs.num_dense + inputs.pooled_width + num_others + self.item_width,
                widths(model, "hidden", hidden),
                outputs=inputs.num_outputs,
                **layers,
            )

    def states(self, batch: Batch, events: Jagged) -> Jagged:
        """Returns what the model knows of the user after each event, values [N, W]."""
        raise NotImplementedError

    def user(self, batch: Batch) -> Tensor:
        """Returns the user's vector after the last event, [B, V]; zeros without events."""
        vectors: Tensor = self.to_item(last_of(self.states(batch, self.events(batch))))
        return vectors

    def target(self, batch: Batch) -> Tensor:
        """Returns the vector of each sample's target, [B, V]."""
        return torch.cat([batch.pooled[name] for name in self.targets], dim=1).float()

    def events(self, batch: Batch) -> Jagged:
        """Returns the events of each sample, values [N, W].

        Raises UserError for features of the history that differ in length.
        """
        return events_of(batch, self.model, self.histories)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, outputs], or scores [B, 1] without layers above."""
        user, target = self.user(batch), self.target(batch)
        if self.layers is None:
            return (user * target).sum(dim=1, keepdim=True)
        return self.logits(batch, user * target)

    def logits(self, batch: Batch, vectors: Tensor) -> Tensor:
        """Returns what the layers above make of [B, V] and all other inputs, [B, outputs]."""
        assert self.layers is not None
        parts = [batch.dense] if self.inputs.num_dense else []
        parts += [batch.concatenated(self.inputs.pooled).float(), vectors]
        parts += [masked_mean(*padded(batch, name)) for name in self.others]
        logits: Tensor = self.layers(side_by_side(parts))
        return logits

    def _max_length(self) -> int:
        """Returns how many events a history has at most."""
        features = [f for f in self.inputs.features if f.name in self.histories]
        lengths = [f.max_length for f in features if f.max_length is not None]
        if not lengths:
            raise UserError(
                f"model {self.model!r} learns a vector for each position, so {', '.join(self.histories)} "
                "needs max_length, the number of events that are kept, e.g. 200"
            )
        return max(lengths)
