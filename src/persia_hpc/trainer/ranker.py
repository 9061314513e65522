"""Makes a retrieval model compute the vectors of a catalogue and of queries, by the path of predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from persia_hpc.arrays import Array
from persia_hpc.errors import UserError
from persia_hpc.protocol.row_batch import RowBatch

from .batch import Batch, Inputs
from .dense.precision import Precision
from .evaluation import Predictions
from .interfaces import Peers, concatenate
from .metrics import Wanted
from .ranking import ItemVectors
from .retrieval import check_model

Forward = Callable[[Batch], Tensor]
Wrap = Callable[[Forward], Forward]  # makes, of what returns logits, what returns other columns
Predict = Callable[[nn.Module, str, Wrap], Iterator[tuple[Array, RowBatch]]]


class Ranker:
    """Prepares evaluations that rank a catalogue."""

    def __init__(
        self, wanted: Wanted, inputs: Inputs, precision: Precision, peers: Peers, device: torch.device
    ) -> None:
        """Takes what an evaluation uses; `wanted` says whether one ranks at all."""
        self._wanted = wanted
        self._inputs = inputs
        self._precision = precision
        self._peers = peers
        self._device = device

    def begin(self, model: nn.Module | None, predict: Predict) -> tuple[Predictions, Wrap | None]:
        """Returns where predictions of a split are to go, and what puts queries, [W] columns, behind logits.

        Where a catalogue is ranked, each trainer has computed the vectors of a part of it then. predict:
        `Session.predictions`.

        Collective over trainers.
        Raises UserError for a model that is no retrieval model or returns something else.
        """
        if not self._wanted.ranked:
            return Predictions(self._wanted), None
        assert model is not None, "call session.prepare(model) first"
        check_model(model, "data.items")
        ids: list[Array] = []
        parts: list[Array] = []
        for part, row_batch in predict(model, "items", lambda _: self._vectors(model, "items")):
            assert row_batch.slices is not None
            ids.append(np.array(row_batch.slices[-1])[:, None])
            parts.append(part)
        widths = self._peers.gather_objects(parts[0].shape[1] if parts else 0)
        width = self._peers.broadcast(max(widths) if widths is not None else 0)
        all_ids = self._peers.broadcast(self._peers.gather(concatenate(ids, 1, np.uint64)))
        vectors = self._peers.broadcast(self._peers.gather(concatenate(parts, width)))
        queries = self._vectors(model, "queries")
        items = ItemVectors(all_ids[:, 0], vectors, self._device)
        return (
            Predictions(self._wanted, items),
            lambda forward: lambda batch: torch.cat([forward(batch), queries(batch)], dim=1),
        )

    def _vectors(self, model: nn.Module, method: str) -> Forward:
        """Returns what calls a method of the model, and checks what comes."""
        compute: Forward = getattr(model, method)

        def vectors(batch: Batch) -> Tensor:
            seen = _only(batch, self._inputs.catalogue) if method == "items" else batch
            with self._precision.autocast():
                found = compute(seen)
            if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != batch.num_samples:
                got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise UserError(
                    f"the model's `{method}` returned {got}, expected a tensor [{batch.num_samples}, W]: a "
                    "vector for each sample"
                )
            return found.float()

        return vectors


def _only(batch: Batch, names: tuple[str, ...] | None) -> Batch:
    """Returns a batch without the features that the catalogue lacks, so that none can be used unnoticed."""
    if names is None:
        return batch
    return dataclasses.replace(
        batch,
        pooled={name: value for name, value in batch.pooled.items() if name in names},
        sequence={name: value for name, value in batch.sequence.items() if name in names},
        jagged={name: value for name, value in batch.jagged.items() if name in names},
        blocks={block: value for block, value in batch.blocks.items() if set(names).issuperset(block)},
    )
