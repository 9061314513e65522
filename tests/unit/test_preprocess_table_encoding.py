"""What a table learns goes with its data: other files get the same ids and scales, or are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persia_hpc.cli import main
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.encoding import read_encoding, sealed, write_encoding
from persia_hpc.samples.ids import MISSING_ID, RARE_ID, hash_strings
from persia_hpc.samples.source import open_source

MONDAY = [("gold", 9.5, 1), ("blue", 10.5, 0), ("blue", 13.0, 0), ("green", 8.0, 1), ("red", 12.0, 0)]
TUESDAY = [("blue", 11.5, 0), ("gold", 14.0, 1), ("violet", 13.5, 1), ("", 9.0, 0)]
COLUMNS = """
[labels.click]
[ids.item]
vocabulary = true
[dense.price]
transform = "standardize"
"""


def write(folder: Path, name: str, rows: list[tuple[str, float, int]], columns: str = COLUMNS) -> Path:
    folder.mkdir(exist_ok=True)
    lines = ["item,price,click", *(f"{item},{price},{click}" for item, price, click in rows)]
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    schema = folder / f"{name}.toml"
    schema.write_text(f'files = ["{name}.csv"]\n[split]\nfractions = {{ train = 1.0 }}\n{columns}')
    return schema


def prepare(schema: Path, *more: str | Path) -> Path:
    out = schema.with_suffix("")
    assert main(["preprocess", "table", str(schema), "--out", str(out), *map(str, more)]) == 0
    return out


def refused(capsys: pytest.CaptureFixture[str], schema: Path, *more: str | Path) -> str:
    capsys.readouterr()
    out = str(schema.with_suffix(""))
    assert main(["preprocess", "table", str(schema), "--out", out, *map(str, more)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def read(pattern: Path) -> SampleBatch:
    source = open_source([str(pattern)])
    return source.read(0, source.num_samples)


def digest(path: Path) -> str | None:
    return open_source([str(path)]).schema.encoding


def test_the_next_day_gets_the_ids_and_the_scale_of_the_first(tmp_path: Path) -> None:
    monday = prepare(write(tmp_path, "monday", MONDAY))
    assert read(monday / "train.h5").ids["item"].values.tolist() == [1, 2, 2, 3, 4]
    tuesday = prepare(write(tmp_path, "tuesday", TUESDAY), "--encoding", monday)
    batch = read(tuesday / "train.h5")
    # By first use on Monday; what Monday didn't have is 0, and a missing value stays one.
    assert batch.ids["item"].values.tolist() == [2, 1, 0, MISSING_ID]
    prices = np.array([price for _, price, _ in MONDAY])
    expected = (np.array([price for _, price, _ in TUESDAY]) - prices.mean()) / prices.std()
    np.testing.assert_allclose(batch.dense[:, 0], expected, rtol=1e-6)
    assert digest(tuesday / "train.h5") == digest(monday / "train.h5") == read_encoding(monday)["digest"]
    assert (tuesday / "encoding.json").read_bytes() == (monday / "encoding.json").read_bytes()
    # The file itself and the folder that it was applied in do as well.
    for name, given_as in (("third", monday / "encoding.json"), ("fourth", tuesday)):
        out = prepare(write(tmp_path, name, TUESDAY), "--encoding", given_as)
        assert (read(out / "train.h5").ids["item"].values == batch.ids["item"].values).all()


def test_without_an_encoding_each_day_has_its_own_and_says_so(tmp_path: Path) -> None:
    monday, tuesday = (prepare(write(tmp_path, name, rows)) for name, rows in (("a", MONDAY), ("b", TUESDAY)))
    assert read(tuesday / "train.h5").ids["item"].values.tolist() == [1, 2, 3, MISSING_ID]
    assert digest(monday / "train.h5") != digest(tuesday / "train.h5")


def test_what_gives_values_no_meaning_plays_no_part(tmp_path: Path) -> None:
    first = prepare(write(tmp_path, "a", MONDAY))
    schema = write(
        tmp_path / "elsewhere",
        "b",
        MONDAY,
        COLUMNS.replace("[labels.click]", "[labels.y]\ncolumn = 'click'\npositive = 0"),
    )
    schema.write_text(schema.read_text().replace("[split]", 'weight = "price"\n[split]\nseed = 5'))
    assert digest(first / "train.h5") == digest(prepare(schema) / "train.h5")


def test_the_type_that_was_decided_for_one_file_holds_for_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = "[labels.click]\n[ids.item]\n"
    numbers = [("1", 0.0, 1), ("2", 0.0, 0)]
    words = [("1", 0.0, 1), ("x9", 0.0, 0)]
    monday, tuesday = (
        prepare(write(tmp_path, name, rows, columns)) for name, rows in (("a", numbers), ("b", words))
    )
    assert read(monday / "train.h5").ids["item"].values.tolist() == [1, 2]
    assert digest(monday / "train.h5") != digest(tuesday / "train.h5")
    error = refused(capsys, write(tmp_path, "c", words, columns), "--encoding", monday)
    assert "c.csv:3: item: got 'x9', expected an integer" in error
    again = prepare(write(tmp_path, "d", numbers, columns), "--encoding", tuesday)
    assert read(again / "train.h5").ids["item"].values.tolist() == hash_strings(["1", "2"]).tolist()


def test_ids_that_were_rare_stay_rare(tmp_path: Path) -> None:
    columns = "[labels.click]\n[ids.item]\nmin_count = 2\n"
    first = prepare(write(tmp_path, "a", MONDAY, columns))
    often = [("red", 0.0, 1)] * 3 + [("blue", 0.0, 0), ("", 0.0, 0)]
    second = prepare(write(tmp_path, "b", often, columns), "--encoding", first)
    blue = int(hash_strings(["blue"])[0])
    assert read(second / "train.h5").ids["item"].values.tolist() == [RARE_ID] * 3 + [blue, MISSING_ID]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("vocabulary = true", "", r"ids.item.vocabulary: got False, expected True"),
        ("vocabulary = true", 'type = "integer"\nvocabulary = true', "ids.item.type: got 'integer'"),
        ("vocabulary = true", 'vocabulary = true\nseparator = "|"', "ids.item.separator: got '|'"),
        ("vocabulary = true", "vocabulary = true\nmin_count = 2", "ids.item.min_count: got 2, expected 1"),
        ('"standardize"', '["log1p", "standardize"]', "dense.price.transform: got ['log1p', 'standardize']"),
        ("[dense.price]", "[dense.price]\nclip = [0, 1]", "dense.price.clip: got [0.0, 1.0], expected None"),
        ("[dense.price]", "[dense.price]\nmissing = 1", "dense.price.missing: got 1.0, expected None"),
        ("[dense.price]", "[dense.cost]\ncolumn = 'price'", "[dense]: got cost, expected price"),
        ("[ids.item]", "[ids.other]\ncolumn = 'item'\n[ids.item]", "[ids]: got item, other, expected item"),
    ],
)
def test_a_schema_that_contradicts_the_encoding_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    monday = prepare(write(tmp_path, "monday", MONDAY))
    schema = write(tmp_path, "tuesday", TUESDAY, COLUMNS.replace(old, new))
    error = refused(capsys, schema, "--encoding", monday)
    assert "the schema contradicts it" in error
    assert message in error
    assert not (tmp_path / "tuesday").exists()


def test_a_table_of_items_has_fewer_features(tmp_path: Path) -> None:
    """A catalogue has the numbers that the vocabulary of the training data gave the items."""
    monday = prepare(write(tmp_path, "monday", MONDAY))
    columns = "[ids.item]\nvocabulary = true\n"
    rows = [(name, 0.0, 0) for name in ("blue", "red", "unseen")]
    items = prepare(write(tmp_path, "items", rows, columns), "--encoding", monday)
    assert digest(items / "train.h5") == digest(monday / "train.h5")
    assert (items / "encoding.json").read_bytes() == (monday / "encoding.json").read_bytes()
    numbers = read(monday / "train.h5").ids["item"].values.tolist()
    known = dict(zip([row[0] for row in MONDAY], numbers, strict=False))
    expected = [known.get("blue", 0), known.get("red", 0), 0]
    assert read(items / "train.h5").ids["item"].values.tolist() == expected
    assert sum(expected) > 0


def test_other_missing_words_lists_and_data_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monday = prepare(write(tmp_path, "monday", MONDAY))
    schema = write(tmp_path, "tuesday", TUESDAY)
    schema.write_text('missing = ["red"]\n' + schema.read_text())
    assert "missing: got ['red'], expected []" in refused(capsys, schema, "--encoding", monday)
    lists = pl.DataFrame({"item": [["a", "b"], []], "price": [1.0, 2.0], "click": [0, 1]})
    lists.write_parquet(tmp_path / "lists.parquet")
    schema = write(tmp_path, "lists", [])
    schema.write_text(schema.read_text().replace("lists.csv", "lists.parquet"))
    assert "ids.item: got lists in the input, expected one id a row" in refused(
        capsys, schema, "--encoding", monday
    )
    write_encoding(monday, sealed({"dataset": "adult"}))
    assert "one that `preprocess adult` made" in refused(capsys, schema, "--encoding", monday)
    write_encoding(monday, sealed({"dataset": "table", "ids": {"item": 3}}))
    assert "isn't an encoding of a table" in refused(capsys, schema, "--encoding", monday)
    assert "can't be read" in refused(capsys, schema, "--encoding", tmp_path / "nowhere")


def test_a_rerun_notices_another_encoding_and_makes_a_lost_one_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (prepare(write(tmp_path, name, rows)) for name, rows in (("a", MONDAY), ("b", TUESDAY)))
    schema = write(tmp_path, "c", TUESDAY)
    out = prepare(schema, "--encoding", first)
    assert "made with other settings (encoding)" in refused(capsys, schema, "--encoding", second)
    capsys.readouterr()
    prepare(schema, "--encoding", first)
    assert "is up to date" in capsys.readouterr().out
    content = (out / "encoding.json").read_bytes()
    (out / "encoding.json").unlink()
    prepare(schema, "--encoding", first)
    assert (out / "encoding.json").read_bytes() == content


def test_files_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monday = prepare(write(tmp_path, "monday", MONDAY))
    labelled = prepare(write(tmp_path, "labelled", TUESDAY), "--encoding", monday)
    schema = write(tmp_path, "new", [])
    (tmp_path / "new.csv").write_text("item,price\n" + "".join(f"{i},{p}\n" for i, p, _ in TUESDAY))
    error = refused(capsys, schema, "--encoding", monday)
    assert "got no column 'click'" in error
    assert "add --no-labels" in error
    capsys.readouterr()
    new = prepare(schema, "--encoding", monday, "--no-labels")
    assert "new/train.h5: 4 rows, no labels" in capsys.readouterr().out
    schema.write_text(schema.read_text().replace("[labels.click]\n", ""))
    again = prepare(schema, "--encoding", monday)
    for out in (new, again):
        source = open_source([str(out / "train.h5")])
        assert source.schema.label_names == ()
        got, want = source.read(0, 4), read(labelled / "train.h5")
        assert (got.ids["item"].values == want.ids["item"].values).all()
        assert got.dense.tobytes() == want.dense.tobytes()
        assert digest(out / "train.h5") == digest(labelled / "train.h5")
    sharded = tmp_path / "sharded"
    command = ["preprocess", "table", str(schema), "--out", str(sharded), "--shard-bytes", "20"]
    assert main([*command, "--encoding", str(monday)]) == 0
    assert read(sharded / "*.h5").dense.tobytes() == want.dense.tobytes()


def test_parts_of_a_job_array_can_apply_what_they_could_not_learn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monday = prepare(write(tmp_path, "monday", MONDAY))
    schema = write(tmp_path, "tuesday", TUESDAY)
    parts = ["--shard-bytes", "20"]
    assert "what the schema learns" in refused(capsys, schema, *parts, "--part", "0/2")
    whole = prepare(write(tmp_path, "whole", TUESDAY), "--encoding", monday)
    for part in ("0/2", "1/2"):
        prepare(schema, *parts, "--part", part, "--encoding", monday)
    got, want = read(tmp_path / "tuesday" / "*.h5"), read(whole / "train.h5")
    assert (got.ids["item"].values == want.ids["item"].values).all()
    assert (tmp_path / "tuesday" / "encoding.json").read_bytes() == (monday / "encoding.json").read_bytes()


WORDS = st.sampled_from(["", "NA", "a", "b", "c", "7", "07", "é", "a b"])
NUMBERS = st.floats(-1e6, 1e6, width=32).map(lambda x: round(x, 3))
ROWS = st.lists(
    st.tuples(WORDS, WORDS, st.lists(WORDS, max_size=3), NUMBERS | st.none()), min_size=1, max_size=12
)
ANY = """
missing = ["NA"]
[labels.y]
[ids]
word = { vocabulary = true, min_count = 2 }
often = { min_count = 2 }
tags = { separator = "|", vocabulary = true }
[dense]
x = { missing = 1, clip = [-100, 1e5], transform = "standardize" }
"""


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=ROWS, second=ROWS)
def test_two_days_in_one_go_equal_one_day_after_the_other(
    tmp_path_factory: pytest.TempPathFactory, first: list, second: list
) -> None:
    """In one go the first day is the training data, from which the schema learns."""
    first = [
        ("a b", "a b", ["a b"], 1.0),
        *first,
    ]  # else the first day's ids may be numbers, the second's not
    folder = tmp_path_factory.mktemp("days")
    for name, rows in (("a", first), ("b", second)):
        text = "".join(f"0,{w},{o},{'|'.join(t)},{'' if x is None else x}\n" for w, o, t, x in rows)
        (folder / f"{name}.csv").write_text("y,word,often,tags,x\n" + text)
    split = '[split]\nby = "files"\nfiles = { train = ["a.csv"], test = ["b.csv"] }\n'
    (folder / "both.toml").write_text(ANY + split)
    both = prepare(folder / "both.toml")
    for name, split in (("a", "train"), ("b", "test")):
        (folder / f"{name}.toml").write_text(
            f'files = ["{name}.csv"]\n{ANY}[split]\nfractions = {{ {split} = 1.0 }}\n'
        )
    a = prepare(folder / "a.toml")
    b = prepare(folder / "b.toml", "--encoding", a)
    for alone, name in ((a / "train.h5", "train.h5"), (b / "test.h5", "test.h5")):
        got, want = read(alone), read(both / name)
        for feature, column in want.ids.items():
            assert got.ids[feature].values.tolist() == column.values.tolist()
            if column.offsets is not None:
                assert got.ids[feature].offsets.tolist() == column.offsets.tolist()
        assert got.dense.tobytes() == want.dense.tobytes()
    contents = {json.dumps(read_encoding(out)) for out in (a, b, both)}
    assert len(contents) == 1
