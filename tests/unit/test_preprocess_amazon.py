"""Amazon reviews: each layout, both tasks against plain loops, the filter, negatives; bad lines by number."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from persia_hpc.errors import UserError
from persia_hpc.preprocess.amazon import prepare as amazon
from persia_hpc.preprocess.amazon import reviews
from persia_hpc.preprocess.bad_lines import BadLines
from persia_hpc.preprocess.lines import Piece, TextBlock
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.ids import MISSING_ID, hash_strings
from persia_hpc.samples.source import open_source

LAYOUTS = ["2014", "2023", "2014.csv", "2018.csv", "2023.csv"]
Row = tuple[str, str, float, int]  # user, product, stars, seconds


def rows_of(seed: int, users: int = 12, products: int = 9) -> list[Row]:
    random.seed(seed)
    found = []
    for user in range(users):
        for product in random.sample(range(products), random.randint(1, products - 1)):
            stars = float(random.randint(1, 5))
            found.append((f"A{user:013d}", f"B{product:09d}", stars, random.randint(1, 20) * 86_400))
    random.shuffle(found)
    return found


def text_of(rows: list[Row], layout: str) -> str:
    if layout == "2014":
        names = ("reviewerID", "asin", "overall", "unixReviewTime")
        lines = [json.dumps({"reviewText": "a, b", **dict(zip(names, row, strict=True))}) for row in rows]
    elif layout == "2023":
        lines = [
            json.dumps({"asin": "B000", "user_id": u, "parent_asin": p, "rating": s, "timestamp": t * 1000})
            for u, p, s, t in rows
        ]
    elif layout == "2014.csv":
        lines = [f"{u},{p},{s},{t}" for u, p, s, t in rows]
    elif layout == "2018.csv":
        lines = [f"{p},{u},{s},{t}" for u, p, s, t in rows]
    else:
        lines = ["user_id,parent_asin,rating,timestamp", *(f"{u},{p},{s},{t * 1000}" for u, p, s, t in rows)]
    return "\n".join(lines) + "\n"


def prepare(folder: Path, text: str, **options: Any) -> Any:
    (folder / "reviews.gz").write_bytes(gzip.compress(text.encode()))
    return amazon.prepare(amazon.AmazonOptions(folder / "out", (str(folder / "reviews.gz"),), **options))


def read(folder: Path, name: str) -> SampleBatch:
    source = open_source([str(folder / "out" / f"{name}.h5")])
    return source.read(0, source.num_samples)


def by_user(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row[3]):
        found.setdefault(row[0], []).append(row)
    return found


def lists(batch: SampleBatch, i: int) -> dict[str, list[int]]:
    return {name: column.slice(i, i + 1).values.tolist() for name, column in batch.ids.items()}


def hashed(names: list[str]) -> list[int]:
    return hash_strings(names).tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_next_product(tmp_path: Path, layout: str) -> None:
    rows = rows_of(1)
    prepare(tmp_path, text_of(rows, layout), min_count=1)
    lasts = by_user(rows)
    for back, name in enumerate(("test", "train"), 1):
        batch = read(tmp_path, name)
        want = {hashed([user])[0]: mine for user, mine in lasts.items() if len(mine) > back}
        assert batch.num_samples == len(want)
        assert batch.group is not None
        assert batch.time is not None
        for i in range(batch.num_samples):
            ids = lists(batch, i)
            mine = want.pop(ids["user"][0])
            target, past = mine[-back], mine[:-back]
            assert ids["item"] == hashed([target[1]])
            assert ids["history"] == hashed([row[1] for row in past])
            assert ids["history_rating"] == [int(2 * row[2]) for row in past]
            assert batch.time[i] == target[3]
            assert batch.labels[i, 0] == 1
            assert batch.group[i] == np.array(ids["user"], np.uint64).view(np.int64)[0]
    counts = Counter(row[1] for mine in lasts.values() for row in mine[:-1])
    with h5py.File(tmp_path / "out" / "items.h5") as file:
        got = dict(zip(file["ids/item"][:].tolist(), file["weight"][:].tolist(), strict=True))
    assert got == {hashed([name])[0]: counts[name] for name in {row[1] for row in rows}}


def test_each_review_beside_another_product(tmp_path: Path) -> None:
    rows = rows_of(2)
    meta = tmp_path / "meta.json"  # of 2014: Python's literals
    products = [{"asin": f"B{p:09d}", "categories": [["X", "Y"], ["X", f"C{p % 3}"]]} for p in range(8)]
    meta.write_text("".join(f"{product}\n" for product in products))
    prepare(tmp_path, text_of(rows, "2014"), task="ctr", min_count=1, history=3, meta=meta)
    lasts = by_user(rows)

    def category(product: str) -> int:
        number = int(product[1:])
        return hashed([f"C{number % 3}"])[0] if number < 8 else MISSING_ID

    names = {hashed([f"B{p:09d}"])[0]: f"B{p:09d}" for p in range(9)}
    for name in ("train", "test"):
        batch = read(tmp_path, name)
        want = [
            (user, k)
            for user, mine in lasts.items()
            for k in (range(1, len(mine) - 1) if name == "train" else range(len(mine) - 1, len(mine)))
            if k > 0
        ]
        assert batch.num_samples == 2 * len(want)
        seen = Counter()
        users = {hashed([user])[0]: user for user in lasts}
        for i in range(batch.num_samples):
            ids = lists(batch, i)
            user = users[ids["user"][0]]
            mine = lasts[user]
            history = [names[value] for value in ids["history"]]
            fits = [k for who, k in want if who == user and mine[k][3] == batch.time[i]]
            k = next(k for k in fits if [row[1] for row in mine[max(k - 3, 0) : k]] == history)
            past = mine[max(k - 3, 0) : k]
            product = names[ids["item"][0]]
            assert ids["category"] == [category(product)]
            assert ids["history_category"] == [category(row[1]) for row in past]
            if batch.labels[i, 0]:
                assert product == mine[k][1]
            else:
                assert product not in {row[1] for row in mine}
            seen[user, k, int(batch.labels[i, 0])] += 1
        assert seen == Counter((*pair, label) for pair in want for label in (0, 1))


def test_rare_ones_are_left_out_once(tmp_path: Path) -> None:
    rows = rows_of(3, users=30, products=12)
    prepare(tmp_path, text_of(rows, "2014.csv"), min_count=4)
    users, products = Counter(row[0] for row in rows), Counter(row[1] for row in rows)
    kept = [row for row in rows if users[row[0]] >= 4 and products[row[1]] >= 4]
    again = Counter(row[0] for row in kept)
    kept = [row for row in kept if again[row[0]] >= 4]
    assert 0 < len(kept) < len(rows)
    batch = read(tmp_path, "test")
    want = {hashed([user])[0]: len(mine) for user, mine in by_user(kept).items()}
    got = dict(zip(batch.ids["user"].values.tolist(), np.diff(batch.ids["history"].offsets) + 1, strict=True))
    assert got == want


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            text_of(rows_of(4), "2014") + "{broken\n",
            r"reviews\.gz:\d+: got no review, expected JSON with reviewer",
        ),
        ('{"reviewerID": "A", "asin": "B"}\n', "reviews.gz:1: rating: got no value"),
        ("A0000000000001,B000000001,6,9\n", "reviews.gz:1: rating: got 6.0, expected a number from 0 to 5"),
        ("A0000000000001,B000000001,x,9\n", "reviews.gz:1: rating: got 'x', expected a number"),
        ("A1,B1,5,9\n", "reviews.gz:1: got 'A1,B1,5,9', expected JSON lines, the header"),
        ("A0000000000001,B000000001,5\n", "reviews.gz:1: got 3 columns, expected 4"),
        ("", "got no reviews"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, text, min_count=1)
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.parametrize(
    "bad", [b"garbage line", b'{"broken', b"a,b,c,d", b'{"asin": 1}', b"\xff\xfe", b"x,,5,9"]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bad_first_line_is_one_bad_line(tmp_path: Path, layout: str, bad: bytes) -> None:
    path = tmp_path / "reviews"
    text = text_of(rows_of(3), layout).encode()
    path.write_bytes(text)
    good = reviews.read_reviews([path], BadLines([Piece(path)], 0), shown=False)
    for count in (1, 3):
        path.write_bytes((bad + b"\n") * count + text)
        bad_lines = BadLines([Piece(path)], count)
        assert reviews.read_reviews([path], bad_lines, shown=False).equals(good)
        assert bad_lines.count == count
        assert bad_lines.report()[1].startswith(f"  {path}:1: ")
        with pytest.raises(UserError, match="reviews:1: "):
            reviews.read_reviews([path], BadLines([Piece(path)], 0), shown=False)


def test_a_file_without_any_layout_has_only_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "reviews"
    path.write_text("A1,B1,5,9\nA2,B2,5,9\n")
    bad_lines = BadLines([Piece(path)], 2)
    with pytest.raises(UserError, match="got no reviews"):
        reviews.read_reviews([path], bad_lines, shown=False)
    assert bad_lines.count == 2


def test_options_that_leave_nothing(tmp_path: Path) -> None:
    text = text_of(rows_of(5), "2014.csv")
    with pytest.raises(UserError, match="--min-count 1000: got no user and product"):
        prepare(tmp_path, text, min_count=1000)
    rows = [(f"A{u:013d}", f"B{p:09d}", 5.0, p) for u in range(3) for p in range(2)]
    with pytest.raises(UserError, match="reviewed all 2 products"):
        prepare(tmp_path, text_of(rows, "2014.csv"), min_count=1, task="ctr")


def test_lines_read_one_by_one_are_as_blocks_give_them() -> None:
    """Half a character, as broken tools write it, is the same in both: else a user would be two."""
    names = json.dumps(["A\ud800x", "\udc00", "A\U0001f600", "plain"]).strip("[]").split(", ")
    lines = [
        f'{{"reviewerID": {name}, "asin": "B", "overall": 5, "unixReviewTime": {i}}}\n'
        for i, name in enumerate(names)
    ]
    block = TextBlock(Path("reviews"), "".join(lines).encode(), 1, len(lines))
    frame = reviews._json(block, reviews.OLD).frame
    assert frame["user"].to_list() == ["A\ufffdx", "\ufffd", "A\U0001f600", "plain"]
    assert reviews._json_by_line(block, reviews.OLD)["reviewerID"].equals(frame["user"], check_names=False)
