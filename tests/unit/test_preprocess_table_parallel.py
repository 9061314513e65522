"""Tables in shards: the same samples, splits and learned values as in one go, whoever makes them."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persia_hpc.cli import main
from persia_hpc.preprocess.table import input as table_input
from persia_hpc.preprocess.table.input import count_rows, cut_table, mend_cuts, num_quotes, read_frames
from persia_hpc.preprocess.table.schema import Ids, Label, TableSchema
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.source import open_source
from tests.support.mpi import run_mpi

PROGRAM = Path(__file__).parent / "programs" / "preprocess.py"
COLUMNS = """
[labels.y]
[dense]
x = { transform = ["log1p", "standardize"], missing = 0 }
[ids]
user = { min_count = 3 }
city = { vocabulary = true, min_count = 2 }
tags = { separator = "|" }
"""
PLAIN = (
    COLUMNS.replace("min_count = 3", "")
    .replace("vocabulary = true, min_count = 2", "")
    .replace(', "standardize"', "")
)
SPLITS = {
    "order": "[split]\nfractions = { train = 0.7, valid = 0.1, test = 0.2 }\n",
    "random": '[split]\nby = "random"\nseed = 3\nfractions = { train = 0.8, test = 0.2 }\n',
    "column": '[split]\nby = "column"\ncolumn = "day"\nvalues = { train = ["1", "2"], test = ["3"] }\n',
    "files": '[split]\nby = "files"\nfiles = { train = ["a.csv", "b.*"], test = ["c.csv.gz"] }\n',
}
FILES = 'files = ["a.csv", "b.*", "c.csv.gz"]\n'


def rows(count: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "y": (rng.random(count) < 0.3).astype(np.int64),
            "x": [None if rng.random() < 0.1 else round(float(v), 3) for v in rng.exponential(9, count)],
            "user": rng.zipf(1.4, count) % 1000,
            "city": [f"c,\n{i}" for i in rng.zipf(1.6, count) % 50],
            "tags": ["|".join(f"t{j}" for j in rng.integers(0, 9, rng.integers(0, 4))) for _ in range(count)],
            "day": np.sort(rng.integers(1, 4, count)),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files: plain text, Parquet, compressed text."""
    folder = tmp_path_factory.mktemp("table")
    rows(700, 1).write_csv(folder / "a.csv")
    rows(400, 2).write_parquet(folder / "b.parquet", row_group_size=100)
    (folder / "c.csv.gz").write_bytes(gzip.compress(rows(300, 3).write_csv().encode()))
    return folder


def arguments(folder: Path, by: str, out: Path, *more: str, columns: str = COLUMNS) -> list[str]:
    schema = folder / f"{by}.toml"
    schema.write_text(("" if by == "files" else FILES) + SPLITS[by] + columns)
    return ["preprocess", "table", str(schema), "--out", str(out), *more]


def read(out: Path, pattern: str) -> SampleBatch:
    source = open_source([str(out / pattern)])
    return source.read(0, source.num_samples)


def assert_equal(one: SampleBatch, other: SampleBatch, *, rtol: float = 0) -> None:
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.dense, other.dense, rtol=rtol)
    assert list(one.ids) == list(other.ids)
    for name, column in one.ids.items():
        np.testing.assert_array_equal(column.values, other.ids[name].values)
        np.testing.assert_array_equal(column.offsets, other.ids[name].offsets)


@pytest.mark.parametrize("by", SPLITS)
def test_shards_hold_what_one_file_would(folder: Path, tmp_path: Path, by: str) -> None:
    assert main(arguments(folder, by, tmp_path / "one")) == 0
    assert main(arguments(folder, by, tmp_path / "many", "--shard-bytes", "3000")) == 0
    assert len(list((tmp_path / "many").glob("*.h5"))) >= 10
    for path in (tmp_path / "one").glob("*.h5"):
        assert_equal(
            read(tmp_path / "many", f"{path.stem}-*.h5"),
            read(tmp_path / "one", path.name),
            rtol=1e-6,  # means are summed by pieces
        )
    vocabulary = "vocabulary-city.csv"
    assert (tmp_path / "many" / vocabulary).read_text() == (tmp_path / "one" / vocabulary).read_text()


