"""Yambda: samples against a plain loop in both layouts, in any pieces, by windows; bad files in one line."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from persia_hpc.cli import main
from persia_hpc.errors import UserError
from persia_hpc.preprocess.yambda import prepare as yambda
from persia_hpc.preprocess.yambda.anchors import cross
from persia_hpc.samples.source import open_source
from tests.support.mpi import run_mpi

PROGRAM = Path(__file__).parent / "programs" / "preprocess.py"

TYPES = ["listen", "like", "dislike", "unlike", "undislike"]
DAY = 86_400
Event = dict[str, Any]


def events_of(seed: int, users: int = 7) -> list[Event]:
    """Made-up events with many ties, ratios above 100 and items that no mapping has."""
    random.seed(seed)
    found = []
    for uid in sorted(random.sample(range(1, 1000), users)):
        times = sorted(random.choices(range(0, 3 * DAY, 5000), k=random.randint(1, 60)))
        for time in times:
            kind = random.choices(TYPES, weights=[8, 3, 1, 1, 1])[0]
            listen = kind == "listen"
            found.append(
                {
                    "uid": uid,
                    "timestamp": time,
                    "item_id": random.randint(1, 25),
                    "is_organic": random.randint(0, 1),
                    "event_type": kind,
                    "played_ratio_pct": random.choice([0, 10, 49, 50, 100, 250]) if listen else None,
                    "track_length_seconds": 180 if listen else None,
                }
            )
    return found


PAIRS = [(1, 7), (2, 8), (1, 9), (3, 7), (20, 4)]  # item 1 twice: the last row counts


def write(folder: Path, events: list[Event], *, sequential: bool = False) -> None:
    kinds = {
        "uid": pl.UInt32,
        "timestamp": pl.UInt32,
        "item_id": pl.UInt32,
        "is_organic": pl.UInt8,
        "event_type": pl.Enum(TYPES),
        "played_ratio_pct": pl.UInt16,
        "track_length_seconds": pl.UInt32,
    }
    frame = pl.DataFrame(events, schema=kinds)
    if sequential:
        frame = frame.group_by("uid", maintain_order=True).all()
        frame = frame.rename({"item_id": "item_ids", "timestamp": "timestamps"})
    frame.write_parquet(folder / "multi_event.parquet", row_group_size=16)
    for kind, shift in (("artist", 0), ("album", 100)):
        rows = {"item_id": [item for item, _ in PAIRS], f"{kind}_id": [value + shift for _, value in PAIRS]}
        pl.DataFrame(rows).write_parquet(folder / f"{kind}_item_mapping.parquet")


def prepare(folder: Path, out: str = "out", **options: Any) -> Any:
    options = {"mappings": folder, **options}
    return yambda.prepare(yambda.YambdaOptions(folder / out, folder / "multi_event.parquet", **options))


def action(event: Event) -> int:
    if event["event_type"] == "listen":
        return 1 if event["played_ratio_pct"] >= 50 else 4
    return 2 if event["event_type"] == "like" else 0


def reference(
    events: list[Event], history: int, least: int, selection: str, scan: int
) -> list[dict[str, Any]]:
    """Every sample by a loop over each user's events, as the reference's description has it."""
    samples = []
    for uid in dict.fromkeys(event["uid"] for event in events):
        mine = [event for event in events if event["uid"] == uid]
        for k, anchor in enumerate(mine):
            if anchor["event_type"] != "listen" or k < least:
                continue
            window = [i for i in range(max(0, k - scan), k) if action(mine[i])]
            if selection == "last":
                chosen = window[-history:]
            else:
                each = history // 3
                chosen = sorted(
                    i for bit in (1, 2, 4) for i in [j for j in window if action(mine[j]) == bit][-each:]
                )
            past = [mine[i] for i in chosen]
            samples.append({"anchor": anchor, "past": past})
    return samples


def last_of(item: int, shift: int) -> int:
    return next((value + shift for one, value in reversed(PAIRS) if one == item), 0)


def check(folder: Path, names: str, samples: list[dict[str, Any]]) -> None:
    source = open_source([str(folder / names)])
    batch = source.read(0, source.num_samples)
    assert source.num_samples == len(samples)
    assert batch.time is not None
    assert batch.group is not None
    for i, sample in enumerate(samples):
        anchor, past = sample["anchor"], sample["past"]
        ids = {name: column.slice(i, i + 1).values.tolist() for name, column in batch.ids.items()}
        item, hour = anchor["item_id"], anchor["timestamp"] // 3600 % 24
        keys = {
            "user": anchor["uid"],
            "item": item,
            "artist": last_of(item, 0),
            "album": last_of(item, 100),
            "hour": hour,
            "organic": anchor["is_organic"],
        }
        for name in ("user", "item", "artist", "album"):
            assert ids[name] == [keys[name]]
        for name in ("user_artist", "user_album", "user_hour", "item_hour", "artist_hour", "user_organic"):
            values = [np.array([keys[part]], np.uint64) for part in name.split("_")]
            assert ids[name] == cross(*values).tolist()
        assert ids["history"] == [event["item_id"] for event in past]
        assert ids["history_artist"] == [last_of(event["item_id"], 0) for event in past]
        assert ids["history_album"] == [last_of(event["item_id"], 100) for event in past]
        assert ids["history_action"] == [action(event) for event in past]
        query = past[-1]["timestamp"] if past else anchor["timestamp"]
        times = [event["timestamp"] for event in past]
        gaps = [after - before for before, after in zip(times[:1] + times, times, strict=False)]
        weights = batch.ids["history_gap"].slice(i, i + 1).weights
        assert weights is not None
        assert weights.tolist() == gaps
        assert ids["history_gap"] == [int(math.log(max(gap, 1)) / 0.301) for gap in gaps]
        angles = [2 * math.pi * (query % period) / period for period in (DAY, 7 * DAY)]
        want = [f(angle) for angle in angles for f in (math.cos, math.sin)]
        np.testing.assert_allclose(batch.dense[i], want, atol=1e-6)
        assert batch.labels[i, 0] == (anchor["played_ratio_pct"] >= 50)
        assert batch.time[i] == anchor["timestamp"]
        assert batch.group[i] == anchor["uid"]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("selection", ["pools", "last"])
def test_samples_of_windows(tmp_path: Path, selection: str, sequential: bool) -> None:
    events = events_of(1)
    write(tmp_path, events, sequential=sequential)
    rules = {"history": 9, "min_history": 4, "selection": selection, "scan": 12}
    assert prepare(tmp_path, window_seconds=DAY, **rules) is not None
    samples = reference(events, 9, 4, selection, 12)
    begin = min(sample["anchor"]["timestamp"] for sample in samples)
    by_window: dict[int, list[dict[str, Any]]] = {}
    for sample in samples:
        by_window.setdefault((sample["anchor"]["timestamp"] - begin) // DAY, []).append(sample)
    last = max(by_window)
    assert last == 2
    for window, some in by_window.items():
        check(tmp_path / "out", f"{'test' if window == last else 'train'}-{window:03d}.h5", some)
    assert len(list((tmp_path / "out").glob("*.h5"))) == len(by_window)
    assert prepare(tmp_path, window_seconds=DAY, **rules) is None


@pytest.mark.parametrize("piece_rows", [1, 7, 40])
def test_pieces_hold_what_one_does(tmp_path: Path, piece_rows: int) -> None:
    events = events_of(2)
    write(tmp_path, events)
    prepare(tmp_path, history=6, min_history=2, piece_rows=piece_rows, until=2 * DAY, window_seconds=DAY)
    samples = reference([e for e in events if e["timestamp"] < 2 * DAY], 6, 2, "pools", 20_000)
    begin = min(sample["anchor"]["timestamp"] for sample in samples)
    for window, kind in ((0, "train"), (1, "test")):
        some = [s for s in samples if (s["anchor"]["timestamp"] - begin) // DAY == window]
        check(tmp_path / "out", f"{kind}-{window:03d}-*.h5", some)


def test_some_windows_and_every_third_anchor(tmp_path: Path) -> None:
    events = events_of(3)
    write(tmp_path, events)
    prepare(tmp_path, history=6, min_history=2, stride=3, windows=(1, 3), window_seconds=DAY // 2)
    samples = reference(events, 6, 2, "pools", 20_000)
    kept = []
    for uid in dict.fromkeys(sample["anchor"]["uid"] for sample in samples):
        kept += [sample for sample in samples if sample["anchor"]["uid"] == uid][::3]
    begin = min(sample["anchor"]["timestamp"] for sample in kept)
    for window, name in ((1, "train-001.h5"), (2, "train-002.h5"), (3, "test-003.h5")):
        some = [s for s in kept if (s["anchor"]["timestamp"] - begin) // (DAY // 2) == window]
        check(tmp_path / "out", name, some)


def test_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, events_of(4))
    command = ["preprocess", "yambda", "--input", str(tmp_path / "multi_event.parquet")]
    command += ["--history", "6", "--min-history", "2", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "anchors, from" in capsys.readouterr().out
    source = open_source([str(tmp_path / "out" / "test-*.h5")])
    assert "artist" not in source.schema.feature_names


def test_all_crosses_differ() -> None:
    a, b = (part.ravel().astype(np.uint64) for part in np.meshgrid(np.arange(300), np.arange(300)))
    assert len(np.unique(cross(a, b))) == len(a)


def broken(change: str, events: list[Event]) -> list[Event]:
    if change == "order":
        events[3], events[4] = events[4], events[3]
        events[3]["timestamp"] = events[4]["timestamp"] + 5
        events[3]["uid"] = events[4]["uid"]
    elif change == "users":
        events.append(events[0])
    elif change == "item":
        events[2]["item_id"] = None
    return events


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("order", {}, r"multi_event.parquet, row 5: got events that aren't in order of uid and timestamp"),
        ("users", {}, r"row \d+: got events that aren't in order"),
        ("item", {}, r"row 3: item_id: got no value"),
        ("", {"min_history": 1000}, "got no listen with 1000 events of its user before it"),
        ("", {"windows": (2, 1)}, "--windows 2 1: expected two rising numbers"),
        ("", {"windows": (0, 99)}, "--windows 0 99: got anchors of windows 0 to 2"),
        ("", {"stride": 0}, "--stride 0: expected 1 or more"),
        ("", {"mappings": Path("/nowhere")}, "artist_item_mapping.parquet is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: str, options: dict[str, Any], message: str) -> None:
    write(tmp_path, broken(change, events_of(5)))
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, **{"history": 6, "min_history": 2, **options})
    assert not list(tmp_path.rglob("*.h5"))


def test_other_files(tmp_path: Path) -> None:
    write(tmp_path, events_of(6))
    path = tmp_path / "multi_event.parquet"
    pl.read_parquet(path).drop("is_organic").write_parquet(path)
    with pytest.raises(UserError, match="expected also is_organic"):
        prepare(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"can't be read as Parquet .*; is it whole"):
        prepare(tmp_path)


def test_values_that_cannot_be_are_refused_in_both_layouts(tmp_path: Path) -> None:
    path = tmp_path / "multi_event.parquet"
    for name, value in (
        ("uid", -1),
        ("item_id", -1),
        ("item_id", 2**32),
        ("is_organic", 2),
        ("timestamp", -1),
    ):
        events = events_of(6)
        write(tmp_path, events)
        flat = pl.read_parquet(path).with_columns(pl.col(name).cast(pl.Int64))
        flat[0, name] = value
        flat.write_parquet(path)
        with pytest.raises(UserError, match=rf"row 1: {name}: got a number out of range, expected 0 to"):
            prepare(tmp_path)
        flat.group_by("uid", maintain_order=True).all().write_parquet(path)
        with pytest.raises(UserError, match=rf"uid -?\d+: {name}: got a number out of range"):
            prepare(tmp_path)
    write(tmp_path, events_of(6), sequential=True)
    users = pl.read_parquet(path)
    lost = pl.when(pl.int_range(pl.len()) == 2).then(None).otherwise(pl.col("item_ids"))
    users.with_columns(lost.alias("item_ids")).write_parquet(path)
    with pytest.raises(UserError, match="lists of different lengths"):
        prepare(tmp_path)


@pytest.mark.parametrize(
    ("items", "message"),
    [([1, 1 << 30], "got item 1073741824, expected numbers below"), ([1, None], "got rows without a value")],
)
def test_mappings_that_cannot_be(tmp_path: Path, items: list[int | None], message: str) -> None:
    write(tmp_path, events_of(6))
    path = tmp_path / "album_item_mapping.parquet"
    pl.DataFrame({"item_id": items, "album_id": [1, 2]}).write_parquet(path)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, history=6, min_history=2)


def test_too_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, events_of(7))

    class Usage:
        free = 1000

    monkeypatch.setattr(yambda.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(UserError, match=r"0\.0 GB free, expected about .* raise --stride"):
        prepare(tmp_path, history=6, min_history=2)


def test_ranks_share_pieces(tmp_path: Path) -> None:
    write(tmp_path, events_of(8, users=12))
    rules = {"history": 6, "min_history": 2, "piece_rows": 40}
    prepare(tmp_path, "one", **rules)
    command = ["preprocess", "yambda", "--input", str(tmp_path / "multi_event.parquet")]
    command += ["--mappings", str(tmp_path), "--out", str(tmp_path / "ranks")]
    command += [text for name, value in rules.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    assert "anchors, from" in run_mpi(3, PROGRAM, *command).stdout
    assert "is up to date" in run_mpi(2, PROGRAM, *command).stdout
    names = sorted(path.name for path in (tmp_path / "one").glob("*.h5"))
    assert names == sorted(path.name for path in (tmp_path / "ranks").glob("*.h5"))
    assert len(names) > 6
    for name in names:
        one, other = (open_source([str(tmp_path / folder / name)]) for folder in ("one", "ranks"))
        a, b = one.read(0, one.num_samples), other.read(0, other.num_samples)
        assert np.array_equal(a.labels, b.labels)
        for feature, column in a.ids.items():
            assert np.array_equal(column.values, b.ids[feature].values)
