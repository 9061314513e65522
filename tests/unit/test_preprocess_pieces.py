"""Criteo in shards: the same samples as in one go, whoever makes them, and nothing is made twice."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.cli import main
from persia_hpc.preprocess import progress
from persia_hpc.preprocess.lines import cut_pieces, whole_lines
from persia_hpc.preprocess.team import Part, share_of, shares
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.source import open_source
from tests.support.mpi import run_mpi

PROGRAM = Path(__file__).parent / "programs" / "preprocess.py"
BROKEN_DISK = PROGRAM.with_name("preprocess_broken_disk.py")


def write_lines(path: Path, count: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        numbers = ["" if rng.random() < 0.1 else str(rng.integers(-3, 5000)) for _ in range(13)]
        ids = ["" if rng.random() < 0.1 else f"{rng.zipf(1.3) % 2**32:08x}" for _ in range(26)]
        rows.append("\t".join([str(int(rng.random() < 0.3)), *numbers, *ids]) + "\n")
    text = "".join(rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("raw")
    files = [write_lines(folder / "day_0.tsv", 900, 1), write_lines(folder / "day_1.tsv.gz", 300, 2)]
    return [str(path) for path in [*files, write_lines(folder / "day_2.tsv", 500, 3)]]


def arguments(raw: list[str], out: Path, *more: str) -> list[str]:
    return ["preprocess", "criteo", "--input", *raw, "--out", str(out), *more]


def read(out: Path, pattern: str = "train-*.h5") -> SampleBatch:
    source = open_source([str(out / pattern)])
    return source.read(0, source.num_samples)


def assert_equal(one: SampleBatch, other: SampleBatch) -> None:
    assert np.array_equal(one.labels, other.labels)
    assert np.array_equal(one.dense, other.dense)
    assert list(one.ids) == list(other.ids)
    assert all(np.array_equal(one.ids[n].values, other.ids[n].values) for n in one.ids)


@pytest.mark.parametrize("min_count", [1, 3])
def test_shards_hold_what_one_file_would(raw: list[str], tmp_path: Path, min_count: int) -> None:
    rare = ["--min-count", str(min_count)]
    assert main(arguments(raw, tmp_path / "one", "--train-fraction", "1", *rare)) == 0
    assert main(arguments(raw, tmp_path / "many", "--shard-bytes", "20000", *rare)) == 0
    names = sorted(p.name for p in (tmp_path / "many").glob("*.h5*"))
    assert len(names) > 10
    assert names[0] == "train-00000.h5"
    assert_equal(read(tmp_path / "many"), read(tmp_path / "one"))


@pytest.mark.parametrize("num_ranks", [3])
def test_several_ranks_make_the_same_files(raw: list[str], tmp_path: Path, num_ranks: int) -> None:
    more = ["--shard-bytes", "30000", "--test-shards", "2", "--min-count", "3"]
    assert main(arguments(raw, tmp_path / "alone", *more)) == 0
    done = run_mpi(num_ranks, PROGRAM, *arguments(raw, tmp_path / "ranks", *more))
    names = sorted(p.name for p in (tmp_path / "alone").glob("*.h5*"))
    assert names == sorted(p.name for p in (tmp_path / "ranks").glob("*.h5*"))
    assert names[:2] == ["test-00000.h5", "test-00001.h5"]
    for name in names:
        assert_equal(read(tmp_path / "ranks", name), read(tmp_path / "alone", name))
        assert done.stdout.count(f"{name}: ") == 1  # rank 0 reports for all
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "ranks").glob("*.h5*")}
    gone = [names[1], names[5]]
    for name in gone:  # as after a kill
        (tmp_path / "ranks" / name).unlink()
    done = run_mpi(num_ranks, PROGRAM, *arguments(raw, tmp_path / "ranks", *more))
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "ranks").glob("*.h5*")}
    assert [name for name in names if after[name] != before[name]] == gone
    for name in gone:
        assert_equal(read(tmp_path / "ranks", name), read(tmp_path / "alone", name))
    assert "is up to date" in run_mpi(num_ranks, PROGRAM, *arguments(raw, tmp_path / "ranks", *more)).stdout
    done = run_mpi(num_ranks, PROGRAM, *arguments(raw, tmp_path / "ranks", *more[:-1], "9"), check=False)
    assert done.returncode != 0
    assert "was made with other settings (min_count)" in done.stderr
    done = run_mpi(num_ranks, PROGRAM, *arguments(raw, tmp_path / "new", "--shards", "2"), check=False)
    assert "shares its work only with --shard-bytes" in done.stderr


def test_parts_without_communication_make_all_files(
    raw: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--shard-bytes", "30000", "--test-shards", "2"]
    assert main(arguments(raw, tmp_path / "alone", *more)) == 0
    for part in ("1/2", "0/2"):
        assert main(arguments(raw, tmp_path / "parts", *more, "--part", part)) == 0
    names = sorted(p.name for p in (tmp_path / "alone").glob("*.h5*"))
    assert names == sorted(p.name for p in (tmp_path / "parts").glob("*.h5*"))
    for name in names:
        assert_equal(read(tmp_path / "parts", name), read(tmp_path / "alone", name))
    for option in ("--min-count", "--max-bad-lines"):
        command = arguments(raw, tmp_path / "all", *more, option, "2", "--part", "0/2")
        assert main(command) == 2
        assert f"{option} needs all rows of the input" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["2/2", "-1/2", "1", "1/x", "0/0"])
def test_parts_that_are_none(raw: list[str], tmp_path: Path, part: str) -> None:
    with pytest.raises(SystemExit):
        main(arguments(raw, tmp_path / "out", "--shard-bytes", "30000", f"--part={part}"))


def test_files_of_other_shards_are_refused_or_replaced(
    raw: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A glob over the folder must never find a sample twice."""
    assert main(arguments(raw, tmp_path / "out", "--shard-bytes", "20000")) == 0
    before = read(tmp_path / "out")
    fewer = arguments(raw, tmp_path / "out", "--shard-bytes", "60000")
    assert main(fewer) == 2
    assert "was made with other settings (shard_bytes)" in capsys.readouterr().err
    assert main([*fewer, "--overwrite"]) == 0
    assert_equal(read(tmp_path / "out"), before)
    (tmp_path / "file").touch()
    assert main(arguments(raw, tmp_path / "file", "--shard-bytes", "60000")) == 2
    assert "can't be made" in capsys.readouterr().err


