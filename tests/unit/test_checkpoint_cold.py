"""Checkpoints that share the files of rows on disk hold what others would, whatever happens in between."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import mix
from persia_hpc.checkpoint import files
from persia_hpc.checkpoint.cold import MOST_FILES, ColdFile, chosen
from persia_hpc.checkpoint.listing import describe, list_run
from persia_hpc.checkpoint.manifest import read_manifest
from persia_hpc.checkpoint.merged import CheckpointReader
from persia_hpc.checkpoint.names import DENSE, is_cold, shard_name, step_name
from persia_hpc.checkpoint.parts import COLUMNS
from persia_hpc.checkpoint.rows import load_initial_rows, load_rows
from persia_hpc.checkpoint.shards import ShardWriter
from persia_hpc.checkpoint.tables import bucket_of
from persia_hpc.checkpoint.verify import verify
from persia_hpc.config import load_config
from persia_hpc.errors import DataError
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout

IDS, BUCKETS, DIM = 3000, 4, 16
SCHEMA = DatasetSchema((FeatureSchema("a"), FeatureSchema("b")))
Rows = dict[str, np.ndarray]


class World:
    """A run's servers, whose steps use ids at random, and what each of its checkpoints must hold."""

    def __init__(self, folder: Path, num_servers: int, seed: int = 0, *, disk: bool = True) -> None:
        (folder / "tier").mkdir(parents=True, exist_ok=True)
        self.run = folder / "run"
        common: dict[str, Any] = {"dim": DIM, "buckets": BUCKETS, "capacity": "64 KiB" if disk else "8 MiB"}
        if disk:
            common["disk"] = {"path": str(folder / "tier"), "capacity": "8 MiB"}
        tables = {
            "a": {**common, "optimizer": {"name": "adam"}},
            "b": {**common, "optimizer": {"name": "sgd"}, "eviction": "lfu"},  # always whole
        }
        given = {"data": {"train": ["none"], "batch_size": 32}, "model": {"class": "dlrm"}, "tables": tables}
        given["features"] = {name: {"table": name} for name in tables}
        self.config = load_config(given)
        self.random = np.random.default_rng(seed)
        self.step = 0
        self.base: int | None = None
        self.expected: dict[int, dict[str, Rows]] = {}
        self.start(num_servers)

    def start(self, num_servers: int) -> None:
        self.servers = [self.server(p, num_servers) for p in range(num_servers)]

    def server(self, rank: int, num_servers: int) -> ParameterServer:
        layout = make_layout(self.config, SCHEMA)
        return ParameterServer(self.config, layout, server_rank=rank, num_servers=num_servers)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            start, spread = self.random.integers(IDS), self.random.integers(60, 600)
            ids = np.unique((start + self.random.integers(0, spread, 250)) % IDS).astype(np.uint64)
            keys = np.sort(mix(ids))
            grads = self.random.normal(size=(len(keys), DIM)).astype(np.float32)
            buckets = bucket_of(keys, BUCKETS)
            for server in self.servers:
                for table in server.tables:
                    assert table is not None
                    mine = (buckets >= table.first_bucket) & (buckets < table.end_bucket)
                    out, slots = np.empty((mine.sum(), DIM), np.float32), np.empty(mine.sum(), np.uint32)
                    epoch = table.pull(keys[mine], self.step, out, slots)
                    table.push(keys[mine], slots, grads[mine], self.step, epoch)
                    table.evict(self.step)

    def rows(self, servers: Sequence[ParameterServer] | None = None) -> dict[str, Rows]:
        found: dict[str, list[Rows]] = {"a": [], "b": []}
        for server in servers or self.servers:
            for name, table in zip(found, server.tables, strict=True):
                assert table is not None
                found[name] += [table.export_bucket(b) for b in range(table.first_bucket, table.end_bucket)]
        return {
            name: {k: np.concatenate([piece[k] for piece in pieces]) for k in pieces[0]}
            for name, pieces in found.items()
        }

    def save(self, *, incremental: bool = False, crash: bool = False, meanwhile: int = 0) -> Path:
        base = self.base if incremental else None
        directory = files.begin_checkpoint(self.run, step := self.step)
        expected = self.rows()
        writers = [
            ShardWriter(server, directory / shard_name(p), base or 0) for p, server in enumerate(self.servers)
        ]
        self.train(meanwhile)
        for writer in writers:
            writer.write()
        if crash:
            self.base = None
            return directory
        (directory / DENSE).write_bytes(b"")
        files.finish_part(directory / DENSE)
        facts: dict[str, Any] = {"config": self.config, "schema": SCHEMA, "versions": {}}
        name = None if base is None else step_name(base)
        path = files.finish_checkpoint(directory, step=step, base=name, num_samples={"train": 1}, **facts)
        self.expected[step] = expected
        if base is None:
            self.base = step
        return path

    def check(self, step: int, num_servers: int) -> None:
        """A checkpoint that is there holds the rows of its moment for any servers and readers."""
        directory, expected = self.run / step_name(step), self.expected[step]
        servers = [self.server(p, num_servers) for p in range(num_servers)]
        for server in servers:
            load_rows(directory, server)
        got = self.rows(servers)
        with CheckpointReader(directory) as reader:
            for name, rows in expected.items():
                assert_rows(got[name], rows)
                assert_rows(reader.tables[name].read(0, BUCKETS), rows)


