"""A model computes vectors of a catalogue and queries; trainers exchange them in pieces."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from persia_hpc.errors import UserError
from persia_hpc.models import build_model
from persia_hpc.trainer import ranker
from persia_hpc.trainer.batch import Batch, FeatureSpec, Inputs
from persia_hpc.trainer.dense.precision import Precision
from persia_hpc.trainer.interfaces import NoPeers
from persia_hpc.trainer.metrics import Wanted
from persia_hpc.trainer.ranker import Ranker
from tests.support.histories import history_batch, history_inputs

CPU = torch.device("cpu")
INPUTS = Inputs(
    tuple(FeatureSpec(name, name, 0, 2, "sum", False) for name in ("user", "item")),
    0,
    ("liked",),
    catalogue=("item",),
)
WANTED = Wanted(("liked",), ranked=("recall@1",))


class Model(nn.Module):
    """Gives the vectors of features as they are."""

    def items(self, batch: Batch) -> Any:
        return batch.pooled["item"]

    def queries(self, batch: Batch) -> Any:
        return batch.pooled["user"]

    def matches(self, batch: Batch) -> Any: ...

    def forward(self, batch: Batch) -> Tensor:
        return (self.items(batch) * self.queries(batch)).sum(dim=1)  # [B], as of a careless user


class Rows:
    """What is left of a RowBatch here."""

    def __init__(self, ids: np.ndarray) -> None:
        self.slices = ids[None]


def batch_of(vectors: np.ndarray) -> Batch:
    pooled = {"item": torch.from_numpy(vectors), "user": torch.from_numpy(vectors + 1)}
    return Batch(
        1, len(vectors), torch.empty(len(vectors), 0), torch.ones(len(vectors), 1), None, None, pooled, {}, {}
    )


class Threads:
    """Peers that are threads of this process."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=30)
        self.box: list[Any] = [None] * size
        self.sent = 0

    def of(self, rank: int) -> Any:
        everybody = self

        class Peers(NoPeers):
            size = everybody.size

            def broadcast(self, value: Any) -> Any:
                return self.gather_all(value)[0]

            def gather_objects(self, value: Any) -> Any:
                found = self.gather_all(value)
                return found if rank == 0 else None

            def gather(self, array: np.ndarray) -> Any:
                everybody.sent = max(everybody.sent, array.nbytes)
                found = self.gather_all(array)
                return np.concatenate(found) if rank == 0 else None

            def gather_all(self, value: Any) -> list[Any]:
                everybody.box[rank] = value
                everybody.barrier.wait()
                found = list(everybody.box)
                everybody.barrier.wait()
                return found

        return Peers()


def make(peers: Any = None, inputs: Inputs = INPUTS) -> Ranker:
    return Ranker(WANTED, inputs, Precision("off", CPU, cache=True), peers or NoPeers(), CPU)


@pytest.mark.parametrize("parts", [[4], [3, 0, 1, 9], [0, 5], [1, 1]])
def test_all_trainers_have_all_vectors(parts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranker, "PIECE_BYTES", 40)
    rng = np.random.default_rng(len(parts))
    ids = rng.permutation(100)[: sum(parts)].astype(np.uint64)
    vectors = rng.normal(size=(len(ids), 2)).astype(np.float32)
    ends = np.cumsum([0, *parts])
    peers, found = Threads(len(parts)), [None] * len(parts)

    def trainer(rank: int) -> None:
        def predict(model: nn.Module, split: str, wrap: Any) -> Iterator[Any]:
            assert split == "items"
            part = slice(ends[rank], ends[rank + 1])
            if parts[rank]:
                yield wrap(None)(batch_of(vectors[part])).numpy(), Rows(ids[part])

        predictions, _ = make(peers.of(rank)).begin(Model(), predict)
        found[rank] = predictions._items

    threads = [threading.Thread(target=trainer, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert peers.sent <= 40
    for items in found:
        assert items is not None
        order = np.argsort(ids)
        assert np.array_equal(items._ids, ids[order])
        assert np.array_equal(items._vectors[items._vector_of], vectors[order])


def begun(model: nn.Module, inputs: Inputs = INPUTS) -> Any:
    def predict(_: nn.Module, split: str, wrap: Any) -> Iterator[Any]:
        yield wrap(None)(batch_of(np.ones((3, 2), np.float32))).numpy(), Rows(np.arange(3, dtype=np.uint64))

    return make(inputs=inputs).begin(model, predict)


def test_queries_come_behind_logits() -> None:
    _, wrap = begun(model := Model())
    batch = batch_of(np.array([[1, 2], [3, 4]], np.float32))
    assert wrap(model)(batch).tolist() == [[8, 2, 3], [32, 4, 5]]


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("name", ["sasrec", "hstu", "two_tower"])
def test_each_history_is_read_once(name: str, amp: str) -> None:
    """A built-in model's scores are of the queries that are ranked; they are what `forward` alone gives."""
    inputs = replace(history_inputs(), catalogue=("item",))
    options: dict[str, Any] = {"attend": [{"targets": ["item"], "histories": ["items"]}]}
    if name == "two_tower":
        options = {"items": ["item"], "queries": ["user", "items"], "hidden": [8], "width": 4}
    torch.manual_seed(1)
    model: Any = build_model(name, inputs, options).eval()
    batch, precision, calls = history_batch(inputs), Precision(amp, CPU, cache=True), []

    def predict(_: nn.Module, split: str, wrap: Any) -> Iterator[Any]:
        vectors = wrap(None)(batch).numpy()
        yield vectors, Rows(np.arange(len(vectors), dtype=np.uint64))

    def forward(given: Batch) -> Tensor:
        with precision.autocast():
            return model(given).float()

    with torch.no_grad():
        expected, queries = forward(batch), model.queries(batch)
        _, wrap = Ranker(WANTED, inputs, precision, NoPeers(), CPU).begin(model, predict)
        assert wrap is not None
        part = model.query_tower if name == "two_tower" else model.blocks[0]
        part.register_forward_hook(lambda *_: calls.append(1))
        made = wrap(forward)(batch)
    assert len(calls) == 1
    assert torch.equal(made[:, :1], expected)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made[:, 1:], queries, rtol=0.1, atol=0.1)


def test_nothing_is_computed_where_nothing_is_ranked() -> None:
    plain = Ranker(replace(WANTED, ranked=()), INPUTS, Precision("off", CPU, cache=True), NoPeers(), CPU)
    predictions, wrap = plain.begin(None, lambda *_: pytest.fail("no vectors are needed"))
    assert wrap is predictions._items is None


def test_a_model_that_does_not_fit_is_refused() -> None:
    class Curious(Model):
        def items(self, batch: Batch) -> Any:
            return batch.pooled["user"]

    class Flat(Model):
        def items(self, batch: Batch) -> Any:
            return batch.pooled["item"][:, 0]

    with pytest.raises(
        UserError, match=r"`items` uses 'user', which the catalogue \(data.items\) doesn't have"
    ):
        begun(Curious())
    begun(Curious(), replace(INPUTS, catalogue=None))
    with pytest.raises(UserError, match=r"`items` returned \(3,\), expected a tensor \[3, W\]"):
        begun(Flat())
    with pytest.raises(
        UserError, match=r"data.items needs a retrieval model, but Linear has no method 'queries'"
    ):
        begun(nn.Linear(1, 1))
