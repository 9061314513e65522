"""Lines that a table's schema doesn't fit: left out as if never there, counted, refused above a limit."""

import json
import re
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.cli import main
from persia_hpc.errors import UserError
from persia_hpc.preprocess import lines
from persia_hpc.preprocess.table import input as table_input
from persia_hpc.preprocess.table import parallel as table_shards
from persia_hpc.preprocess.table import prepare as table
from persia_hpc.preprocess.team import ONE_MEMBER
from persia_hpc.samples.source import open_source
from tests.support.mpi import run_mpi

PROGRAM = Path(__file__).parent / "programs" / "preprocess.py"

GOOD_ROWS = [f"{i % 7},{'ab'[i % 2]},{i / 2},{i % 2}" for i in range(60)]
BAD_ROWS = {
    "1,a,2": "got 3 columns, expected 4 separated by comma",
    "1,a,x,1": "d: got 'x', expected a number",
    "x,a,1,0": "u: got 'x', expected an integer for an id (for other ids set type = \"string\")",
    "1,c,1,0": "part: got 'c', expected one of a, b (split.values)",
    "1,a,1,2": "y: got '2', expected 0 or 1 (or set `positive`, `threshold` or `binary = false`)",
    "1,\xff,1,0": "got bytes that aren't UTF-8, expected UTF-8 text",
}
BAD_LINES_SCHEMA = """
files = ["a.csv"]
labels.click.column = "y"
dense.d = {}
ids.u = { min_count = 2, type = "integer" }
split = { by = "column", column = "part", values = { train = ["a"], test = ["b"] } }
"""


SPLITS = {
    "column": 'by = "column"\ncolumn = "part"\nvalues = { train = ["a"], test = ["b"] }',
    "order": "fractions = { train = 0.6, test = 0.4 }",
    "random": 'by = "random"\nfractions = { train = 0.7, test = 0.3 }',
}


def prepare(folder, schema, text, **options):
    (folder / "a.csv").write_bytes(text)
    (folder / "schema.toml").write_text(schema)
    given = table.TableOptions(folder / "out", folder / "schema.toml", **options)
    return table_shards.prepare(given, ONE_MEMBER) if given.shard_bytes else table.prepare(given)


def read(folder, name):
    source = open_source([str(folder / "out" / f"{name}.h5")])
    return source.read(0, source.num_samples)


def assert_equal(one, other):
    np.testing.assert_array_equal(one.ids["u"].values, other.ids["u"].values)
    np.testing.assert_array_equal(one.dense, other.dense)
    np.testing.assert_array_equal(one.labels, other.labels)


@settings(max_examples=15, deadline=None)
@given(
    bad=st.lists(st.tuples(st.integers(0, 60), st.sampled_from([*BAD_ROWS, ""])), max_size=8),
    quoted=st.booleans(),
    block_bytes=st.sampled_from([60, 1 << 20]),
)
def test_bad_lines_are_left_out(tmp_path_factory, bad, quoted, block_bytes):
    """Files, counts and what is learned are as if they had never been there."""
    good, other = tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("bad")
    rows = list(GOOD_ROWS)
    if quoted:  # one that takes two lines
        rows[20] = '1,a,1,"0"'
    lines_ = list(rows)
    for place, text in bad:
        lines_.insert(place, text)
    expected = [(number, BAD_ROWS[text]) for number, text in enumerate(lines_, 2) if text in BAD_ROWS]
    text = ("u,part,d,y\n" + "\n".join(lines_) + "\n").encode("latin-1")
    prepare(good, BAD_LINES_SCHEMA, ("u,part,d,y\n" + "\n".join(rows) + "\n").encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            table_input,
            "read_blocks",
            partial(lines.read_blocks, block_bytes=block_bytes),
        )
        made = prepare(other, BAD_LINES_SCHEMA, text, max_bad_lines=len(expected))
    for name in ("train", "test"):
        assert_equal(read(good, name), read(other, name))
    if expected:
        count = len(expected)
        assert made[2] == f"left out {count} bad lines, the first of them:"
        assert made[3:] == [f"  {other / 'a.csv'}:{line}: {why}" for line, why in expected[:5]]
        with pytest.raises(UserError, match=f"a.csv:{expected[0][0]}: .*"):
            prepare(other, BAD_LINES_SCHEMA, text, max_bad_lines=count - 1, overwrite=True)


