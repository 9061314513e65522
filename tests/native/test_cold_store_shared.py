"""Tables that read rows on disk from files that a checkpoint has."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import DiskError, Table

from .table_model import assert_same_rows
from .table_support import DISK, OPTIMIZERS, arguments, export, lookup, make_table
from .tier_support import IDS, Steps, fill

BUCKETS = 4
ROWS = 20_000
kinds = st.sampled_from([{}, {"ttl": 70}, {"eviction": "lfu"}, {"admit_probability": 0.7}])


class File:
    """A file with records as `copy_buckets` gave them, in chunks that lie in any order."""

    def __init__(self, folder: str, pieces: list[np.ndarray], chunk_rows: int, random: Any) -> None:
        self.path = f"{folder}/{random.integers(1 << 60)}"
        self.chunk_rows = chunk_rows
        records = np.concatenate(pieces)
        self.offsets = np.cumsum([0, *map(len, pieces)], dtype=np.uint64)
        cuts = range(0, len(records), chunk_rows)
        places = random.permutation(len(cuts))
        room = chunk_rows * records.shape[1] + 24
        with Path(self.path).open("wb") as file:
            file.truncate(16 + room * len(cuts))
            for place, at in zip(places, cuts, strict=True):
                file.seek(16 + int(place) * room)
                file.write(records[at : at + chunk_rows].tobytes())
        self.chunks = (16 + places * room).astype(np.uint64)
        self.live = np.zeros(-(-len(records) // 8), np.uint8)

    def mean(self, bucket: int, numbers: np.ndarray) -> None:
        """These records of a bucket are meant."""
        live = np.unpackbits(self.live, bitorder="little")
        live[int(self.offsets[bucket]) + numbers] = 1
        self.live = np.packbits(live, bitorder="little")

    def adopt(self, table: Table, number: int = 0, **changes: Any) -> bool:
        given = {"first_bucket": 0, "offsets": self.offsets, "live": self.live, "chunks": self.chunks}
        return table.adopt_rows(self.path, number, **{"chunk_rows": self.chunk_rows, **given, **changes})


class Saved:
    """Checkpoints of tables: files of records, and the rows beside them."""

    def __init__(self, folder: str, seed: int) -> None:
        self.folder, self.random = folder, np.random.default_rng(seed)
        self.files: dict[int, File] = {}
        self.last, self.new, self.linked = 0, 0, 0  # records of all

    def save(self, tables: list[Table]) -> list[dict[str, np.ndarray]]:
        """Of the tables of all buckets, in their order; returns the rows that no file has, by bucket."""
        self.last += 1
        pieces, rows, places = [], [], []
        for table in tables:
            table.begin_snapshot(True)
            table.keep_copies(sorted(self.files))
            for bucket in range(table.first_bucket, table.end_bucket):
                own, _, copied, found = table.copy_buckets(bucket, bucket + 1, self.last)
                rows.append(own)
                pieces.append(copied["records"])
                places.append((bucket, found))
            table.end_snapshot()
        new = File(self.folder, pieces, int(self.random.integers(1, 90)), self.random)
        for file in self.files.values():
            file.live[:] = 0
        for bucket, found in places:
            for number in np.unique(found["files"]).tolist():
                self.files[number].mean(bucket, found["numbers"][found["files"] == number])
            new.mean(bucket, np.arange(len(pieces[bucket])))
            self.linked += len(found["files"])
        self.files[self.last] = new
        self.new += int(new.offsets[-1])
        return rows

    def load(self, tables: list[Table], rows: list[dict[str, np.ndarray]], known: bool) -> None:
        for table in tables:
            for bucket in range(table.first_bucket, table.end_bucket):
                table.import_rows(rows[bucket])
            for number, file in self.files.items():
                assert file.adopt(table, number if known else 0)
        if not known:
            self.files = {}


@settings(max_examples=100, deadline=None)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    kind=kinds,
    dim=st.sampled_from([3, 40]),
    capacities=st.lists(st.integers(1, 30), min_size=2, max_size=5),
    threads=st.integers(1, 2),
    known=st.booleans(),
    bound=st.integers(0, 2),
    turns=st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=40), min_size=2, max_size=5),
)
def test_training_goes_on_as_if_nothing_had_happened(
    optimizer: str,
    kind: dict[str, Any],
    dim: int,
    capacities: list[int],
    threads: int,
    known: bool,
    bound: int,
    turns: list[list[int]],
) -> None:
    """Checkpoints and starts with other capacities, beside a table that never stops and has no disk."""
    config = arguments(optimizer, num_buckets=BUCKETS, **{"dim": dim, **kind})
    roomy = Steps(bound, ids=8 * IDS, **{**config, "bucket_capacity": 8 * IDS})
    with tempfile.TemporaryDirectory() as folder:
        saved = Saved(folder, len(turns))
        tiered = Steps(bound, ids=8 * IDS, **{**config, **DISK, "bucket_capacity": capacities[0]})
        for seeds, capacity in zip(turns, itertools.cycle(capacities), strict=False):
            for each in (roomy, tiered):
                for seed in seeds:
                    each.run(seed, 150.0)
                while each.in_flight:
                    each.push()
            rows = saved.save([tiered.table])
            new = make_table(**{**config, **DISK, "bucket_capacity": capacity, "threads": threads})
            saved.load([new], rows, known)
            assert new.num_rows == tiered.table.num_rows
            new.set_next_step(tiered.step + 1)
            tiered.table = new
            for got, expected in zip(export(new, BUCKETS), export(roomy.table, BUCKETS), strict=True):
                if kind.get("eviction") == "lfu":
                    got, expected = ({**part, "stamps": part["stamps"] * 0} for part in (got, expected))
                assert_same_rows(got, expected)
        assert tiered.seen == roomy.seen


@given(parts=st.lists(st.integers(1, 3), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_any_number_of_servers_reads_the_files(parts: list[int], seed: int) -> None:
    config = arguments("adam", num_buckets=BUCKETS, dim=16, **DISK)
    steps = Steps(0, ids=4000, **{**config, "bucket_capacity": 20})
    for step in range(60):
        steps.run(seed + step, 2000.0)
    expected = export(steps.table, BUCKETS)
    tables = [steps.table]
    with tempfile.TemporaryDirectory() as folder:
        saved = Saved(folder, seed)
        for servers in parts:
            rows = saved.save(tables)
            bounds = np.linspace(0, BUCKETS, servers + 1).astype(int)
            tables = [
                make_table(**{**config, "bucket_capacity": 20, "first_bucket": b, "end_bucket": e})
                for b, e in itertools.pairwise(bounds.tolist())
            ]
            saved.load(tables, rows, known=False)
            got = [t.export_bucket(b) for t in tables for b in range(t.first_bucket, t.end_bucket)]
            for mine, theirs in zip(got, expected, strict=True):
                assert_same_rows(mine, theirs)


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Table, Saved, list[dict[str, np.ndarray]]]:
    table = make_table(**arguments("adagrad", num_buckets=BUCKETS, dim=16, **DISK))
    fill(table, ROWS)
    saved = Saved(str(tmp_path), 1)
    return table, saved, saved.save([table])


def again(**changes: Any) -> Table:
    return make_table(**arguments("adagrad", num_buckets=BUCKETS, dim=16, **{**DISK, **changes}))


def test_the_next_snapshot_knows_the_files(filled: Any) -> None:
    table, saved, rows = filled
    assert saved.new == table.copied_rows()[1] > 0.8 * table.cold_rows
    new = again()
    saved.load([new], rows, known=True)
    assert new.copied_rows() == {1: saved.new}
    before = saved.new
    saved.save([new])
    assert saved.linked == before
    assert saved.new - before < 0.2 * before


def test_files_stay_readable_without_a_name_and_are_closed_when_nothing_lies_there(filled: Any) -> None:
    """A pull of all rows brings them back; they go to the table's own file then."""
    table, saved, rows = filled

    def is_open() -> bool:
        links = [Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        return any(path in str(link.readlink()) for link in links if link.is_symlink())

    path, new = saved.files[1].path, again()
    saved.load([new], rows, known=False)
    assert is_open()
    Path(path).unlink()
    expected = export(table, BUCKETS)
    for got, all_rows in zip(export(new, BUCKETS), expected, strict=True):
        assert_same_rows(got, all_rows)
    before = new.disk_bytes
    fill(new, ROWS, 2)
    assert not is_open()
    assert new.num_rows == ROWS
    assert new.disk_bytes < 1.5 * before


def test_rows_of_files_expire_also_before_ones_that_are_not_meant(tmp_path: Path) -> None:
    table = again(ttl=5)
    fill(table, ROWS)
    saved = Saved(str(tmp_path), 1)
    saved.save([table])
    fill(table, ROWS // 3, 2)  # and those of the first file aren't meant any more
    rows = saved.save([table])
    new = again(ttl=5)
    saved.load([new], rows, known=True)
    assert new.num_rows == ROWS
    for step in range(3, 80):
        fill(new, 10, step)
    assert new.num_rows == 10
    assert not any(new.copied_rows().values())


def test_a_start_has_room_for_what_was_there(tmp_path: Path) -> None:
    """Two fifths of the rows that the first file has lie in the second: both don't fit into the capacity."""
    table = again()
    fill(table, ROWS)
    saved = Saved(str(tmp_path), 1)
    saved.save([table])
    fill(table, ROWS * 2 // 5, 2)
    saved.save([table])
    new = again(disk_bytes=int(1.1 * ROWS * table.record_bytes))
    assert saved.files[1].adopt(new)
    assert not saved.files[2].adopt(new)
    expected = export(table, BUCKETS)
    for there, here in zip(expected, export(new, BUCKETS), strict=True):
        left = ~np.isin(there["keys"], here["keys"])
        assert left.mean() > 0.3
        new.import_rows({name: np.ascontiguousarray(values[left]) for name, values in there.items()})
    for got, all_rows in zip(export(new, BUCKETS), expected, strict=True):
        assert_same_rows(got, all_rows)


def test_records_that_changed_are_never_used(filled: Any) -> None:
    _, saved, rows = filled
    file, path = saved.files[1], Path(saved.files[1].path)
    new = again()
    saved.load([new], rows, known=False)
    at = int(file.chunks[0]) + 30
    with path.open("r+b") as data:
        data.seek(at)
        byte = data.read(1)[0]
        data.seek(at)
        data.write(bytes([byte ^ 1]))
    with pytest.raises(DiskError, match=rf"{path}: record \d+ is not as it was written"):
        file.adopt(again())
    with pytest.raises(DiskError, match=rf"{path}: row \d+ is not as it was written: its checksum differs"):
        export(new, BUCKETS)
    os.truncate(path, 1000)
    with pytest.raises(DiskError, match=rf"{path}: the file is shorter than what was written"):
        file.adopt(again())


def test_a_read_that_failed_is_not_made_again(filled: Any) -> None:
    table, saved, rows = filled
    path, new = saved.files[1].path, again()
    saved.load([new], rows, known=False)
    os.truncate(path, 0)
    keys = np.concatenate([part["keys"] for part in export(table, BUCKETS)])
    with pytest.raises(DiskError, match="the file is shorter"):
        lookup(new, keys[:500])
    assert np.isfinite(lookup(new, np.sort(~keys[:500]))).all()  # of which there are no rows


def test_what_can_not_be_such_records_is_refused(filled: Any) -> None:
    _, saved, _ = filled
    file = saved.files[1]
    for changes in (
        {"chunk_rows": 0},
        {"chunks": file.chunks[:-1].copy()},
        {"live": file.live[:-1].copy()},
        {"offsets": file.offsets[::-1].copy()},
        {"offsets": file.offsets[:0].copy()},
    ):
        with pytest.raises(ValueError, match="don't fit together"):
            file.adopt(again(), **changes)
    with pytest.raises(DiskError, match=r"record \d+ is not as it was written"):
        file.adopt(again(), first_bucket=1)
    with pytest.raises(DiskError, match="can't open the file"):
        again().adopt_rows("/no/such/file", 0, file.chunks, file.chunk_rows, 0, file.offsets, file.live)


def test_a_table_that_can_not_take_them_changes_nothing(filled: Any) -> None:
    _, saved, _ = filled
    for changes in ({"disk_bytes": 100_000}, {"storage": "bf16"}, {"disk_folder": ""}):
        table = again(**changes)
        assert not saved.files[1].adopt(table)
        assert table.num_rows == 0
    noted = again()
    noted.begin_changes()
    assert not saved.files[1].adopt(noted)
