"""Bad lines of sources whose samples have histories: left out as if never there; encodings of other data."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from persia_hpc.cli import main
from persia_hpc.errors import UserError
from persia_hpc.preprocess.amazon import prepare as amazon
from persia_hpc.preprocess.kuairand import KuaiRandOptions
from persia_hpc.preprocess.kuairand import prepare as prepare_kuairand
from persia_hpc.preprocess.movielens import prepare as movielens
from persia_hpc.samples.identity import file_digest
from persia_hpc.samples.source import open_source
from tests.unit import test_preprocess_kuairand as kuairand
from tests.unit import test_preprocess_movielens as dat
from tests.unit import test_preprocess_movielens_csv as csv
from tests.unit.test_preprocess_amazon import rows_of, text_of

Files = dict[str, str]


@dataclass(frozen=True)
class Case:
    """files: good ones. bad: a file, a line that isn't of its layout, and what is said of it."""

    files: Callable[[], Files]
    bad: list[tuple[str, str, str]]
    prepare: Callable[..., Any]
    options: Callable[[Path], dict[str, Any]]


def movielens_files() -> Files:
    return {"users.dat": dat.USERS, "movies.dat": dat.MOVIES, "ratings.dat": dat.RATINGS}


def csv_files() -> Files:
    return {"movies.csv": csv.MOVIES, "ratings.csv": csv.RATINGS}


def amazon_files(layout: str) -> Files:
    products = [{"asin": f"B{k:09d}", "categories": [["all", f"kind {k % 3}"]]} for k in range(9)]
    return {
        "reviews": text_of(rows_of(1), layout),
        "meta": "".join(json.dumps(product) + "\n" for product in products),
    }


def kuairand_files(folder: Path) -> Files:
    folder.mkdir()
    for k, log in enumerate(kuairand.LOGS):
        kuairand.write(folder / log, kuairand.LOG, kuairand.log_rows(k, 10_000))
    users = [{**dict.fromkeys(kuairand.USER, 3), "user_id": user} for user in range(5)]
    kuairand.write(folder / "user_features_pure.csv", kuairand.USER, users)
    videos = [{**dict.fromkeys(kuairand.VIDEO, 1), "video_id": video} for video in range(12)]
    kuairand.write(folder / "video_features_basic_pure.csv", kuairand.VIDEO, videos)
    return {path.name: path.read_text() for path in folder.iterdir()}


LOG = "log_standard_4_22_to_5_08_pure.csv"
NO_CLICK = ",".join("2" if name == "is_click" else "0" for name in kuairand.LOG)
CASES = {
    "movielens": Case(
        movielens_files,
        [
            ("ratings.dat", "x::1::5::3", "user: got 'x', expected an integer"),
            ("ratings.dat", "1::1::9::3", "rating: got 9, expected 1, 2, 3, 4 or 5"),
            ("ratings.dat", "9::1::5::3", "user: got 9, expected a user that users.dat has"),
            ("ratings.dat", "1::1::5", "got '1::1::5', expected 4 values, user::movie::rating::time"),
            ("ratings.dat", "1::\t1::5::3", "got a tab, expected values separated by '::'"),
            ("movies.dat", "8::No year::Drama", "title: got 'No year', expected a title that ends in"),
            ("users.dat", "3::F::1::-1::48067", "occupation: got -1, expected a number from 0 on"),
        ],
        movielens.prepare,
        lambda folder: {"input": folder, "task": "all", "history": 3},
    ),
    "movielens csv": Case(
        csv_files,
        [
            ("ratings.csv", "1,1,2.3,5", "rating: got 2.3, expected 0.5, 1, 1.5 ... 5"),
            ("ratings.csv", "1,99,2.0,5", "movieId: got 99, expected a movie that movies.csv has"),
            ("ratings.csv", "1,1,2.0,x", "timestamp: got 'x', expected an integer"),
            ("ratings.csv", "1,1", "got 2 columns, expected 4 separated by comma"),
            ("movies.csv", "x,A title (1990),Drama", "movieId: got 'x', expected an integer"),
        ],
        movielens.prepare,
        lambda folder: {"input": folder, "task": "next_item"},
    ),
    "amazon": Case(
        lambda: amazon_files("2014"),
        [
            ("reviews", "{", "got no review, expected JSON with reviewerID, asin, overall, unixReviewTime"),
            ("reviews", '{"asin": "B000000001"}', "got no review, expected JSON"),
            (
                "reviews",
                '{"reviewerID": "A", "asin": "B000000001", "overall": 9, "unixReviewTime": 1}',
                "rating: got 9.0, expected a number from 0 to 5",
            ),
            (
                "reviews",
                '{"reviewerID": "A", "asin": "B000000001", "overall": [9], "unixReviewTime": 1}',
                "got values of another type, expected reviewerID",
            ),
            ("meta", "nothing", "got no product, expected JSON with an asin"),
        ],
        amazon.prepare,
        lambda folder: {"input": (str(folder / "reviews"),), "meta": folder / "meta", "min_count": 2},
    ),
    "amazon csv": Case(
        lambda: amazon_files("2023.csv"),
        [
            ("reviews", "A,B000000001,x,1", "rating: got 'x', expected a number"),
            ("reviews", "A,B000000001", "got 2 columns, expected 4 separated by comma"),
            ("reviews", "A,,4.0,1000", "item: got no value, expected a value"),
        ],
        amazon.prepare,
        lambda folder: {"input": (str(folder / "reviews"),), "task": "ctr", "min_count": 1},
    ),
}


