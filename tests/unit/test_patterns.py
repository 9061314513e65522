"""Names and globs: what exists under its literal name is never taken for a glob."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.cli import main
from persia_hpc.errors import UserError
from persia_hpc.patterns import literal_first
from persia_hpc.preprocess.lines import expand_files
from persia_hpc.samples.follow import _matches
from persia_hpc.samples.source import open_source

names = st.text("ab*?[]! ", min_size=1, max_size=6).filter(lambda name: name.strip())


@settings(max_examples=60, deadline=None)
@given(names, names)
def test_an_existing_file_is_found_whatever_its_name(folder: str, name: str) -> None:
    with TemporaryDirectory() as base:
        path = Path(base) / folder / name
        path.parent.mkdir()
        path.touch()
        (path.parent / "ab").touch()  # would match many of these names
        assert glob.glob(literal_first(str(path))) == [str(path)]
        assert expand_files([f"{folder}/{name}"], Path(base)) == [path]
        assert expand_files([name], path.parent) == [path]
        every = sorted(os.listdir(path.parent))
        assert (
            sorted(p.name for p in expand_files(["[ab*!?[ ]*", "]*"][: 1 + (name[0] == "]")], path.parent))
            == every
        )
        assert list(_matches([str(path)])) == [str(path)]


def test_a_pattern_that_is_no_name_stays_a_glob(tmp_path: Path) -> None:
    for name in ("day1", "day2", "other"):
        (tmp_path / name).touch()
    assert [p.name for p in expand_files(["day[12]"], tmp_path)] == ["day1", "day2"]


def test_a_folder_with_brackets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema's own folder, `files` below it, and the dataset made there."""
    monkeypatch.chdir(tmp_path)
    folder = Path("data [v2]")
    folder.mkdir()
    (folder / "d1.csv").write_text("click,t\n1,5\n0,6\n")
    (folder / "s.toml").write_text(
        'files = ["d*.csv"]\nsplit.fractions.train = 1.0\n[labels.click]\n[ids.t]\n'
    )
    assert main(["preprocess", "table", str(folder / "s.toml"), "--out", str(folder / "out [1]")]) == 0
    source = open_source([str(folder / "out [1]" / "train.h5")])
    assert source.read(0, 2).ids["t"].values.tolist() == [5, 6]
    assert open_source([str(folder / "out [1]" / "*.h5")]).num_samples == 2
    assert main(["inspect", str(folder / "out [1]" / "train.h5")]) == 0
    with pytest.raises(UserError, match="no file matches"):
        open_source([str(folder / "out [2]" / "*.h5")])