TYPED = """
files = FILES
missing = [-1, "none"]
time = { column = "at", format = "%Y-%m-%d %H:%M:%S" }
group = "session"
split.fractions = { train = 1.0 }
[labels.y]
positive = true
[dense.x]
transform = "standardize"
missing = 0
[ids]
user = { vocabulary = true }
tags = { separator = "|", min_count = 2 }
"""


def test_typed_files_and_text_are_one_table_for_any_number_of_ranks(tmp_path: Path) -> None:
    """Floats, decimals, Booleans, lists and datetimes in three formats, beside all of it as text."""
    rng = np.random.default_rng(5)
    size = 300
    typed = pl.DataFrame(
        {
            "y": rng.random(size) < 0.5,
            "x": pl.Series(rng.integers(-1, 9, size), dtype=pl.Decimal(6, 2)),
            "user": rng.integers(-1, 20, size).astype(np.float64),
            "session": rng.integers(-5, 5, size) * 2 + 0.0,
            "tags": [["none", " t1", f"t{i % 40}"][: i % 4] for i in range(size)],
            "at": pl.Series(rng.integers(0, 10**9, size) * 1000).cast(pl.Datetime("ms")),
        }
    )
    text = typed.with_columns(
        pl.col("tags").list.join("|"),
        pl.col("at").dt.to_string("%Y-%m-%d %H:%M:%S"),
        session=pl.col("session").cast(pl.Int64),
    )
    typed[:100].write_ipc(tmp_path / "a.feather")
    text[100:200].write_csv(tmp_path / "b.csv")
    typed[200:].write_parquet(tmp_path / "c.parquet")
    text.write_csv(tmp_path / "text.csv")
    (tmp_path / "typed.toml").write_text(TYPED.replace("FILES", '["a.feather", "b.csv", "c.parquet"]'))
    (tmp_path / "text.toml").write_text(TYPED.replace("FILES", '["text.csv"]'))

    def command(schema: str, out: str, *more: str) -> list[str]:
        return ["preprocess", "table", str(tmp_path / schema), "--out", str(tmp_path / out), *more]

    assert main(command("text.toml", "text")) == 0
    assert main(command("typed.toml", "one")) == 0
    assert main(command("typed.toml", "shards", "--shard-bytes", "3000")) == 0
    run_mpi(2, PROGRAM, *command("typed.toml", "ranks", "--shard-bytes", "3000"))
    want = read(tmp_path / "text", "train.h5")
    for out in ("one", "shards", "ranks"):
        got = read(tmp_path / out, "train*.h5")
        assert_equal(got, want, rtol=1e-5)
        np.testing.assert_array_equal(got.group, want.group)
        np.testing.assert_array_equal(got.time, want.time)
        vocabularies = [tmp_path / folder / "vocabulary-user.csv" for folder in (out, "text")]
        assert vocabularies[0].read_text() == vocabularies[1].read_text()


def test_several_ranks_make_the_same_files_and_resume(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--shard-bytes", "3000"]
    assert main(arguments(folder, "random", tmp_path / "alone", *more)) == 0
    command = arguments(folder, "random", tmp_path / "ranks", *more)
    run_mpi(3, PROGRAM, *command)
    names = sorted(p.name for p in (tmp_path / "alone").glob("*.h5*"))
    assert names == sorted(p.name for p in (tmp_path / "ranks").glob("*.h5*"))
    for name in ("vocabulary-city.csv", "encoding.json"):
        assert (tmp_path / "alone" / name).read_text() == (tmp_path / "ranks" / name).read_text()
    gone = [name for name in names if name.endswith("00004.h5")][:1]
    for name in gone:  # as after a kill between two files of a piece
        (tmp_path / "ranks" / name).unlink()
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "ranks").glob("*.h5")}
    run_mpi(3, PROGRAM, *command)
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "ranks").glob("*.h5")}
    assert {n for n in after if after[n] != before.get(n)} == {n for n in names if n.endswith("00004.h5")}
    for name in names:
        if name.endswith(".h5"):
            assert_equal(read(tmp_path / "ranks", name), read(tmp_path / "alone", name))
    monkeypatch.setenv("PMI_SIZE", "2")
    assert main([*command, "--part", "0/2"]) == 2
    assert "--part: got it on 2 ranks" in capsys.readouterr().err


