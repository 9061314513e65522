"""KuaiRand: values, joined features and histories against a plain loop; bad files in one line."""

from __future__ import annotations

import csv
import math
import random
from pathlib import Path
from typing import Any

import h5py
import pytest

from persia_hpc.cli import main
from persia_hpc.errors import UserError
from persia_hpc.preprocess import kuairand
from persia_hpc.samples.ids import MISSING_ID, hash_strings
from persia_hpc.samples.source import open_source

LOGS = {
    "log_standard_4_08_to_4_21_pure.csv": "train",
    "log_standard_4_22_to_5_08_pure.csv": "valid",
    "log_random_4_22_to_5_08_pure.csv": "test",
}
COLUMNS = """user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate
long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"""
LOG = COLUMNS.replace("\n", ",").split(",")
COLUMNS = """video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width
server_height,music_id,music_type,tag"""
VIDEO = COLUMNS.replace("\n", ",").split(",")
USER = ["user_id", *kuairand.USER_IDS, "follow_user_num"]
Row = dict[str, Any]


def write(path: Path, names: list[str], rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def log_rows(seed: int, first: int) -> list[Row]:
    random.seed(seed)
    rows = []
    for k in range(60):
        row = {name: int(random.random() < 0.2) for name in LOG}
        row.update(user_id=random.randint(0, 5), video_id=random.randint(0, 12), tab=random.randint(0, 14))
        hour = random.randint(0, 23)
        time = 1000 * (first + random.randint(0, 40) * 500) + k
        row.update(hourmin=100 * hour, time_ms=time, duration_ms=random.randint(0, 90_000), hour=hour)
        rows.append(row)
    return rows


@pytest.fixture
def raw(tmp_path: Path) -> tuple[Path, dict[str, list[Row]]]:
    folder = tmp_path / "raw"
    folder.mkdir()
    logs = {name: log_rows(k, (10_000, 40_000, 40_000)[k]) for k, name in enumerate(LOGS)}
    for name, rows in logs.items():
        write(folder / name, LOG, rows)
    users = [{**dict.fromkeys(USER, 3 + user), "user_id": user, "is_live_streamer": ""} for user in range(5)]
    for row in users:
        row.update({name: f"{name}{row['user_id'] % 2}" for name in kuairand.STRINGS & set(USER)})
    write(folder / "user_features_pure.csv", USER, users)
    videos = [{**dict.fromkeys(VIDEO, 1), "video_id": v, "author_id": 100 + v % 3} for v in range(12, -1, -1)]
    for row in videos:
        row.update(tag=("", "7", "12,65")[row["video_id"] % 3], video_type="AD", upload_type="Web")
    write(folder / "video_features_basic_pure.csv", VIDEO, [row for row in videos if row["video_id"] != 4])
    return folder, logs


def mask(row: Row) -> int:
    return sum(row[name] << bit for bit, name in enumerate(kuairand.ACTIONS))


def test_values_and_histories(raw: tuple[Path, dict[str, list[Row]]], tmp_path: Path) -> None:
    folder, logs = raw
    kuairand.prepare(kuairand.KuaiRandOptions(tmp_path / "out", folder, history=4))
    standard = [row for name, rows in logs.items() if LOGS[name] != "test" for row in rows]
    order = {id(row): k for k, row in enumerate(row for rows in logs.values() for row in rows)}
    for name, rows in logs.items():
        source = open_source([str(tmp_path / "out" / f"{LOGS[name]}.h5")])
        batch = source.read(0, source.num_samples)
        assert source.num_samples == len(rows)
        assert batch.time is not None
        for i, row in enumerate(rows):
            ids = {name: column.slice(i, i + 1).values.tolist() for name, column in batch.ids.items()}
            when = (row["time_ms"], order[id(row)])
            past = [o for o in standard if o["user_id"] == row["user_id"] and mask(o) > 0]
            past = [o for o in past if (o["time_ms"], order[id(o)]) < when]
            past.sort(key=lambda o: (o["time_ms"], order[id(o)]))
            seconds = [o["time_ms"] // 1000 for o in past]
            gaps = [after - before for before, after in zip(seconds[:1] + seconds, seconds, strict=False)]
            past, gaps = past[-4:], gaps[-4:]
            author = {v: MISSING_ID if v == 4 else 100 + v % 3 for v in range(13)}
            assert ids["history"] == [o["video_id"] for o in past]
            assert ids["history_author"] == [author[o["video_id"]] for o in past]
            assert ids["history_action"] == [mask(o) for o in past]
            assert ids["history_gap"] == [int(math.log(max(gap, 1)) / 0.301) for gap in gaps]
            video, user = row["video_id"], row["user_id"]
            assert ids["video_id"] == [video]
            assert ids["author_id"] == [author[video]]
            assert ids["tag"] == ([] if video == 4 else [[], [7], [12, 65]][video % 3])
            known = user < 5
            assert ids["onehot_feat3"] == [3 + user if known else MISSING_ID]
            assert ids["is_live_streamer"] == [MISSING_ID]
            word = hash_strings([f"user_active_degree{user % 2}"]).tolist()
            assert ids["user_active_degree"] == (word if known else [MISSING_ID])
            assert ids["hour"] == [row["hour"]]
            assert ids["tab"] == [row["tab"]]
            assert batch.labels[i].tolist() == [row[action] for action in kuairand.ACTIONS]
            assert batch.dense[i, 0] == pytest.approx(math.log1p(row["duration_ms"] / 1000), rel=1e-6)
            assert batch.time[i] == row["time_ms"] // 1000
    seen = [row["video_id"] for row in logs[next(iter(LOGS))]]
    with h5py.File(tmp_path / "out" / "items.h5") as file:
        videos = file["ids/video_id"][:].tolist()
        assert videos == sorted({row["video_id"] for rows in logs.values() for row in rows})
        assert file["weight"][:].tolist() == [seen.count(video) for video in videos]


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("log_random_4_22_to_5_08_pure.csv", "is_hate", "hated", "expected also is_hate"),
        ("user_features_pure.csv", "onehot_feat3", "onehot", "expected also onehot_feat3"),
        (
            "video_features_basic_pure.csv",
            '"12,65"',
            '"12,x"',
            "tag: got 'x' in a list, expected an integer",
        ),
        ("user_features_pure.csv", "\r\n1,", "\r\n0,", "user_id: got 0 in 2 rows"),
    ],
)
def test_what_is_wrong_is_named(
    raw: tuple[Path, Any], tmp_path: Path, name: str, old: str, new: str, message: str
) -> None:
    path = raw[0] / name
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())
    with pytest.raises(UserError, match=message):
        kuairand.prepare(kuairand.KuaiRandOptions(tmp_path / "out", raw[0]))
    assert not list(tmp_path.rglob("*.h5"))


def test_by_the_command(raw: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["preprocess", "kuairand", "--input", str(raw[0]), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert main(command) == 0
    assert "up to date" in capsys.readouterr().out
    (raw[0] / "user_features_pure.csv").unlink()
    assert main([*command, "--overwrite"]) == 2
    assert "got no user_features_*.csv, expected log_standard" in capsys.readouterr().err


def test_another_folder_is_named_with_where_the_files_are(raw: tuple[Path, Any], tmp_path: Path) -> None:
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(UserError, match=message):
            kuairand.prepare(kuairand.KuaiRandOptions(tmp_path / "out", folder))

    refused(tmp_path / "absent", "absent: got no such folder, expected log_standard.* it is `data`")
    refused(tmp_path, "got no log_standard.*; did you mean .*/raw?")
    (raw[0] / "video_features_basic_pure.csv").rename(raw[0] / "video_features_basic_pure.csv.gz")
    refused(raw[0], "got no video_features_basic.*; decompress video_features_basic_pure.csv.gz")
