"""`ph.Reader`: while a run trains and after it, always one whole version, equal to the checkpoint's."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.checkpoint.manifest import sealed
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.source import open_source
from persia_hpc.serving.directory import ExportDirectory
from persia_hpc.serving.names import MANIFEST
from persia_hpc.serving.parts import PartFile
from tests.support.tiny import SEQUENCES, VOCABULARY, tiny_config, write_sequences, write_tiny

from .test_job_scoring import named

IDS = np.arange(VOCABULARY + 5)


def settings(folder: Path, data: str, **changes: Any) -> dict[str, Any]:
    export = {"every_seconds": 0.01, "dir": str(folder / "export"), "base_every": 3}
    return tiny_config(
        data, **{"run_dir": str(folder / "run"), "export": export, "train.epochs": 4, **changes}
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SampleBatch]:
    folder = tmp_path_factory.mktemp("reader")
    data = write_tiny(folder / "train.h5", 2000)
    ph.train(settings(folder, data, **{"train.average": 0.9}), quiet=True)
    return folder, open_source([data]).read(0, 60)


def test_has_the_rows_of_the_last_checkpoint(trained: tuple[Path, SampleBatch]) -> None:
    folder, _ = trained
    run = ph.load(folder / "run")
    reader = ph.Reader(folder / "export", follow=False)
    assert reader.tables == run.tables
    for table in run.tables:
        answer = reader.rows(table, IDS)
        np.testing.assert_array_equal(answer.values, run.rows(table, IDS))
        assert (answer.step, answer.age_steps) == (run.step, 0)
        assert 0 <= answer.age_seconds < 60
    summary = json.loads((folder / "run" / "summary.json").read_text())["export"]
    assert (summary["last_step"], summary["failed"]) == (run.step, 0)
    assert summary["versions"] > 3
    assert summary["bases"] > 1


def test_predicts_as_the_run_does(trained: tuple[Path, SampleBatch]) -> None:
    folder, batch = trained
    run = ph.load(folder / "run")
    with ph.Reader(folder / "export") as reader:
        expected = run.score(named(batch), batch.dense)
        np.testing.assert_array_equal(reader.predict(named(batch), batch.dense).values, expected)
        one = reader.predict(named(batch, 7), batch.dense[7])
        np.testing.assert_allclose(one.values, expected[7], rtol=1e-5)
        assert one.values.shape == (1,)


def test_pools_what_the_model_gets(trained: tuple[Path, SampleBatch]) -> None:
    folder, batch = trained
    reader = ph.Reader(folder / "export", follow=False)
    pooled = reader.pooled(named(batch)).values
    assert set(pooled) == {"item", "user", "tags"}
    for feature in ("item", "user"):
        rows = reader.rows(feature, batch.ids[feature].values).values
        np.testing.assert_array_equal(pooled[feature], rows)
    column = batch.ids["tags"]
    for i, (begin, end) in enumerate(
        zip(column.starts[:-1].tolist(), column.starts[1:].tolist(), strict=True)
    ):
        last = column.values[max(begin, end - 2) : end]  # max_length
        mean = reader.rows("tags", last).values.mean(axis=0) if len(last) else np.zeros(4)
        np.testing.assert_allclose(pooled["tags"][i], mean, rtol=1e-5, atol=1e-7)
    one = reader.pooled(named(batch, 3)).values
    np.testing.assert_array_equal(one["item"], pooled["item"][3])


def test_follows_while_the_run_trains(tmp_path: Path) -> None:
    """Each answer is of one step: a version's rows are those of the callback at that step."""
    data = write_tiny(tmp_path / "train.h5", 3000)
    found: dict[str, Any] = {"reader": None, "versions": set(), "rows": {}}

    class Look(ph.Callback):
        def on_step(self, view: Any) -> None:
            server = view.session.stream.server
            out = np.empty((len(IDS), 4), np.float32)
            keys = np.sort(np.array([int(k) for k in _keys(IDS)], np.uint64))
            server.tables[0].lookup(keys, out)
            found["rows"][view.step] = (view.session.layout.tables[0].name, keys, out)
            if (tmp_path / "export" / "latest").exists() and found["reader"] is None:
                found["reader"] = ph.Reader(tmp_path / "export", follow=False)
            if found["reader"] is None:
                return
            found["reader"].refresh()
            time.sleep(0.001)
            name = view.session.layout.tables[0].name
            answer = found["reader"].rows(name, IDS)
            found["versions"].add(answer.version)
            assert answer.age_steps is not None
            assert answer.step + answer.age_steps <= view.step
            if not answer.step:
                assert not answer.values.any()
                return
            _, keys, expected = found["rows"][answer.step]
            order = np.argsort(_keys(IDS))
            np.testing.assert_array_equal(answer.values[order], expected)

    ph.train(settings(tmp_path, data), callbacks=[Look()], quiet=True)
    assert len(found["versions"]) > 5


