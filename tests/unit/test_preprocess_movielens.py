"""MovieLens: both tasks, joined features, bad lines by number."""

import lzma

import numpy as np
import pytest

from persia_hpc.errors import UserError
from persia_hpc.preprocess.movielens import prepare as movielens
from persia_hpc.samples.ids import hash_strings
from persia_hpc.samples.source import open_source

USERS = "1::F::1::10::48067\n2::M::56::16::70072\n"
MOVIES = "1::Toy Story (1995)::Animation|Children's\n7::Misérables, Les (1998)::Drama\n"
RATINGS = "".join(f"{1 + i % 2}::{(1, 7)[i // 2 % 2]}::{1 + i % 5}::{1000 + i}\n" for i in range(100))


def prepare(tmp_path, *, users=USERS, movies=MOVIES, ratings=RATINGS, **options):
    for name, text in (("users.dat", users), ("movies.dat", movies)):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    name = "ratings.dat" if ratings.split("\n", 1)[0].count("::") == 3 else "ratings_no_timestamp.dat"
    (tmp_path / f"{name}.xz").write_bytes(lzma.compress(ratings.encode()))
    return movielens.prepare(movielens.MovieLensOptions(tmp_path / "out", tmp_path, **options))


def read(tmp_path):
    source = open_source([str(tmp_path / "out" / f"{name}.h5") for name in ("train", "valid", "test")])
    return source.read(0, source.num_samples)


def test_no_ratings_to_split_by_time(tmp_path):
    with pytest.raises(UserError, match="--split time: got no ratings"):
        prepare(tmp_path, ratings="1::1::3::1000\n", task="ctr", split="time")


@pytest.mark.parametrize(("task", "total"), [("ctr", 80), ("all", 100)])
def test_values(tmp_path, task, total):
    reports = prepare(tmp_path, task=task)
    assert [report.num_rows for report in reports] == [total * 8 // 10, total // 10, total // 10]
    batch = read(tmp_path)
    rows = [[int(v) for v in text.split("::")] for text in RATINGS.split()]
    by_time = {row[3]: row for row in rows if task == "all" or row[2] != 3}
    assert sorted(batch.time.tolist()) == sorted(by_time)
    drama, animation, children = hash_strings(["Drama", "Animation", "Children's"]).tolist()
    male, female = hash_strings(["M", "F"]).tolist()
    for i, time in enumerate(batch.time.tolist()):
        user, movie, rating, _ = by_time[time]
        ids = {name: c.slice(i, i + 1).values.tolist() for name, c in batch.ids.items()}
        assert ids["user"] == [user]
        assert ids["movie"] == [movie]
        assert ids["gender"] == [female if user == 1 else male]
        assert ids["age"] == [1 if user == 1 else 56]
        assert ids["occupation"] == [10 if user == 1 else 16]
        assert ids["zip"] == hash_strings(["48067" if user == 1 else "70072"]).tolist()
        assert ids["genres"] == ([animation, children] if movie == 1 else [drama])
        assert ids["year"] == [1995 if movie == 1 else 1998]
        assert batch.labels[i, 0] == (rating > 3)


def test_without_timestamps_and_by_seed(tmp_path):
    orders = []
    for seed in (1, 1, 2):
        folder = tmp_path / str(len(orders))
        folder.mkdir()
        prepare(folder, ratings="".join(t.rsplit("::", 1)[0] + "\n" for t in RATINGS.split()), seed=seed)
        batch = read(folder)
        assert batch.time is None
        orders.append(np.stack([batch.ids["user"].values, batch.labels[:, 0].astype(np.uint64)]).tolist())
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ratings": "1::1::5\n1::1::6\n"}, "ratings_no_timestamp.dat.xz:2: rating: got 6, expected 1, 2"),
        ({"ratings": "1::1::5\n\n9::1::5\n"}, "dat.xz:3: user: got 9, expected a user that users.dat has"),
        ({"ratings": "1::1::5\n1::x::5\n"}, "dat.xz:2: movie: got 'x', expected an integer"),
        (
            {"ratings": "1::1::5\n1::1\n"},
            r"dat.xz:2: got '1::1', expected 3 values, user::movie::rating \(--max",
        ),
        (
            {"ratings": "userId,movieId,rating\n1,1,5\n"},
            r"dat.xz:1: got 'userId,m.*user::movie::.*\.csv \(--max",
        ),
        ({"users": USERS + USERS}, "users.dat:3: user: got 1, expected each user on one line"),
        ({"movies": MOVIES + MOVIES}, "movies.dat:3: movie: got 1, expected each movie on one line"),
        ({"ratings": "1::1::5\n-1::1::5\n"}, "dat.xz:2: user: got -1, expected a number from 0 on"),
        ({"ratings": "1::1::5\n1::1::4.5\n"}, "dat.xz:2: rating: got '4.5', expected an integer"),
        ({"ratings": "1::1::5::9\n1::1::5::9.5\n"}, "dat.xz:2: time: got '9.5', expected an integer"),
        ({"users": "1::F::1::10\n"}, "users.dat:1: got '1::F::1::10', expected 5 values, user::gender::age"),
        ({"movies": "1::Toy Story::Drama\n7::A (1990)::B\n"}, r"movies.dat:1: title: .*ends in '\(year\)'"),
    ],
)
def test_bad_lines_are_named(tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, **changed)


def test_a_bad_first_line_is_one_bad_line(tmp_path):
    prepare(tmp_path, ratings=f"garbage\n{RATINGS}", task="all", max_bad_lines=1)
    assert sorted(read(tmp_path).time.tolist()) == list(range(1000, 1100))


def test_another_folder_is_named_with_what_it_holds(tmp_path):
    def refused(folder, message):
        with pytest.raises(UserError, match=message):
            movielens.prepare(movielens.MovieLensOptions(tmp_path / "out", folder))

    refused(tmp_path / "absent", "absent: got no such folder, expected ratings.dat there")
    (tmp_path / "zip" / "ml-1m").mkdir(parents=True)
    (tmp_path / "zip" / "ml-1m" / "ratings.dat").touch()
    refused(tmp_path / "zip", "got no ratings.dat, .* did you mean .*zip/ml-1m?")
    (tmp_path / "100k").mkdir()
    (tmp_path / "100k" / "u.data").touch()
    refused(tmp_path / "100k", "100K, which aren't read: download 1M")