def assert_rows(got: Rows, expected: Rows) -> None:
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        assert got[name].tobytes() == values.tobytes(), name


def cold_files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if is_cold(path.name))


def no_link(*_: Any, **__: Any) -> None:
    raise PermissionError(1, "Operation not permitted")


EVENTS = (*["full"] * 3, "changes", "meanwhile", "crash", "no links", "removed", "emptied", "restart")


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_servers=st.integers(1, 3),
    turns=st.lists(
        st.tuples(st.sampled_from(EVENTS), st.integers(0, 12), st.integers(1, 3)), min_size=2, max_size=8
    ),
)
def test_any_history_of_checkpoints(seed: int, num_servers: int, turns: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patched:
        world = World(Path(folder), num_servers, seed)
        world.train(6)
        for event, steps, number in turns:
            world.train(steps + 1)
            there = files.whole_checkpoints(world.run)
            if event == "removed" and there:
                bases = {read_manifest(path)["base"] for path in there}
                gone = there[number % len(there)]
                if gone.name not in bases:
                    files.remove_checkpoint(gone)
                    world.base = None
            elif event == "emptied":  # all of them, by somebody who needs the room
                shutil.rmtree(world.run, ignore_errors=True)
                world.base = None
            elif event == "restart" and there:
                files.discard_partial(world.run)
                step = read_manifest(there[0])["step"]
                world.start(number)
                for server in world.servers:
                    load_rows(there[0], server)
                world.step, world.base = max(step, world.step), None  # the rows are again as they were
            elif event == "crash":
                world.save(crash=True)
            else:
                with ExitStack() as now:
                    if event == "no links":
                        now.enter_context(mock.patch.object(os, "link", no_link))
                    world.save(
                        incremental=event == "changes", meanwhile=number if event == "meanwhile" else 0
                    )
            world.train(1)  # a step has one checkpoint
            there = files.whole_checkpoints(world.run)
            if there:
                world.check(read_manifest(there[steps % len(there)])["step"], number)
        del patched
        for path in files.whole_checkpoints(world.run):
            assert not verify(path, lambda *_: "").problems
            world.check(read_manifest(path)["step"], 2)
        files.discard_partial(world.run)
        left = {p.name for p in world.run.glob("step-*")} if world.run.exists() else set()
        assert left == {p.name for p in files.whole_checkpoints(world.run)}


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path, 2)
    made.train(40)
    return made


def test_a_row_on_disk_is_written_once_and_linked_after(world: World) -> None:
    """Two checkpoints of one moment: the second has the same files, and none of its own."""
    first = world.save()
    world.step += 1
    world.expected.clear()
    second = world.save()
    names = [path.name for path in cold_files(first)]
    assert names == ["cold-0000-0001.h5", "cold-0001-0001.h5"] == [p.name for p in cold_files(second)]
    for name in names:
        assert (first / name).samefile(second / name)
        with h5py.File(second / name) as file:
            cold = len(file["a/keys"])
        with h5py.File(second / name.replace("cold", "server").replace("-0001.h5", ".h5")) as file:
            hot = len(file["a/keys"])
        assert cold > 2 * hot
    assert read_manifest(second)["format_version"] == 3
    world.train(2)
    third = world.save()
    shared = {path.name for path in cold_files(third)} & set(names)
    assert shared
    assert len(cold_files(third)) > len(shared)
    files.prune(world.run, keep=1, keep_every=0)
    assert [path.name for path in world.run.glob("step-*")] == [third.name]
    world.check(read_manifest(third)["step"], 3)


def test_a_checkpoint_with_shared_files_is_a_whole_one(world: World, tmp_path: Path) -> None:
    """A copy of its directory alone is read anywhere; what `ls` counts is what there is."""
    for _ in range(3):
        path = world.save()
        world.train(2)
    assert len(cold_files(path)) > 2
    copy = tmp_path / "elsewhere" / path.name
    shutil.copytree(path, copy)
    shutil.rmtree(world.run)
    world.run = copy.parent
    world.check(read_manifest(copy)["step"], 1)
    facts, expected = describe(copy), world.expected[read_manifest(copy)["step"]]
    for name, rows in expected.items():
        assert facts["tables"][name]["rows"] == len(rows["keys"])
        assert facts["tables"][name]["bytes"] > 4 * DIM * len(rows["keys"])
    assert verify(copy, lambda *_: "").rows == sum(len(rows["keys"]) for rows in expected.values())
    assert list_run(copy.parent)["checkpoints"][0]["name"] == copy.name