def _keys(ids: np.ndarray) -> np.ndarray:
    from persia_hpc._native import mix

    return mix(ids.astype(np.uint64))


@pytest.mark.parametrize("rows", ["fp16", "bf16", "int8"])
def test_formats_are_near(tmp_path: Path, rows: str) -> None:
    data = write_sequences(tmp_path / "train.h5", 300)
    config = settings(tmp_path, data, **SEQUENCES)
    config["export"]["rows"] = rows
    ph.train(config, quiet=True)
    run, reader = ph.load(tmp_path / "run"), ph.Reader(tmp_path / "export", follow=False)
    for table in run.tables:
        expected = run.rows(table, IDS)
        np.testing.assert_allclose(
            reader.rows(table, IDS).values, expected, atol=np.abs(expected).max() / 100
        )


def test_a_run_that_goes_on_begins_with_a_new_base(tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "train.h5", 600)
    ph.train(settings(tmp_path, data, **{"train.max_steps": 20}), quiet=True)
    reader = ph.Reader(tmp_path / "export", follow=False)
    before = reader.version
    (tmp_path / "export" / "version-00000099.partial").mkdir()
    ph.train(settings(tmp_path, data, **{"train.max_steps": 40, "checkpoint.resume": True}), quiet=True)
    assert reader.refresh()
    run = ph.load(tmp_path / "run")
    for table in run.tables:
        np.testing.assert_array_equal(reader.rows(table, IDS).values, run.rows(table, IDS))
    assert (before.step, reader.version.step) == (20, 40)
    assert not list((tmp_path / "export").glob("*.partial"))


def test_begins_anew_when_another_run_fills_the_directory(tmp_path: Path) -> None:
    """Its versions and bases have the same numbers."""
    export = {"every_seconds": 1000.0, "dir": str(tmp_path / "export")}

    def train(seed: int, steps: int) -> ph.LoadedRun:
        data = write_tiny(tmp_path / f"{seed}.h5", 600, seed=seed)
        config = settings(tmp_path, data, seed=seed, run_dir=str(tmp_path / f"run-{seed}"), export=export)
        config["train"]["max_steps"] = steps
        ph.train(config, quiet=True)
        return ph.load(tmp_path / f"run-{seed}")

    train(1, steps=40)
    reader = ph.Reader(tmp_path / "export", follow=False)
    request = {"item": 3, "user": 5, "tags": [1, 2], "history": [3, 4]}
    before = reader.predict(request, [0.1, 0.2, 0.3])
    newest, again = tmp_path / "export" / "latest", tmp_path / "again"
    again.symlink_to(newest.readlink())
    again.rename(newest)
    assert not reader.refresh()  # the same in a new link is nothing new
    for seed in (2, 3):  # the first brings one side there, the second the other one
        shutil.rmtree(tmp_path / "export")
        run = train(seed, steps=20)
        assert reader.refresh()
        assert not reader.refresh()
        assert (reader.version.version, reader.version.age_steps) == (before.version, 0)
        for table in run.tables:
            np.testing.assert_array_equal(reader.rows(table, IDS).values, run.rows(table, IDS))
        answer = reader.predict(request, [0.1, 0.2, 0.3])
        np.testing.assert_array_equal(answer.values, run.score(request, [0.1, 0.2, 0.3]))
        assert (answer.values != before.values).all()


