"""Training on files as they appear, in one process: interrupted, resumed, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.checkpoint.files import whole_checkpoints
from persia_hpc.errors import DataError, UserError
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.writer import DatasetWriter
from tests.support.checkpoints import change_manifest
from tests.support.follow import FIRST, SECOND, STEPS, THIRD, Drops, Folder, summary_of, train_left_alone
from tests.support.serving_chaos import IDS
from tests.support.tiny import SCHEMA, run_digest, tiny_batch, tiny_config, write_tiny


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_left_alone(tmp_path_factory.mktemp("one"))


def test_portions_in_order_of_time_equal_a_run_over_one_sorted_file(tmp_path: Path) -> None:
    """Portions of whole steps: then nothing tells that files came one after the other."""
    incoming, batches = tmp_path / "in", []
    incoming.mkdir()
    for name, times in (("z", range(0, 80, 2)), ("a", range(1, 113, 2)), ("m", range(120, 184))):
        write_tiny(tmp_path / f"{name}.h5", len(times), seed=len(times), times=times)
        time = np.array(times, np.int64)
        batches.append(dataclasses.replace(tiny_batch(len(times), seed=len(times)), time=time))
    samples = SampleBatch.concatenate(batches)
    assert samples.time is not None
    with DatasetWriter(tmp_path / "all.h5", dataclasses.replace(SCHEMA, has_time=True)) as writer:
        writer.write(samples.take(np.argsort(samples.time, kind="stable")))

    class Arrivals:
        def log(self, event: dict[str, Any]) -> None:
            if event["event"] == "wait":
                (tmp_path / "m.h5").rename(incoming / "m.h5")
                (incoming / "_END").touch()

    for name in "za":
        (tmp_path / f"{name}.h5").rename(incoming / f"{name}.h5")
    changes = {"data.shuffle": False}
    config = tiny_config(str(incoming / "*.h5"), run_dir=str(tmp_path / "follows"), **changes)
    config["data"]["follow"] = True
    summary = ph.train(config, loggers=[Arrivals()], quiet=True)
    assert (summary["steps"], summary["follow"]["portions"]) == (5, 2)
    ph.train(tiny_config(str(tmp_path / "all.h5"), run_dir=str(tmp_path / "sorted"), **changes), quiet=True)
    assert run_digest(tmp_path / "follows") == run_digest(tmp_path / "sorted")


class Interrupt(ph.Callback):
    """Sends SIGTERM to this process after some step."""

    def __init__(self, step: int):
        self.step = step

    def on_step(self, run: Any) -> None:
        if run.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("step", [2, 4, 20, 33])  # in the middle of portions, and at the ends of two
def test_interrupted_and_resumed_is_bit_identical(step: int, tmp_path: Path, one_process: Path) -> None:
    """Whatever has come meanwhile, the portion that was begun stays as it was."""
    folder = Folder(tmp_path)
    folder.drop(FIRST)
    config = folder.config(run_dir=str(tmp_path / "run"), **{"checkpoint.resume": True})
    drops = Drops(folder, SECOND, then_end=False)
    first = ph.train(config, callbacks=[Interrupt(step)], loggers=[drops], quiet=True)
    assert (first["status"], first["stop_reason"]) == ("interrupted", "SIGTERM")
    assert first["steps"] in (step, step + 1)
    if step > 4:
        folder.drop(THIRD)
    drops = Drops(folder, *([SECOND, THIRD] if step <= 4 else []))
    second = ph.train(config, loggers=[drops], quiet=True)
    assert (second["status"], second["steps"], second["samples"]) == ("completed", STEPS, 1075)
    assert second["this_run"]["steps"] == STEPS - first["steps"]
    assert run_digest(tmp_path / "run") == run_digest(one_process)
    assert second["embedding"]["pulled_rows"] == summary_of(one_process)["embedding"]["pulled_rows"]


class Stop(Drops):
    """Asks for a stop while the run waits."""

    def log(self, event: dict[str, Any]) -> None:
        if event["event"] == "wait" and not self.portions:
            os.kill(os.getpid(), signal.SIGTERM)
        super().log(event)


def test_stopped_while_it_waits_and_resumed(tmp_path: Path, one_process: Path) -> None:
    folder = Folder(tmp_path)
    folder.drop(FIRST)
    config = folder.config(run_dir=str(tmp_path / "run"), **{"checkpoint.resume": True})
    first = ph.train(config, loggers=[Stop(folder, SECOND, then_end=False)], quiet=True)
    assert (first["status"], first["steps"]) == ("interrupted", 33)
    for path in folder.incoming.iterdir():
        path.unlink()  # all used up: even the features are known without them
    folder.drop(THIRD)
    folder.end()
    second = ph.train(config, quiet=True)
    assert (second["status"], second["this_run"]["steps"]) == ("completed", 2)
    assert (second["follow"]["portions"], second["follow"]["files"]) == (3, 4)
    assert run_digest(tmp_path / "run") == run_digest(one_process)


class Service(Drops):
    """Lets the run end, by a signal or the last file, once a version of some step is there for a while."""

    def __init__(self, folder: Folder, step: int, *, then_end: bool):
        super().__init__(folder, then_end=then_end)
        self.step = step
        self.thread = threading.Thread(target=self.look)

    def log(self, event: dict[str, Any]) -> None:
        if event["event"] == "wait":
            self.thread.start()

    def look(self) -> None:
        limit = time.monotonic() + 30
        while self.step not in self.steps() and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(0.3)  # of three more versions, if there were any
        if self.then_end:
            self.folder.end()
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def steps(self) -> list[int]:
        manifests = sorted((self.folder.path / "export").glob("version-*/manifest.json"))
        return [json.loads(path.read_text())["step"] for path in manifests]


def test_a_service_has_the_last_step_before_a_wait(tmp_path: Path) -> None:
    """One version of it, and another one when the run is started again, although it trains nothing."""
    folder = Folder(tmp_path)
    folder.drop(FIRST)
    export = {"every_seconds": 0.1, "dir": str(tmp_path / "export"), "keep": 1000}
    changes = {"run_dir": str(tmp_path / "run"), "export": export, "checkpoint.resume": True}
    first = Service(folder, 4, then_end=False)
    assert ph.train(folder.config(**changes), loggers=[first], quiet=True)["status"] == "interrupted"
    first.thread.join()
    steps = first.steps()
    assert steps[-1] == 4
    assert all(a < b for a, b in pairwise(steps))
    shutil.rmtree(tmp_path / "export")
    second = Service(folder, 4, then_end=True)
    summary = ph.train(folder.config(**changes), loggers=[second], quiet=True)
    second.thread.join()
    assert (summary["status"], summary["this_run"]["steps"]) == ("completed", 0)
    assert second.steps() == [4]
    reader, run = ph.Reader(tmp_path / "export", follow=False), ph.load(tmp_path / "run")
    for table in run.tables:
        np.testing.assert_array_equal(reader.rows(table, IDS).values, run.rows(table, IDS))


class StopAtNews(Drops):
    """Asks for a stop at the moment in which new files have been found."""

    def log(self, event: dict[str, Any]) -> None:
        super().log(event)
        if event["event"] == "data" and event["portion"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_stopped_when_new_files_have_just_been_found(tmp_path: Path, one_process: Path) -> None:
    folder = Folder(tmp_path)
    folder.drop(FIRST)
    config = folder.config(run_dir=str(tmp_path / "run"), **{"checkpoint.resume": True})
    first = ph.train(config, loggers=[StopAtNews(folder, SECOND, then_end=False)], quiet=True)
    assert (first["status"], first["steps"]) == ("interrupted", 4)
    second = ph.train(config, loggers=[Drops(folder, THIRD)], quiet=True)
    assert (second["status"], second["steps"]) == ("completed", STEPS)
    assert run_digest(tmp_path / "run") == run_digest(one_process)


@pytest.mark.parametrize("change", ["gone", "changed", "others", "repaired"])
def test_a_file_that_is_still_needed_must_be_there(change: str, tmp_path: Path, one_process: Path) -> None:
    folder = Folder(tmp_path)
    folder.drop(FIRST)
    folder.end()
    config = folder.config(run_dir=str(tmp_path / "run"), **{"checkpoint.resume": True})
    ph.train(config, callbacks=[Interrupt(2)], quiet=True)
    before = run_digest(tmp_path / "run")
    (folder.incoming / "b.h5").rename(tmp_path / "aside")
    if change == "repaired":
        repaired = Path(shutil.copy(tmp_path / "aside", tmp_path / "repaired.h5"))
        with h5py.File(repaired, "r+") as file:  # the same samples, other bytes
            file["a comment"] = np.zeros(1000)
        repaired.rename(folder.incoming / "b.h5")
        assert ph.train(config, quiet=True)["status"] == "completed"
        return
    if change == "changed":
        write_tiny(folder.incoming / "b.h5", 46)
    elif change == "others":
        write_tiny(folder.incoming / "b.h5", 45, seed=9)
    with pytest.raises(UserError, match=r"b\.h5: got (no such file|46 samples|other samples)"):
        ph.train(config, quiet=True)
    assert run_digest(tmp_path / "run") == before
    (tmp_path / "aside").rename(folder.incoming / "b.h5")
    assert ph.train(config, quiet=True)["status"] == "completed"


def test_checkpoints_and_evaluations_come_while_it_waits(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.drop(FIRST)
    valid = write_tiny(tmp_path / "valid.h5", 50, seed=9)
    changes = {"data.valid": [valid], "checkpoint.every_seconds": 0.3, "data.follow_seconds": 1.0}
    drops = Drops(folder, SECOND, then_end=False)
    config = folder.config(run_dir=str(tmp_path / "run"), **changes, **{"train.save": False})
    summary = ph.train(config, loggers=[drops], quiet=True)
    assert (summary["status"], summary["stop_reason"]) == ("stopped", "no new file in 1 s")
    assert [e["step"] for e in drops.events if e["event"] == "evaluate"] == [4, 33]
    assert whole_checkpoints(tmp_path / "run")[0].name == "step-00000033", (
        "the clock goes on while nothing comes"
    )
    # What was stopped may go on: there may be more.
    folder.drop(THIRD)
    again = ph.train({**config, "checkpoint": {"every_seconds": 0.3, "resume": True}}, quiet=True)
    assert (again["status"], again["steps"]) == ("stopped", STEPS)


def test_a_loop_of_ones_own_and_max_steps(tmp_path: Path) -> None:
    from persia_hpc.models import build_model
    from persia_hpc.trainer.losses import load_loss

    folder = Folder(tmp_path)
    folder.drop(FIRST)
    seen: list[int] = []

    def main(session: Any) -> None:
        session.prepare(build_model("tests.support.models:Small", session.inputs, {}))
        for batch in session.batches():
            session.step(load_loss("bce")(session.forward(batch), batch))
            seen.append(session.step_number)
            if session.step_number == 4:  # the last of the first file
                threading.Timer(0.5, folder.drop, (SECOND,)).start()

    config = folder.config(run_dir=str(tmp_path / "run"), **{"train.max_steps": 10})
    summary = ph.run(config, main, quiet=True)
    assert (summary["status"], seen) == ("completed", list(range(1, 11)))


def test_a_run_that_follows_is_not_one_that_does_not(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.drop(FIRST)
    config = folder.config(run_dir=str(tmp_path / "run"), **{"checkpoint.resume": True})
    folder.end()
    ph.train(config, quiet=True)
    config["data"]["follow"] = False
    with pytest.raises(UserError, match=r"data\.follow: True there, False here"):
        ph.train(config, quiet=True)


def test_a_damaged_record_of_portions_is_not_gone_on_from(tmp_path: Path, one_process: Path) -> None:
    """Files would be trained on twice, or never."""
    folder = Folder(tmp_path)
    folder.drop(FIRST)
    config = folder.config(run_dir=str(tmp_path / "run"), checkpoint={"every": 2, "resume": True})
    ph.train(config, callbacks=[Interrupt(3)], loggers=[Drops(folder)], quiet=True)
    newest, before = whole_checkpoints(tmp_path / "run")
    change_manifest(newest, lambda manifest: manifest["portions"][0][1].pop("path"))
    drops = Drops(folder, SECOND, THIRD)
    summary = ph.train(config, loggers=[drops], quiet=True)
    assert summary["this_run"]["steps"] == STEPS - int(before.name[5:])
    assert run_digest(tmp_path / "run") == run_digest(one_process)


def test_a_bad_new_file_in_one_process(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.drop(FIRST)

    class Bad(Drops):
        def log(self, event: dict[str, Any]) -> None:
            if event["event"] == "wait":
                (folder.incoming / "e.h5").write_bytes(b"no dataset")

    config = folder.config(run_dir=str(tmp_path / "run"))
    with pytest.raises(DataError, match=r"e\.h5: neither an HDF5.*checkpoint of step 4 is kept"):
        ph.train(config, loggers=[Bad(folder)], quiet=True)
    assert whole_checkpoints(tmp_path / "run")[0].name == "step-00000004"
    with pytest.raises(UserError, match=r"e\.h5: neither an HDF5"):  # there from the beginning
        ph.train({**config, "run_dir": str(tmp_path / "new")}, quiet=True)
