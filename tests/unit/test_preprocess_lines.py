"""Text files: compression, line numbers, and what is refused."""

import bz2
import gzip
import lzma
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.errors import UserError
from persia_hpc.preprocess.frames import parse
from persia_hpc.preprocess.lines import expand_files, read_blocks

STRINGS = {"a": pl.String, "b": pl.String}


def rows_of(path, separator=",", *, quoted=False, block_bytes=1 << 20):
    """(line number, values) of all rows."""
    found = []
    for block in read_blocks(path, quoted=quoted, block_bytes=block_bytes):
        source = parse(block, STRINGS, separator, quoted=quoted)
        for i, row in enumerate(source.frame.rows()):
            found.append((int(source.where(i).rsplit(":", 1)[1]), row))
    return found


@given(st.sets(st.integers(0, 120), min_size=1, max_size=12), st.sampled_from(["day_{}", "{}.a1", "x{}y2"]))
def test_a_glob_finds_files_in_order_of_their_numbers(numbers, name):
    with TemporaryDirectory() as folder:
        for number in numbers:
            (Path(folder) / name.format(number)).touch()
        found = expand_files([name.replace("{}", "*")], Path(folder))
    assert [path.name for path in found] == [name.format(number) for number in sorted(numbers)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, bz2.compress])
def test_compression_is_told_by_content(tmp_path, pack):
    path = tmp_path / "data"
    path.write_bytes(pack(b"x,1\n\ny,2\n"))
    assert rows_of(path) == [(1, ("x", "1")), (3, ("y", "2"))]


def test_zstd(tmp_path):
    frame = pl.DataFrame({"a": [f"x{i}" for i in range(70_000)], "b": ["1"] * 70_000})
    try:
        frame.lazy().sink_csv(tmp_path / "data", compression="zstd", include_header=False)
    except TypeError:
        pytest.skip("this polars can't write zstd")
    found = rows_of(tmp_path / "data")
    assert [line for line, _ in found] == list(range(1, 70_001))
    assert found[-1][1] == ("x69999", "1")


texts = st.text(st.sampled_from("abc7é "), max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.one_of(st.none(), st.tuples(texts.filter(str.strip), texts)), max_size=30),
    block_bytes=st.integers(1, 40),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
)
def test_rows_and_line_numbers_at_any_block_size(tmp_path_factory, rows, block_bytes, end, last):
    text = end.join("" if row is None else ",".join(row) for row in rows) + (end if last else "")
    path = tmp_path_factory.mktemp("lines") / "data"
    path.write_bytes(text.encode())
    expected = [(i + 1, (row[0], row[1] or None)) for i, row in enumerate(rows) if row is not None]
    assert rows_of(path, block_bytes=block_bytes) == expected


values = st.text(st.sampled_from('ab,"\n '), max_size=4)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(values, values), max_size=12), block_bytes=st.integers(1, 30))
def test_quoted_values_may_hold_anything(tmp_path_factory, rows, block_bytes):
    quote = lambda value: '"' + value.replace('"', '""') + '"'  # noqa: E731
    path = tmp_path_factory.mktemp("quoted") / "data"
    path.write_text("".join(f"{quote(a)},{quote(b)}\n" for a, b in rows))
    expected, line = [], 1
    for a, b in rows:
        expected.append((line, (a or None, b or None)))
        line += 1 + a.count("\n") + b.count("\n")
    assert rows_of(path, quoted=True, block_bytes=block_bytes) == expected


@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a,b\n\na,b,c\n", "data:3: got 3 columns, expected 2 separated by comma"),
        (b"a,b\na\na,b,c\n", "data:2: got 1 column, expected 2"),
        (b"a,b\na,\xff\n", "data:2: got bytes that aren't UTF-8"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, message, quoted):
    path = tmp_path / "data"
    path.write_bytes(text if not quoted else text.replace(b"b\n", b'"b"\n'))
    with pytest.raises(UserError, match=message):
        rows_of(path, quoted=quoted)


def test_a_value_of_another_type_is_named(tmp_path):
    path = tmp_path / "data"
    path.write_text("1,2\n\n3,x\n4,y\n")
    (block,) = read_blocks(path)
    with pytest.raises(UserError, match="data:3: b: got 'x', expected an integer"):
        parse(block, {"a": pl.Int64, "b": pl.Int64}, ",")


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "data.gz"
    path.write_bytes(gzip.compress(b"x,1\n" * 100_000)[:-40])
    with pytest.raises(UserError, match=r"data\.gz: gzip data can't be read"):
        rows_of(path)


def test_files_come_in_the_order_of_their_globs(tmp_path):
    for name in ("b2", "b1", "a"):
        (tmp_path / name).touch()
    assert [p.name for p in expand_files(["b*", "a", "b1"], tmp_path)] == ["b1", "b2", "a"]
    with pytest.raises(UserError, match=r"no file matches .*/c"):
        expand_files(["c*"], tmp_path)
