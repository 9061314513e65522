"""Masks say which rows of shared files a checkpoint has; what no run writes is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from persia_hpc.checkpoint import parts
from persia_hpc.checkpoint.listing import describe
from persia_hpc.checkpoint.merged import CheckpointReader
from persia_hpc.checkpoint.names import is_cold
from persia_hpc.checkpoint.parts import COLUMNS, full_mask, masks_of, packed
from persia_hpc.checkpoint.records import columns_of, widths_of
from persia_hpc.checkpoint.rows import load_rows
from persia_hpc.checkpoint.tables import open_shard
from persia_hpc.checkpoint.verify import verify
from persia_hpc.errors import DataError
from tests.support.checkpoints import change_shard
from tests.support.cold_world import World, cold_files


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path, 2)
    made.train(40)
    return made


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
    elif kind == "behind":
        assert len(group.file["a/cold"]) == 1
        mask[-1] |= 128
    elif kind == "not there":
        cold.move(name, "cold-0000-9999.h5")
    elif kind == "no group":
        group.file.move(group.name, "/c")
        group.file["c"].attrs["table"] = "c"
    else:
        cold.create_group("cold-0000-0009.h5")


@pytest.mark.parametrize("kind", ["short", "wide", "behind", "a name", "not there", "no group", "a group"])
def test_masks_that_no_run_writes_are_refused(kind: str, world: World) -> None:
    path = world.save()
    if kind == "behind":
        with h5py.File(cold_files(path)[0]) as file:
            assert len(file["a/records"]) % 8, "choose another seed"
    change_shard(path, lambda shard: wrong_mask(shard["a"], kind))
    assert verify(path, lambda *_: "").problems
    with pytest.raises(DataError, match=r"server-0000\.h5|cold-0000"):
        load_rows(path, world.server(0, 2))
    with pytest.raises(DataError, match=r"server-0000\.h5|cold-0000"), CheckpointReader(path):
        pass


def test_columns_of_shared_files_are_those_of_others(world: World) -> None:
    path = world.save()
    with h5py.File(cold_files(path)[0]) as cold, h5py.File(path / "server-0000.h5") as shard:
        for table in ("a", "b"):
            own = {k for k in shard[table] if k in COLUMNS}
            assert set(widths_of(cold[table]["records"])) == own
            assert set(columns_of(cold[table]["records"][:], COLUMNS)) == own
            np.testing.assert_array_equal(cold[table]["buckets"], shard[table]["buckets"])


def other_records(group: h5py.Group, kind: str) -> None:
    records = group["records"][:]
    del group["records"]
    if kind == "numbers":
        group["records"] = records["keys"]
    elif kind == "short":
        group["records"] = records[:-1]
    elif kind == "flat":
        group["records"] = records.reshape(1, -1)
    elif kind == "no keys":
        group["records"] = records[["stamps", "checksums", "rows", "state"]]
    else:
        fields = {name: kind for name, (kind, *_) in records.dtype.fields.items()}
        fields |= {"wide": {"rows": np.dtype("<f8")}, "floats": {"keys": np.dtype("<f8")}}[kind]
        group["records"] = np.zeros(len(records), list(fields.items()))


@pytest.mark.parametrize("kind", ["numbers", "short", "flat", "no keys", "wide", "floats"])
def test_records_that_no_run_writes_are_refused(kind: str, world: World) -> None:
    path = world.save()
    change_shard(path, lambda shard: other_records(shard["a"], kind), cold_files(path)[0].name)
    assert verify(path, lambda *_: "").problems
    with pytest.raises(DataError, match=r"cold-0000"):
        load_rows(path, world.server(0, 2))
    with pytest.raises(DataError, match=r"cold-0000"), CheckpointReader(path):
        pass


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 20])
def test_the_mask_of_all_rows_has_so_many_bits(count: int) -> None:
    assert full_mask(count).tolist() == packed(np.ones(count, bool)).tolist()
    assert full_mask(count).dtype == np.uint8


def test_ls_reads_no_mask_and_verify_compares_what_it_says(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world.save()

    def refuse(*_: Any) -> None:
        raise ValueError("a dataset was read")

    with monkeypatch.context() as patch:
        patch.setattr(h5py.Dataset, "__getitem__", refuse)
        facts = describe(path)
    assert {name: table["rows"] for name, table in facts["tables"].items()} == {
        name: len(rows["keys"]) for name, rows in world.expected[world.step].items()
    }

    def change(shard: h5py.File) -> None:
        mask = shard["b/cold/cold-0000-0001.h5"]
        mask.attrs["rows"] = mask.attrs["rows"] + 1

    change_shard(path, change)
    (problem,) = verify(path, lambda *_: "").problems
    where = "server-0000.h5: table 'b': the mask of cold-0000-0001.h5"
    assert re.search(rf"{re.escape(where)} has \d+ rows, but says \d+", problem)


def test_tables_with_names_of_masks_in_older_files_are_no_masks(tmp_path: Path) -> None:
    """They had the table "a/cold/x" in the group of the table "a"."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_group("a").attrs["dim"] = 4
        file.create_group("a/cold/x").attrs["dim"] = 4
        assert masks_of(file["a"]) == {}


def test_a_server_opens_no_files_of_rows_that_are_not_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = world.save(), []

    def note(path: Path) -> h5py.File:
        opened.append(path.name)
        return open_shard(path)

    monkeypatch.setattr(parts, "open_shard", note)
    load_rows(path, world.server(1, 2))
    assert opened == ["server-0000.h5", "server-0001.h5", "cold-0001-0001.h5"]
    opened.clear()
    load_rows(path, world.server(0, 1))
    assert sorted(filter(is_cold, opened)) == [file.name for file in cold_files(path)]
