"""Ranks share the files of splits that come from memory: the same bytes by any number of ranks."""

from __future__ import annotations

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persia_hpc.cli import main
from persia_hpc.errors import UserError
from persia_hpc.preprocess import synthetic
from persia_hpc.preprocess.bad_lines import BadLines
from persia_hpc.preprocess.outputs import ITEMS, FileReport, Outputs
from persia_hpc.preprocess.parts import Part, cut, file_names, write_parts
from persia_hpc.preprocess.team import ONE_MEMBER, OneMember, Team
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.source import open_source
from tests.support.mpi import run_mpi
from tests.support.samples import SCHEMA, assert_equal, random_batch
from tests.unit import test_preprocess_amazon as amazon
from tests.unit import test_preprocess_kuairand as kuairand

PROGRAM = Path(__file__).parent / "programs" / "preprocess.py"
STARS = "".join(
    f"{u}::{1 + (u * 7 + k) % 9}::{1 + (u + k) % 5}::{100 * k + u}\n" for u in (1, 2, 3) for k in range(9)
)


def raw_of(name: str, folder: Path) -> list[str]:
    """Writes a small input; returns the options that make all kinds of files of it."""
    folder.mkdir()
    if name == "amazon":
        text = amazon.text_of(amazon.rows_of(3), "2014")
        (folder / "reviews.json.gz").write_bytes(gzip.compress(text.encode()))
        more = ["--task", "ctr", "--min-count", "2", "--hold-out", "2"]
        return [name, "--input", str(folder / "reviews.json.gz"), *more]
    if name == "kuairand":
        for k, log in enumerate(kuairand.LOGS):
            kuairand.write(folder / log, kuairand.LOG, kuairand.log_rows(k, 10_000))
        users = [{**dict.fromkeys(kuairand.USER, 3), "user_id": user} for user in range(5)]
        kuairand.write(folder / "user_features_pure.csv", kuairand.USER, users)
        videos = [{**dict.fromkeys(kuairand.VIDEO, 1), "video_id": v} for v in range(12)]
        kuairand.write(folder / "video_features_basic_pure.csv", kuairand.VIDEO, videos)
        return [name, "--input", str(folder), "--history", "4"]
    (folder / "ratings.dat").write_text(STARS)
    (folder / "users.dat").write_text("".join(f"{u}::F::1::10::48067\n" for u in (1, 2, 3)))
    (folder / "movies.dat").write_text("".join(f"{m}::M (1995)::Drama\n" for m in range(1, 10)))
    return ["movielens", "--input", str(folder), "--task", "all", "--history", "3"]


@pytest.mark.parametrize("name", ["amazon", "kuairand", "movielens"])
def test_ranks_make_the_bytes_that_one_process_makes(name: str, tmp_path: Path) -> None:
    options = raw_of(name, tmp_path / "raw")
    whole, one, ranks = (tmp_path / folder for folder in ("whole", "one", "ranks"))
    assert main(["preprocess", *options, "--out", str(whole)]) == 0
    assert main(["preprocess", *options, "--out", str(one), "--shards", "4"]) == 0
    command = ["preprocess", *options, "--out", str(ranks), "--shards", "4"]
    said = run_mpi(3, PROGRAM, *command)
    assert said.stdout.count("train-002.h5") == 1
    if name == "kuairand":
        assert "is up to date" in run_mpi(2, PROGRAM, *command).stdout
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in ranks.iterdir())
    assert sum(name.startswith("train-") for name in names) == 4
    for file in names:
        assert (one / file).read_bytes() == (ranks / file).read_bytes(), file
    for split in {path.stem for path in whole.glob("*.h5")}:
        pattern = f"{split}-*.h5" if split == "train" else f"{split}.h5"
        cut_up, together = open_source([str(one / pattern)]), open_source([str(whole / f"{split}.h5")])
        assert_equal(cut_up.read(0, cut_up.num_samples), together.read(0, together.num_samples))


