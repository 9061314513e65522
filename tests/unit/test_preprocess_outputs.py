"""Outputs: made once, never replaced by accident, no leftovers; the command line."""

import argparse

import h5py
import pytest

from persia_hpc.errors import UserError
from persia_hpc.preprocess import cli
from persia_hpc.preprocess.outputs import numbered
from persia_hpc.preprocess.sources import LOADERS

ROWS = "".join(f"{i},{i % 2}\n" for i in range(10))
SCHEMA = 'files = ["*.csv"]\n[labels.y]\n[ids.u]\n'


def run(*arguments):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return cli.run(parser.parse_args([str(a) for a in arguments]))


@pytest.fixture
def table(tmp_path):
    (tmp_path / "a.csv").write_text("u,y\n" + ROWS)
    (tmp_path / "s.toml").write_text(SCHEMA)
    return lambda *more: run("table", tmp_path / "s.toml", "--out", tmp_path / "out", *more)


def times(tmp_path):
    return {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}


def test_the_second_run_does_nothing(table, tmp_path, capsys):
    assert table() == 0
    out = capsys.readouterr().out
    assert "train.h5: 9 rows, label rate 0.44444" in out
    assert "test.h5: 1 rows, label rate 1.00000" in out
    before = times(tmp_path)
    assert table() == 0
    assert "is up to date" in capsys.readouterr().out
    assert times(tmp_path) == before
    # A file that went missing is made again, without --overwrite.
    (tmp_path / "out" / "test.h5").unlink()
    assert table() == 0
    assert set(times(tmp_path)) == {"train.h5", "test.h5", "encoding.json"}


@pytest.mark.parametrize("count", [1, 1000, 1001, 12_000])
def test_numbered_files_sort_by_number(count):
    names = numbered("train", count, 3)
    assert len(set(names)) == count
    assert sorted(names) == names
    assert names[0] in ("train-000.h5", "train-0000.h5", "train-00000.h5")


@pytest.mark.parametrize("change", ["schema", "input"])
def test_other_settings_need_overwrite(table, tmp_path, change, capsys):
    table()
    before = times(tmp_path)
    if change == "schema":
        (tmp_path / "s.toml").write_text(SCHEMA + "[split]\nfractions = { train = 0.5, valid = 0.5 }\n")
    else:
        # Of the same length, in the middle.
        (tmp_path / "a.csv").write_text("u,y\n" + ROWS.replace("5,1", "5,0"))
    what = "split" if change == "schema" else "inputs"
    with pytest.raises(UserError, match=rf"made with other settings \({what}\); pass --overwrite"):
        table()
    assert times(tmp_path) == before
    assert table("--overwrite") == 0
    # Nothing of the first run is left beside it.
    assert set(times(tmp_path)) == (
        {"train.h5", "valid.h5" if change == "schema" else "test.h5", "encoding.json"}
    )
    assert "valid.h5" not in before


def test_files_of_others_are_kept(table, tmp_path):
    (tmp_path / "out").mkdir()
    with h5py.File(tmp_path / "out" / "train.h5", "w") as file:
        file.attrs["mine"] = 1
    with pytest.raises(
        UserError, match=r"train\.h5 is there already, was not made by preprocess; pass --overwrite"
    ):
        table()
    (tmp_path / "out" / "train.h5").rename(tmp_path / "out" / "train-extra.h5")
    with pytest.raises(UserError, match=r"train-extra\.h5 is there already"):
        table()
    table("--overwrite")
    assert (tmp_path / "out" / "train-extra.h5").exists()


def test_a_failed_run_leaves_the_old_files(table, tmp_path):
    table()
    before = times(tmp_path)
    (tmp_path / "a.csv").write_text("u,y\n" + ROWS + "11,7\n")
    with pytest.raises(UserError, match=r"a\.csv:12: y: got '7'"):
        table("--overwrite")
    assert times(tmp_path) == before


def test_empty_splits_are_refused(table, tmp_path):
    (tmp_path / "a.csv").write_text("u,y\n1,0\n")
    with pytest.raises(UserError, match=r"test\.h5: got no rows"):
        table()
    assert not times(tmp_path)


def test_commands_hand_their_options_on(tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        run(
            "synthetic",
            "--rows",
            200,
            "--test-rows",
            100,
            "--features",
            2,
            "--vocabulary",
            "5,9",
            "--out",
            out,
        )
        == 0
    )
    assert "best possible on test: AUC 0." in capsys.readouterr().out
    row = "0" + "\t1" * 13 + "\tff" * 26 + "\n"
    (tmp_path / "c.tsv").write_text(row * 10)
    assert run("criteo", "--input", tmp_path / "c.tsv", "--shards", 2, "--out", tmp_path / "criteo") == 0
    assert len(list((tmp_path / "criteo").glob("train-*.h5"))) == 2


@pytest.mark.parametrize("name", LOADERS)
def test_help_has_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        run(name, "--help")
    assert stop.value.code == 0
    assert f"persia-hpc preprocess {name}" in capsys.readouterr().out


def test_numbers_must_be_finite(tmp_path):
    with pytest.raises(UserError, match="--scale: got nan"):
        run("synthetic", "--scale", "nan", "--out", tmp_path)
