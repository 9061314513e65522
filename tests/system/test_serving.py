"""Versions that jobs of several ranks write: whole, and what the checkpoint of the same step has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import persia_hpc as ph
from tests.support.cases import run_cases, settings, summary
from tests.support.serving_chaos import IDS, Chaos
from tests.support.tiny import write_tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    return [write_tiny(folder / "train.h5", 1500), write_tiny(folder / "valid.h5", 60, seed=1)]


def test_the_last_version_is_the_checkpoint_in_every_mode(data: list[str], tmp_path: Path) -> None:
    """A reader that adds up all changes has missed none."""
    export = {"every_seconds": 0.03, "base_every": 1000, "keep": 1000}
    later_bases = {"base_every": 3, "keep": 1}
    cases = [
        settings(
            data,
            tmp_path / name,
            *ranks,
            mode=mode,
            export={**export, **more, "dir": str(tmp_path / f"{name}-export")},
        )
        for name, mode, ranks, more in (
            ("hybrid", "hybrid", (2, 1, 2), later_bases),
            ("sync", "sync", (1, 2, 1), {}),
            ("async", "async", (1, 1, 2), {}),
            ("fresh", "fresh", (2, 1, 2), {}),
        )
    ]
    run_cases(*cases)
    for name in ("hybrid", "sync", "async", "fresh"):
        written = summary(tmp_path / name)["export"]
        assert written["versions"] > 2, name
        assert written["failed"] == 0
        assert (written["bases"] > 1) == (name == "hybrid")
        run = ph.load(tmp_path / name)
        reader = ph.Reader(tmp_path / f"{name}-export", follow=False)
        assert reader.version.step == run.step
        for table in run.tables:
            np.testing.assert_array_equal(reader.rows(table, IDS).values, run.rows(table, IDS))
        request = {"item": 3, "user": 5, "tags": [1, 2], "history": [3, 4]}
        expected = run.score(request, [0.1, 0.2, 0.3])
        np.testing.assert_array_equal(reader.predict(request, [0.1, 0.2, 0.3]).values, expected)


@pytest.mark.parametrize(
    ("mode", "ends"),
    [
        ({"exact": True}, {"exact": True}),
        ({"mode": "sync"}, {"mode": "sync"}),
        ({"mode": "fresh", "lookahead": 3}, {"mode": "sync"}),
    ],
    ids=["exact", "sync", "fresh"],
)
def test_a_version_in_the_midst_is_what_a_run_that_ends_there_has(
    data: list[str], tmp_path: Path, mode: dict[str, object], ends: dict[str, object]
) -> None:
    """Although steps after it are under way, and rows that only they use. `fresh` has what `sync` has."""
    ranks, export = (2, 2, 2), {"every_seconds": 0.001, "keep": 1000, "dir": str(tmp_path / "export")}
    long = settings(data, tmp_path / "long", *ranks, export=export, **mode, **{"train.evaluate_every": 50})
    run_cases(long)
    manifests = sorted((tmp_path / "export").glob("version-*/manifest.json"))
    inside = [path for path in manifests if json.loads(path.read_text())["step"] % 50 not in (0, 44)]
    assert len(inside) > 3
    chosen = inside[len(inside) // 2]
    step = json.loads(chosen.read_text())["step"]
    run_cases(settings(data, tmp_path / "short", *ranks, **ends, **{"train.max_steps": step}))
    (tmp_path / "export" / "latest").unlink()
    (tmp_path / "export" / "latest").symlink_to(chosen.parent.name)
    reader, run = ph.Reader(tmp_path / "export", follow=False), ph.load(tmp_path / "short")
    assert reader.version.step == run.step == step
    for table in run.tables:
        np.testing.assert_array_equal(reader.rows(table, IDS).values, run.rows(table, IDS))
    request = {"item": 3, "user": 5, "tags": [1, 2], "history": [3, 4]}
    expected = run.score(request, [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(reader.predict(request, [0.1, 0.2, 0.3]).values, expected)


def test_kills_of_run_and_readers_mix_nothing(tmp_path: Path) -> None:
    """`python -m tests.support.serving_chaos` is the long form."""
    counts = Chaos(tmp_path, kills=2, seed=3, steps=1500).run()
    assert counts["versions"] > 5
