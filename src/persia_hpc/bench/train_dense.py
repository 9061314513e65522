"""Measures limits of `bench train` in a process of their own: the dense part alone, and plain PyTorch.

    python -m persia_hpc.bench.train_dense CASE --data DIR --batch N --samples N --threads N [--settings FILE]

CASE: `session` is our trainer, fed with batches whose rows are already there (of W0, or of the configuration
in a JSON file, which a GPU may be in); `model` the bare PyTorch loop
over our DLRM with embeddings that are already there, `textbook` the same over DLRM in torch's own
operations; `torch` is all of W0 in plain PyTorch, with one table for all features. Prints a line of JSON:
samples per second of the second half.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from persia_hpc._native import encode_rows
from persia_hpc.config import load_config
from persia_hpc.embedding_worker.engine import EmbeddingWorker
from persia_hpc.job.facts import facts_of_sources
from persia_hpc.job.training import make_session
from persia_hpc.models import build_model
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.runtime.phases import TRAINER, Phases
from persia_hpc.samples.source import open_source
from persia_hpc.trainer.batch import Batch, FeatureSpec, Inputs
from persia_hpc.trainer.device import prepare_device
from persia_hpc.trainer.driver import Driver

from .fed import lay_out
from .train_jobs import DENSE, DIM, FEATURES, VOCABULARY, w0_settings

PREPARED = 8  # different batches that are fed again and again


class Replay:
    """Gives a session batches that lie ready as in its ring, and throws gradients away. See `BatchStream`."""

    wait_seconds = 0.0

    def __init__(self, batches: list[RowBatch], multi: Sequence[str] = ()) -> None:
        """Takes the batches that are fed again and again; `multi` names the multi-hot features."""
        self.phases = Phases(TRAINER)
        block, self._batches = lay_out(batches, multi)
        self.memory = (block,)
        self._peeked: RowBatch | None = None

    def next_batch(self, step: int) -> RowBatch:
        """Returns the batch of a step."""
        batch, self._peeked = self.peek(step), None
        return batch

    def peek(self, step: int) -> RowBatch:
        """Returns the batch of a step without taking it; as if embeddings were never late."""
        if self._peeked is None or self._peeked.step != step:
            self._peeked = dataclasses.replace(self._batches[step % len(self._batches)], step=step)
        return self._peeked

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None  # whatever else a stream is told


def session(options: argparse.Namespace) -> float:
    """Returns the samples per second of the trainer without embedding roles; its pooling is included."""
    path = options.data / "train-000.h5"
    file = getattr(options, "settings", None)
    settings = json.loads(file.read_text()) if file else w0_settings(path, options.batch, options.samples)
    config = load_config(settings)
    source = open_source([str(path)])
    facts = facts_of_sources(config, {"train": source})
    worker = EmbeddingWorker(facts.layout)
    generator = np.random.default_rng(1)
    batches = []
    for step in range(PREPARED):
        begin = step * options.batch % (source.num_samples - options.batch + 1)
        sample = source.read(begin, begin + options.batch)
        keyed = worker.prepare(sample, step=step, trainer=0, num_global=options.batch)
        counts = np.diff(keyed.dedup.group_offsets.astype(np.int64))
        worker.add_rows(
            keyed,
            0,
            [
                encode_rows(generator.uniform(-0.01, 0.01, shape).astype(np.float32), config.wire.rows)
                for shape in zip(counts, facts.layout.dim_groups, strict=True)
            ],
        )
        batches.append(worker.assemble(keyed))
    stream: Any = Replay(batches, facts.layout.bags)
    trainer = make_session(facts, stream, device=prepare_device(config.train, 0))
    Driver(config, trainer.inputs).run(trainer)
    trainer.close()
    return trainer.pace.steady()["samples_per_second"]


class Textbook(nn.Module):
    """Computes DLRM in the most direct way: all products by bmm, of which the pairs are then selected."""

    def __init__(self, inputs: Inputs, hidden: int, bottom: int) -> None:
        super().__init__()
        count = len(inputs.features) + 1
        self.bottom = nn.Sequential(
            nn.Linear(inputs.num_dense, bottom), nn.ReLU(), nn.Linear(bottom, DIM), nn.ReLU()
        )
        self.rows, self.columns = torch.tril_indices(count, count, offset=-1)
        self.top = nn.Sequential(
            nn.Linear(DIM + count * (count - 1) // 2, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, batch: Batch) -> Tensor:
        """Returns the logits [B, 1]."""
        x = self.bottom(batch.dense)
        vectors = torch.cat([x.unsqueeze(1), batch.stacked()], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.rows, self.columns]
        logits: Tensor = self.top(torch.cat([x, products], dim=1))
        return logits


def plain(options: argparse.Namespace) -> float:
    """Returns the samples per second of a bare PyTorch loop."""
    names = [f"f{i:02d}" for i in range(FEATURES)]
    features = tuple(FeatureSpec(n, n, 0, DIM, "sum", False) for n in names)
    inputs = Inputs(features, DENSE, ("click",))
    settings = w0_settings(options.data, options.batch, options.samples)["model"]
    if options.case == "model":
        model = build_model(settings["class"], inputs, {k: v for k, v in settings.items() if k != "class"})
    else:
        model = Textbook(inputs, settings["hidden"][0], settings["bottom"][0])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loads = {n: np.load(options.data / f"{n}.npy", mmap_mode="r") for n in ("ids", "dense", "labels")}
    num_batches = len(loads["ids"]) // options.batch
    table = RowwiseTable(FEATURES * VOCABULARY) if options.case == "torch" else None
    shift = np.arange(FEATURES, dtype=np.int64) * VOCABULARY
    ready = torch.empty(options.batch, FEATURES, DIM).uniform_(-0.01, 0.01)
    steps, begin = options.samples // options.batch, 0.0
    for step in range(steps):
        if step == steps // 2:
            begin = time.perf_counter()
        at = slice(step % num_batches * options.batch, (step % num_batches + 1) * options.batch)
        if table is None:
            block = ready.detach().requires_grad_()
        else:
            block = table.look_up(torch.from_numpy(loads["ids"][at].astype(np.int64) + shift))
        dense, labels = (torch.from_numpy(np.array(loads[n][at])) for n in ("dense", "labels"))
        pooled = dict(zip(names, block.unbind(1), strict=True))
        batch = Batch(step, len(dense), dense, labels, None, None, pooled, {}, {tuple(names): block})
        loss = functional.binary_cross_entropy_with_logits(model(batch), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if table is not None:
            table.update()
    seconds = time.perf_counter() - begin
    return float((steps - steps // 2) * options.batch / seconds)


class RowwiseTable:
    """Is one sparse nn.Embedding for all features, with row-wise Adagrad on its coalesced gradient."""

    def __init__(self, rows: int) -> None:
        self.embedding = nn.Embedding(rows, DIM, sparse=True)
        nn.init.uniform_(self.embedding.weight, -0.01, 0.01)
        self.state = torch.zeros(rows)

    def look_up(self, ids: Tensor) -> Tensor:
        """Returns the vectors of ids.

        Shapes: int64 [B, F] in, float32 [B, F, D] out.
        """
        block: Tensor = self.embedding(ids)
        return block

    @torch.no_grad()
    def update(self) -> None:
        """Does one optimizer step, at a learning rate of 0.05."""
        weight = self.embedding.weight
        assert weight.grad is not None
        gradient = weight.grad.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        state = self.state[rows] + values.square().mean(dim=1)
        self.state[rows] = state
        weight.index_add_(0, rows, values / (state.sqrt() + 1e-8).unsqueeze(1), alpha=-0.05)
        weight.grad = None


def main() -> None:
    """Runs one case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=("session", "model", "textbook", "torch"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--settings", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    rate = session(options) if options.case == "session" else plain(options)
    print(json.dumps({"samples_per_second": rate}))


if __name__ == "__main__":
    main()
