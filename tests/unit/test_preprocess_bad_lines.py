"""Bad lines of Criteo's layout: left out as if never there, counted, reported, refused above a limit."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.cli import main
from persia_hpc.errors import UserError
from persia_hpc.preprocess.criteo import parallel as criteo_shards
from persia_hpc.preprocess.criteo import prepare as criteo
from persia_hpc.preprocess.team import ONE_MEMBER
from persia_hpc.samples.source import open_source
from tests.support.mpi import run_mpi

PROGRAM = Path(__file__).parent / "programs" / "preprocess.py"
BAD = {
    "2" + "\t" * 39: "label: got '2', expected 0 or 1",
    "1\tx" + "\t" * 38: "I1: got 'x', expected an integer",
    "0" + "\t" * 39 + "g": "C26: got 'g', expected a 32-bit hexadecimal number or nothing",
    "0\t1": "got 2 columns, expected 40 separated by tab",
    "1" + "\t" * 39 + "\t": "got 41 columns, expected 40 separated by tab",
    "\t" * 39: "label: got no value, expected 0 or 1",
}


def good_lines(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    numbers = np.concatenate([random.integers(-1, 100, (count, 12)), random.integers(0, 9, (count, 26))], 1)
    return ["\t".join(map(str, [i % 2, i, *row])) for i, row in enumerate(numbers.tolist())]


def values_of(folder: Path) -> dict[str, tuple[list[float], list[list[float]], list[list[int]]]]:
    """What is in each file."""
    found = {}
    for path in sorted(folder.glob("*.h5")):
        source = open_source([str(path)])
        batch = source.read(0, source.num_samples)
        ids = [column.values.tolist() for column in batch.ids.values()]
        found[path.name] = (batch.labels[:, 0].tolist(), batch.dense.tolist(), ids)
    return found


def stored(path: Path) -> list[dict[str, object]]:
    """What the file says about its input's lines."""
    with h5py.File(path) as file:
        found: list[dict[str, object]] = json.loads(file.attrs["preprocessing"])["lines"]
    return found


@settings(max_examples=8, deadline=None)
@given(
    num_good=st.integers(20, 60),
    bad=st.lists(st.tuples(st.integers(0, 60), st.sampled_from([*BAD, ""])), max_size=12),
    options=st.sampled_from([{}, {"min_count": 3}, {"min_count": 3, "rows": 17, "shards": 2}]),
)
def test_the_rest_is_as_if_they_had_never_been_there(
    tmp_path_factory: pytest.TempPathFactory,
    num_good: int,
    bad: list[tuple[int, str]],
    options: dict[str, int],
) -> None:
    folder = tmp_path_factory.mktemp("bad")
    good = good_lines(num_good, 1)
    lines = list(good)
    for place, text in bad:
        lines.insert(min(place, len(lines)), text)
    (folder / "good.tsv").write_text("\n".join(good))
    (folder / "bad.tsv").write_text("\n".join([*lines, ""]))
    rows = options.get("rows", num_good + 1)
    used = [line for k, line in enumerate(lines) if sum(map(good.__contains__, lines[:k])) < rows]
    expected = [(k + 1, BAD[line]) for k, line in enumerate(used) if line in BAD]

    def prepare(name: str, limit: int) -> list[str]:
        inputs = (str(folder / f"{name}.tsv"),)
        made = criteo.prepare(
            criteo.CriteoOptions(folder / name, inputs, 0.6, max_bad_lines=limit, **options)
        )
        return [item for item in made or () if isinstance(item, str)]

    assert prepare("good", 0) == []
    said = prepare("bad", len(expected))
    assert values_of(folder / "bad") == values_of(folder / "good")
    if expected:
        assert said[0] == f"left out {len(expected)} bad lines, the first of them:"
        assert said[1:] == [f"  {folder / 'bad.tsv'}:{line}: {why}" for line, why in expected[:5]]
    for path in (folder / "bad").glob("*.h5"):
        (found,) = stored(path)
        assert found["bad"] == len(expected)
        assert found["count"] == len(used)
        assert found["first_bad"] == [list(item) for item in expected[:5]]
    if expected:
        with pytest.raises(UserError, match="max-bad-lines"):  # although the files are there
            prepare("bad", len(expected) - 1)


