"""What `fresh` costs a server beside `sync`, by plain calls: nanoseconds a pulled row of each part of a step.

python benchmarks/fresh_calls.py [--trainers 1 2]          # 26 tables, Zipf 1.2, batches of 2,048
PYTHONPATH=OTHER/src python benchmarks/fresh_calls.py      # of another build

A server is alone in the process, and memory of 8 MB is touched before each call, as others would. Medians of
the second half of the steps, which meet rows that are there. What remembering costs is what early answer,
mark and pull again take more than the pull of `sync`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np

from persia_hpc._native import PendingPull
from persia_hpc.arrays import Array
from persia_hpc.config import Config, load_config
from persia_hpc.embedding_worker.engine import EmbeddingWorker
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout

T = TypeVar("T")
BATCH, VOCABULARY = 2048, 1_000_000  # of a trainer, and of a feature
NAMES = [f"f{i}" for i in range(26)]
LAYOUT_SCHEMA = DatasetSchema(tuple(FeatureSchema(name) for name in NAMES))
Keys = list[list[tuple[Array, Array]]]  # of each step and trainer: keys and counts


def config_of(mode: str, lookahead: int) -> Config:
    optimizer = {"name": "rowwise_adagrad", "lr": 0.05}
    return load_config(
        {
            "mode": mode,
            **({"lookahead": lookahead} if mode == "fresh" else {}),
            "data": {"train": ["none"], "batch_size": BATCH},
            "model": {"class": "tower"},
            "tables": {"default": {"dim": 16, "capacity": "256 MiB", "optimizer": optimizer}},
        }
    )


def draw(steps: int, trainers: int, exponent: float) -> Keys:
    """The unique keys of batches of ids from Zipf's law; the second half of the steps repeats the first."""
    rng = np.random.default_rng(0)
    shares = np.cumsum(1 / np.arange(1, VOCABULARY + 1) ** exponent)
    shares /= shares[-1]
    config = config_of("sync", 0)
    worker = EmbeddingWorker.of(config, make_layout(config, LAYOUT_SCHEMA))

    def keys() -> tuple[Array, Array]:
        ids = {name: IdColumn(np.searchsorted(shares, rng.random(BATCH)).astype(np.uint64)) for name in NAMES}
        sample = SampleBatch(ids, np.empty((BATCH, 0), np.float32), np.zeros((BATCH, 1), np.float32))
        request = worker.request(worker.prepare(sample, step=1, trainer=0, num_global=BATCH))
        return np.array(request.keys.part(0)), np.array(request.counts.part(0))

    half = [[keys() for _ in range(trainers)] for _ in range(steps)]
    return [*half, *half]


class Calls:
    """A server, and what its calls of one step have taken."""

    def __init__(self, mode: str, lookahead: int, keys: Keys) -> None:
        config = config_of(mode, lookahead)
        layout = make_layout(config, LAYOUT_SCHEMA)
        trainers = len(keys[0])
        self.server = ParameterServer(config, layout, num_trainers=trainers, num_steps=len(keys))
        self.ahead = config.lookahead if mode == "fresh" else 0
        self.keys = keys
        self.others = np.zeros(8 << 20, np.uint8)
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, call: Callable[[], T]) -> T:
        self.others += 1
        begin = time.perf_counter()
        result = call()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
        return result

    def empty(self, pull: PendingPull) -> list[Array]:
        return [np.zeros(shape, np.float32) for shape in self.server.row_shapes(pull.counts)]

    def run(self) -> dict[str, float]:
        """Trains all steps; returns nanoseconds a pulled row of each kind of call."""
        self.server.begin_segment(1, len(self.keys))
        found: dict[str, list[float]] = {}
        submitted = 0
        for step in range(1, len(self.keys) + 1):
            self.seconds = {}
            while submitted < min(step + self.ahead, len(self.keys)):
                for trainer, (keys, counts) in enumerate(self.keys[submitted]):
                    self.server.submit_pull(PendingPull(submitted + 1, trainer, keys, counts))
                submitted += 1
            rows = self.train(step)
            if step > len(self.keys) // 2:
                for name, seconds in self.seconds.items():
                    found.setdefault(name, []).append(1e9 * seconds / rows)
        return {name: statistics.median(each) for name, each in found.items()}

    def train(self, step: int) -> int:
        """Makes the calls of a step; returns how many rows it pulls."""
        server = self.server
        pulls = server.ready_pulls()
        for pull in pulls:
            if server.is_early(pull):
                self.timed("pull again", partial(server.finish, pull))
            else:
                self.timed("pull", partial(server.answer, pull, self.empty(pull)))
        for pull in server.early_pulls():
            self.timed("early", partial(server.answer_early, pull, self.empty(pull)))
        if self.ahead:
            self.timed("mark", server.mark_next)
        for pull in pulls:
            gradients = [np.full(shape, 1e-3, np.float32) for shape in server.row_shapes(pull.counts)]
            server.submit_push(step, pull.trainer, gradients)
        if self.ahead:
            for portion in self.timed("update of marked rows", server.apply_marked):
                self.timed("patch", partial(server.patch, portion, "fp32"))
        self.timed("update", server.apply_ready)
        return sum(map(len, pulls))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trainers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--lookahead", type=int, default=2)
    parser.add_argument("--exponent", type=float, default=1.2, help="of ids' Zipf law")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    for trainers in options.trainers:
        keys = draw(options.steps, trainers, options.exponent)
        for mode in ("sync", "fresh"):
            calls = Calls(mode, options.lookahead, keys)
            found = calls.run()
            ledger = calls.server.ledger
            again = f"{ledger.patched_rows / ledger.pulled_rows:.1%} sent again"
            print(
                f"{trainers} trainers, {mode}, {again}:",
                {k: round(v, 1) for k, v in found.items()},
                flush=True,
            )


if __name__ == "__main__":
    main()
