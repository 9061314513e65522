"""Lines that a table's schema doesn't fit: left out as if never there, counted, refused above a limit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.cli import main
from persia_hpc.errors import UserError
from persia_hpc.preprocess import lines, table, table_input
from persia_hpc.samples.source import open_source

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


def prepare(folder, schema, text, **options):
    (folder / "a.csv").write_bytes(text)
    (folder / "schema.toml").write_text(schema)
    return table.prepare(table.TableOptions(folder / "out", folder / "schema.toml", **options))


def read(folder, name):
    source = open_source([str(folder / "out" / f"{name}.h5")])
    return source.read(0, source.num_samples)


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
            lambda p, quoted: lines.read_blocks(p, quoted=quoted, block_bytes=block_bytes),
        )
        made = prepare(other, BAD_LINES_SCHEMA, text, max_bad_lines=len(expected))
    for name in ("train", "test"):
        one, two = read(good, name), read(other, name)
        np.testing.assert_array_equal(one.ids["u"].values, two.ids["u"].values)
        np.testing.assert_array_equal(one.dense, two.dense)
        np.testing.assert_array_equal(one.labels, two.labels)
    if expected:
        count = len(expected)
        assert made[2] == f"left out {count} bad lines, the first of them:"
        assert made[3:] == [f"  {other / 'a.csv'}:{line}: {why}" for line, why in expected[:5]]
        with pytest.raises(UserError, match=f"a.csv:{expected[0][0]}: .*"):
            prepare(other, BAD_LINES_SCHEMA, text, max_bad_lines=count - 1, overwrite=True)


def test_bad_lines_take_all_lines_of_their_row_and_the_option_is_named(tmp_path, capsys):
    text = b'u,part,d,y\n1,a,1,1\n"1\n",c,"\n",0\n\n2,a,1,0\n"3\n",b,1\n3,b,1,1\n'
    (report, other, *said) = prepare(tmp_path, BAD_LINES_SCHEMA, text, max_bad_lines=2)
    assert (report.num_rows, other.num_rows) == (2, 1)
    assert [line.split("a.csv:")[1][:2] for line in said[1:]] == ["3:", "8:"]
    command = ["preprocess", "table", str(tmp_path / "schema.toml"), "--out", str(tmp_path / "new")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "a.csv:8: got 3 columns, expected 4 separated by comma (--max-bad-lines N " in error
    assert main([*command, "--max-bad-lines", "1"]) == 2
    assert "got 2 bad lines, expected at most 1" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