def test_a_bad_line_ends_all_ranks_with_one_message(tmp_path: Path) -> None:
    options = raw_of("movielens", tmp_path / "raw")
    (tmp_path / "raw" / "ratings.dat").write_text(STARS + "1::1::9::3\n")
    done = run_mpi(3, PROGRAM, "preprocess", *options, "--out", str(tmp_path / "out"), check=False)
    assert done.returncode == 2
    assert "ratings.dat:28: rating: got 9, expected 1, 2, 3, 4 or 5" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_only_what_is_missing_is_made_again(tmp_path: Path) -> None:
    options = [*raw_of("kuairand", tmp_path / "raw"), "--out", str(tmp_path / "out"), "--shards", "2"]
    assert main(["preprocess", *options]) == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.h5")}
    (tmp_path / "out" / "train-001.h5").unlink()
    assert main(["preprocess", *options]) == 0
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.h5")}
    assert {name for name, time in after.items() if before[name] != time} == {"train-001.h5"}


class Threads(OneMember):
    """Connects two threads that stand for ranks. See `Team`."""

    size = 2
    shows = False

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self._board, self._barrier = rank, board, barrier

    def gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait(timeout=30)
        found = list(self._board)
        self._barrier.wait(timeout=30)
        return found


def write_some(team: Team, out: Path) -> list[str]:
    names = file_names(["train"], 4)
    parts = cut(names, SCHEMA, 40, lambda begin, end: random_batch(end - begin))
    reports = write_parts(
        team,
        Outputs(out, names, {"dataset": "x"}, overwrite=False),
        parts,
        {"dataset": "x"},
        "x",
        BadLines([], 0),
    )
    return [report.path.name for report in reports or () if isinstance(report, FileReport)]


def write_synthetic(team: Team, out: Path) -> list[str]:
    options = synthetic.SyntheticOptions(out, rows=40, shards=4, valid_rows=0, test_rows=0, dense=1)
    made = synthetic.prepare(options, team)
    return [report.path.name for report in made[0]] if made else []


@pytest.mark.parametrize("work", [write_some, write_synthetic])
@pytest.mark.parametrize("seen", [[], ["train-002.h5", "train-003.h5"]])
def test_ranks_that_see_other_files_write_each_file_once(
    work: Any, seen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, barrier, here = [None, None], threading.Barrier(2), threading.local()
    really = Outputs.missing

    def missing(outputs: Outputs) -> list[str]:
        found = really(outputs)
        return seen if here.rank == 1 else found

    def play(rank: int) -> list[str]:
        here.rank = rank
        made: list[str] = work(Threads(rank, board, barrier), tmp_path / "out")
        return made

    monkeypatch.setattr(Outputs, "missing", missing)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(play, (0, 1))
    expected = file_names(["train"], 4)
    assert first == second == expected
    assert sorted(path.name for path in (tmp_path / "out").glob("*.h5")) == expected


@given(st.integers(1, 50), st.integers(0, 1000))
def test_shards_are_of_about_the_same_size_and_hold_each_row_once(shards: int, rows: int) -> None:
    parts = cut(file_names(["train"], shards), SCHEMA, rows, lambda begin, end: random_batch(end - begin))
    covered = np.concatenate([np.arange(part.begin, part.end) for part in parts])
    assert covered.tolist() == list(range(rows))
    assert len({part.end - part.begin for part in parts}) <= 2
    assert len({part.name for part in parts}) == shards


def test_bad_numbers_of_shards_are_refused(tmp_path: Path) -> None:
    for shards in (0, 10_001):
        with pytest.raises(UserError, match=f"--shards {shards}: expected a number from 1 to 10,000"):
            file_names(["train", "test"], shards)

    def take(begin: int, end: int) -> SampleBatch:
        return random_batch(end - begin)

    names = file_names(["train"], 3)
    outputs = Outputs(tmp_path, names, {"dataset": "x"}, overwrite=False)
    parts: list[Part] = cut(names, SCHEMA, 2, take)
    with pytest.raises(UserError, match=r"train-000\.h5: got no rows, expected at least one"):
        write_parts(ONE_MEMBER, outputs, parts, {"dataset": "x"}, "x", BadLines([], 0))
    assert not list(tmp_path.iterdir())
    assert file_names(["train", "valid"], 1) == ["train.h5", "valid.h5"]
    assert ITEMS not in names