def test_no_file_is_read_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("\n".join(good_lines(20, 1)))
    (tmp_path / "b.tsv").write_text("bad\n")
    inputs = (str(tmp_path / "a.tsv"), str(tmp_path / "b.tsv"))
    criteo.prepare(criteo.CriteoOptions(tmp_path / "out", inputs, rows=20))
    assert [lines["count"] for lines in stored(tmp_path / "out" / "test.h5")] == [20, None]
    assert criteo.prepare(criteo.CriteoOptions(tmp_path / "out", inputs, rows=20)) is None
    with pytest.raises(UserError, match=r"b\.tsv:1: got 1 column, expected 40"):
        criteo.prepare(criteo.CriteoOptions(tmp_path / "more", inputs, rows=21))


def test_above_the_limit_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = good_lines(30, 2)
    lines[7:7] = list(BAD)
    (tmp_path / "a.tsv").write_text("\n".join(lines))
    command = ["preprocess", "criteo", "--input", str(tmp_path / "a.tsv"), "--out", str(tmp_path / "out")]
    assert main([*command, "--max-bad-lines", "5"]) == 2
    error = capsys.readouterr().err
    assert "got 6 bad lines, expected at most 5" in error
    assert [f"a.tsv:{8 + k}: " in error for k in range(6)] == [True] * 5 + [False]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "a.tsv:8: label: got '2', expected 0 or 1 (--max-bad-lines N leaves out" in error
    assert main([*command, "--max-bad-lines", "-1"]) == 2
    assert not list(tmp_path.glob("out/*"))
    assert main([*command, "--max-bad-lines", "6"]) == 0
    assert "left out 6 bad lines, the first of them:\n" in capsys.readouterr().out


def shards(tmp_path: Path, limit: int, *, min_count: int = 1) -> list[object] | None:
    inputs = (str(tmp_path / "a.tsv"), str(tmp_path / "b.tsv"))
    options = criteo.CriteoOptions(
        tmp_path / "out", inputs, shard_bytes=2000, max_bad_lines=limit, min_count=min_count
    )
    made = criteo_shards.prepare(options, ONE_MEMBER)
    return None if made is None else list(made)


def write_inputs(tmp_path: Path) -> list[str]:
    """Two files with 3 bad lines each, far apart; the report on them."""
    expected = []
    for name in ("a.tsv", "b.tsv"):
        lines = good_lines(100, 3)
        for place, (text, why) in zip((5, 50, 102), BAD.items(), strict=False):
            lines.insert(place, text)
            expected.append(f"  {tmp_path / name}:{place + 1}: {why}")
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    return ["left out 6 bad lines, the first of them:", *expected[:5]]


@pytest.mark.parametrize("min_count", [1, 2])
def test_finished_shards_keep_their_counts(tmp_path: Path, min_count: int) -> None:
    report = write_inputs(tmp_path)
    made = shards(tmp_path, 6, min_count=min_count)
    assert made is not None
    assert made[-6:] == report
    files = sorted((tmp_path / "out").glob("*.h5"))
    assert len(files) > 8
    before = {path: path.stat().st_mtime_ns for path in files}
    for place in (0, 4, 7):
        files[place].unlink()
    with pytest.raises(UserError, match="expected at most 2"):
        shards(tmp_path, 2, min_count=min_count)
    made = shards(tmp_path, 6, min_count=min_count)
    assert made is not None
    assert made[-6:] == report
    remade = [path for path in files if path.stat().st_mtime_ns != before[path]]
    assert remade == [files[place] for place in (0, 4, 7)]
    assert shards(tmp_path, 6, min_count=min_count) is None
    with pytest.raises(UserError, match="got 6 bad lines, expected at most 5"):
        shards(tmp_path, 5, min_count=min_count)


def test_the_sum_over_ranks_counts(tmp_path: Path) -> None:
    report = write_inputs(tmp_path)

    def run(limit: int, out: str) -> tuple[int, str, str]:
        more = ["--shard-bytes", "2000", "--max-bad-lines", str(limit)]
        inputs = [str(tmp_path / "a.tsv"), str(tmp_path / "b.tsv")]
        command = ["preprocess", "criteo", "--input", *inputs, "--out", str(tmp_path / out), *more]
        done = run_mpi(3, PROGRAM, *command, check=False)
        return done.returncode, done.stdout, done.stderr

    code, _, error = run(5, "out")  # no rank has more than 5
    assert code != 0
    assert error.count("got 6 bad lines, expected at most 5 (--max-bad-lines); the first of them:\n") == 1
    assert all(line in error for line in report[1:])
    code, said, _ = run(6, "out")  # with what is there
    assert code == 0
    assert "is up to date" in said
    code, said, _ = run(6, "new")
    assert code == 0
    assert said.endswith("\n".join(report) + "\n")
