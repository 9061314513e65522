"""persia-hpc checkpoint verify: sound checkpoints are ok, and every kind of damage is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from persia_hpc.checkpoint.merged import CheckpointReader
from tests.support.checkpoints import (
    CHANGES,
    FULL,
    LAST,
    change_manifest,
    change_shard,
    cut,
    flip_row,
    flip_weight,
    own,
    persia,
    put,
    sign,
    split,
)


def test_verify_of_a_sound_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split(run / CHANGES, 3)
    code, out, err = persia(capsys, "verify", run)
    assert (code, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()] == [
        [f"step-{s:08d}", "ok"] for s in (10, 8, 6, 4, 2)
    ]
    with CheckpointReader(run / CHANGES) as reader:
        rows = sum(len(table.read(0, table.num_buckets)["keys"]) for table in reader.tables.values())
    assert f"{CHANGES} ok (changes since {FULL}, 3 servers, {rows} rows)" in out


def two_servers_with(change: Callable[[h5py.File], Any]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        split(directory, 2)
        change_shard(directory, change, "server-0001.h5")

    return damage


def one_more_bucket(shard: h5py.File) -> None:
    """The second server's buckets begin one earlier, with the first server's last bucket."""
    group = shard["item"]
    buckets, offsets, ages = (group[name][:] for name in ("buckets", "bucket_offsets", "ages"))
    for name, values in (
        ("buckets", np.concatenate([buckets[:1] - 1, buckets])),
        ("bucket_offsets", np.concatenate([[0], offsets]).astype(np.uint64)),
        ("ages", np.concatenate([[0], ages]).astype(np.uint32)),
    ):
        del group[name]
        group[name] = values


def twice(shard: h5py.File) -> None:
    offsets = shard["item/bucket_offsets"][:]
    bucket = int(np.flatnonzero(np.diff(offsets) > 1)[0])
    at = int(offsets[bucket])
    shard["item/keys"][at + 1] = shard["item/keys"][at]


def shard_with(change: Callable[[h5py.File], Any]) -> Callable[[Path], None]:
    return lambda directory: change_shard(directory, change)


def manifest_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda directory: change_manifest(directory, change)


def replace_dense(directory: Path) -> None:
    shutil.copy(own(directory.parent / FULL / "dense.pt"), own(directory / "dense.pt"))
    sign(directory, "dense.pt")


DAMAGE: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "a truncated shard": (
        lambda d: cut(d / "server-0000.h5"),
        ("server-0000.h5 is damaged: it has", "server-0000.h5: can't be read"),
    ),
    "a shard that is not there": (
        lambda d: (d / "server-0000.h5").unlink(),
        ("server-0000.h5: can't be read (No such file",),
    ),
    "a flipped bit in a shard": (
        flip_row,
        ("server-0000.h5 is damaged: its checksum",),
    ),
    "a flipped bit in the dense part": (
        flip_weight,
        ("dense.pt is damaged: its checksum",),
    ),
    "a truncated dense part": (
        lambda d: cut(d / "dense.pt"),
        ("dense.pt is damaged: it has", "dense.pt: can't be read"),
    ),
    "the dense part of another step": (replace_dense, ("dense.pt: it is of step 2, the manifest of 6",)),
    "no base": (lambda d: shutil.rmtree(d.parent / FULL), (f"{FULL}, which isn't there",)),
    "a damaged base": (lambda d: flip_row(d.parent / FULL), (f"its base {FULL} is damaged",)),
    "an incremental base": (
        manifest_with(lambda m: m.update(base="step-00000004")),
        (
            "its base step-00000004 is incremental itself",
            *2 * ("rows not used since the base, step 4",),
        ),
    ),
    "a base that is too new": (
        manifest_with(lambda m: m.update(base="step-00000008")),
        2 * ("rows not used since the base, step 8",),
    ),
    "itself as base": (
        manifest_with(lambda m: m.update(base=CHANGES)),
        ("it is its own base", *2 * ("rows not used since the base, step 6",)),
    ),
    "a manifest that is no JSON": (
        lambda d: own(d / "manifest.json").write_text("{"),
        ("manifest.json: it is not JSON",),
    ),
    "no manifest": (lambda d: (d / "manifest.json").unlink(), ("is not a checkpoint",)),
    "the manifest of another step": (
        manifest_with(lambda m: m.update(step=8)),
        ("it is of step 8, the directory is step-00000006",),
    ),
    "a manifest without keys": (
        manifest_with(lambda m: (m.pop("schema"), m.pop("counters"), m.update(shards="all"))),
        ("no schema", "no counters", "shards is 'all'"),
    ),
    "a shard that is not listed": (
        manifest_with(lambda m: m["files"].pop("server-0000.h5")),
        ("server-0000.h5 is not among its files",),
    ),
    "a server left out": (
        lambda d: (split(d, 2), change_manifest(d, lambda m: m["shards"].pop())),
        (
            "table 'item': 2 buckets, from 2 on, in no file",
            "table 'tags': 8 buckets, from 8 on, in no file",
            "table 'user': 2 buckets, from 2 on, in no file",
        ),
    ),
    "a bucket of two servers": (
        two_servers_with(one_more_bucket),
        ("table 'item': 1 bucket, from 1 on, in several files (server-0000.h5, server-0001.h5)",),
    ),
    "a key twice": (shard_with(twice), ("table 'item': 1 key there twice",)),
    "keys of other buckets": (
        shard_with(put("item/keys", [0, 1], [(1 << 64) - 9, (1 << 64) - 8])),
        ("table 'item': 2 keys in another bucket than its own",),
    ),
    "offsets that go back": (
        shard_with(put("user/bucket_offsets", 1, 1 << 40)),
        ("table 'user': bucket_offsets don't ascend",),
    ),
    "buckets in disorder": (
        shard_with(put("user/buckets", 1, 2)),
        (
            "table 'user': buckets don't follow each other in 0..3",
            "keys in another bucket",
            "1 bucket, from 1 on, in no file",
            "1 bucket, from 2 on, in several files (server-0000.h5)",
        ),
    ),
    "a dataset that is too short": (
        shard_with(lambda s: s["user/stamps"].resize(3, axis=0)),
        ("table 'user': stamps has 3 entries",),
    ),
    "no dataset": (shard_with(lambda s: s["user"].pop("stamps")), ("table 'user': no dataset stamps",)),
    "another dim": (
        shard_with(lambda s: s["user"].attrs.update(dim=9)),
        ("table 'user': dim is 9, expected 6",),
    ),
    "removed keys in disorder": (
        shard_with(lambda s: put("item/removed", slice(None), s["item/removed"][:][::-1])(s)),
        ("table 'item': removed keys don't ascend",),
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_verify_names_the_damage(kind: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, expected = DAMAGE[kind]
    damage(run / CHANGES)
    code, out, err = persia(capsys, "verify", run / CHANGES)
    assert code == 3
    assert out.startswith(f"{CHANGES} damaged: ")
    problems = out.splitlines()[1:]
    for text in expected:
        assert any(text in line for line in problems), (text, problems)
    assert len(problems) == len(expected)  # nothing that is a consequence, or isn't so
    assert err.count("\n") == 1
    assert CHANGES in err


def test_verify_goes_on_after_a_damaged_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_row(run / FULL)
    cut(run / LAST / "dense.pt")
    code, out, err = persia(capsys, "verify", run)
    states = [line.split()[:2] for line in out.splitlines() if line.startswith("step-")]
    assert code == 3
    assert states == [
        [LAST, "damaged:"],
        ["step-00000008", "ok"],
        [CHANGES, "damaged:"],  # with its base
        ["step-00000004", "damaged:"],
        [FULL, "damaged:"],
    ]
    assert "4 of 5 damaged" in err


def test_a_diverged_row_is_told_but_no_damage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_shard(run / LAST, put("user/rows", (3, 2), np.nan))
    code, out, _ = persia(capsys, "verify", run / "latest")
    assert code == 0
    assert "1 of them with infinite or NaN values" in out
