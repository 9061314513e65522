"""Files that appear: which are new, in which order; and the rows of several files in order of time."""

from __future__ import annotations

import dataclasses
import glob
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persia_hpc.config import Config, load_config
from persia_hpc.errors import UserError
from persia_hpc.launch.run_dir import completed_message
from persia_hpc.samples import follow
from persia_hpc.samples.follow import Follower, TakenFile, late_files, portion_source
from persia_hpc.samples.source import open_source
from tests.support.samples import assert_equal
from tests.support.tiny import tiny_batch, tiny_config, write_tiny


def config(data: str, **changes: Any) -> Config:
    return load_config(tiny_config(data, **{"data.follow": True, **changes}))


def follower(folder: Path, **changes: Any) -> Follower:
    settings = config(str(folder / "*.h5"), **changes)
    return Follower(settings, follow.followed_schema(settings))


def names(infos: Any) -> list[str]:
    return [Path(info.path).stem for info in infos]


def test_each_file_is_taken_once_and_only_under_its_own_name(tmp_path: Path) -> None:
    write_tiny(tmp_path / "b.h5", 5)
    (tmp_path / "c.h5.partial").touch()
    found = follower(tmp_path, **{"data.train": [str(tmp_path / "*"), str(tmp_path / "b.h5")]})
    assert names(found.look()) == ["b"]
    assert names(found.look()) == []
    write_tiny(tmp_path / "c.h5", 6)
    write_tiny(tmp_path / "a.h5", 7)  # older by its name: taken all the same
    assert names(found.look()) == ["a", "c"]
    assert not found.ended
    (tmp_path / "_END").touch()
    assert names(found.look()) == []
    assert found.ended
    assert [[f.num_samples for f in portion] for portion in found.portions] == [[5], [7, 6]]


@pytest.mark.parametrize("name", ["data", "data [v2]", "da*a?"])
def test_a_checkpoint_names_no_file_beside_the_configured_ones(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "else").mkdir()
    mine = write_tiny(tmp_path / name / "a.h5", 5)
    other = write_tiny(tmp_path / "else" / "a.h5", 5)
    settings = config(str(tmp_path / name / "*.h5"))
    schema = follow.followed_schema(settings)
    for path, taken in (
        (mine, True),
        (other, False),
        (str(tmp_path / name / ".." / "else" / "a.h5"), False),
    ):
        resumed = Follower(settings, schema, [[TakenFile(path, 5, None)]])
        if taken:
            assert [info.path for info in resumed.reopen()] == [path]
        else:
            with pytest.raises(UserError, match=r"the checkpoint names this file, but data.train doesn't"):
                resumed.reopen()


def test_files_of_a_folder_with_brackets_are_followed(tmp_path: Path) -> None:
    """What a glob takes for a class of letters is the folder's own name, in new and in resumed runs."""
    folder = tmp_path / "data [v2]"
    folder.mkdir()
    write_tiny(folder / "a.h5", 5)
    found = follower(folder)
    assert names(found.look()) == ["a"]
    settings = config(str(folder / "*.h5"))
    resumed = Follower(settings, follow.followed_schema(settings), found.portions)
    resumed.check_taken(1)
    write_tiny(folder / "b.h5", 5)
    assert names(resumed.look()) == ["b"]
    write_tiny(folder / "a.h5", 5, seed=8)
    with pytest.raises(UserError, match=r"a\.h5: got other samples than when it was trained on"):
        resumed.check_taken(1)


