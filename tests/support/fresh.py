"""A small job by plain calls, in `sync` or in `fresh` with answers, patches and pushes in any order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from persia_hpc._native import PendingPull, decode_rows, encode_rows
from persia_hpc.config import load_config
from persia_hpc.embedding_worker.engine import EmbeddingWorker, KeyBatch
from persia_hpc.embedding_worker.patches import Patches
from persia_hpc.embedding_worker.rings import TrainerRings
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.parameter_server.first import Portion
from persia_hpc.protocol.messages import Patch
from persia_hpc.protocol.wire import WIRES
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout
from persia_hpc.trainer.patches import EarlyBatches
from tests.unit.test_transport_ring_ends import Ring

FEATURES = ("a", "b", "c")  # c has another dim and so another group
SCHEMA = DatasetSchema(tuple(FeatureSchema(name) for name in FEATURES))
Ids = Sequence[Sequence[Sequence[Sequence[int]]]]  # of each step, trainer and feature
Key = tuple[int, int]  # step, trainer


def config_of(mode: str, table: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "mode": mode,
        "data": {"train": ["none"], "batch_size": 1},
        "model": {"class": "tower"},
        "tables": {"default": {"dim": 4, "buckets": 4, **table}, "c": {"dim": 3, "buckets": 2, **table}},
        "features": {"c": {"table": "c"}},
        **changes,
    }


class World:
    """Servers, a worker and scripted trainers; `seen` has the rows that each trainer computed with."""

    def __init__(
        self,
        config: dict[str, Any],
        servers: int,
        trainers: int,
        steps: int,
        seed: int = 0,
        restless: bool = False,
    ) -> None:
        """Makes empty servers. restless: exports begin and end at random moments, between parts as well."""
        self.config = load_config(config)
        layout = make_layout(self.config, SCHEMA)
        self.servers = [
            ParameterServer(
                self.config, layout, server_rank=p, num_servers=servers, num_trainers=trainers,
                num_steps=steps, threads=1,
            )
            for p in range(servers)
        ]  # fmt: skip
        self.worker = EmbeddingWorker.of(self.config, layout, servers)
        self.trainers = trainers
        self.rows, self.gradients = (WIRES[w] for w in (self.config.wire.rows, self.config.wire.gradients))
        self.seen: dict[Key, list[bytes]] = {}
        self.batches: dict[Key, KeyBatch] = {}
        self.final: list[tuple[Key, list[np.ndarray]]] = []  # computed, not pushed yet
        self.random = random.Random(seed)
        self.restless = restless
        self.exporting: set[int] = set()  # servers whose tables set rows aside, so that they aren't calm
        self.rings = [Ring() for _ in range(trainers)]
        rings: dict[int, Any] = {
            t: TrainerRings(None, None, ring.sender)  # type: ignore[arg-type]
            for t, ring in enumerate(self.rings)
        }
        self.patches = Patches(layout, servers, rings)
        self.early = [EarlyBatches() for _ in range(trainers)]
        self.sent: dict[tuple[int, int, int], list[np.ndarray]] = {}  # early, by step, trainer and server
        # Places of the gradients that may come first, and of those that still do, and what follows them.
        self.wanted: dict[tuple[int, int, int], list[np.ndarray]] = {}
        self.coming: dict[tuple[int, int, int], list[np.ndarray]] = {}
        self.said: dict[tuple[int, int, int], list[set[int]]] = {}  # places in patches

    def prepare(self, key: Key, ids: Sequence[Sequence[int]]) -> KeyBatch:
        columns = {n: IdColumn(np.array(v, np.uint64)) for n, v in zip(FEATURES, ids, strict=True)}
        count = len(ids[0])
        sample = SampleBatch(columns, np.empty((count, 0), np.float32), np.zeros((count, 1), np.float32))
        batch = self.worker.prepare(sample, step=key[0], trainer=key[1], num_global=count)
        self.patches.begin(batch)
        self.batches[key] = batch
        return batch

    def pull_of(self, batch: KeyBatch, server: int) -> PendingPull:
        keys, counts, _ = self.worker.request(batch)
        return PendingPull(batch.step, batch.trainer, keys.part(server), counts.part(server))

    def empty(self, server: int, counts: np.ndarray) -> list[np.ndarray]:
        shapes = self.servers[server].row_shapes(counts)
        return [np.empty(self.rows.shape(*shape), self.rows.dtype) for shape in shapes]

    def compute(self, key: Key, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Gradients that depend on every row, on the step and on the trainer."""
        self.seen[key] = [each.tobytes() for each in rows]
        wave = np.float32(np.sin(key[0] + 10 * key[1]))
        dims = self.worker.layout.dim_groups
        values = [decode_rows(each, dim) for each, dim in zip(rows, dims, strict=True)]
        return [encode_rows(np.float32(0.3) * each + wave, self.gradients.name) for each in values]

    def push(self, batch: KeyBatch, server: int, gradients: list[np.ndarray]) -> bool:
        """Returns whether it was all: gradients that a server wants first may come alone, or not."""
        engine, key = self.servers[server], (batch.step, batch.trainer, server)
        parts = [np.array(each.part(server)) for each in self.worker.split_gradients(batch, gradients)]
        ends = np.cumsum([len(part) for part in parts])
        places = self.wanted.pop(key, None)
        if places is not None and self.random.randrange(4) > 0:
            others = np.delete(np.arange(ends[-1], dtype=np.uint32), np.concatenate(places))
            self.coming[key] = [*places, others]
        first = len(self.coming.get(key, ())) > 1
        if key in self.coming:
            chosen = np.zeros(ends[-1], bool)
            chosen[self.coming[key].pop(0) if first else self.coming.pop(key)[0]] = True
            parts = [part[mask] for part, mask in zip(parts, np.split(chosen, ends[:-1]), strict=True)]
        (engine.firsts.add if first else engine.submit_push)(*key[:2], parts)
        return not first

    def begin(self, first: int, last: int) -> None:
        for server in self.servers:
            server.begin_segment(first, last)

    def run_in_turn(self, first: int, ids: Ids) -> None:
        """Trains one step after the other."""
        self.begin(first, first + len(ids) - 1)
        for step, of_trainers in enumerate(ids, first):
            pushes = []
            for trainer, of_features in enumerate(of_trainers):
                batch = self.prepare((step, trainer), of_features)
                for p, server in enumerate(self.servers):
                    server.submit_pull(self.pull_of(batch, p))
                    (pull,) = server.ready_pulls()
                    out = self.empty(p, pull.counts)
                    server.answer(pull, out)
                    self.worker.add_rows(batch, p, out)
                pushes.append((batch, self.compute((step, trainer), self.worker.assemble(batch).rows)))
            for p, server in enumerate(self.servers):
                for batch, gradients in pushes:
                    self.push(batch, p, gradients)
                server.apply_ready()

    def run_ahead(self, first: int, ids: Ids, ahead: int) -> None:
        """Trains with pulls that come up to `ahead` steps too soon, everything else in a random order."""
        last = first + len(ids) - 1
        self.begin(first, last)
        wanted = list(product(range(first, last + 1), range(self.trainers)))
        on_way: list[tuple[int, PendingPull]] = []  # pulls, and then pushes, to servers
        pushes: list[tuple[int, KeyBatch, list[np.ndarray]]] = []
        done: set[Key] = set()
        while len(done) < len(ids) * self.trainers or on_way or pushes:
            action = self.random.randrange(4)
            oldest = min((k[0] for k in self.batches if k[0] >= first and k not in done), default=last)
            if action == 0 and wanted and wanted[0][0] - oldest <= ahead:
                step, trainer = wanted.pop(0)
                batch = self.prepare((step, trainer), ids[step - first][trainer])
                on_way += [(p, self.pull_of(batch, p)) for p in range(len(self.servers))]
            elif action == 1 and on_way:
                p, pull = on_way.pop(self.random.randrange(len(on_way)))
                self.servers[p].submit_pull(pull)
            elif action == 2 and pushes:
                p, batch, gradients = pushes.pop(self.random.randrange(len(pushes)))
                if not self.push(batch, p, gradients):
                    pushes.append((p, batch, gradients))
            else:
                self.serve(self.random.randrange(len(self.servers)))
            for key, gradients in self.finished():
                done.add(key)
                pushes += [(p, self.batches[key], gradients) for p in range(len(self.servers))]
        for p in range(len(self.servers)):
            self.serve(p)

    def serve(self, p: int) -> None:
        """Lets a server do what it may, as its loop does."""
        server = self.servers[p]
        while True:
            for pull in server.ready_pulls():
                if server.is_early(pull):
                    if server.finish(pull):
                        self.send_patch(p, Portion(pull))
                    continue
                self.answer(p, pull)
            self.export_or_not(p)
            while self.random.randrange(2):
                portions = server.apply_marked()
                if not portions:
                    break
                for portion in portions:
                    self.send_patch(p, portion)
                self.export_or_not(p)
                if self.random.randrange(4) == 0:
                    return  # so that gradients may come before their pull is made
            if not server.apply_ready():
                break
        if self.random.randrange(2):
            server.mark_next()
        if self.random.randrange(2):
            for wish in server.want_first(self.random.choice([1.0, 32.0, np.inf])):
                self.wanted[wish.pull.step, wish.pull.trainer, p] = wish.places
        if self.random.randrange(2):
            for portion in server.final_rows():
                self.send_patch(p, portion)
        self.answer_early(p)

    def export_or_not(self, p: int) -> None:
        """Lets an export begin or end, perhaps."""
        if not self.restless or self.random.randrange(4):
            return
        for table in self.servers[p].tables:
            if table is not None:
                table.end_snapshot() if p in self.exporting else table.begin_snapshot()
        self.exporting ^= {p}

    def answer(self, p: int, pull: PendingPull) -> None:
        """Answers a pull for good, with an empty patch."""
        key, out = (pull.step, pull.trainer), self.empty(p, pull.counts)
        self.servers[p].answer(pull, out)
        self.feed(key, p, out)
        self.patch(key, p, [np.empty(0, np.uint32) for _ in out], self.empty(p, pull.counts * 0))

    def answer_early(self, p: int) -> None:
        """Answers all pulls that may be answered early."""
        for pull in self.servers[p].early_pulls():
            out = self.empty(p, pull.counts)
            self.servers[p].answer_early(pull, out)
            self.sent[pull.step, pull.trainer, p] = [rows.copy() for rows in out]
            self.feed((pull.step, pull.trainer), p, out)

    def send_patch(self, p: int, portion: Portion) -> None:
        """Also checks what is sent twice: what a missed step has used, what differs, and what began anew."""
        patch, pull = self.servers[p].patch(portion, self.rows.name), portion.pull
        before = self.sent[pull.step, pull.trainer, p]
        missed = range(pull.step - self.config.lookahead, pull.step)
        batches = [batch for key, batch in self.batches.items() if key[0] in missed]
        used = [self.keys_of(self.pull_of(batch, p)) for batch in batches]
        said = self.said.setdefault((pull.step, pull.trainer, p), [set() for _ in patch.positions])
        anew = self.servers[p].ledger.evicted_rows > 0 or any(
            table.config.ttl or table.config.admission for table in self.worker.layout.tables
        )
        for group, (at, now) in enumerate(zip(patch.positions, patch.rows, strict=True)):
            assert len(set(at.tolist())) == len(at) == len(now)
            assert anew or not said[group] & set(at.tolist())
            said[group].update(at.tolist())
            keys = self.keys_of(pull)[group]
            for place, row in zip(at.tolist(), now, strict=True):
                same = before[group][place].tobytes() == row.tobytes()
                assert anew or not same or any(keys[place] in others[group] for others in used)
        self.patch((pull.step, pull.trainer), p, patch.positions, patch.rows, portion.left)

    def keys_of(self, pull: PendingPull) -> list[list[tuple[int, int]]]:
        """The table and key of each row of a pull, by dim group."""
        layout, ends = self.worker.layout, np.cumsum(pull.counts).tolist()
        groups: list[list[tuple[int, int]]] = [[] for _ in layout.dim_groups]
        for table, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            groups[layout.dim_group_of_table[table]] += [(table, k) for k in pull.keys[begin:end].tolist()]
        return groups

    def feed(self, key: Key, p: int, rows: list[np.ndarray]) -> None:
        batch = self.batches[key]
        if self.worker.add_rows(batch, p, rows):
            self.ready(self.early[key[1]].add(self.worker.assemble(batch)))

    def patch(
        self, key: Key, p: int, positions: list[np.ndarray], rows: list[np.ndarray], left: int = 0
    ) -> None:
        self.patches.take(self.batches[key], p, Patch(*key, positions, rows, left))
        ring = self.rings[key[1]]
        ring.sender.progress()
        while (record := ring.receiver.poll()) is not None:
            self.ready(self.early[key[1]].patch(Patch.unpack(record)))
            record.release()

    def ready(self, batch: Any) -> None:
        if batch is not None:
            key = (batch.step, batch.trainer)
            self.final.append((key, self.compute(key, batch.rows)))

    def finished(self) -> list[tuple[Key, list[np.ndarray]]]:
        found, self.final = self.final, []
        return found

    def tables(self) -> list[Any]:
        """What the servers hold at the end, by table and bucket."""
        found = []
        for number in range(len(self.worker.layout.tables)):
            for server in self.servers:
                table, owned = server.tables[number], server.buckets[number]
                for bucket in owned:
                    assert table is not None
                    found.append({k: v.tobytes() for k, v in table.export_bucket(bucket).items()})
        return found

    def ledger(self) -> dict[str, int]:
        """The sums of the servers' counters."""
        return {k: sum(vars(s.ledger)[k] for s in self.servers) for k in vars(self.servers[0].ledger)}