def test_leaves_no_file_open(trained: tuple[Path, SampleBatch]) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()
    before = open_files()
    for _ in range(5):
        assert ph.Reader(trained[0] / "export", follow=False).version.age_steps == 0
    gc.collect()
    assert open_files() == before


def test_refuses_a_base_of_another_run(trained: tuple[Path, SampleBatch], tmp_path: Path) -> None:
    copy = tmp_path / "export"
    shutil.copytree(trained[0] / "export", copy, symlinks=True)
    base = json.loads((copy / "latest" / MANIFEST).read_text())["base"]
    path = copy / f"base-{base:08d}" / MANIFEST
    path.write_text(json.dumps(sealed({**json.loads(path.read_text()), "export": "0" * 32})))
    with pytest.raises(ph.DataError, match="is of another run than what `latest` leads to"):
        ph.Reader(copy)


def test_ends_with_the_rows_of_the_best_evaluation(tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "train.h5", 640)
    change = {"train.evaluate_every": 10, "train.restore_best": True, "train.keep_best": True}
    config = settings(
        tmp_path, data, **{"data.valid": [write_tiny(tmp_path / "v.h5", 200, seed=4)], **change}
    )
    summary = ph.train(config, quiet=True)
    assert summary["restored_step"] is not None, "the best is the last one: choose other data"
    run, reader = ph.load(tmp_path / "run"), ph.Reader(tmp_path / "export", follow=False)
    assert reader.version.step == summary["restored_step"] == run.step
    for table in run.tables:
        np.testing.assert_array_equal(reader.rows(table, IDS).values, run.rows(table, IDS))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def test_says_what_is_damaged(trained: tuple[Path, SampleBatch], tmp_path: Path) -> None:
    whole = trained[0] / "export"
    newest = (whole / "latest").readlink().name
    base = f"base-{json.loads((whole / newest / 'manifest.json').read_text())['base']:08d}"
    for name in (f"{newest}/manifest.json", f"{base}/manifest.json", f"{base}/server-0000.rows"):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(whole, copy, symlinks=True)
        damage(copy / name)
        with pytest.raises(ph.DataError, match="is damaged") as error:
            ph.Reader(copy)
        assert "\n" not in str(error.value)
        (copy / name).unlink()
        with pytest.raises(ph.DataError, match="is not whole: there is no"):
            ph.Reader(copy)
    with pytest.raises(ph.UserError, match="has no version of a run"):
        ph.Reader(trained[0] / "run")
    with pytest.raises(ph.UserError, match="there is no folder"):
        ph.Reader(tmp_path / "nothing")


def one_version_back(run_dir: Path, tmp_path: Path) -> tuple[Path, str, str]:
    """Returns a copy of the export, its newest version, and the one before, which is its latest."""
    copy = tmp_path / "export"
    shutil.copytree(run_dir / "export", copy, symlinks=True)
    newest = (copy / "latest").readlink().name
    older = sorted(p.name for p in copy.glob("version-*"))[-2]
    (copy / "latest").unlink()
    (copy / "latest").symlink_to(older)
    return copy, newest, older


def test_an_older_version_answers_while_the_newest_is_damaged(
    trained: tuple[Path, SampleBatch], tmp_path: Path
) -> None:
    copy, newest, older = one_version_back(trained[0], tmp_path)
    with ph.Reader(copy) as reader:
        damage(copy / newest / "server-0000.rows")
        (copy / "aside").symlink_to(newest)
        (copy / "aside").rename(copy / "latest")
        deadline = time.monotonic() + 10
        while not reader.problem and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "is damaged" in reader.problem
        assert reader.version.version == int(older[8:])
        assert reader.rows("item", [1]).values.shape == (1, 4)


