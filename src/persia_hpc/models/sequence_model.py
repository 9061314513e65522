"""Provides what models that read a history event by event share: inputs, the user's vector, layers above.

B samples, N events of all of them, W width of an event, V width of an item.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch, Inputs
from persia_hpc.trainer.jagged import Jagged
from persia_hpc.trainer.retrieval import Matches

from .histories import Attend, events_of, last_of, padded, pairs_of
from .parts import check_count, check_flag, masked_mean, perceptron, side_by_side, widths


class SequenceModel(nn.Module, ABC):
    """Turns a history into a vector of the user, by the `states` of a subclass.

    attend: one pair of target and history as in DIN, or without it the sequence that shares its table with
    a pooled feature; the history may have further features behind those that it shares with the target.
    hidden: widths of the layers above, which see all other inputs too and give logits; without it this is a
    retrieval model, and a sample's score the product of the vectors of user and target, which `normalize`
    brings to length 1. Features with `sampled` like those of the target are sampled negatives.
    """

    def __init__(
        self,
        model: str,
        inputs: Inputs,
        attend: Attend | None,
        hidden: Sequence[int] | None,
        *,
        normalize: bool,
        width: int | None = None,
        **layers: Any,
    ) -> None:
        super().__init__()
        check_flag(model, "normalize", normalize)
        pairs = pairs_of(model, inputs, attend, more=True)
        if len(pairs) != 1:
            raise UserError(
                f"model {model!r} reads one history, got {', '.join('+'.join(names) for _, names in pairs)}; "
                'name one, as in attend = [{ targets = ["item"], histories = ["clicks"] }]'
            )
        self.model, self.inputs = model, inputs
        self.targets, self.histories = pairs[0]
        if hidden is None:
            self._check_retrieval()
        dims = inputs.dims
        self.event_width = sum(dims[name] for name in self.histories)
        if width is not None:
            check_count(model, "width", width)
        self.width = width or self.event_width
        self.item_width = sum(dims[name] for name in self.targets)
        self.max_length = self._max_length()
        self.normalize = normalize
        drawn = {f.like: f.name for f in inputs.features if f.like is not None}
        self.negatives = tuple(drawn[name] for name in self.targets if name in drawn)
        if 0 < len(self.negatives) < len(self.targets):
            raise UserError(
                f"model {model!r}: all features of a target must be drawn for negatives, but of "
                f"{', '.join(self.targets)} only {', '.join(self.negatives)} are; give "
                "each a feature with `sampled`"
            )
        self.others = tuple(n for n in inputs.unpooled if n not in {*self.histories, *drawn.values()})
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
            self.matches = None  # type: ignore[assignment]  # a loss that needs it is refused before training

    @abstractmethod
    def states(self, batch: Batch, events: Jagged) -> Jagged:
        """Returns what the model knows of the user after each event, values [N, W]."""

    def user(self, batch: Batch) -> Tensor:
        """Returns the user's vector after the last event, [B, V]; zeros without events."""
        vectors: Tensor = self.to_item(last_of(self.states(batch, self.events(batch))))
        return vectors

    def queries(self, batch: Batch) -> Tensor:
        """Returns what is asked for after the last event, [B, V]."""
        return self._scaled(self.user(batch))

    def items(self, batch: Batch) -> Tensor:
        """Returns the vectors of targets as they are compared with queries, [B, V]."""
        return self._scaled(self.target(batch))

    def matches(self, batch: Batch) -> Matches:
        """Returns what each event asks for and which item is next: the sample's target after the last one.

        Raises UserError for items whose ids have no numbers.
        """
        events = self.events(batch)
        items = events.values[:, : self.item_width]
        first, target = self.histories[0], self.targets[0]
        if target not in batch.ids:
            raise UserError(
                f"model {self.model!r}: the table of {target!r} is hashed in more than two rounds, which "
                "can't tell items apart; set hash.rounds to 1 or 2"
            )
        log_q = None
        if target in batch.log_q and first in batch.log_q:
            log_q = _next(events, batch.log_q[first], batch.log_q[target])
        drawn: dict[str, Tensor] = {}
        if self.negatives:
            name, shape = self.negatives[0], (batch.num_samples, -1)
            vectors = torch.cat([batch.jagged[name].values for name in self.negatives], dim=1)
            drawn["negatives"] = self._scaled(vectors).view(*shape, self.item_width)
            drawn["negative_ids"] = batch.ids[name].view(shape)
            if name in batch.log_q:
                drawn["negative_log_q"] = batch.log_q[name].view(shape)
        return Matches(
            self._scaled(self.to_item(self.states(batch, events).values)),
            self._scaled(_next(events, items, self.target(batch))),
            _next(events, batch.ids[first], batch.ids[target]),
            events.samples(),
            log_q=log_q,
            **drawn,
        )

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
        if self.layers is None:
            queries = self.queries(batch) if batch.queries is None else batch.queries
            return (queries * self.items(batch)).sum(dim=1, keepdim=True)
        return self.logits(batch, self.user(batch) * self.target(batch))

    def logits(self, batch: Batch, vectors: Tensor) -> Tensor:
        """Returns what the layers above make of [B, V] and all other inputs, [B, outputs]."""
        assert self.layers is not None
        parts = [batch.dense] if self.inputs.num_dense else []
        parts += [batch.concatenated(self.inputs.pooled).float(), vectors]
        parts += [masked_mean(*padded(batch, name)) for name in self.others]
        logits: Tensor = self.layers(side_by_side(parts))
        return logits

    def _scaled(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors, dim=-1) if self.normalize else vectors

    def _check_retrieval(self) -> None:
        """Checks that the history's items are those of the target's tables, and that the catalogue has these.

        Raises UserError if not.
        """
        tables = {f.name: f.table for f in self.inputs.features}
        for target, history in zip(self.targets, self.histories, strict=False):
            if tables[target] != tables[history]:
                raise UserError(
                    f"model {self.model!r}: {history!r} has the table {tables[history]!r}, {target!r} the "
                    f"table {tables[target]!r}: expected the same, as an event's item is learned as the next "
                    f"one; set features.{history}.table, or give `hidden` to rank targets instead"
                )
        catalogue = self.inputs.catalogue
        if lacking := [name for name in self.targets if catalogue is not None and name not in catalogue]:
            raise UserError(
                f"model {self.model!r}: the target {lacking[0]!r} is nothing that the catalogue has; it has: "
                f"{', '.join(catalogue or ())}"
            )

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


def _next(events: Jagged, values: Tensor, targets: Tensor) -> Tensor:
    """Returns the value behind each event: that of the next one, and after the last that of the target.

    Shapes: values [N, ...] and targets [B, ...] in, [N, ...] out.
    """
    samples = events.samples()
    last = events.offsets[1:][samples] == torch.arange(1, len(values) + 1, device=values.device)
    last = last.view(-1, *[1] * (values.dim() - 1))
    return torch.where(last, targets[samples], values.roll(-1, dims=0))
