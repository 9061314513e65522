"""Labels that are the same in every row, and words of a schema that match nothing, are said."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from persia_hpc.cli import main
from tests.support.tiny import write_tiny

SCHEMA = """
files = ["a.csv"]
missing = ["NA", "-9", "?"]
split.fractions = { train = 0.5, test = 0.5 }
[labels.click]
column = "y"
positive = "yes"
[labels.buy]
column = "z"
[ids]
u = {}
v = {}
"""


@pytest.mark.parametrize("shards", [[], ["--shard-bytes", "30"]])
@pytest.mark.parametrize(
    ("clicks", "said"),
    [
        (["yes", "no", "no", "yes"], []),
        (["Yes", "No", "No", "Yes"], ["click is 0 in every row of train", "click is 0 in every row of test"]),
        (["yes", "no", "yes", "yes"], ["click is 1 in every row of test"]),
    ],
)
def test_constant_labels_and_unmet_words_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], clicks: list[str], said: list[str], shards: list[str]
) -> None:
    rows = "".join(f"{click},{i % 2},{i},-9.0\n" for i, click in enumerate(clicks))
    (tmp_path / "a.csv").write_text("y,z,u,v\n" + rows)
    (tmp_path / "s.toml").write_text(SCHEMA)
    command = ["preprocess", "table", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out"), *shards]
    assert main(command) == 0
    words, *labels = warnings(capsys)
    assert words == "missing: 'NA', '?' equals no value in any column that is used"
    assert [line.split(":")[0] for line in labels] == [f"label {what}" for what in said]
    if shards:  # a file of an earlier run counts too
        for path in (tmp_path / "out").glob("test-00001.h5"):
            path.unlink()
        assert main(command) == 0
        again = [f"label {what}" for what in said if "of test" in what]
        assert [line.split(":")[0] for line in warnings(capsys)] == again


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["1", "", "1"], ["label y is 1 in every row of train where it is known: AUC is undefined"]),
        (["0", "", "1"], []),
        (["", "", "1"], []),  # of a single one nothing is said
        (["", "", ""], []),
    ],
)
def test_labels_that_are_missing_in_some_rows_may_be_constant_where_they_are_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: list[str], said: list[str]
) -> None:
    command = table(tmp_path, labels)
    assert main(command) == 0
    out = capsys.readouterr().out
    assert [
        line.removeprefix("warning: ").split(";")[0] for line in out.splitlines() if "warn" in line
    ] == said
    assert ("no known label" in out) == (not any(labels))
    assert "no labels" not in out


@pytest.mark.parametrize("links", [False, True])
def test_files_of_other_making_beside_the_new_ones_are_not_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], links: bool
) -> None:
    command = table(tmp_path, ["1", "1", "1"])
    notes = tmp_path / "out" / "train-notes.h5"
    notes.parent.mkdir()
    with h5py.File(notes, "w") as file:
        file["note"] = h5py.ExternalLink("other.h5", "/note") if links else "text"
    assert main(command) == 2
    assert f"{notes} is there already, was not made by preprocess" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert [line.split(":")[0] for line in warnings(capsys)] == ["label y is 1 in every row of train"]
    write_tiny(notes, 9)  # a data set, with other labels
    (tmp_path / "a.csv").write_text("u,y\n1,1\n2,1\n")
    assert main([*command, "--overwrite"]) == 0
    assert [line.split(":")[0] for line in warnings(capsys)] == ["label y is 1 in every row of train"]
    assert notes.exists()


def table(folder: Path, labels: list[str]) -> list[str]:
    """Returns the command that prepares a table with these labels, of which any may be missing."""
    (folder / "a.csv").write_text("u,y\n" + "".join(f"{i},{label}\n" for i, label in enumerate(labels)))
    schema = 'files = ["a.csv"]\nsplit.fractions = { train = 1 }\n[ids.u]\n[labels.y]\nmissing = nan\n'
    (folder / "s.toml").write_text(schema)
    return ["preprocess", "table", str(folder / "s.toml"), "--out", str(folder / "out")]


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().out.splitlines()
    return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]