def test_a_model_that_cannot_be_loaded_holds_up_no_rows(
    trained: tuple[Path, SampleBatch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ph.UserError("there is no such model here")

    copy, newest, _ = one_version_back(trained[0], tmp_path)
    reader = ph.Reader(copy, follow=False)
    monkeypatch.setattr("persia_hpc.models.build_model", refuse)
    with pytest.raises(ph.UserError, match="no such model"):
        reader.predict(named(trained[1], 0), trained[1].dense[0])
    (copy / "latest").unlink()
    (copy / "latest").symlink_to(newest)
    assert reader.refresh()
    assert reader.rows("item", [1]).version == int(newest[8:])


def test_names_what_it_does_not_have(trained: tuple[Path, SampleBatch]) -> None:
    reader = ph.Reader(trained[0] / "export", follow=False)
    with pytest.raises(ph.UserError, match="there is no table 'movie'; this run has: "):
        reader.rows("movie", [1])
    for rows in (reader.rows, ph.load(trained[0] / "run").rows):
        with pytest.raises(ph.UserError, match="expected integers"):
            rows("item", [1.5])
    with pytest.raises(ph.UserError, match=r"features\.user"):
        reader.pooled({"item": 1, "user": 1.5, "tags": [], "history": []})


def test_a_run_that_has_failed_lets_the_next_one_export(tmp_path: Path) -> None:
    class Fail(ph.Callback):
        def on_step(self, run: Any) -> None:
            if run.step == 5:
                raise RuntimeError("a mistake")

    data = write_tiny(tmp_path / "train.h5", 300)
    with pytest.raises(RuntimeError, match="a mistake"):
        ph.train(settings(tmp_path, data), callbacks=[Fail()], quiet=True)
    again = settings(tmp_path, data, run_dir=str(tmp_path / "again"))
    assert ph.train(again, quiet=True)["status"] == "completed"
    assert not list((tmp_path / "export").glob("*.partial"))


def test_another_folder_is_refused_before_training(tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "train.h5", 60)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "mine.txt").write_text("precious")
    with pytest.raises(ph.UserError, match=r"'mine\.txt' is there, which no export is made of"):
        ph.train(settings(tmp_path, data), quiet=True)


@pytest.mark.parametrize("first", [False, True])
def test_a_full_disk_is_said_and_no_change_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, first: bool
) -> None:
    """first: it is full when the run begins, else for some steps."""
    data = write_tiny(tmp_path / "train.h5", 3000)
    full, close = {"now": first}, PartFile.close

    def close_if_there_is_room(self: PartFile) -> dict[str, int]:
        if full["now"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return close(self)

    class Fill(ph.Callback):
        def on_step(self, view: Any) -> None:
            full["now"] = view.step < 60 and (first or view.step > 20)
            time.sleep(0.001)

    monkeypatch.setattr(PartFile, "close", close_if_there_is_room)
    monkeypatch.setattr(ExportDirectory, "free_bytes", lambda _: 0 if full["now"] else 1 << 20)
    config = settings(tmp_path, data)
    summary = ph.train(config, callbacks=[Fill()], quiet=True)["export"]
    assert summary["failed"] > 0
    assert summary["versions"] > 3
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    texts = [event["text"] for event in events if event["event"] == "warning"]
    assert sum("no version can be written (No space left on device)" in text for text in texts) == 1
    assert sum("can be written again" in text for text in texts) == 1
    run, reader = ph.load(tmp_path / "run"), ph.Reader(tmp_path / "export", follow=False)
    for table in run.tables:
        np.testing.assert_array_equal(reader.rows(table, IDS).values, run.rows(table, IDS))


def test_a_run_that_cannot_write_at_all_trains_to_its_end(tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "train.h5", 300)

    class Remove(ph.Callback):
        def on_step(self, view: Any) -> None:
            shutil.rmtree(tmp_path / "export", ignore_errors=True)

    summary = ph.train(settings(tmp_path, data), callbacks=[Remove()], quiet=True)
    assert summary["steps"] == 40
    assert summary["export"]["failed"] > 0


def test_rows_need_no_torch_and_no_mpi(trained: tuple[Path, SampleBatch]) -> None:
    import subprocess
    import sys

    code = (
        "import sys, persia_hpc as ph; r = ph.Reader(sys.argv[1]); r.rows('item', [1, 2]);"
        "r.pooled({'item': 1, 'user': 2, 'tags': [3], 'history': []});"
        "assert not {'torch', 'mpi4py'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code, str(trained[0] / "export")], check=True)
