"""MovieLens as sequences: histories, the last movie held out, the catalogue; bad options."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from persia_hpc.cli import main
from persia_hpc.errors import UserError
from persia_hpc.preprocess.movielens import prepare as movielens
from persia_hpc.samples.ids import hash_strings
from persia_hpc.samples.source import open_source

GENRES = ("Drama", "Comedy", "War")
Row = tuple[int, int, float, int]  # user, movie, stars, time


def rows_of(seed: int, *, halves: bool) -> list[Row]:
    """Made-up ratings, shuffled; user 7 has two, user 8 only one, and many are of the same second."""
    random.seed(seed)
    stars = (0.5, 3.0, 4.5, 2.0) if halves else (1, 3, 4, 5)
    found: list[Row] = []
    for user in range(1, 7):
        movies = random.sample(range(1, 30), random.randint(3, 20))
        found += [(user, m, random.choice(stars), random.randint(10, 40) * 1000) for m in movies]
    found += [(7, 3, 3, 5), (7, 4, 4, 4), (8, 5, 4, 9)]
    random.shuffle(found)
    return found


def write(folder: Path, rows: list[Row], layout: str) -> None:
    if layout == "csv":
        text = "".join(f"{m},Some (1999),{GENRES[m % 3]}\n" for m in range(1, 31))
        (folder / "movies.csv").write_text("movieId,title,genres\n" + text)
        text = "".join(f"{u},{m},{s},{t}\n" for u, m, s, t in rows)
        (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + text)
        return
    text = "".join(f"{m}::Some ({1970 + m})::{GENRES[m % 3]}\n" for m in range(1, 31))
    (folder / "movies.dat").write_text(text)
    (folder / "users.dat").write_text("".join(f"{u}::F::{u}::10::48067\n" for u in range(1, 9)))
    (folder / "ratings.dat").write_text("".join(f"{u}::{m}::{int(s)}::{t}\n" for u, m, s, t in rows))


def prepare(folder: Path, **options: Any) -> Any:
    return movielens.prepare(movielens.MovieLensOptions(folder / "out", folder, **options))


def past_of(rows: list[Row], row: Row, limit: int | None) -> list[Row]:
    """The user's earlier ratings; in the same second the order of the file counts."""
    mine = [other for other in rows if other[0] == row[0]]
    before = [o for o in mine if (o[3], mine.index(o)) < (row[3], mine.index(row))]
    before.sort(key=lambda o: o[3])
    return before if limit is None else before[-limit:]


def check(path: Path, rows: list[Row], targets: list[Row], limit: int | None, *, next_item: bool) -> None:
    source = open_source([str(path)])
    batch = source.read(0, source.num_samples)
    assert batch.time is not None
    by_target = {(row[0], row[1]): row for row in targets}
    assert source.num_samples == len(by_target) == len(targets)
    for i in range(source.num_samples):
        ids = {name: column.slice(i, i + 1).values.tolist() for name, column in batch.ids.items()}
        row = by_target.pop((ids["user"][0], ids["movie"][0]))
        past = past_of(rows, row, limit)
        assert ids["history"] == [o[1] for o in past]
        assert ids["history_rating"] == [int(2 * o[2]) for o in past]
        assert ids["genres"] == hash_strings([GENRES[row[1] % 3]]).tolist()
        assert batch.time[i] == row[3]
        whole = past_of(rows, row, None)
        times = [o[3] for o in whole]
        gaps = [after - before for before, after in zip(times[:1] + times, times, strict=False)]
        gaps = gaps[len(gaps) - len(past) :]
        assert ids["history_gap"] == [int(math.log(max(gap, 1)) / 0.301) for gap in gaps]
        weights = batch.ids["history_gap"].slice(i, i + 1).weights
        assert (weights is not None and weights.tolist() == gaps) if next_item else weights is None
    assert not by_target


