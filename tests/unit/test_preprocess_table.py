"""Any table: values, splits, missing values, what the training rows teach, and bad input by line."""

import gzip

import numpy as np
import polars as pl
import pytest

from persia_hpc.errors import UserError
from persia_hpc.preprocess import lines
from persia_hpc.preprocess.table import input as table_input
from persia_hpc.preprocess.table import prepare as table
from persia_hpc.samples.ids import MISSING_ID, RARE_ID, hash_strings
from persia_hpc.samples.source import open_source

CSV = """user,country,tags,age,spent,bought,w,session,at
1,NL,a|b,30,0,yes,1,s1,100
2,,,41,1.5,no,0.5,s1,101
1,DE, b ,NA,7,yes,2,s2,102
3,"N,L",a|a,20,3,no,1,s2,103
"""
SCHEMA = """
files = ["*.csv"]
missing = ["NA"]
weight = "w"
group = "session"
time = "at"
[split]
fractions = { train = 1.0 }
[labels.click]
column = "bought"
positive = "yes"
[dense]
spent = { transform = "log1p", clip = [0, 5] }
age = { missing = 0 }
[ids]
user = {}
country = {}
tags = { separator = "|" }
"""


def prepare(tmp_path, schema, files, *, overwrite=False):
    for name, text in files.items():
        path = tmp_path / name
        path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
    (tmp_path / "schema.toml").write_text(schema)
    return table.prepare(table.TableOptions(tmp_path / "out", tmp_path / "schema.toml", overwrite=overwrite))


def read(tmp_path, name="train"):
    source = open_source([str(tmp_path / "out" / f"{name}.h5")])
    return source.read(0, source.num_samples)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ('column = "bought"\npositive = "yes"\nmissing = nan', [1, np.nan, 1, 0]),
        ('column = "bought"\npositive = "yes"\nmissing = 0', [1, 0, 1, 0]),
        ('column = "score"\nthreshold = 2\nmissing = nan', [1, 0, np.nan, 1]),
        ('column = "score"\nbinary = false\nmissing = -1', [2.5, 0.5, -1, 7]),
    ],
)
@pytest.mark.parametrize("typed", [False, True])
def test_a_label_may_be_missing(tmp_path, label, expected, typed):
    schema = f'files = ["*.{"parquet" if typed else "csv"}"]\nmissing = ["?"]\n'
    schema += f"[split]\nfractions = {{ train = 1.0 }}\n[labels.click]\n{label}\n[ids]\nuser = {{}}\n"
    bought, scores = ["yes", "?", "yes", "no"], [2.5, 0.5, float("nan"), 7.0]
    if typed:
        frame = pl.DataFrame({"user": [1, 2, 3, 4], "bought": bought, "score": scores})
        frame.write_parquet(tmp_path / "data.parquet")
    text = [f"{i},{b},{'?' if s != s else s}" for i, b, s in zip("1234", bought, scores, strict=True)]
    files = {"ignored.txt" if typed else "data.csv": "\n".join(["user,bought,score", *text]) + "\n"}
    report, *_ = prepare(tmp_path, schema, files)  # it may say too that "?" matches nothing
    assert report.label_rate == pytest.approx(np.nanmean(expected))
    np.testing.assert_array_equal(read(tmp_path).labels[:, 0], np.array(expected, np.float32))
    prepare(tmp_path, schema, {})  # the same settings: it finds its files
    with pytest.raises(UserError, match=r"row [23]|csv:[34]:"):
        prepare(tmp_path, schema.replace(label, label.rpartition("\n")[0]), {}, overwrite=True)


@pytest.mark.parametrize("rule", ["", "positive = '1'\n", "threshold = 1\n"])
def test_a_number_that_is_nan_in_any_form_is_no_label(tmp_path, rule):
    """The words are those that are read as NaN, whose label would be 0 if they weren't known as missing."""
    texts = ["1", "-nan", "nan", "NaN", "+nan", "0", "-NAN", "1"]
    schema = 'files = ["data.csv"]\nsplit = { fractions = { train = 1.0 } }\n[ids.u]\n[labels.y]\n'
    schema += rule + "missing = nan\n"
    rows = "".join(f"{i},{text}\n" for i, text in enumerate(texts))
    prepare(tmp_path, schema, {"data.csv": f"u,y\n{rows}"})
    expected = np.array([float(text) for text in texts], np.float32)
    np.testing.assert_array_equal(read(tmp_path).labels[:, 0], expected)


