"""Labels that are the same in every row, and words of a schema that match nothing, are said."""

from __future__ import annotations

from pathlib import Path

import pytest

from persia_hpc.cli import main

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


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().out.splitlines()
    return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]
