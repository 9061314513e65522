"""Manifests of any content are either read or refused in one line, and nothing in them leads elsewhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import persia_hpc as ph
from persia_hpc.checkpoint.manifest import base_of, check_part, part_path, read_manifest, read_schema, sealed
from persia_hpc.checkpoint.merged import CheckpointReader
from persia_hpc.checkpoint.tables import file_name
from persia_hpc.cli import main
from persia_hpc.config import load_config
from persia_hpc.errors import DataError, PersiaError, UserError
from persia_hpc.table_layout import make_layout
from tests.support.checkpoints import change_manifest, own

STORED = Path(__file__).resolve().parents[1] / "data" / "checkpoint_v2"
FULL, CHANGES = "step-00000004", "step-00000008"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(STORED, tmp_path / "run")
    return tmp_path / "run"


def manifest_of(directory: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((directory / "manifest.json").read_text())
    return manifest


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values that lie in a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, entry in inside for place in places(entry, (*at, key)))]


MANIFEST = manifest_of(STORED / CHANGES)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(1 << 70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=300)
@given(st.sampled_from(places(MANIFEST)), ANYTHING, st.booleans())
@example(("config", "tables"), {"\n": None}, False)
@example(("config", "tables"), {"\n": {"dim": 4, "\u2028": 1}}, False)
def test_any_value_anywhere_is_read_or_refused_in_one_line(
    tmp_path: Path, place: tuple[Any, ...], value: Any, remove: bool
) -> None:
    manifest = json.loads(json.dumps(MANIFEST))
    if place:
        *path, last = place
        parent = manifest
        for key in path:
            parent = parent[key]
        if remove:
            del parent[last]
        else:
            parent[last] = value
    else:
        manifest = value
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    text = ""
    try:
        found = read_manifest(tmp_path)
        make_layout(load_config(found["config"]), read_schema(found))
    except PersiaError as error:
        text = str(error)
    if text:
        assert "\n" not in text
        return
    # What is read has the types that all code relies on.
    assert all(isinstance(found["files"][name]["bytes"], int) for name in (*found["shards"], "dense.pt"))
    assert not [name for name in found["files"] if "/" in name or name in ("", ".", "..")]
    assert "/" not in (found["base"] or "")
    assert all(isinstance(count, int) for counts in found["counters"].values() for count in counts.values())


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "\xff", "", "1e999", "[1", "9" * 5000])
def test_what_is_no_manifest_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"manifest\.json is damaged \([^\n]*\); use an older checkpoint$"):
        read_manifest(tmp_path)


def test_a_deep_configuration_is_refused(run: Path) -> None:
    def deepen(manifest: dict[str, Any]) -> None:
        at = manifest["config"]
        for _ in range(900):
            at["a"] = at = {}

    change_manifest(run / CHANGES, deepen)
    with pytest.raises(DataError, match="nested more than 32 levels deep"):
        read_manifest(run / CHANGES)


def test_a_manifest_has_a_checksum_of_its_values(run: Path) -> None:
    path = run / CHANGES / "manifest.json"
    manifest = sealed(manifest_of(run / CHANGES))
    path.write_text(json.dumps(manifest))
    assert read_manifest(run / CHANGES) == manifest
    manifest["config"]["data"]["batch_size"] += 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="its checksum is not that of its values"):
        read_manifest(run / CHANGES)


def test_a_format_of_another_version_is_told_apart_from_damage(run: Path) -> None:
    change_manifest(run / CHANGES, lambda manifest: manifest.update(format_version=4))
    with pytest.raises(UserError, match="has checkpoint format 4, this package reads 2 and 3"):
        read_manifest(run / CHANGES)


NAMES: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "base": lambda m, name: m.update(base=name),
    "shards": lambda m, name: (m["shards"].append(name), m["files"].update({name: m["files"]["dense.pt"]})),
    "files": lambda m, name: m["files"].update({name: m["files"]["dense.pt"]}),
}


@pytest.mark.parametrize("key", NAMES)
@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "..", ".", "", "a/b", "server-0000.h5/../x", "a\0b"])
def test_names_stay_inside_of_the_checkpoint(key: str, name: str, run: Path) -> None:
    change_manifest(run / CHANGES, lambda manifest: NAMES[key](manifest, name))
    for read in (read_manifest, ph.load, CheckpointReader):
        with pytest.raises(DataError, match=r"manifest\.json is damaged"):
            read(run / CHANGES)
    assert main(["checkpoint", "verify", str(run / CHANGES)]) == 3


@pytest.mark.parametrize("name", ["server-0001.h5", "dense.pt", "manifest.json"])
def test_links_that_lead_out_of_the_run_are_refused(name: str, run: Path, tmp_path: Path) -> None:
    """Though what they lead to has the right checksum; a link inside of the run is fine."""
    outside, inside = tmp_path / "outside", run / "inside"
    outside.mkdir()
    inside.mkdir()
    path = run / CHANGES / name
    shutil.copy(path, outside / name)
    path.rename(inside / name)
    path.symlink_to(inside / name)
    assert ph.load(run / CHANGES).model() is not None
    path.unlink()
    path.symlink_to(outside / name)
    for read in (ph.load, lambda d: check_part(d, read_manifest(d), name, content=False)):
        with pytest.raises(DataError, match=r"is a link to .*outside of .*: it is not read"):
            read(run / CHANGES)
    assert main(["checkpoint", "verify", str(run / CHANGES)]) == 3
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(PersiaError, match=r"can't be read|not a checkpoint"):
        part_path(run / CHANGES, name)


def test_an_archived_checkpoint_is_read_where_it_lies(run: Path, tmp_path: Path) -> None:
    """A link to a whole checkpoint is its owner's decision."""
    (tmp_path / "archive").mkdir()
    (run / FULL).rename(tmp_path / "archive" / FULL)
    (run / FULL).symlink_to(tmp_path / "archive" / FULL)
    assert base_of(run / CHANGES, read_manifest(run / CHANGES)) == run / FULL
    assert ph.load(run / CHANGES).step == 8


def test_a_base_that_is_incremental_itself_is_refused(run: Path) -> None:
    change_manifest(run / FULL, lambda manifest: manifest.update(base=FULL))
    for read in (ph.load, CheckpointReader):
        with pytest.raises(DataError, match="which isn't full itself"):
            read(run / CHANGES)


def test_a_fifo_is_no_file(run: Path) -> None:
    for name, kind in (("dense.pt", DataError), ("manifest.json", UserError)):
        own(run / CHANGES / name).unlink()
        os.mkfifo(run / CHANGES / name)
        with pytest.raises(kind):
            ph.load(run / CHANGES)


@given(st.text(), st.text())
def test_names_of_tables_become_names_of_files_and_back(a: str, b: str) -> None:
    assert (file_name(a) == file_name(b)) == (a == b)
    assert "/" not in file_name(a)
    assert file_name(a) != "."