@pytest.mark.parametrize("missing", ["0.5", '"?"'])
def test_a_binary_label_cannot_be_filled_with_another_number(tmp_path, missing):
    schema = SCHEMA.replace('positive = "yes"', f'positive = "yes"\nmissing = {missing}')
    with pytest.raises(UserError, match=r"labels\.click\.missing: .*expected .*nan"):
        prepare(tmp_path, schema, {"data.csv": CSV})


def test_values(tmp_path):
    (report,) = prepare(tmp_path, SCHEMA, {"data.csv": CSV})
    assert (report.num_rows, report.label_rate) == (4, 0.5)
    batch = read(tmp_path)
    assert batch.ids["user"].values.tolist() == [1, 2, 1, 3]
    nl, de, other = hash_strings(["NL", "DE", "N,L"]).tolist()
    assert batch.ids["country"].values.tolist() == [nl, MISSING_ID, de, other]
    a, b = hash_strings(["a", "b"]).tolist()
    assert batch.ids["tags"].values.tolist() == [a, b, b, a, a]
    assert batch.ids["tags"].offsets.tolist() == [0, 2, 2, 3, 5]
    expected = np.stack([np.log1p([0, 1.5, 5, 3]), [30, 41, 0, 20]], axis=1).astype(np.float32)
    np.testing.assert_array_equal(batch.dense, expected)
    assert batch.labels.tolist() == [[1], [0], [1], [0]]
    assert batch.weight.tolist() == [1, 0.5, 2, 1]
    assert batch.time.tolist() == [100, 101, 102, 103]
    groups = batch.group.tolist()
    assert groups[0] == groups[1] != groups[2] == groups[3]


def test_formats_agree(tmp_path):
    """CSV, gzip TSV and Parquet of the same rows make the same samples."""
    frame = pl.read_csv(CSV.encode(), null_values=["NA"])
    listed = frame.with_columns(pl.col("tags").str.strip_chars().str.split("|"))
    tsv = frame.write_csv(separator="\t", null_value="NA", quote_style="never")
    batches = []
    for folder, name in (("csv", "data.csv"), ("tsv", "data.tsv.gz"), ("parquet", "data.parquet")):
        (tmp_path / folder).mkdir()
        listed.write_parquet(tmp_path / folder / "data.parquet")
        files = {"data.csv": CSV, "data.tsv.gz": gzip.compress(tsv.encode())}
        chosen = {name: files[name]} if name in files else {}
        prepare(tmp_path / folder, SCHEMA.replace("*.csv", name), chosen)
        batches.append(read(tmp_path / folder))
    for batch in batches[1:]:
        np.testing.assert_array_equal(batch.dense, batches[0].dense)
        np.testing.assert_array_equal(batch.group, batches[0].group)
        for feature, column in batches[0].ids.items():
            np.testing.assert_array_equal(batch.ids[feature].values, column.values)


LONG = "u,x,y,part\n" + "".join(f"{i},{i % 7},{i % 2},{'abc'[i % 3]}\n" for i in range(1000))
SHORT = 'files = ["*.csv"]\n[labels.y]\n[ids.u]\n[dense.x]\n'
SPLITS = {
    "order": "[split]\nfractions = {train = 0.7, valid = 0.1, test = 0.2}\n",
    "random": '[split]\nby = "random"\nseed = 3\nfractions = {train = 0.7, valid = 0.1, test = 0.2}\n',
    "column": '[split]\nby = "column"\ncolumn = "part"\nvalues = {train = ["a", "b"], test = ["c"]}\n',
}


@pytest.mark.parametrize("by", SPLITS)
@pytest.mark.parametrize("block_bytes", [200, 1 << 20])
def test_splits_partition_the_rows(tmp_path, monkeypatch, by, block_bytes):
    monkeypatch.setattr(
        table_input,
        "read_blocks",
        lambda p, **more: lines.read_blocks(p, block_bytes=block_bytes, **more),
    )
    reports = prepare(tmp_path, SHORT + SPLITS[by], {"a.csv": LONG, "b.csv": LONG.replace("\n", "\n1", 500)})
    parts = [read(tmp_path, report.path.stem).ids["u"].values for report in reports]
    every = np.sort(np.concatenate(parts))
    expected = [
        int(text.split(",")[0])
        for name in ("a", "b")
        for text in (tmp_path / f"{name}.csv").read_text().split()[1:]
    ]
    np.testing.assert_array_equal(every, np.sort(expected))
    if by == "order":
        assert [len(p) for p in parts] == [1400, 200, 400]
        np.testing.assert_array_equal(np.concatenate(parts), expected)
    if by == "random":
        # Sizes are binomial: 5 deviations.
        assert abs(len(parts[0]) - 1400) < 103
        fingerprint = int(parts[2].sum())
        again = tmp_path / "again"
        again.mkdir()
        files = {name: (tmp_path / name).read_text() for name in ("a.csv", "b.csv")}
        prepare(again, SHORT + SPLITS[by], files)
        assert int(read(again, "test").ids["u"].values.sum()) == fingerprint
    if by == "column":
        assert len(parts[1]) == 666