def insert(files: Files, bad: list[tuple[str, str, str]], seed: int) -> tuple[Files, list[str]]:
    """Puts the lines in after the first ones; returns also `file:line: problem` of each, as it is said."""
    place = random.Random(seed)
    texts = {name: text.splitlines() for name, text in files.items()}
    why = {text: (name, problem) for name, text, problem in bad}
    for name, text, _ in bad:
        texts[name].insert(place.randint(1, len(texts[name])), text)
    said = [
        f"{name}:{k}: {why[line][1]}"
        for name, lines in texts.items()
        for k, line in enumerate(lines, 1)
        if line in why and why[line][0] == name
    ]
    return {name: "\n".join(lines) + "\n" for name, lines in texts.items()}, said


def write(folder: Path, files: Files) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="latin-1")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(open_source([str(path)])) for path in sorted(folder.glob("*.h5"))}


@pytest.fixture
def cases(tmp_path: Path) -> dict[str, Case]:
    files = kuairand_files(tmp_path / "raw")
    bad = [
        (LOG, NO_CLICK, "is_click: got '2', expected 0 or 1"),
        (LOG, "1,2", f"got 2 columns, expected {len(kuairand.LOG)} separated by comma"),
        ("video_features_basic_pure.csv", "x" + ",1" * 11, "video_id: got 'x', expected an integer"),
    ]
    more = Case(lambda: files, bad, prepare_kuairand, lambda folder: {"input": folder, "history": 4})
    return {**CASES, "kuairand": more}


@pytest.mark.parametrize("name", [*CASES, "kuairand"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_rest_is_as_if_they_had_never_been_there(
    cases: dict[str, Case], tmp_path: Path, name: str, seed: int
) -> None:
    case = cases[name]
    files, said = insert(case.files(), case.bad, seed)
    good, bad = write(tmp_path / "good", case.files()), write(tmp_path / "bad", files)
    kinds = {"amazon": amazon.AmazonOptions, "kuairand": KuaiRandOptions}
    options = kinds.get(name.split()[0], movielens.MovieLensOptions)

    def prepare(folder: Path, out: str, limit: int) -> list[str] | None:
        made = case.prepare(options(tmp_path / out, max_bad_lines=limit, **case.options(folder)))
        return None if made is None else list(map(str, made))

    prepare(good, "of good", 0)
    report = prepare(bad, "of bad", len(said)) or []
    assert contents(tmp_path / "of bad") == contents(tmp_path / "of good") != {}
    begin = report.index(f"left out {len(said)} bad lines, the first of them:") + 1
    assert len(report) - begin == min(len(said), 5)
    for line in report[begin:]:
        assert any(line.startswith(f"  {bad / text}") for text in said), line
    assert prepare(bad, "of bad", len(said)) is None
    for out in ("of bad", "anew"):  # although the files are there
        with pytest.raises(UserError, match=rf"got {len(said)} bad lines, expected at most {len(said) - 1}"):
            prepare(bad, out, len(said) - 1)
    with pytest.raises(UserError, match=r"^\S+/bad/.*:\d+: .* \(--max-bad-lines N leaves out up to N such"):
        prepare(bad, "anew", 0)


def test_an_encoding_of_other_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = write(tmp_path / "dat", movielens_files()), write(tmp_path / "csv", csv_files())

    def prepared(folder: Path, out: str, *more: str) -> tuple[int, str]:
        code = main(["preprocess", "movielens", "--input", str(folder), "--out", str(tmp_path / out), *more])
        return code, capsys.readouterr().err

    assert prepared(one, "a")[0] == 0
    assert prepared(one, "b", "--encoding", str(tmp_path / "a"), "--task", "all")[0] == 0
    code, said = prepared(other, "c", "--encoding", str(tmp_path / "a"))
    assert code == 2
    assert "got one of other data (release: dat), expected release: csv" in said
    assert not (tmp_path / "c").exists()


def test_yambda_says_that_parquet_has_no_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["preprocess", "yambda", "--input", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*command, "--max-bad-lines", "3"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--max-bad-lines 3: got Parquet files, which have no lines to leave out" in said
