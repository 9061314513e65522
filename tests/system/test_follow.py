"""Training on files as they appear: real jobs while another process drops files, against one process."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.checkpoint.files import whole
from persia_hpc.errors import DataError, UserError
from tests.support.checkpoints import change_manifest
from tests.support.jobs import Job, wait_for
from tests.support.samples import random_batch, write
from tests.support.tiny import run_digest, tiny_config, trained_rows, write_tiny

ROWS = {"a": 70, "b": 45, "c": 900, "d": 60}
FIRST, SECOND, THIRD = ("a", "b"), ("c",), ("d",)  # portions
STEPS = 4 + 29 + 2  # batches of 32


class Folder:
    """Data that arrives."""

    def __init__(self, path: Path):
        self.path = path
        self.incoming = path / "in"
        self.incoming.mkdir(parents=True)
        for seed, (name, rows) in enumerate(ROWS.items()):
            write_tiny(path / f"{name}.h5", rows, seed=seed)

    def drop(self, names: Sequence[str]) -> None:
        for name in names:
            (self.path / f"{name}.h5").rename(self.incoming / f"{name}.h5")

    def end(self) -> None:
        (self.incoming / "_END").touch()

    def config(self, **changes: Any) -> dict[str, Any]:
        return tiny_config(str(self.incoming / "*.h5"), **{"data.follow": True, **changes})


class Drops(ph.Callback):
    """A logger that drops the next files when the run waits."""

    def __init__(self, folder: Folder, *portions: Sequence[str], then_end: bool = True):
        self.folder, self.portions, self.then_end = folder, list(portions), then_end
        self.events: list[dict[str, Any]] = []

    def log(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["event"] == "wait":
            if self.portions:
                self.folder.drop(self.portions.pop(0))
            elif self.then_end:
                self.folder.end()


def waits(job: Job) -> int:
    return sum(event["event"] == "wait" for event in job.events())


def wait_for_wait(job: Job, count: int = 1) -> None:
    """Returns when the job waits for files, for the `count`-th time."""

    def waiting() -> bool:
        assert job.process.poll() is None, f"ended early\n{job.end()}"
        return waits(job) >= count

    wait_for(waiting, 120)


def ranks(servers: int, workers: int, trainers: int) -> dict[str, int]:
    return {"parameter_servers": servers, "embedding_workers": workers, "trainers": trainers}


def summary_of(run_dir: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return result


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all three portions, left alone."""
    path = tmp_path_factory.mktemp("one")
    folder = Folder(path)
    folder.drop(FIRST)
    drops = Drops(folder, SECOND, THIRD)
    summary = ph.train(folder.config(run_dir=str(path / "run")), loggers=[drops], quiet=True)
    assert (summary["status"], summary["steps"], summary["samples"]) == ("completed", STEPS, 1075)
    assert summary["follow"]["portions"] == 3
    assert summary["follow"]["files"] == 4
    assert [e["files"] for e in drops.events if e["event"] == "data"] == [2, 1, 1]
    return path / "run"


def test_a_job_that_waits_equals_one_process_and_ends_by_quiet(tmp_path: Path, one_process: Path) -> None:
    folder = Folder(tmp_path)
    folder.drop(FIRST)
    changes = {"data.follow_seconds": 1.5, "transport.stall_seconds": 0.4}
    job = Job(tmp_path, folder.config(ranks=ranks(2, 2, 1), **changes))
    try:
        for count, names in enumerate((SECOND, THIRD), start=1):
            wait_for_wait(job, count)
            if count == 1:  # nobody may complain, or burn a core
                logs = [p.read_text() for p in (job.run_dir / "logs").glob("rank-*.log")]
                before = {r.pid: cpu_seconds(r.pid) for r in job.ranks().values()}
                time.sleep(1.0)
                used = {pid: cpu_seconds(pid) - seconds for pid, seconds in before.items()}
                assert max(used.values()) < 0.5, used
                later = [p.read_text() for p in (job.run_dir / "logs").glob("rank-*.log")]
                assert sum(text.count("has waited") for text in later) == sum(
                    text.count("has waited") for text in logs
                )
            folder.drop(names)
        code, _, err = job.end()
    finally:
        job.clean_up()
    assert code == 0, err
    summary = summary_of(job.run_dir)
    assert (summary["status"], summary["stop_reason"]) == ("stopped", "no new file in 1.5 s")
    assert summary["follow"]["wait_seconds"] > 2
    assert summary["embedding"]["pulled_rows"] == summary["embedding"]["applied_rows"] > 0
    assert run_digest(job.run_dir) == run_digest(one_process)


