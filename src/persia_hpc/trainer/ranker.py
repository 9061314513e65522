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
from persia_hpc.schedule import split_evenly

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


PIECE_BYTES = 1 << 28  # of what trainers send each other at once


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
        vectors = self._vectors(model, "items")
        for part, row_batch in predict(model, "items", lambda _: lambda batch: vectors(batch).float()):
            assert row_batch.slices is not None
            ids.append(np.array(row_batch.slices[-1])[:, None])
            parts.append(part)
        items = ItemVectors(*self._shared(ids, parts), self._device)
        queries = self._vectors(model, "queries")

        def wrap(forward: Forward) -> Forward:
            def both(batch: Batch) -> Tensor:
                found = queries(batch)
                logits = forward(dataclasses.replace(batch, queries=found))
                return torch.cat([logits.reshape(batch.num_samples, -1), found.float()], dim=1)

            return both

        return Predictions(self._wanted, items), wrap

    def _shared(self, ids: list[Array], parts: list[Array]) -> tuple[Array, Array]:
        """Returns the ids [N] and vectors [N, W] of all trainers, in some order, sent in pieces.

        Collective over trainers.
        """
        peers = self._peers
        sizes = peers.gather_objects((sum(map(len, ids)), parts[0].shape[1] if parts else 0))
        rows, width = peers.broadcast(None if sizes is None else tuple(map(max, zip(*sizes, strict=True))))
        mine = concatenate(ids, 1, np.uint64), concatenate(parts, width)
        pieces = -(-rows * peers.size * max(8, 4 * width) // PIECE_BYTES)
        found: list[list[Array]] = [[], []]
        for piece in range(pieces):
            begin, end = split_evenly(0, len(mine[0]), pieces, piece)
            for column, array in zip(found, mine, strict=True):
                column.append(peers.broadcast(peers.gather(array[begin:end])))
        return np.concatenate(found[0])[:, 0], np.concatenate(found[1])

    def _vectors(self, model: nn.Module, method: str) -> Forward:
        """Returns what calls a method of the model, and checks what comes."""
        compute: Forward = getattr(model, method)

        def vectors(batch: Batch) -> Tensor:
            seen = only(batch, self._inputs.catalogue) if method == "items" else batch
            try:
                with self._precision.autocast():
                    found = compute(seen)
            except KeyError as error:
                if seen is batch or error.args[0] not in self._inputs.dims:
                    raise
                raise UserError(
                    f"the model's `items` uses {error}, which the catalogue (data.items) doesn't have; add "
                    "it there, or leave it out of the model's"
                ) from None
            if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != batch.num_samples:
                got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise UserError(
                    f"the model's `{method}` returned {got}, expected a tensor [{batch.num_samples}, W]: a "
                    "vector for each sample"
                )
            return found

        return vectors


def only(batch: Batch, names: tuple[str, ...] | None) -> Batch:
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
