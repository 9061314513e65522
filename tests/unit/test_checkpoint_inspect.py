"""persia-hpc checkpoint: ls, diff and export of real checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import persia_hpc as ph
from persia_hpc._native import mix, unmix
from persia_hpc.checkpoint import merged
from persia_hpc.checkpoint.merged import bucket_ranges
from persia_hpc.checkpoint.tables import bucket_of
from tests.support.checkpoints import (
    CHANGES,
    FULL,
    IDS,
    LAST,
    TABLES,
    TTL,
    change_manifest,
    change_shard,
    flip_row,
    own,
    persia,
    sign,
    split,
    stored,
)
from tests.support.hashing import hashed


def test_the_run_has_what_the_tests_are_about(runs: Path) -> None:
    for table in ("item", "user"):
        removed, changed, before = (
            set(stored(runs / "a" / name, table, dataset).tolist())
            for name, dataset in ((CHANGES, "removed"), (CHANGES, "keys"), (FULL, "keys"))
        )
        assert removed - changed  # gone for good
        assert removed & changed  # came back
        assert before - removed - changed  # only in the base


# ---- ls


def test_ls_of_a_run(runs: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "step-00000012.partial").mkdir()
    (own(run / "step-00000004" / "manifest.json")).write_text("{")
    code, out, _ = persia(capsys, "ls", run, "--json")
    listed = json.loads(out)
    assert code == 0
    assert [c["name"] for c in listed["checkpoints"]] == [f"step-{s:08d}" for s in (10, 8, 6, 4, 2)]
    assert [c.get("base") for c in listed["checkpoints"]] == [None, None, FULL, None, None]
    assert ["problem" in c for c in listed["checkpoints"]] == [False, False, False, True, False]
    assert listed["latest"] == LAST
    assert [p["name"] for p in listed["partial"]] == ["step-00000012.partial"]
    for checkpoint in listed["checkpoints"]:
        directory = run / checkpoint["name"]
        assert checkpoint["bytes"] == sum(p.stat().st_size for p in directory.iterdir())
        for table, facts in checkpoint.get("tables", {}).items():
            assert facts["dim"] == TABLES[table]
            assert facts["rows"] == len(stored(directory, table, "keys"))

    code, out, _ = persia(capsys, "ls", run)
    lines = out.splitlines()
    assert code == 0
    assert lines[1].startswith(LAST)
    assert lines[1].endswith("latest")
    assert f"changes since {FULL}" in lines[3]
    assert "is damaged" in lines[4]
    assert lines[6].startswith("step-00000012.partial")
    assert "died" in lines[6]


def test_ls_of_one_checkpoint(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = persia(capsys, "ls", runs / "a" / CHANGES)
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert code == 0
    for table, optimizer in (("item", "adagrad"), ("user", "adam"), ("tags", "sgd")):
        rows = len(stored(runs / "a" / CHANGES, table, "keys"))
        assert lines[table][1:3] == [str(TABLES[table]), optimizer]
        assert lines[table][5] == str(rows)
    for table in ("item", "user"):
        removed = len(stored(runs / "a" / CHANGES, table, "removed"))
        assert lines[table][-2:] == [str(removed), "removed"]


# ---- diff


def test_no_difference_to_itself_and_to_other_numbers_of_servers(
    runs: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split(run / CHANGES, 2)
    split(run / FULL, 3)
    assert persia(capsys, "diff", runs / "a" / CHANGES, run / CHANGES) == (0, "no difference\n", "")
    assert persia(capsys, "diff", runs / "a", run) == (0, "no difference\n", "")


@pytest.mark.parametrize("bytes_at_once", [1, 4000, 1 << 25])
def test_changes_with_their_base_are_the_full_checkpoint(
    bytes_at_once: int, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged, "BYTES_AT_ONCE", bytes_at_once)
    code, out, _ = persia(capsys, "diff", runs / "a" / CHANGES, runs / "b" / CHANGES)
    assert code == 1
    assert out.splitlines()[2:] == ["config checkpoint.full_every: 3 | 1"]


def test_differences_are_counted_and_measured(
    run: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(shard: h5py.File) -> None:
        shard["user/rows"][5, 2] += np.float32(0.5)
        shard["user/rows"][6, 0] = np.nan
        shard["user/stamps"][7] += 3
        shard["tags/ages"][1] += 1
        keys = shard["item/keys"]
        last = int(keys[-1])
        keys[-1] = last ^ 1  # of the same bucket
        assert bucket_of(np.array([last ^ 1], np.uint64), 2)[0] == 1

    change_shard(run / LAST, change)
    dense = torch.load(run / LAST / "dense.pt", weights_only=True)
    dense["model"]["head.bias"] -= 2.0
    torch.save(dense, own(run / LAST / "dense.pt"))
    sign(run / LAST, "dense.pt")
    change_manifest(run / LAST, lambda m: m["config"].update(seed=9))
    ids = {
        name: unmix(np.ascontiguousarray(stored(d, name, "keys")))
        for d, name in ((runs / "a" / LAST, "user"), (runs / "a" / LAST, "item"))
    }
    code, out, _ = persia(capsys, "diff", runs / "a", run, "--limit", 2)
    assert code == 1
    assert out.splitlines()[2:] == [
        "config seed: 7 | 9",
        "table item: 1 row only in A, 1 row only in B",
        f"    id {ids['item'][-1]}: only in A",
        f"    id {unmix(stored(run / LAST, 'item', 'keys')[-1:])[0]}: only in B",
        "table tags: ages of 1 bucket differ",
        "table user: 3 rows changed, weights of 2 differ by at most inf, recency of 1 differ by at most 3",
        f"    id {ids['user'][5]}: weights differ by at most 0.5",
        f"    id {ids['user'][6]}: weights differ by at most inf",
        "    and 1 more row",
        "dense model.head.bias: 1 of 1 values differ by at most 2",
    ]


def test_diff_of_other_tables_and_steps(runs: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_shard(run / LAST, lambda s: (s.move("tags", "other"), s["user"].attrs.update(optimizer="adamw")))
    code, out, _ = persia(capsys, "diff", runs / "a" / CHANGES, run / LAST, "--limit", 0)
    assert code == 1
    assert "step: 6 | 10" in out
    assert "table tags: not in B" in out
    assert "table other: not in A" in out
    assert "table user: optimizer adam | adamw" in out
    assert "    id" not in out


# ---- export


@pytest.mark.parametrize("name", [FULL, CHANGES, LAST])
@pytest.mark.parametrize("bytes_at_once", [4000, 1 << 25])
def test_exported_rows_are_those_of_load(
    name: str,
    bytes_at_once: int,
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(merged, "BYTES_AT_ONCE", bytes_at_once)
    code, out, _ = persia(capsys, "export", runs / "a" / name, "--out", tmp_path / "out", "--ids")
    assert code == 0
    assert {p.stem for p in (tmp_path / "out").iterdir()} == {"item", "tags", "user"}
    loaded = ph.load(runs / "a" / name)
    for table in ("item", "user"):
        frame = pl.read_parquet(tmp_path / "out" / f"{table}.parquet")
        kinds = [pl.UInt64, pl.UInt64, pl.Array(pl.Float32, TABLES[table]), pl.UInt32]
        assert frame.schema == dict(zip(("key", "id", "embedding", "last_step"), kinds, strict=True))
        assert f"{len(frame)} rows of table {table} written" in out
        assert frame["key"].is_sorted()
        ids = frame["id"].to_numpy()
        assert len(np.unique(ids)) == len(ids) > 50
        np.testing.assert_array_equal(mix(np.ascontiguousarray(ids)), frame["key"].to_numpy())
        np.testing.assert_array_equal(frame["embedding"].to_numpy(), loaded.rows(table, ids))
        others = np.setdiff1d(IDS, ids)
        assert not loaded.rows(table, others).any()  # no row is missing
    assert [p.name for p in (tmp_path / "out").iterdir() if p.suffix != ".parquet"] == []


def test_exported_state_is_what_is_stored(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "item.parquet"
    out.write_text("an older one")
    assert persia(capsys, "export", runs / "a", "--table", "item", "--state", "--out", out)[0] == 0
    frame = pl.read_parquet(out)
    columns = {"key": "keys", "embedding": "rows", "last_step": "stamps", "state": "state"}
    assert frame.columns == list(columns)
    for column, dataset in columns.items():  # both ascend by key
        np.testing.assert_array_equal(frame[column].to_numpy(), stored(runs / "a" / LAST, "item", dataset))


def test_rows_past_their_time_are_left_out(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "user.parquet"
    code, text, _ = persia(capsys, "export", runs / "a", "--table", "user", "--state", "--out", out)
    frame = pl.read_parquet(out)
    stamps = stored(runs / "a" / LAST, "user", "stamps")
    here = 11 - stamps.astype(int) <= TTL
    assert code == 0
    assert 0 < here.sum() < len(here)
    assert f"{(~here).sum()} rows left out" in text
    assert frame.columns == ["key", "embedding", "last_step", "state", "updates"]
    for column, dataset in (("state", "state"), ("updates", "steps"), ("last_step", "stamps")):
        np.testing.assert_array_equal(
            frame[column].to_numpy(), stored(runs / "a" / LAST, "user", dataset)[here]
        )


def test_a_hashed_table_has_no_ids(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tags.parquet"
    code, text, _ = persia(capsys, "export", runs / "a", "--table", "tags", "--ids", "--state", "--out", out)
    frame = pl.read_parquet(out)
    assert code == 0
    assert "no column `id`" in text
    assert "no column `state`" in text
    assert frame.columns == ["key", "embedding", "uses"]
    rows = dict(zip(unmix(frame["key"].to_numpy()).tolist(), frame["embedding"].to_numpy(), strict=True))
    loaded = ph.load(runs / "a").rows("tags", IDS)
    for raw in IDS[:50].tolist():
        expected = sum(rows.get(index, np.zeros(4, np.float32)) for index in hashed(raw, 2, 64))
        np.testing.assert_array_equal(loaded[raw], expected)


# ---- bad input


def test_bad_input_is_one_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parquet = tmp_path / "t.parquet"
    for arguments, text in (
        (("ls", tmp_path), "is neither a checkpoint nor a run with one"),
        (("verify", runs / "a", tmp_path / "none"), "is neither a checkpoint nor a run with one"),
        (("diff", runs / "a", tmp_path), "is neither a checkpoint nor a run with one"),
        (("diff", runs / "a", runs / "a", "--limit", -1), "--limit -1: expected 0 or more"),
        (("export", runs / "a", "--table", "genre", "--out", parquet), "has: item, tags, user"),
        (("export", runs / "a", "--table", "item", "user", "--out", parquet), "got 2 tables for one file"),
        (("export", runs / "a", "--table", "item", "--out", tmp_path / "t.csv"), "ends in .parquet"),
    ):
        code, out, err = persia(capsys, *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("persia-hpc: error: ")
        assert text in err
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_export_of_a_damaged_table_leaves_no_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip_row(run / LAST)
    arguments = ("export", run, "--table", "user", "--out", tmp_path / "out" / "user.parquet")
    code, _, err = persia(capsys, *arguments)
    assert code == 3
    assert "server-0000.h5 is damaged: its checksum" in err
    assert not (tmp_path / "out").exists()


# ---- parts


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 80))
def test_bucket_ranges_cover_all_within_the_limit(counts: list[int], limit: int) -> None:
    ranges = list(bucket_ranges(np.array(counts), limit))
    assert [b for begin, end in ranges for b in range(begin, end)] == list(range(len(counts)))
    assert all(sum(counts[begin:end]) <= limit or end - begin == 1 for begin, end in ranges)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1), st.integers(0, 20))
def test_bucket_of_is_the_highest_bits(keys: list[int], bits: int) -> None:
    assert bucket_of(np.array(keys, np.uint64), 1 << bits).tolist() == [k >> (64 - bits) for k in keys]