def test_a_job_survives_a_bad_file_a_kill_and_a_stop_while_it_waits(
    tmp_path: Path, one_process: Path
) -> None:
    folder = Folder(tmp_path)
    folder.drop(FIRST)
    config = folder.config(
        ranks=ranks(1, 1, 2),
        checkpoint={"every": 5, "full_every": 2, "resume": True},
        **{"model.class": "tests.support.models:Slow"},
    )

    def run(disturb: Callable[[Job], object]) -> tuple[Job, int, str]:
        job = Job(tmp_path, config)
        try:
            disturb(job)
            code, _, err = job.end()
        finally:
            job.clean_up()
        return job, code, err

    def drop_a_bad_file(job: Job) -> None:
        wait_for_wait(job)
        os.rename(write(tmp_path / "bad", random_batch(40)), folder.incoming / "e.h5")

    job, code, err = run(drop_a_bad_file)
    assert code == 3, err
    assert "e.h5: got no feature 'item'" in err
    assert "the checkpoint of step 4 is kept" in err
    assert whole(job.run_dir)[0].name == "step-00000004"

    def kill_in_the_middle(job: Job) -> None:
        wait_for(lambda: int(whole(job.run_dir)[0].name[5:]) > 4, 60)
        os.kill(job.ranks()[1].pid, signal.SIGKILL)

    (folder.incoming / "e.h5").unlink()
    folder.drop(SECOND)
    _, code, err = run(kill_in_the_middle)
    assert code == 137, err
    assert 4 < int(whole(job.run_dir)[0].name[5:]) < 33

    def stop_while_it_waits(job: Job) -> None:
        wait_for_wait(job, 2)
        os.kill(job.ranks()[2].pid, signal.SIGTERM)

    for name in FIRST:  # used up, and not needed any more
        (folder.incoming / f"{name}.h5").unlink()
    folder.drop(THIRD)  # the portion that it goes on in the middle of doesn't get this
    job, code, err = run(stop_while_it_waits)
    assert (code, summary_of(job.run_dir)["steps"]) == (75, STEPS), err
    assert [e["samples"] for e in job.events() if e["event"] == "data"] == [115, 900, 60]
    folder.end()
    job, code, err = run(lambda _: None)
    summary = summary_of(job.run_dir)
    assert (code, summary["status"], summary["steps"], summary["samples"]) == (0, "completed", STEPS, 1075)
    assert summary["embedding"]["pulled_rows"] == summary["embedding"]["applied_rows"] > 0
    expected, got = trained_rows(one_process), trained_rows(job.run_dir)
    for table, columns in expected.items():  # two trainers sum in another order
        np.testing.assert_array_equal(got[table][0], columns[0])
        np.testing.assert_allclose(got[table][1], columns[1], rtol=2e-3, atol=2e-5)
        np.testing.assert_array_equal(got[table][3], columns[3])


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


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_a_file_that_is_still_needed_must_be_there(change: str, tmp_path: Path, one_process: Path) -> None:
    folder = Folder(tmp_path)
    folder.drop(FIRST)
    folder.end()
    config = folder.config(run_dir=str(tmp_path / "run"), **{"checkpoint.resume": True})
    ph.train(config, callbacks=[Interrupt(2)], quiet=True)
    before = run_digest(tmp_path / "run")
    (folder.incoming / "b.h5").rename(tmp_path / "aside")
    if change == "changed":
        write_tiny(folder.incoming / "b.h5", 46)
    with pytest.raises(UserError, match=r"b\.h5: got (no such file|46 samples)"):
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
    assert whole(tmp_path / "run")[0].name == "step-00000033", "the clock goes on while nothing comes"
    # What was stopped may go on: there may be more.
    folder.drop(THIRD)
    again = ph.train({**config, "checkpoint": {"every_seconds": 0.3, "resume": True}}, quiet=True)
    assert (again["status"], again["steps"]) == ("stopped", STEPS)


def test_a_loop_of_ones_own_and_max_steps(tmp_path: Path) -> None:
    from persia_hpc.models import build_model
    from persia_hpc.trainer.driver import bce

    folder = Folder(tmp_path)
    folder.drop(FIRST)
    seen: list[int] = []

    def main(session: Any) -> None:
        session.following.tell = Drops(folder, SECOND, then_end=False).log
        session.prepare(build_model("tests.support.models:Small", session.inputs, {}))
        for batch in session.batches():
            session.step(bce(session.forward(batch), batch))
            seen.append(session.step_number)

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
    newest, before = whole(tmp_path / "run")
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
    with pytest.raises(DataError, match=r"e\.h5: not an HDF5 file.*checkpoint of step 4 is kept"):
        ph.train(config, loggers=[Bad(folder)], quiet=True)
    assert whole(tmp_path / "run")[0].name == "step-00000004"
    with pytest.raises(UserError, match=r"e\.h5: not an HDF5 file"):  # there from the beginning
        ph.train({**config, "run_dir": str(tmp_path / "new")}, quiet=True)
