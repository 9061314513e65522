"""Checkpoints that share the files of rows on disk hold what others would, whatever happens in between."""

from __future__ import annotations

import errno
import os
import re
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
from hypothesis import example, given, settings
from hypothesis import strategies as st

from persia_hpc.checkpoint import adopt, files, shards
from persia_hpc.checkpoint.cold import MOST_FILES, ColdFile, chosen
from persia_hpc.checkpoint.listing import describe, list_run, run_text
from persia_hpc.checkpoint.manifest import read_manifest
from persia_hpc.checkpoint.names import DENSE, shard_name
from persia_hpc.checkpoint.rows import load_initial_rows, load_rows
from persia_hpc.checkpoint.shards import ShardWriter
from persia_hpc.checkpoint.verify import Verification, verify
from persia_hpc.config import load_config
from persia_hpc.errors import DataError, PersiaError
from tests.support.cold_world import APPENDS, DIM, World, assert_rows, cold_files, no_link

EVENTS = (
    *["full"] * 3,
    *("changes", "meanwhile", "crash", "full disk", "no links", "removed", "emptied", "restart"),
)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_servers=st.integers(1, 3),
    turns=st.lists(
        st.tuples(st.sampled_from(EVENTS), st.integers(0, 12), st.integers(1, 3)), min_size=2, max_size=8
    ),
)
@example(
    seed=1, num_servers=2, turns=[("full", 3, 1), ("full disk", 5, 1), ("full disk", 9, 2), ("full", 1, 3)]
)
def test_any_history_of_checkpoints(seed: int, num_servers: int, turns: list[tuple[str, int, int]]) -> None:
    """Each checkpoint is looked at once, at the end or before it goes: all has happened to it by then."""
    # What a crash of the machine leaves isn't asked for here, and waiting for a busy drive takes long.
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(os, "fsync"):
        world = World(Path(folder), num_servers, seed)
        world.train(6)
        for event, steps, number in turns:
            world.train(steps + 1)
            there = files.whole_checkpoints(world.run)
            if event == "removed" and there:
                bases = {read_manifest(path)["base"] for path in there}
                gone = there[number % len(there)]
                if gone.name not in bases:
                    world.check(read_manifest(gone)["step"], number)
                    files.remove_checkpoint(gone)
                    world.base = None
            elif event == "emptied":  # all of them, by somebody who needs the room
                if there:
                    world.check(read_manifest(there[steps % len(there)])["step"], number)
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
            elif event == "full disk":
                world.save(full_at=(steps + 13 * number) % (APPENDS * len(world.servers)))
            else:
                with ExitStack() as now:
                    if event == "no links":
                        now.enter_context(mock.patch.object(os, "link", no_link))
                    world.save(
                        incremental=event == "changes", meanwhile=number if event == "meanwhile" else 0
                    )
            world.train(1)  # a step has one checkpoint
        known: dict[Path, Verification] = {}
        for count, path in enumerate(files.whole_checkpoints(world.run)):
            assert not verify(path, lambda *_: "", known).problems
            world.check(read_manifest(path)["step"], 1 + (seed + count) % 3)
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
            cold = len(file["a/records"])
        with h5py.File(second / name.replace("cold", "server").replace("-0001.h5", ".h5")) as file:
            hot = len(file["a/keys"])
        assert cold > 2 * hot
    assert read_manifest(second)["format_version"] == 3
    seen: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        real = Path.glob
        patch.setattr(Path, "glob", lambda self, pattern: seen.append(self) or real(self, pattern))
        listed = list_run(world.run)
    assert len(seen) == len({*seen}) + 1  # each checkpoint once, the run for whole ones and for others
    sizes = {(found := path.stat()).st_ino: found.st_size for path in world.run.glob("step-*/*")}
    assert listed["bytes"] == sum(sizes.values()) < sum(each["bytes"] for each in listed["checkpoints"])
    assert re.search(r"\ntogether +\S+ \S*iB +files that several share count once", run_text(listed))
    assert "together" not in run_text(list_run(world.run, 1))
    world.train(2)
    third = world.save()
    shared = {path.name for path in cold_files(third)} & set(names)
    assert shared
    assert len(cold_files(third)) > len(shared)
    files.prune(world.run, keep=1, keep_every=0)
    assert [path.name for path in world.run.glob("step-*")] == [third.name]
    world.check(read_manifest(third)["step"], 3)


def open_files(directory: Path) -> set[str]:
    """Names of the files in a directory that this process has open."""
    links = [Path("/proc/self/fd") / number for number in os.listdir("/proc/self/fd")]
    found = [link.readlink() for link in links if link.is_symlink()]
    return {path.name for path in found if path.parent == directory}


def started(world: World, path: Path, num_servers: int) -> None:
    world.start(num_servers)
    for server in world.servers:
        load_rows(path, server)


def test_a_start_reads_rows_where_they_are_and_the_next_checkpoint_links_them(world: World) -> None:
    first = world.save()
    names = {path.name for path in cold_files(first)}
    started(world, first, 2)
    assert open_files(first) == names
    world.step += 1
    second = world.save()
    assert {path.name for path in cold_files(second)} == names
    assert all((first / name).samefile(second / name) for name in names)
    files.remove_checkpoint(first)
    world.train(3)
    third = world.save()
    assert {path.name for path in cold_files(third)} > names
    for path in (second, third):
        world.check(read_manifest(path)["step"], 3)
    world.start(1)
    assert not open_files(second)