def test_bad_lines_take_all_lines_of_their_row_and_the_option_is_named(tmp_path, capsys):
    text = b'u,part,d,y\n1,a,1,1\n"1\n",c,"\n",0\n\n2,a,1,0\n"3\n",b,1\n3,b,1,1\n'
    (report, other, *said) = prepare(tmp_path, BAD_LINES_SCHEMA, text, max_bad_lines=5)
    assert (report.num_rows, other.num_rows) == (2, 1)
    assert [line.split("a.csv:")[1][:2] for line in said[1:]] == ["3:", "8:"]
    command = ["preprocess", "table", str(tmp_path / "schema.toml"), "--out", str(tmp_path / "new")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "a.csv:8: got 3 columns, expected 4 separated by comma (--max-bad-lines N " in error
    assert main([*command, "--max-bad-lines", "4"]) == 2
    assert "got 5 bad lines, expected at most 4" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def two_files(folder, by, places):
    """A schema for two files with bad lines, some of them within pieces of 200 bytes that hold nothing else;
    the same without; what is to be reported.
    """
    head = BAD_LINES_SCHEMA.split("split = ")[0].replace('["a.csv"]', '["a.csv", "b.csv"]')
    schema = f"{head}ids.city = {{ column = 'part', vocabulary = true }}\n[split]\n{SPLITS[by]}\n"
    report = []
    for name, shift in (("a.csv", 0), ("b.csv", 7)):
        rows = [*GOOD_ROWS[shift:], '5,"b",1,"1"', '6,a,"\n\n2",0']
        kinds = [text for text in [*BAD_ROWS, ""] if by == "column" or text != "1,c,1,0"]
        lines_ = list(rows)
        for k, place in enumerate(places):
            lines_[place:place] = [kinds[k % len(kinds)]] * (20 if k == 3 else 1)
        number = 2
        for text in lines_:
            if text in BAD_ROWS:
                report.append(f"  {folder / 'bad' / name}:{number}: {BAD_ROWS[text]}")
            number += 1 + text.count("\n")
        for kind, written in (("good", rows), ("bad", lines_)):
            (folder / kind).mkdir(exist_ok=True)
            (folder / kind / name).write_bytes(("u,part,d,y\n" + "\n".join(written) + "\n").encode("latin-1"))
            (folder / kind / "schema.toml").write_text(schema)
    return [f"left out {len(report)} bad lines, the first of them:", *report[:5]], len(report)


@pytest.mark.parametrize("by", SPLITS)
@settings(max_examples=6, deadline=None)
@given(
    places=st.lists(st.integers(0, 50), max_size=8),
    shard_bytes=st.integers(100, 900),
    small_blocks=st.booleans(),
)
def test_shards_leave_out_the_same_lines(tmp_path_factory, by, places, shard_bytes, small_blocks):
    """Wherever the pieces begin, samples, splits and counts are those of one go over the good lines."""
    folder = tmp_path_factory.mktemp("shards")
    report, count = two_files(folder, by, places)
    with pytest.MonkeyPatch.context() as patch:
        if small_blocks:
            patch.setattr(
                table_input,
                "read_blocks",
                partial(lines.read_blocks, block_bytes=70),
            )
        options = table.TableOptions(folder / "good" / "out", folder / "good" / "schema.toml")
        table.prepare(options)
        options = table.TableOptions(
            folder / "bad" / "out",
            folder / "bad" / "schema.toml",
            shard_bytes=shard_bytes,
            max_bad_lines=count,
        )
        made = table_shards.prepare(options, ONE_MEMBER)
    for name in ("train", "test"):
        assert_equal(read(folder / "good", name), read(folder / "bad", f"{name}-*"))
    words = [(folder / kind / "out" / "vocabulary-city.csv").read_text() for kind in ("good", "bad")]
    assert words[0] == words[1]
    assert [line for line in made if isinstance(line, str)] == (report if count else [])


@pytest.mark.parametrize("by", ["column", "order"])
def test_ranks_leave_out_the_same_lines_and_resume(tmp_path, by, capsys):
    report, count = two_files(tmp_path, by, [3, 9, 20, 30, 41])
    said = "\n".join(report) + "\n"
    schema = str(tmp_path / "bad" / "schema.toml")

    def command(out, limit, *more):
        shards = ["--shard-bytes", "200", "--max-bad-lines", str(limit)]
        return ["preprocess", "table", schema, "--out", str(tmp_path / out), *shards, *more]

    assert main(command("alone", count)) == 0
    assert said in capsys.readouterr().out
    failed = run_mpi(3, PROGRAM, *command("ranks", count - 1), check=False)
    assert failed.returncode != 0
    assert f"got {count} bad lines, expected at most {count - 1} (--max-bad-lines)" in failed.stderr
    assert not list((tmp_path / "ranks").glob("*.h5"))
    assert said in run_mpi(3, PROGRAM, *command("ranks", count)).stdout
    alone, ranks = (sorted((tmp_path / out).glob("*.h5")) for out in ("alone", "ranks"))
    assert [path.name for path in alone] == [path.name for path in ranks]

    def content(paths):
        found = []
        for path in paths:
            with h5py.File(path) as file:
                what = json.loads(file.attrs["preprocessing"])
            source = open_source([str(path)])
            batch = source.read(0, source.num_samples)
            found.append((batch.ids["u"].values.tolist(), batch.dense.tolist(), batch.labels.tolist(), what))
        return found

    assert content(alone) == content(ranks)
    assert sum(lines_["bad"] for *_, what in content(alone) for lines_ in what["lines"]) > 0
    for path in ranks[::3]:
        path.unlink()
    assert main(command("ranks", count - 1)) == 2  # those of finished pieces count
    assert "bad lines, expected at most" in capsys.readouterr().err
    assert main(command("ranks", count)) == 0
    assert said in capsys.readouterr().out
    assert content(alone) == content(ranks)
    assert main(command("ranks", count - 1)) == 2
    assert main(command("ranks", count, "--part", "0/2")) == 2
    assert "--part 0/2: --max-bad-lines needs all rows of the input" in capsys.readouterr().err
    assert main(command("new", 0)) == 2
    assert re.search(r"a\.csv:\d+: got .* \(--max-bad-lines N leaves out", capsys.readouterr().err)


def test_the_first_block_of_the_table_decides_for_all_pieces(tmp_path, monkeypatch):
    """Otherwise a rank that begins at a piece of words would take them for good ids."""
    monkeypatch.setattr(table_input, "read_blocks", partial(lines.read_blocks, block_bytes=30))
    schema = 'files = ["a.csv"]\nlabels.y = {}\nids.u = {}\nsplit = { fractions = { train = 1 } }\n'
    text = b"u,y\n" + b"7,1\n" * 20 + b"\n" * 50 + b"x,1\n" * 20 + b"8,0\n"
    with pytest.raises(UserError, match=r"got 20 bad lines, expected at most 19 .*\n.*a.csv:72: u: got 'x'"):
        prepare(tmp_path, schema, text, shard_bytes=20, max_bad_lines=19)
    assert prepare(tmp_path, schema, text, shard_bytes=20, max_bad_lines=20)[-6].startswith("left out 20 ")
    assert read(tmp_path, "train-*").ids["u"].values.tolist() == [7] * 20 + [8]


def test_a_stray_quote_takes_no_more_lines_than_allowed(tmp_path):
    text = b'u,part,d,y\n2,a,1,1\n1,a,"1,1\n' + b"3,a,1,1\n" * 30 + b'1,b,2",0\n2,b,1,0\n2,a,1,0\n'
    with pytest.raises(UserError, match="got 32 bad lines, expected at most 31") as refusal:
        prepare(tmp_path, BAD_LINES_SCHEMA, text, max_bad_lines=31)
    assert len(str(refusal.value)) < 500  # without all of the value
    assert prepare(tmp_path, BAD_LINES_SCHEMA, text, max_bad_lines=32)[2].startswith("left out 32 bad lines")


def test_bad_lines_have_their_numbers_after_a_resume_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody has counted the lines of the pieces that a run without bad lines finished."""
    # Else the first block, which decides for all, would hold the bad line.
    monkeypatch.setattr(table_input, "read_blocks", partial(lines.read_blocks, block_bytes=30))
    rows = ["u,y", *(f"{i},{i % 2}" for i in range(60))]
    rows[50] += ",2"
    (tmp_path / "a.csv").write_text("\n".join(rows))
    split = '[split]\nby = "files"\nfiles = { train = ["a.csv"] }\n'
    (tmp_path / "s.toml").write_text(f"{split}[labels.y]\n[ids.u]\n")
    out = tmp_path / "out"
    command = ["preprocess", "table", str(tmp_path / "s.toml"), "--out", str(out), "--shard-bytes", "60"]
    for part in range(4):  # some find the bad line, others finish
        main([*command, "--part", f"{part}/4"])
    assert list(out.glob("*.h5"))
    capsys.readouterr()
    assert main([*command, "--max-bad-lines", "1"]) == 0
    assert f"{tmp_path / 'a.csv'}:51: got 3 columns" in capsys.readouterr().out