@pytest.mark.parametrize("parts", [[], ["0/2", "1/2"], ["1/2", "0/2"]])
def test_no_file_of_an_earlier_run_stays_beside_the_new_ones(
    folder: Path, tmp_path: Path, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Pieces of the second day are of the training first, then of the test: their names are others then."""
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    for path in folder.glob("[abc].*"):
        (other / path.name).symlink_to(path)
    old = arguments(folder, "column", out, "--shard-bytes", "3000", columns=PLAIN)
    assert main(old) == 0
    new = arguments(other, "column", tmp_path / "fresh", "--shard-bytes", "3000", columns=PLAIN)
    schema = other / "column.toml"
    schema.write_text(schema.read_text().replace('["1", "2"], test = ["3"]', '["1"], test = ["2", "3"]'))
    assert main(new) == 0
    names = {p.name for p in (tmp_path / "fresh").glob("*.h5*")}
    kept = {p.name: p.read_bytes() for p in out.glob("*.h5*") if p.name not in names}
    assert kept, "no file of the old run only: this shows nothing"
    new[new.index(str(tmp_path / "fresh"))] = str(out)
    for part in parts or [""]:
        assert main([*new, "--overwrite", *(["--part", part] if part else [])]) == 0
    assert {p.name for p in out.glob("*.h5*")} == names
    for name in names:
        assert_equal(read(out, name), read(tmp_path / "fresh", name))
    for name, content in kept.items():  # as after a kill before they were removed
        (out / name).write_bytes(content)
    capsys.readouterr()
    assert main(new) == 2
    assert "was made with other settings" in capsys.readouterr().err
    assert main([*new, "--overwrite"]) == 0
    assert {p.name for p in out.glob("*.h5*")} == names


@pytest.mark.parametrize("more", [[], ["--shard-bytes", "3000"]])
def test_vocabularies_are_there_before_the_shards_and_go_with_them(
    folder: Path, tmp_path: Path, more: list[str]
) -> None:
    out = tmp_path / "out"
    command = arguments(folder, "random", out, *more)
    assert main(command) == 0
    vocabulary = out / "vocabulary-city.csv"
    shards = {path: path.stat().st_mtime_ns for path in out.glob("*.h5")}
    if more:
        assert vocabulary.stat().st_mtime_ns <= min(shards.values())
    text = vocabulary.read_text()
    vocabulary.unlink()
    assert main(command) == 0
    assert vocabulary.read_text() == text
    if more:
        assert {path: path.stat().st_mtime_ns for path in out.glob("*.h5")} == shards
    (out / "vocabulary-mine.csv").write_text("a,b\n")
    assert main([*arguments(folder, "random", out, *more, columns=PLAIN), "--overwrite"]) == 0
    assert [path.name for path in out.glob("*.csv")] == ["vocabulary-mine.csv"]


def test_a_piece_within_one_value_has_no_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = '"' + "x\n" * 100 + '"'
    (tmp_path / "a.csv").write_text(f"u,y\na,1\nb,0\n{value},1\nc,0\n")
    (tmp_path / "s.toml").write_text(
        'files = ["a.csv"]\n[split]\nby = "random"\nfractions = { train = 1.0 }\n[labels.y]\n[ids.u]\n'
    )
    out = tmp_path / "out"
    command = ["preprocess", "table", str(tmp_path / "s.toml"), "--out", str(out), "--shard-bytes", "40"]
    assert main(command) == 0
    assert read(out, "train-*.h5").labels[:, 0].tolist() == [1, 0, 1, 0]
    assert list(out.glob("*.absent"))
    capsys.readouterr()
    assert main(command) == 0
    assert "is up to date" in capsys.readouterr().out


def test_an_unbalanced_quote_at_a_cut_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table_input, "MAX_LINE_BYTES", 1000)
    (tmp_path / "a.csv").write_text('u,y\n"b,0\n' + "c,1\n" * 1000)
    (tmp_path / "s.toml").write_text('files = ["a.csv"]\n[labels.y]\n[ids.u]\n')
    out = str(tmp_path / "out")
    assert main(["preprocess", "table", str(tmp_path / "s.toml"), "--out", out, "--shard-bytes", "500"]) == 2
    assert "an unbalanced quote?" in capsys.readouterr().err


@pytest.mark.parametrize("by", ["order", "random", "column"])
def test_parts_without_communication_make_all_files(
    folder: Path, tmp_path: Path, by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--shard-bytes", "3000"]
    assert main(arguments(folder, by, tmp_path / "alone", *more, columns=PLAIN)) == 0
    made: list[set[str]] = [set()]
    for part in ("2/3", "0/3", "1/3"):
        command = arguments(folder, by, tmp_path / "parts", *more, "--part", part, columns=PLAIN)
        assert main(command) == 0
        made.append({p.name for p in (tmp_path / "parts").glob("*.h5*")})
        assert made[-2] < made[-1]
    names = {p.name for p in (tmp_path / "alone").glob("*.h5*")}
    assert made[-1] == names
    for name in names:
        assert_equal(read(tmp_path / "parts", name), read(tmp_path / "alone", name))
    capsys.readouterr()
    assert main(command) == 0
    assert "up to date" in capsys.readouterr().out


def test_test_shards_are_the_last_pieces(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--shard-bytes", "3000", "--test-shards", "1"]
    assert main(arguments(folder, "order", tmp_path / "out", *more, columns=PLAIN)) == 0
    names = sorted(p.name for p in (tmp_path / "out").glob("*.h5*"))
    assert names[0] == f"test-{len(names) - 1:05d}.h5"
    assert main(arguments(folder, "files", tmp_path / "one", columns=PLAIN)) == 0
    got = [read(tmp_path / "out", f"{split}-*.h5") for split in ("train", "test")]
    want = [read(tmp_path / "one", f"{split}.h5") for split in ("train", "test")]
    assert_equal(SampleBatch.concatenate(got), SampleBatch.concatenate(want))
    assert main(arguments(folder, "random", tmp_path / "no", *more)) == 2
    assert "expected one that splits by order" in capsys.readouterr().err
    assert main(arguments(folder, "order", tmp_path / "no", *more[2:])) == 2
    assert "without --shard-bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shard-bytes", "3000", "--part", "0/2"], "needs all rows of the input"),
        (["--part", "0/2"], "shares its work only with --shard-bytes"),
        (["--shard-bytes", "0"], "expected at least 1 and 0"),
        (["--shard-bytes", "1GiB", "--test-shards", "3"], "the input makes 3 shards"),
    ],
)
def test_bad_options(
    folder: Path, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folder, "order", tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("17,c3\n", "17,c3,\n", "a.csv:18: got 3 columns, expected 2"),
        ("17,c3\n", "x,c3\n", "a.csv:18: u: got 'x', expected an integer"),
    ],
)
def test_bad_rows_of_a_piece(
    tmp_path: Path, old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "u,c\n" + "".join(f"{i},c{i % 7}\n" for i in range(1, 40))
    assert old in text
    (tmp_path / "a.csv").write_text(text.replace(old, new))
    (tmp_path / "s.toml").write_text(
        'files = ["a.csv"]\n[labels.y]\ncolumn = "c"\npositive = "c1"\n[ids]\nu = { type = "integer" }\n'
    )
    out = str(tmp_path / "out")
    assert main(["preprocess", "table", str(tmp_path / "s.toml"), "--out", out, "--shard-bytes", "40"]) == 2
    assert message in capsys.readouterr().err


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.text('ab,"\n', max_size=9), max_size=30),
    size=st.integers(1, 120),
    header=st.booleans(),
)
def test_pieces_are_the_table(tmp_path: Path, values: list[str], size: int, header: bool) -> None:
    """Whatever the size of the pieces, each row is in one of them, in order, with line ends in quotes too."""
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("a", "b")] * header + [(f"({value})", i) for i, value in enumerate(values)])
    schema = TableSchema({"b": Label("b")}, {}, {"a": Ids("a")}, columns=None if header else ("a", "b"))
    cut = cut_table(path, schema, size)
    pieces = mend_cuts(cut, [num_quotes(piece, schema) for piece in cut])
    assert len(pieces) == len(cut)
    frames = [frame.frame for piece in pieces for frame in read_frames(piece, schema)]
    assert [int(v) for frame in frames for v in frame["b"]] == list(range(len(values)))
    assert [v for frame in frames for v in frame["a"]] == [f"({value})" for value in values]
    assert sum(count_rows(piece, schema) for piece in pieces) == len(values)