@pytest.mark.parametrize("pattern", ["*.h5", "**/a.h5", "**/d/**/a.h5", "**/*.h5", "[d]/e/*", "d/e/a.h5"])
def test_what_a_pattern_gives_is_taken(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    for folder in ("", "d", "d/e"):
        write_tiny(tmp_path / folder / "a.h5", 5)
    settings = config(str(tmp_path / pattern))
    patterns = [str(tmp_path / pattern)]
    expected = sum(Path(path).is_file() for path in glob.glob(patterns[0], recursive=True))
    assert len(Follower(settings, open_source([str(tmp_path / "a.h5")]).schema).look()) == expected > 0


def test_a_file_without_samples_is_passed_over(tmp_path: Path) -> None:
    write_tiny(tmp_path / "a[1].h5", 5)  # what is a pattern elsewhere
    found = follower(tmp_path)
    assert names(found.look()) == ["a[1]"]
    path = Path(write_tiny(tmp_path / "b.h5", 4))
    with h5py.File(path, "r+") as file:
        file["label"].resize(0, axis=0)
        file.attrs["num_samples"] = 0
    assert names(found.look()) == []
    assert len(found.portions) == 1
    write_tiny(tmp_path / "c.h5", 6)
    assert names(found.look()) == ["c"]


def test_a_file_that_took_the_place_of_a_trained_one_is_refused(tmp_path: Path) -> None:
    """It would never be trained on, since a file is known by its path; a trained one may be gone."""
    for seed, name in enumerate("abc"):
        write_tiny(tmp_path / f"{name}.h5", 5, seed=seed)
    found = follower(tmp_path)
    found.look()
    first, *others = found.portions[0]
    found.portions = [(dataclasses.replace(first, digest=""), *others)]  # as of an older version
    (tmp_path / "c.h5").unlink()
    write_tiny(tmp_path / "a.h5", 5, seed=8)
    found.check_taken(1)
    write_tiny(tmp_path / "b.h5", 5, seed=8)
    found.check_taken(0)
    with pytest.raises(UserError, match=r"b\.h5: got other samples than when it was trained on"):
        found.check_taken(1)


def test_files_are_in_order_of_time_and_late_ones_are_counted(tmp_path: Path) -> None:
    for name, first in (("a", 50), ("b", 20), ("c", 20), ("d", -3)):
        write_tiny(tmp_path / f"{name}.h5", 4, times=range(first, first + 4))
    found = follower(tmp_path)
    assert names(found.look()) == ["d", "b", "c", "a"]
    assert late_files(found.portions) == 0
    write_tiny(tmp_path / "e.h5", 4, times=range(49, 53))
    write_tiny(tmp_path / "f.h5", 4, times=range(50, 54))
    assert names(found.look()) == ["e", "f"]
    assert late_files(found.portions) == 1


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=5))
def test_late_is_what_begins_before_something_of_an_earlier_portion(portions: list[list[int]]) -> None:
    taken = [[TakenFile("x", 1, time) for time in portion] for portion in portions]
    expected = sum(
        any(time < before for earlier in portions[:i] for before in earlier)
        for i, portion in enumerate(portions)
        for time in portion
    )
    assert late_files(taken) == expected


def test_a_file_that_does_not_fit_is_refused_and_nothing_is_taken(tmp_path: Path) -> None:
    write_tiny(tmp_path / "a.h5", 5)
    found = follower(tmp_path)
    write_tiny(tmp_path / "b.h5", 5, times=range(5))
    with pytest.raises(UserError, match=r"b\.h5: got a dataset /time, expected .* in the files before"):
        found.look()
    assert found.portions == []
    (tmp_path / "b.h5").unlink()
    assert names(found.look()) == ["a"]


def test_a_run_begins_with_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file matches .*data\.follow needs one"):
        follower(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data.limit": 5}, "data.limit"),
        ({"train.epochs": 2}, "train.epochs"),
        ({"train.schedule": "cosine"}, "train.schedule.steps is missing"),
        ({"tables.user.schedule": {"name": "cosine"}}, "tables.user.schedule.steps is missing"),
        ({"data.follow": False, "data.follow_seconds": 5}, "data.follow_seconds"),
    ],
)
def test_what_contradicts_it_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        config("train.h5", **changes)
    config("train.h5", **{"train.schedule": {"name": "cosine", "steps": 9}, "train.max_steps": 5})


@pytest.mark.parametrize(
    ("status", "following", "done"),
    [("completed", True, True), ("stopped", True, False), ("stopped", False, True)],
)
def test_only_the_end_ends_a_run_for_good(status: str, following: bool, done: bool, tmp_path: Path) -> None:
    settings = config("train.h5", **{"data.follow": following})
    summary = {"status": status, "steps": 5, "config_sha256": settings.sha256}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert bool(completed_message(tmp_path, settings)) == done


def test_a_dry_run_takes_what_is_there_for_the_first_portion(tmp_path: Path) -> None:
    from persia_hpc.job.dry_run import dry_run

    for name, rows in (("a", 40), ("b", 30)):
        write_tiny(tmp_path / f"{name}.h5", rows)
    text = dry_run(config(str(tmp_path / "*.h5")))
    assert "train: 70 samples, 3 steps of 32" in text
    assert "first step: 32 samples" in text
    assert "whatever new files bring" in text


FILES = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=150), min_size=1, max_size=4)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(FILES, st.booleans(), st.data())
def test_rows_are_in_order_of_time_whichever_file_they_are_in(
    tmp_path: Path, files: list[list[int]], ordered: bool, data: st.DataObject
) -> None:
    """Bit for bit what a stable sort of all rows gives, in any ranges, also of files out of order."""
    paths, batches = [], []
    for number, times in enumerate(files):
        times = sorted(times) if ordered else times
        paths.append(write_tiny(tmp_path / f"{number}.h5", len(times), seed=number, times=times))
        batch = tiny_batch(len(times), seed=number)
        batches.append(dataclasses.replace(batch, time=np.asarray(times, np.int64)))
    everything = type(batches[0]).concatenate(batches)
    assert everything.time is not None
    expected = everything.take(np.argsort(everything.time, kind="stable"))
    settings = config(paths[0], **{"data.shuffle": False})
    infos = [follow.scan(path) for path in paths]
    source = portion_source(infos, open_source(paths), settings)
    begin = data.draw(st.integers(0, source.num_samples))
    end = data.draw(st.integers(begin, source.num_samples))
    assert_equal(source.read(begin, end), expected.slice(begin, end))
    assert_equal(source.read(0, source.num_samples), expected)
    source.close()
