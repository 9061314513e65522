"""Weights of ids from a column of their own: each beside its id, and refused by line where they differ."""

import numpy as np
import polars as pl
import pytest

from persia_hpc.errors import UserError
from persia_hpc.samples.ids import RARE_ID, hash_strings
from tests.unit.test_preprocess_table import CSV, SCHEMA, prepare, read

WEIGHTED = SCHEMA.replace('{ separator = "|" }', '{ separator = "|", weights = "shares" }')


def with_shares(*shares):
    """The table with a column of weights of tags, of which the four rows have 2, 0, 1 and 2."""
    rows = [f"{row},{more}" for row, more in zip(CSV.splitlines()[1:], shares, strict=True)]
    return "\n".join([CSV.splitlines()[0] + ",shares", *rows]) + "\n"


def test_weights_of_ids_lie_beside_them(tmp_path):
    prepare(tmp_path, WEIGHTED, {"a.csv": with_shares("0.5|2", "", " -1 ", "3|1e-3")})
    tags = read(tmp_path).ids["tags"]
    assert tags.values.tolist() == hash_strings(["a", "b", "b", "a", "a"]).tolist()
    assert tags.offsets.tolist() == [0, 2, 2, 3, 5]
    assert tags.weights.tolist() == np.array([0.5, 2, -1, 3, 1e-3], np.float32).tolist()
    plain = tmp_path / "plain"
    plain.mkdir()
    prepare(plain, SCHEMA, {"a.csv": CSV})
    assert read(plain).ids["tags"].weights is None
    np.testing.assert_array_equal(read(plain).ids["tags"].values, tags.values)


def test_weights_of_missing_ids_go_with_them(tmp_path):
    """Places count: a weight belongs to the id at its own, also where ids before it are missing."""
    table_text = CSV.replace("a|b", "NA|b||c").replace("a|a", "NA")
    for row, shares in ((0, "1|2|3|4"), (0, "|2||4")):
        folder = tmp_path / str(len(shares))
        folder.mkdir()
        rows = [shares if i == row else other for i, other in enumerate(("", "", "7", ""))]
        lines_of = [f"{line},{more}" for line, more in zip(table_text.splitlines()[1:], rows, strict=True)]
        text = "\n".join([table_text.splitlines()[0] + ",shares", *lines_of]) + "\n"
        prepare(folder, WEIGHTED, {"a.csv": text})
        tags = read(folder).ids["tags"]
        assert tags.values.tolist() == hash_strings(["b", "c", "b"]).tolist()
        assert tags.weights.tolist() == [2, 4, 7]
        assert tags.offsets.tolist() == [0, 2, 2, 3, 3]


def test_weights_of_lists_of_parquet(tmp_path):
    frame = pl.DataFrame(
        {"click": [1, 0, 1], "tags": [[7, None, 9], [], None], "shares": [[0.5, 4.0, 2.0], [], None]}
    )
    frame.write_parquet(tmp_path / "a.parquet")
    schema = 'files = ["a.parquet"]\n[split]\nfractions = { train = 1.0 }\n[labels.click]\n[ids]\n'
    prepare(tmp_path, schema + 'tags = { weights = "shares", min_count = 2 }\n', {})
    tags = read(tmp_path).ids["tags"]
    assert tags.values.tolist() == [RARE_ID, RARE_ID]
    assert (tags.weights.tolist(), tags.offsets.tolist()) == ([0.5, 2.0], [0, 2, 2, 2])


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        (
            ("1|2", "", "1|2", "1|1"),
            "a.csv:4: shares: got '1|2', expected as many weights as the row has ids in 'tags', 1",
        ),
        (("1|2", "5", "1", "1|1"), "a.csv:3: shares: got '5', expected as many weights as .*, 0"),
        (("1|2", "", "", "1|1"), "a.csv:4: shares: got no value, expected as many weights as .*, 1"),
        (("1|x", "", "1", "1|1"), "a.csv:2: shares: got 'x' in a list, expected a number"),
        (("1|", "", "1", "1|1"), "a.csv:2: shares: got no value in a list, expected a number"),
        (("1|inf", "", "1", "1|1"), "a.csv:2: shares: got 'inf' in a list, expected a finite number"),
    ],
)
def test_weights_that_ids_dont_have_are_refused_by_line(tmp_path, shares, said):
    with pytest.raises(UserError, match=said.replace("|", r"\|")):
        prepare(tmp_path, WEIGHTED, {"a.csv": with_shares(*shares)})


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (SCHEMA.replace("user = {}", 'user = { weights = "w" }'), "got one id in each row, expected lists"),
        (
            SCHEMA.replace("user = {}", 'user = { column = "at", part = "hour", weights = "w" }'),
            "no `part` beside",
        ),
        (WEIGHTED, "shares"),
    ],
)
def test_weights_of_what_is_no_list_are_refused(tmp_path, schema, said):
    with pytest.raises(UserError, match=said):
        prepare(tmp_path, schema, {"a.csv": CSV})


NUMBERS = """files = ["a.csv"]
[split]
fractions = { train = 1.0 }
[labels.click]
[ids]
user = {}
price = { part = "number" }
"""


def test_a_number_is_the_weight_of_one_id_and_a_missing_one_has_none(tmp_path):
    prepare(tmp_path, NUMBERS, {"a.csv": "click,user,price\n1,7,2.5\n0,8,\n0,9,-3\n1,9,0\n"})
    prices = read(tmp_path).ids["price"]
    assert prices.values.tolist() == [0, 0, 0]
    assert prices.offsets.tolist() == [0, 1, 1, 2, 3]
    assert prices.weights.tolist() == [2.5, -3, 0]


@pytest.mark.parametrize(
    ("more", "row", "said"),
    [
        ("", "1,7,x", r"a.csv:2: price: got 'x', expected a number"),
        ("", "1,7,1e39", r"a.csv:2: price: got .*, expected a finite number"),
        (", min_count = 2", "1,7,1", "no `type`, `min_count` or `vocabulary` beside it"),
        (', weights = "w"', "1,7,1", "no `part` beside it"),
        (', separator = "|"', "1,7,1", "no `separator`"),
        (', format = "%Y"', "1,7,1", "price.format"),
    ],
)
def test_numbers_that_are_none_and_rules_that_ids_have_are_refused(tmp_path, more, row, said):
    schema = NUMBERS.replace('"number" }', f'"number"{more} }}')
    with pytest.raises(UserError, match=said):
        prepare(tmp_path, schema, {"a.csv": f"click,user,price\n{row}\n"})