@pytest.mark.parametrize("why", ["servers", "run", "nfs", "device", "name"])
def test_rows_that_can_not_be_shared_are_copied(why: str, world: World, monkeypatch: Any) -> None:
    """Other servers have other buckets, and another run's files aren't this one's; some names are no text."""
    if why == "name":
        world.run = world.run.with_name(os.fsdecode(b"caf\xe9"))
    first = world.save()
    if why == "nfs":
        monkeypatch.setattr(adopt, "_keeps_open_files", lambda _: False)
    elif why == "device":
        monkeypatch.setattr(adopt, "_device", lambda path: str(path))
    elif why == "run":
        world.run = world.run.with_name("other")
    started(world, first, 3 if why == "servers" else 2)
    assert bool(open_files(first)) == (why in ("servers", "run"))
    world.step += 1
    second = world.save()
    assert not any(path.stat().st_nlink > 1 for path in cold_files(second))
    world.train(2)
    third = world.save()
    assert any(path.stat().st_nlink > 1 for path in cold_files(third))
    world.check(read_manifest(third)["step"], 1)


def test_rows_that_a_smaller_tier_has_no_room_for_are_copied(world: World) -> None:
    path = world.save()
    changed = {"capacity": "8 MiB", "disk.capacity": "16 KiB"}
    given = {f"tables.{name}.{key}": value for name in ("a", "b") for key, value in changed.items()}
    world.config = load_config(world.config.resolved(), given)
    started(world, path, 2)
    assert not open_files(path)
    world.check(world.step, 2)


@pytest.mark.parametrize("meant", [True, False])
@pytest.mark.parametrize("copied", [False, True])
def test_a_start_sees_damage_of_all_that_it_uses(
    meant: bool, copied: bool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of rows that aren't meant any more: it reads whole extents later."""
    world.save()
    world.train(3)
    path = world.save()
    name = "cold-0001-0001.h5"
    with h5py.File(path / "server-0001.h5") as shard, h5py.File(path / name) as file:
        records = file["a/records"]
        live = np.unpackbits(shard[f"a/cold/{name}"][:], bitorder="little")[: len(records)]
        at = int(np.flatnonzero(live == meant)[0])
        chunk, inside = divmod(at, records.chunks[0])
        place = records.id.get_chunk_info(chunk).byte_offset + inside * records.dtype.itemsize + 20
    with (path / name).open("r+b") as data:
        data.seek(place)
        (byte,) = data.read(1)
        data.seek(place)
        data.write(bytes([byte ^ 16]))
    if copied:
        monkeypatch.setattr(adopt, "_keeps_open_files", lambda _: False)
    with pytest.raises(DataError, match=name):
        started(world, path, 2)
    assert verify(path, lambda *_: "").problems


@pytest.mark.parametrize("name", ["cold-0000-0001.h5", "cold-0001-0001.h5"])
def test_a_shared_file_of_another_run_is_refused(name: str, world: World, tmp_path: Path) -> None:
    """Its name and its size are the same."""
    (tmp_path / "other").mkdir()
    other = World(tmp_path / "other", 2)
    other.train(40)
    path, others = world.save(), other.save()
    assert (path / name).stat().st_size == (others / name).stat().st_size
    shutil.copy(others / name, path / name)
    with pytest.raises(DataError, match=name):
        started(world, path, 2)
    assert verify(path, lambda *_: "").problems


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


def test_incremental_checkpoints_between_leave_rows_shared(world: World) -> None:
    """Of the table that they hold the changes of, next to one that they hold whole."""

    def cold_rows(paths: Sequence[Path]) -> int:
        total = 0
        for path in paths:
            with h5py.File(path) as file:
                total += len(file["a/records"]) if "a" in file else 0
        return total

    first = world.save()
    world.train(2)
    between = world.save(incremental=True)
    world.train(2)
    third = world.save()
    known = [path.name for path in cold_files(first)]
    for name in known:
        assert (first / name).samefile(between / name)
        assert (first / name).samefile(third / name)
    new = [path for path in cold_files(third) if path.name not in known]
    assert cold_rows(new) < cold_rows(cold_files(first)) / 2
    for path in (first, between, third):
        world.check(read_manifest(path)["step"], 3)
        assert not verify(path, lambda *_: "").problems


@pytest.mark.parametrize("name", ["cold-0001-0001.h5", "server-0001.h5"])
def test_what_can_not_be_written_is_named(name: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def reserve(path: Path, _: int) -> None:
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "reserve_space", reserve)
    directory = files.begin_checkpoint(world.run, world.step)
    with pytest.raises(PersiaError, match=rf"checkpoint \S+/{name}: No space left on device; those before"):
        ShardWriter(world.servers[1], directory / shard_name(1)).write()
    monkeypatch.undo()
    world.save()
    world.check(world.step, 1)


def test_room_is_reserved_for_all_that_is_written(world: World) -> None:
    """Else a full disk is seen only after hours of writing."""
    server = world.servers[0]
    for layout, table, buckets in zip(server.layout.tables, server.tables, server.buckets, strict=True):
        assert table is not None
        size = shards._file_bytes(layout, table, buckets, 10**6)
        assert 10**6 * table.record_bytes <= size < 1.1 * 10**6 * table.record_bytes


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


def made(number: int, rows: int) -> ColdFile:
    return ColdFile(number, Path("x"), {}, MappingProxyType({"a": np.array([0, rows])}), token=number)


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