def test_the_next_movie(tmp_path: Path) -> None:
    rows = rows_of(1, halves=False)
    write(tmp_path, rows, "dat")
    prepare(tmp_path, task="next_item")
    lasts: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row[3], rows.index(row))):
        lasts.setdefault(row[0], []).append(row)
    test = [mine[-1] for mine in lasts.values() if len(mine) > 1]
    train = [mine[-2] for mine in lasts.values() if len(mine) > 2]
    check(tmp_path / "out" / "test.h5", rows, test, None, next_item=True)
    check(tmp_path / "out" / "train.h5", rows, train, None, next_item=True)
    seen = [row[1] for mine in lasts.values() for row in mine[:-1]]
    with h5py.File(tmp_path / "out" / "items.h5") as items:
        assert items["ids/movie"][:].tolist() == sorted({row[1] for row in rows})
        assert items["weight"][:].tolist() == [seen.count(m) for m in items["ids/movie"][:].tolist()]
        assert items["ids/year"][:].tolist() == [1970 + m for m in items["ids/movie"][:].tolist()]
        assert "label" not in items
    with h5py.File(tmp_path / "out" / "test.h5") as file:
        assert file["label"][:].tolist() == [[1.0]] * len(test)


def test_validation_has_the_one_before(tmp_path: Path) -> None:
    rows = rows_of(2, halves=True)
    write(tmp_path, rows, "csv")
    prepare(tmp_path, task="next_item", hold_out=2, history=4)
    lasts: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row[3], rows.index(row))):
        lasts.setdefault(row[0], []).append(row)
    for back, name in enumerate(("test", "valid", "train"), 1):
        wanted = [mine[-back] for mine in lasts.values() if len(mine) > back]
        check(tmp_path / "out" / f"{name}.h5", rows, wanted, 4, next_item=True)


@pytest.mark.parametrize("layout", ["dat", "csv"])
@pytest.mark.parametrize("task", ["ctr", "all"])
def test_every_rating_with_its_history(tmp_path: Path, task: str, layout: str) -> None:
    rows = rows_of(3, halves=layout == "csv")
    write(tmp_path, rows, layout)
    prepare(tmp_path, task=task, history=5, fractions=(1, 0, 0))
    kept = [row for row in rows if task == "all" or row[2] != 3]
    check(tmp_path / "out" / "train.h5", rows, kept, 5, next_item=False)
    source = open_source([str(tmp_path / "out" / "train.h5")])
    batch = source.read(0, source.num_samples)
    stars = {(row[0], row[1]): row[2] for row in rows}
    pairs = zip(batch.ids["user"].values.tolist(), batch.ids["movie"].values.tolist(), strict=True)
    limit = 3.5 if task == "ctr" and layout == "dat" else 3.01 if task == "ctr" else 4
    assert batch.labels[:, 0].tolist() == [float(stars[pair] >= limit) for pair in pairs]


def test_a_second_run_changes_nothing_and_another_task_is_refused(tmp_path: Path, capsys: Any) -> None:
    write(tmp_path, rows_of(4, halves=False), "dat")
    command = ["preprocess", "movielens", "--input", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*command, "--task", "next_item"]) == 0
    assert "warning" not in capsys.readouterr().out  # the label is 1 in all rows, as it should be
    assert main([*command, "--task", "next_item"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert main([*command, "--task", "all"]) == 2
    assert "is there already, was made with other settings" in capsys.readouterr().err
    assert main([*command, "--task", "all", "--overwrite"]) == 0
    assert not (tmp_path / "out" / "items.h5").exists()


def test_items_of_others_stay(tmp_path: Path) -> None:
    write(tmp_path, rows_of(5, halves=False), "dat")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "items.h5").write_text("mine")
    prepare(tmp_path, task="all", overwrite=True)
    assert (tmp_path / "out" / "items.h5").read_text() == "mine"
    with pytest.raises(UserError, match=r"items.h5 is there already, was not made by preprocess"):
        movielens.prepare(movielens.MovieLensOptions(tmp_path / "out", tmp_path, task="next_item"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history": 0}, "--history 0: expected 1 or more"),
        ({"task": "next_item", "hold_out": 3}, "--hold-out 3: expected 1"),
        ({"task": "next_item", "split": "time"}, "--split time: got it with --task next_item"),
    ],
)
def test_options_that_contradict(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write(tmp_path, rows_of(6, halves=False), "dat")
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, **options)
    assert not np.any([path.suffix == ".h5" for path in tmp_path.rglob("*")])


def test_ratings_without_time(tmp_path: Path) -> None:
    rows = rows_of(7, halves=False)
    write(tmp_path, rows, "dat")
    text = "".join(f"{u}::{m}::{int(s)}\n" for u, m, s, _ in rows)
    (tmp_path / "ratings.dat").write_text(text)
    with pytest.raises(UserError, match="got ratings without timestamps"):
        prepare(tmp_path, task="next_item")