def test_a_bad_line_is_named_by_its_number_and_ends_all_ranks(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "day.tsv", 600, 4)
    lines = path.read_text().split("\n")
    lines[431] = "2" + lines[431][1:]
    path.write_text("\n".join(lines))
    more = ["--shard-bytes", "20000"]
    done = run_mpi(3, PROGRAM, *arguments([str(path)], tmp_path / "out", *more), check=False)
    assert done.returncode != 0
    assert f"{path}:432" in done.stderr
    assert done.stderr.count("persia-hpc: error") == 1
    assert not list((tmp_path / "out").glob(".*"))  # no file that is half written


def test_a_rank_that_fails_alone_ends_all(raw: list[str], tmp_path: Path) -> None:
    command = arguments(raw, tmp_path / "out", "--shard-bytes", "30000")
    done = run_mpi(3, BROKEN_DISK, *command, check=False, guarded=False, timeout=60)
    assert done.returncode != 0
    assert "OSError: [Errno 5] Input/output error" in done.stderr
    assert "bad_lines.share(team)" in done.stderr  # a traceback


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_pieces_without_rows_need_no_file(tmp_path: Path, num_ranks: int) -> None:
    """Blank or bad lines only; and nothing is looked at again."""
    good = write_lines(tmp_path / "day_0.tsv", 200, 6)
    bad = tmp_path / "day_1.tsv"
    bad.write_text("x\n" * 3)
    blank = tmp_path / "day_2.tsv.gz"
    blank.write_bytes(gzip.compress(b"\n" * 5))
    files = [str(path) for path in (bad, good, blank)]
    more = ["--shard-bytes", "20000", "--max-bad-lines", "3", "--min-count", "2"]
    command = arguments(files, tmp_path / "out", *more)
    done = run_mpi(num_ranks, PROGRAM, *command)
    assert f"left out 3 bad lines, the first of them:\n  {bad}:1: got 1 column" in done.stdout
    assert main(arguments([str(good)], tmp_path / "good", "--shard-bytes", "20000", *more[4:])) == 0
    assert_equal(read(tmp_path / "out"), read(tmp_path / "good"))
    made = sorted(p.name for p in (tmp_path / "out").glob("*.h5*"))
    assert {"train-00000.h5.absent", f"train-{len(made) - 1:05d}.h5.absent"} < set(made)
    assert "is up to date" in run_mpi(num_ranks, PROGRAM, *command).stdout
    assert main([*command, "--max-bad-lines", "2"]) == 2  # they are remembered
    assert main([*arguments(files, tmp_path / "out", "--shard-bytes", "9000", *more[2:]), "--overwrite"]) == 0
    assert_equal(read(tmp_path / "out"), read(tmp_path / "good"))