def test_files_of_their_own(tmp_path):
    schema = (
        SHORT.split("\n", 1)[1] + '[split]\nby = "files"\nfiles = {train = ["a.csv", "b*"], test = "t.csv"}\n'
    )
    reports = prepare(tmp_path, schema, {"a.csv": LONG, "b1.csv": LONG, "t.csv": LONG})
    assert {r.path.name: r.num_rows for r in reports} == {"train.h5": 2000, "test.h5": 1000}


def test_training_rows_teach(tmp_path):
    """standardize, min_count and vocabulary see the training rows only."""
    schema = """
files = ["data.csv"]
split = { fractions = { train = 0.5, test = 0.5 } }
[labels.y]
[dense]
x = { transform = "standardize" }
[ids]
rare = { column = "u", min_count = 2 }
known = { column = "u", vocabulary = true }
"""
    text = (
        "u,x,y\n"
        + "".join(f"{u},{x},0\n" for u, x in zip("bababcddd", [*range(1, 9), 100], strict=True))
        + ",100,1\n"
    )
    prepare(tmp_path, schema, {"data.csv": text})
    train, test = read(tmp_path, "train"), read(tmp_path, "test")
    a, b = hash_strings(["a", "b"]).tolist()
    assert train.ids["rare"].values.tolist() == [b, a, b, a, b]
    assert test.ids["rare"].values.tolist() == [RARE_ID] * 4 + [MISSING_ID]
    assert train.ids["known"].values.tolist() == [1, 2, 1, 2, 1]
    assert test.ids["known"].values.tolist() == [0, 0, 0, 0, MISSING_ID]
    np.testing.assert_allclose(train.dense[:, 0], (np.arange(1, 6) - 3) / np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(test.dense[-1, 0], 97 / np.sqrt(2), rtol=1e-6)
    assert (tmp_path / "out" / "vocabulary-known.csv").read_text() == "id,value,count\n1,b,3\n2,a,2\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1,DE, b ,NA,7,yes", "1,DE, b ,NA,seven,yes", r"data\.csv:4: spent: got 'seven', expected a number"),
        (
            "1,DE, b ,NA,7,yes",
            "1,DE, b ,NA,nan,yes",
            r"data\.csv:4: spent: got 'nan', expected a finite number",
        ),
        (
            "1,DE, b ,NA,7,yes",
            "1,DE, b ,NA,,yes",
            r"data\.csv:4: spent: got no value, expected a number \(or set",
        ),
        ("1,DE, b ,NA,7,yes", "1,DE, b ,NA,7,", r"data\.csv:4: bought: got no value"),
        ("no,0.5", "no,-0.5", r"data\.csv:3: w: got '-0.5', expected a weight of 0 or more"),
        ("2,,,41", "u2,,,41", r"data\.csv:3: user: got 'u2', expected an integer"),
        (",101\n", ",noon\n", r"data\.csv:3: at: got 'noon', expected a time"),
        ("1,NL,a|b,30", "1,NL,30", r"data\.csv:2: got 8 columns, expected 9"),
        ("country", "county", r"data\.csv: got no column 'country', .*did you mean 'county'"),
    ],
)
def test_bad_values_are_named_by_line(tmp_path, old, new, message):
    assert old in CSV
    # In the last case the second line is no id: the type must be said, as it can't be told.
    schema = SCHEMA.replace("user = {}", 'user = { type = "integer" }')
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, schema, {"data.csv": CSV.replace(old, new)})
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_parts_of_a_time_are_ids(tmp_path):
    schema = SHORT + "[split]\nfractions = {train = 1.0}\n"
    schema += '[ids.h]\ncolumn = "t"\npart = "hour"\nformat = "%Y-%m-%d %H:%M"\n'
    schema += '[ids.w]\ncolumn = "t"\npart = "weekday"\nformat = "%Y-%m-%d %H:%M"\nvocabulary = true\n'
    times = ["2026-11-28 12:40", "", "2026-11-29 23:59", "2026-11-28 00:00"]
    text = "u,x,y,t\n" + "".join(f"1,1,{i % 2},{time}\n" for i, time in enumerate(times))
    prepare(tmp_path, schema, {"data.csv": text})
    batch = read(tmp_path)
    assert batch.ids["h"].values.tolist() == [12, MISSING_ID, 23, 0]
    assert batch.ids["w"].values.tolist() == [1, MISSING_ID, 2, 1]
    assert (tmp_path / "out" / "vocabulary-w.csv").read_text().splitlines()[1:] == ["1,6,2", "2,7,1"]
    again = schema.replace('part = "hour"', 'part = "day"')
    (tmp_path / "schema.toml").write_text(again)
    encoding = table.TableOptions(tmp_path / "b", tmp_path / "schema.toml", encoding=tmp_path / "out")
    with pytest.raises(UserError, match=r"ids\.h\.part: got 'day', expected 'hour'"):
        table.prepare(encoding)
    whole = schema.replace('part = "hour"\nformat = "%Y-%m-%d %H:%M"\n', "")
    (tmp_path / "schema.toml").write_text(whole)
    with pytest.raises(UserError, match=r"ids\.h\.part: got None, expected 'hour'"):
        table.prepare(encoding)