def test_another_run_begins_with_these_rows(world: World, tmp_path: Path) -> None:
    path = world.save()
    new = World(tmp_path / "new", 1, disk=False)
    load_initial_rows(path, new.servers[0])
    for name, rows in world.expected[world.step].items():
        got = new.rows()[name]
        assert_rows({k: got[k] for k in got if k != "stamps"}, {k: rows[k] for k in rows if k != "stamps"})


def test_a_table_without_a_disk_writes_what_it_always_did(tmp_path: Path) -> None:
    world = World(tmp_path, 1, disk=False)
    world.train(20)
    path = world.save()
    assert read_manifest(path)["format_version"] == 2
    assert sorted(p.name for p in path.iterdir()) == [DENSE, "manifest.json", "server-0000.h5"]
    with h5py.File(path / "server-0000.h5") as file:
        assert "cold" not in file["a"]
        assert file["a/rows"].chunks is None


def damage_of(name: str, world: World, path: Path) -> None:
    cold, shard = path / "cold-0001-0001.h5", path / "server-0001.h5"
    if name == "a byte":
        content = bytearray(cold.read_bytes())
        content[len(content) // 2] ^= 4
        cold.write_bytes(content)
    elif name == "gone":
        cold.unlink()
    elif name == "cut off":
        os.truncate(cold, 5000)
    elif name == "a link":
        cold.rename(world.run.parent / "outside")
        cold.symlink_to(world.run.parent / "outside")
    else:
        with h5py.File(shard, "r+") as file:
            mask = file[f"a/cold/{cold.name}"]
            mask[0] ^= 1


@pytest.mark.parametrize("name", ["a byte", "gone", "cut off", "a link", "a mask"])
def test_damage_of_a_shared_file_is_found(name: str, world: World) -> None:
    """By `verify`, in each checkpoint that has the file, and by whoever reads the rows."""
    first = world.save()
    world.train(2)
    second = world.save()
    assert (first / "cold-0001-0001.h5").samefile(second / "cold-0001-0001.h5")
    damage_of(name, world, second)
    both = name in ("a byte", "cut off")  # in place
    for path, damaged in ((second, True), (first, both)):
        assert bool(verify(path, lambda *_: "").problems) == damaged
    with pytest.raises(DataError, match=r"(cold|server)-0001"):  # each compares its share of the files
        _ = [load_rows(second, world.server(rank, 2)) for rank in (0, 1)]
    with pytest.raises(DataError, match=r"(cold|server)-0001"), CheckpointReader(second):
        pass


def wrong_mask(group: h5py.Group, kind: str) -> None:
    cold = group["cold"]
    name, mask = next(iter(cold.items()))
    if kind == "short":
        values = mask[:-1]
        del cold[name]
        cold[name] = values
    elif kind == "wide":
        values = mask[:].astype(np.uint16)
        del cold[name]
        cold[name] = values
    elif kind == "a name":
        cold.move(name, "../evil.h5")
    elif kind == "not there":
        cold.move(name, "cold-0000-9999.h5")
    elif kind == "no group":
        group.file.move(group.name, "/c")
        group.file["c"].attrs["table"] = "c"
    else:
        cold.create_group("cold-0000-0009.h5")


@pytest.mark.parametrize("kind", ["short", "wide", "a name", "not there", "no group", "a group"])
def test_masks_that_no_run_writes_are_refused(kind: str, world: World) -> None:
    from tests.support.checkpoints import change_shard

    path = world.save()
    change_shard(path, lambda shard: wrong_mask(shard["a"], kind))
    assert verify(path, lambda *_: "").problems
    with pytest.raises(DataError, match=r"server-0000\.h5|cold-0000"):
        load_rows(path, world.server(0, 2))
    with pytest.raises(DataError, match=r"server-0000\.h5|cold-0000"), CheckpointReader(path):
        pass


def made(number: int, rows: int) -> ColdFile:
    return ColdFile(number, Path("x"), {}, MappingProxyType({"a": np.array([0, rows])}))


@given(st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 1)), max_size=MOST_FILES))
def test_files_are_chosen_so_that_there_are_few_and_they_are_full(sizes: list[tuple[int, float]]) -> None:
    """What isn't chosen is copied: of those mostly used at most the smaller half, if there are too many."""
    found = [made(i, rows) for i, (rows, _) in enumerate(sizes)]
    live = {i: int(rows * share) for i, (rows, share) in enumerate(sizes)}
    taken = chosen(found, live)
    assert len(taken) < MOST_FILES
    assert all(2 * live[file.number] >= file.rows for file in taken)
    left = [f for f in found if f not in taken and 2 * live[f.number] >= f.rows]
    assert not left or len(found) == MOST_FILES
    if left:
        assert max(live[f.number] for f in left) <= min(live[f.number] for f in taken)


def test_columns_of_shared_files_are_those_of_others(world: World) -> None:
    path = world.save()
    with h5py.File(cold_files(path)[0]) as cold, h5py.File(path / "server-0000.h5") as shard:
        for table in ("a", "b"):
            assert {k for k in cold[table] if k in COLUMNS} == {k for k in shard[table] if k in COLUMNS}
            np.testing.assert_array_equal(cold[table]["buckets"], shard[table]["buckets"])