@pytest.mark.parametrize(
    ("text", "message"), [("", "the input has no rows"), ("\n\n", "got no rows in all of the input")]
)
def test_an_input_without_rows(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "day").write_text(text)
    for _ in range(2):
        assert main(arguments([str(tmp_path / "day")], tmp_path / "out", "--shard-bytes", "1GiB")) == 2
        assert message in capsys.readouterr().err


def test_a_new_run_leaves_nothing_of_an_old_one_in_parts_either(raw: list[str], tmp_path: Path) -> None:
    small, large = ["--shard-bytes", "20000"], ["--shard-bytes", "60000", "--test-shards", "1"]
    assert main(arguments(raw, tmp_path / "fresh", *large)) == 0
    assert main(arguments(raw, tmp_path / "out", *small)) == 0
    for part in ("0/2", "1/2"):
        assert main(arguments(raw, tmp_path / "out", *large, "--overwrite", "--part", part)) == 0
    names = [sorted(p.name for p in (tmp_path / run).glob("*.h5*")) for run in ("out", "fresh")]
    assert names[0] == names[1]
    for name in names[0]:
        assert_equal(read(tmp_path / "out", name), read(tmp_path / "fresh", name))


def test_all_parts_show_how_far_they_are(
    raw: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0)
    assert main(arguments(raw, tmp_path / "out", "--shard-bytes", "30000", "--part", "1/2")) == 0
    assert "criteo: writing: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shard-bytes", "1GiB", "--test-shards", "3"], "the input makes 3 shards"),
        (["--shard-bytes", "1GiB", "--min-count", "0"], "--min-count 0"),
        (["--shard-bytes", "0"], "--shard-bytes 0"),
    ],
)
def test_bad_options(
    raw: list[str], tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(raw, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(
        st.text(st.characters(codec="ascii", exclude_characters="\r\n"), max_size=30), max_size=40
    ),
    size=st.integers(1, 200),
    ended=st.booleans(),
)
def test_pieces_are_the_file(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], size: int, ended: bool
) -> None:
    path = tmp_path_factory.mktemp("pieces") / "lines.txt"
    text = "\n".join(lines) + ("\n" if ended and lines else "")
    path.write_text(text)
    pieces = cut_pieces([path], size)
    got = []
    for piece in pieces:
        first = piece.first_line()
        found = [line for b in whole_lines(piece, block_bytes=17) for line in b.decode().split("\n")[:-1]]
        got += [(first + i, line) for i, line in enumerate(found)]
    assert got == [(i + 1, line) for i, line in enumerate(text.removesuffix("\n").split("\n")) if text]
    if pieces:
        assert (pieces[0].begin, pieces[-1].end) == (0, path.stat().st_size)
        assert all(a.end == b.begin for a, b in pairwise(pieces))
        assert len(pieces) == 1 or pieces[-1].num_bytes >= size // 8


@given(sizes=st.lists(st.integers(0, 1000), max_size=30), count=st.integers(1, 6))
def test_work_is_shared_evenly(sizes: list[int], count: int) -> None:
    taken = shares(sizes, count)
    assert sorted(i for items in taken for i in items) == list(range(len(sizes)))
    loads = [sum(sizes[i] for i in items) for items in taken]
    assert max(loads) - min(loads) <= max(sizes, default=0)


class Connected(Part):
    """A rank that needs no others, since nothing is said."""

    connected = True


@given(sizes=st.lists(st.integers(0, 1000), max_size=30), count=st.integers(1, 6), data=st.data())
def test_what_is_left_is_shared_evenly_by_ranks_that_know_of_each_other(
    sizes: list[int], count: int, data: st.DataObject
) -> None:
    wanted = data.draw(st.sets(st.sampled_from(range(len(sizes))))) if sizes else set()
    taken = [share_of(Connected(rank, count), sizes, wanted) for rank in range(count)]
    assert sorted(i for items in taken for i in items) == sorted(wanted)
    loads = [sum(sizes[i] for i in items) for items in taken]
    assert max(loads) - min(loads) <= max((sizes[i] for i in wanted), default=0)
    for rank in range(count):  # of all items, whatever is wanted
        assert share_of(Part(rank, count), sizes, wanted) == [
            i for i in shares(sizes, count)[rank] if i in wanted
        ]
