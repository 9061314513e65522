"""MovieLens-20M's layout: recognised, both tasks, all splits, bad lines by number."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from persia_hpc.config import load_config
from persia_hpc.errors import UserError
from persia_hpc.preprocess.movielens import prepare as movielens
from persia_hpc.preprocess.outputs import FileReport
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.ids import hash_strings
from persia_hpc.samples.source import open_source

MOVIES = (
    "movieId,title,genres\n"
    "1,Toy Story (1995),Adventure|Animation|Children\n"
    '11,"American President, The (1995)",Comedy|Drama|Romance\n'
    '131262,"Innocence ""quoted"" (2014)",(no genres listed)\n'
)
GENRES = {1: ["Adventure", "Animation", "Children"], 11: ["Comedy", "Drama", "Romance"], 131262: []}
STARS = ("0.5", "1.0", "2.5", "3.0", "3.5", "4.0", "5.0")
ROWS = [
    (1 + i // 20, (1, 11, 131262)[i % 3], STARS[i * i % 7], 789652004 + 7919 * (i * 37 % 100))
    for i in range(200)
]
HEADER = "userId,movieId,rating,timestamp\n"
RATINGS = HEADER + "".join(",".join(map(str, row)) + "\n" for row in ROWS)
NAMES = ("train", "valid", "test")


def prepare(
    folder: Path, *, ratings: str = RATINGS, movies: str = MOVIES, packed: bool = False, **options: object
) -> list[FileReport]:
    (folder / "movies.csv").write_text(movies)
    if packed:
        (folder / "ratings.csv.gz").write_bytes(gzip.compress(ratings.encode()))
    else:
        (folder / "ratings.csv").write_text(ratings)
    made = movielens.prepare(movielens.MovieLensOptions(folder / "out", folder, **options))  # type: ignore[arg-type]
    assert made is not None
    return made


def read(folder: Path, *names: str) -> SampleBatch:
    source = open_source([str(folder / "out" / f"{name}.h5") for name in names])
    return source.read(0, source.num_samples)


@pytest.mark.parametrize("split", movielens.SPLITS_BY)
@pytest.mark.parametrize("task", ["ctr", "all"])
def test_values(tmp_path: Path, task: str, split: str) -> None:
    prepare(tmp_path, task=task, split=split, packed=task == "all")
    batch = read(tmp_path, *NAMES)
    assert batch.time is not None
    genres = [batch.ids["genres"].slice(i, i + 1).values.tolist() for i in range(batch.num_samples)]
    columns = (batch.ids["user"].values, batch.ids["movie"].values, batch.time, batch.labels[:, 0])
    got = list(zip(*(column.tolist() for column in columns), genres, strict=True))
    expected = [
        (user, movie, time, float(stars) > 3 if task == "ctr" else float(stars) >= 4, GENRES[movie])
        for user, movie, stars, time in ROWS
        if task == "all" or stars != "3.0"
    ]
    assert len(expected) == (200 if task == "all" else 200 - sum(row[2] == "3.0" for row in ROWS))
    hashed = [(*row[:3], float(row[3]), hash_strings(row[4]).tolist()) for row in expected]
    assert sorted(got) == sorted(hashed)


def test_splits(tmp_path: Path) -> None:
    parts = {}
    for split in movielens.SPLITS_BY:
        folder = tmp_path / split
        folder.mkdir()
        prepare(folder, task="all", split=split, fractions=(0.5, 0.2, 0.3))
        parts[split] = [read(folder, name) for name in NAMES]
    assert [part.num_samples for part in parts["random"]] == [100, 40, 60]
    times = [part.time for part in parts["time"]]
    for early, late in ((0, 1), (1, 2)):
        assert times[early].max() < times[late].min()
    assert abs(len(times[0]) - 100) <= 2  # two ratings of each second stay together
    users = [set(part.ids["user"].values.tolist()) for part in parts["user"]]
    assert [len(some) for some in users] == [5, 2, 3]
    assert len(users[0] | users[1] | users[2]) == 10
    order = parts["random"][0].ids["user"].values
    assert (np.diff(order.astype(np.int64)) < 0).any()


def test_windows_line_ends_and_no_timestamps(tmp_path: Path) -> None:
    text = "".join(line.rsplit(",", 1)[0] + "\r\n" for line in RATINGS.split())
    prepare(tmp_path, ratings=text, movies=MOVIES.replace("\n", "\r\n"), task="all")
    batch = read(tmp_path, *NAMES)
    assert batch.time is None
    assert len(batch.ids["genres"].values) == 3 * sum(row[1] != 131262 for row in ROWS)
    with pytest.raises(UserError, match="--split time: got ratings without timestamps"):
        prepare(tmp_path, ratings=text, split="time", overwrite=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ratings": HEADER + "1,1,5.0,9\n\n1,1,5.5,9\n"}, "ratings.csv:4: rating: got 5.5, expected 0.5, 1"),
        ({"ratings": HEADER + "1,1,3.7,9\n"}, "ratings.csv:2: rating: got 3.7"),
        (
            {"ratings": HEADER + "1,2,4.0,9\n"},
            "ratings.csv:2: movieId: got 2, expected a movie that movies.csv",
        ),
        ({"ratings": HEADER + "1,1,,9\n"}, "ratings.csv:2: rating: got no value"),
        ({"ratings": HEADER + "1,1,4.0\n"}, "ratings.csv:2: got 3 columns, expected 4"),
        ({"ratings": "7,1,4.0,9\n"}, "ratings.csv: got the header '7,1,4.0,9', expected userId,movieId"),
        ({"ratings": HEADER}, "ratings.csv: got no ratings"),
        ({"movies": MOVIES + "11,A,B\n"}, "movies.csv:5: movieId: got '11', expected each movie on one line"),
        ({"movies": MOVIES.replace("11,", "x,")}, "movies.csv:3: movieId: got 'x', expected an integer"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, **changed)  # type: ignore[arg-type]


def test_neither_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"got no ratings\.dat.*or ratings\.csv and movies\.csv of 20M"):
        movielens.prepare(movielens.MovieLensOptions(tmp_path / "out", tmp_path))


def test_configuration_is_valid() -> None:
    folder = Path(__file__).parents[2] / "datasets" / "movielens"
    assert load_config(folder / "movielens_20m.toml").tables["default"].dim == 16