def test_labels_must_be_binary_unless_said(tmp_path):
    schema = SHORT + "[split]\nfractions = {train = 1.0}\n"
    text = "u,x,y\n1,1,0\n\n2,1,2\n"
    with pytest.raises(UserError, match=r"data\.csv:4: y: got '2', expected 0 or 1 \(or set"):
        prepare(tmp_path, schema, {"data.csv": text})
    prepare(tmp_path, schema.replace("[labels.y]", "[labels.y]\nbinary = false"), {"data.csv": text})
    assert read(tmp_path).labels.tolist() == [[0], [2]]
    prepare(
        tmp_path,
        schema.replace("[labels.y]", "[labels.y]\nthreshold = 2"),
        {"data.csv": text},
        overwrite=True,
    )
    assert read(tmp_path).labels.tolist() == [[0], [1]]


def test_bad_rows_of_parquet_are_named_by_number(tmp_path):
    pl.DataFrame({"u": [1, 2], "x": [0.5, float("nan")], "y": [0, 1]}).write_parquet(tmp_path / "d.parquet")
    schema = SHORT.replace("*.csv", "d.parquet") + "[split]\nfractions = {train = 1.0}\n"
    with pytest.raises(UserError, match=r"d\.parquet, row 2: x: got nan \(Float64\), expected a finite"):
        prepare(tmp_path, schema, {})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("fils = []\n" + SHORT, "got key 'fils', .*did you mean 'files'"),
        (SHORT + 'transfrom = "log1p"', r"got key 'transfrom' in \[dense.x\], .*did you mean 'transform'"),
        (SHORT + 'transform = "log"', r"dense.x.transform: got 'log', expected .*did you mean 'log1p'"),
        (SHORT + "clip = [2, 1]", r"dense.x.clip: got \[2, 1\], expected \[lowest, highest\]"),
        ("files = [\n", "isn't valid TOML"),
        ('files = ["*.csv"]\n[labels.y]\n', "ids: got nothing, expected an id feature"),
        (SHORT.split("\n", 1)[1], "expected either `files`"),
        (
            SHORT + "[split]\nfractions = {train = 0.5, test = 0.6}",
            "expected positive fractions that sum to 1",
        ),
        (
            SHORT + "[split]\nfractions = {train = 0.5, tets = 0.5}",
            "got 'tets', expected some of train, valid, test",
        ),
        (SHORT + '[ids.h]\npart = "hours"', "ids.h.part: got 'hours', expected .*did you mean 'hour'"),
        (SHORT + '[ids.h]\nformat = "%Y"', "ids.h.format: got '%Y', expected it beside `part`"),
        (
            SHORT + '[ids.h]\npart = "hour"\nseparator = "|"',
            "ids.h.part: got 'hour', expected no `separator`",
        ),
        (SHORT + '[split]\nby = "column"', "split.by: got 'column', expected a `column` and `values`"),
    ],
)
def test_bad_schemas_are_refused(tmp_path, schema, message):
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, schema, {"data.csv": LONG})
