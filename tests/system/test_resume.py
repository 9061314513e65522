"""Interrupted and resumed training equals training that was left alone; in one process, by plain calls."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.checkpoint.files import whole_checkpoints
from persia_hpc.errors import DataError, UserError
from tests.support.tiny import run_digest, tiny_config, trained_rows, write_tiny

STEPS = 3 * 11  # 330 samples in batches of 32


class Interrupt(ph.Callback):
    """Sends a signal to this process after some step."""

    def __init__(self, step: int, number: int = signal.SIGTERM):
        self.step, self.number = step, number

    def on_step(self, run: Any) -> None:
        if run.step == self.step:
            os.kill(os.getpid(), self.number)


class Evaluations(ph.Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[int, str, float]] = []

    def on_evaluate(self, run: Any, metrics: dict[str, Any]) -> None:
        self.seen.append((run.step, metrics["split"], metrics["logloss"]))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("data") / "train.h5", 330)


def config(data: str, run_dir: Path, **changes: Any) -> dict[str, Any]:
    settings = {"train.epochs": 3, "data.valid": [data], "run_dir": str(run_dir), **changes}
    return tiny_config(data, **settings)


def train(data: str, run_dir: Path, *callbacks: ph.Callback, **changes: Any) -> dict[str, Any]:
    return ph.train(config(data, run_dir, **changes), callbacks=callbacks, quiet=True)


@pytest.fixture(scope="module")
def left_alone(data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Any]:
    run_dir = tmp_path_factory.mktemp("left-alone") / "run"
    seen = Evaluations()
    return run_dir, train(data, run_dir, seen), seen.seen


def without_times(summary: dict[str, Any]) -> dict[str, Any]:
    kept = {k: summary[k] for k in ("steps", "samples", "valid", "test", "staleness")}
    memory = ("bytes", "overhead_bytes_per_row")
    return {**kept, **{k: v for k, v in summary["embedding"].items() if k not in memory}}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("step", [1, 11, 17])  # 11: the end of an epoch, evaluated
def test_interrupted_and_resumed_is_bit_identical(
    step: int, number: int, data: str, tmp_path: Path, left_alone: Any
) -> None:
    seen, before = Evaluations(), signal.getsignal(number)
    first = train(data, tmp_path / "run", Interrupt(step, number), seen)
    assert (first["status"], first["stop_reason"]) == ("interrupted", signal.Signals(number).name)
    assert first["steps"] in (step, step + 1)
    assert signal.getsignal(number) == before
    second = train(data, tmp_path / "run", seen, **{"checkpoint.resume": True})
    assert second["status"] == "completed"
    assert second["this_run"] == {"steps": STEPS - first["steps"], "samples": 990 - first["samples"]}
    reference_dir, reference, evaluations = left_alone
    assert run_digest(tmp_path / "run") == run_digest(reference_dir)
    assert without_times(second) == without_times(reference)
    assert seen.seen == evaluations, "no evaluation is lost or repeated"


def test_the_loss_scale_is_resumed(data: str, tmp_path: Path) -> None:
    """A scale that were new would overflow again, or grow at other steps."""
    changes = {"train.amp": "fp16", "train.loss": "tests.support.models:steep"}
    reference = train(data, tmp_path / "alone", **changes)
    assert reference["embedding"]["nonfinite_rows"] > 0
    train(data, tmp_path / "run", Interrupt(11), **changes)
    second = train(data, tmp_path / "run", **changes, **{"checkpoint.resume": True})
    assert run_digest(tmp_path / "run") == run_digest(tmp_path / "alone")
    assert without_times(second) == without_times(reference)


@pytest.mark.parametrize("full_every", [1, 3])
def test_any_checkpoint_of_a_run_leads_to_its_end(
    full_every: int, data: str, tmp_path: Path, left_alone: Any
) -> None:
    settings = {"checkpoint.every": 4, "checkpoint.full_every": full_every, "checkpoint.keep": 100}
    train(data, tmp_path / "run", **settings)
    found = whole_checkpoints(tmp_path / "run")
    assert [int(p.name[5:]) for p in found] == [33, 32, 28, 24, 20, 16, 12, 8, 4]
    bases = [json.loads((p / "manifest.json").read_text())["base"] for p in reversed(found)]
    incremental = [None, "step-00000004", "step-00000004", None] if full_every == 3 else [None] * 4
    assert bases[:4] == incremental
    for path in found[1:4]:
        again = tmp_path / path.name
        again.mkdir()
        for needed in found:
            shutil.copytree(needed, again / needed.name)
            if needed > path:
                shutil.rmtree(again / needed.name)
        summary = train(data, again, **settings, **{"checkpoint.resume": True})
        assert summary["this_run"]["steps"] == STEPS - int(path.name[5:])
        assert run_digest(again) == run_digest(left_alone[0])
        assert without_times(summary) == without_times(left_alone[1])


def test_old_checkpoints_go_and_what_is_needed_stays(data: str, tmp_path: Path) -> None:
    train(
        data,
        tmp_path / "run",
        **{"checkpoint.every": 3, "checkpoint.keep": 2, "checkpoint.keep_every": 15},
    )
    assert [p.name[-2:] for p in whole_checkpoints(tmp_path / "run")] == ["33", "30", "15"]
    assert (tmp_path / "run" / "latest").resolve().name == "step-00000033"
    settings = {"checkpoint.every": 3, "checkpoint.keep": 1, "checkpoint.full_every": 100}
    train(data, tmp_path / "chain", Interrupt(18), **settings)
    assert [p.name[-2:] for p in whole_checkpoints(tmp_path / "chain")] == ["18", "03"], "its base must stay"
    assert not list((tmp_path / "chain").glob("*.partial"))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("victim", ["server-0000.h5", "dense.pt", "manifest.json", "gone", "cut"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    victim: str, data: str, tmp_path: Path, left_alone: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(data, run, Interrupt(16), **{"checkpoint.every": 5})
    newest, before = whole_checkpoints(run)
    assert (newest.name, before.name) == ("step-00000017", "step-00000015")
    if victim == "manifest.json":
        (newest / victim).write_text((newest / victim).read_text()[:-20])
    elif victim == "gone":
        (newest / "server-0000.h5").unlink()
    elif victim == "cut":
        os.truncate(newest / "server-0000.h5", 3000)
    else:
        # Where HDF5 has unused room a flipped bit harms nobody: many bits.
        content = bytearray((newest / victim).read_bytes())
        for at in range(2000, len(content), 97):
            content[at] ^= 0x10
        (newest / victim).write_bytes(content)
    summary = train(data, run, **{"checkpoint.resume": True})
    told = capsys.readouterr().err
    assert f"{newest}" in told
    assert "use an older checkpoint" in told
    assert f"goes on from {before}" in told
    assert summary["this_run"]["steps"] == STEPS - 15
    assert run_digest(run) == run_digest(left_alone[0])


def test_a_run_without_a_readable_checkpoint_is_refused(data: str, tmp_path: Path) -> None:
    train(data, tmp_path / "run", Interrupt(3))
    damage(tmp_path / "run" / "latest" / "dense.pt")
    with pytest.raises(DataError, match=r"none of the 1 checkpoints in .* can be read"):
        train(data, tmp_path / "run", **{"checkpoint.resume": True})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tables.user.dim": 5}, "tables.user.dim: 6 there, 5 here"),
        ({"data.batch_size": 16}, "data.batch_size: 32 there, 16 here"),
        (
            {"tables.item.optimizer": {"name": "adam"}},
            "tables.item.optimizer.name: 'adagrad' there, 'adam' here",
        ),
        ({"seed": 8}, "seed: 7 there, 8 here"),
        ({"data.limit": 100}, "training samples: 330 there, 100 here"),
        ({"train.optimizer": {"name": "SGD", "lr": 1}}, "train.optimizer.name: 'Adam' there, 'SGD' here"),
        (
            {"train.optimizer": {"name": "Adam", "lr": 0.01, "groups": [{"match": "*", "lr": 0.1}]}},
            "train.optimizer.groups: 'not set' there",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    changes: dict[str, Any], named: str, data: str, tmp_path: Path
) -> None:
    train(data, tmp_path / "run", Interrupt(3))
    before = run_digest(tmp_path / "run")
    with pytest.raises(UserError) as refused:
        train(data, tmp_path / "run", **{"checkpoint.resume": True, **changes})
    assert named in str(refused.value)
    assert run_digest(tmp_path / "run") == before


def test_a_run_directory_is_not_overwritten_unless_asked_to_go_on(data: str, tmp_path: Path) -> None:
    train(data, tmp_path / "run", Interrupt(3))
    with pytest.raises(UserError, match="holds a run already"):
        train(data, tmp_path / "run")


def test_a_longer_run_goes_on_where_a_shorter_one_ended(data: str, tmp_path: Path, left_alone: Any) -> None:
    train(data, tmp_path / "run", **{"train.max_steps": 20})
    summary = train(data, tmp_path / "run", **{"checkpoint.resume": True})
    assert summary["this_run"]["steps"] == 13
    assert run_digest(tmp_path / "run") == run_digest(left_alone[0])


@pytest.mark.parametrize(
    "table",
    [
        {"capacity": "16 KiB", "buckets": 2, "optimizer": {"name": "adam"}},
        {"capacity": "16 KiB", "buckets": 2, "eviction": "lfu"},
        {"admission": {"after": 3}},
        {"ttl": 3},
        {"storage": "bf16", "state_storage": "same"},
    ],
)
def test_every_kind_of_table_goes_on_as_if_nothing_had_happened(
    table: dict[str, Any], tmp_path: Path
) -> None:
    """With a vocabulary that doesn't fit, so that rows come and go."""
    data = write_tiny(tmp_path / "train.h5", 600, vocabulary=400)
    settings = {
        "tables.default": {"dim": 4, **table},
        "tables.item": table,
        "tables.user": {"dim": 6, **table},
    }
    settings["data.batch_size"] = 16
    reference = train(data, tmp_path / "whole", **settings)
    train(data, tmp_path / "run", Interrupt(40), **settings, **{"checkpoint.every": 13})
    summary = train(data, tmp_path / "run", **settings, **{"checkpoint.resume": True})
    assert run_digest(tmp_path / "run") == run_digest(tmp_path / "whole")
    assert without_times(summary) == without_times(reference)
    ledger = summary["embedding"]
    if "capacity" in table:
        assert ledger["evicted_rows"] > 0
    if "admission" in table:
        assert ledger["unadmitted_rows"] > 0


def test_a_loop_of_ones_own_goes_on_too(data: str, tmp_path: Path) -> None:
    def main(session: Any) -> None:
        from persia_hpc.models import build_model
        from persia_hpc.trainer.losses import load_loss

        model = session.prepare(build_model("tests.support.models:Small", session.inputs, {}))
        for batch in session.batches("train"):
            session.step(load_loss("bce")(model(batch), batch))
            if session.step_number == stop_at:
                os.kill(os.getpid(), signal.SIGUSR1)

    stop_at = 14
    first = ph.run(config(data, tmp_path / "run"), main, quiet=True)
    assert (first["status"], first["steps"]) == ("interrupted", 15)
    stop_at = -1
    second = ph.run(config(data, tmp_path / "run", **{"checkpoint.resume": True}), main, quiet=True)
    assert (second["status"], second["this_run"]["steps"]) == ("completed", STEPS - 15)
    ph.run(config(data, tmp_path / "whole"), main, quiet=True)
    assert run_digest(tmp_path / "run") == run_digest(tmp_path / "whole")


def test_checkpoints_by_the_clock(data: str, tmp_path: Path) -> None:
    summary = train(data, tmp_path / "run", **{"checkpoint.every_seconds": 0.001, "checkpoint.keep": 100})
    assert summary["status"] == "completed"
    assert summary["checkpoints"]["written"] == len(whole_checkpoints(tmp_path / "run")) > 1
    rows = trained_rows(tmp_path / "run")
    assert all(np.isfinite(columns[1]).all() for columns in rows.values())


@pytest.mark.parametrize("parts", ["all", "dense", "embeddings"])
def test_a_new_run_begins_with_what_it_takes_from_another(parts: str, data: str, tmp_path: Path) -> None:
    """From an incremental checkpoint, with other buckets: rows by key, as if no step had used them yet."""
    import torch

    settings = {"checkpoint.every": 5, "checkpoint.full_every": 10, "train.max_steps": 25}
    train(data, tmp_path / "old", Interrupt(20), **settings)
    source = tmp_path / "old" / "latest"
    assert json.loads((source / "manifest.json").read_text())["base"] is not None
    old = ph.load(source)
    seen: dict[str, Any] = {}

    class Look(ph.Callback):
        def on_start(self, run: Any) -> None:
            seen["dense"] = {k: v.clone() for k, v in run.model.state_dict().items()}
            (table,) = [t for t in run.session.stream.server.tables if t is not None and t.dim == 6]
            seen["user"] = [table.export_bucket(b) for b in range(table.first_bucket, table.end_bucket)]

    changes = {"checkpoint.init_from": str(tmp_path / "old"), "checkpoint.init_parts": parts}
    changes |= {"tables.user.buckets": 4, "data.batch_size": 16, "seed": 99}
    train(data, tmp_path / "new", Look(), **changes)
    same = all(torch.equal(old.model().state_dict()[k], v) for k, v in seen["dense"].items())
    assert same == (parts != "embeddings")
    rows = {k: np.concatenate([bucket[k] for bucket in seen["user"]]) for k in seen["user"][0]}
    if parts == "dense":
        assert len(rows["keys"]) == 0
        return
    found = old.rows("user", range(30))  # the whole vocabulary
    assert len(rows["keys"]) == 30
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(rows["rows"], axis=0))
    assert (rows["stamps"] == 0).all()
    assert (rows["state"] > 0).all(), "the optimizer is the same: its state comes too"


def test_rows_without_a_fitting_optimizer_begin_with_new_state(data: str, tmp_path: Path) -> None:
    train(data, tmp_path / "old", **{"train.max_steps": 5})
    changes = {"checkpoint.init_from": str(tmp_path / "old"), "tables.user.optimizer": {"name": "adam"}}
    summary = train(data, tmp_path / "new", **changes)
    assert summary["status"] == "completed"
    with pytest.raises(UserError, match="table 'user' has dim 6 there, 5 here"):
        train(data, tmp_path / "refused", **{**changes, "tables.user.dim": 5})
    with pytest.raises(UserError, match="neither a checkpoint nor a run with one"):
        train(data, tmp_path / "refused2", **{"checkpoint.init_from": str(tmp_path / "nothing")})


def test_a_loop_that_does_not_ask_why_it_ended_is_ended(data: str, tmp_path: Path) -> None:
    """The checkpoint of the stop is written at once; who then asks for more batches for ever gets none."""

    def main(session: Any) -> None:
        from persia_hpc.models import build_model
        from persia_hpc.trainer.losses import load_loss

        model = session.prepare(build_model("tests.support.models:Small", session.inputs, {}))
        while session.step_number < session.num_steps:
            for batch in session.batches(steps=11):
                session.step(load_loss("bce")(model(batch), batch))
                if session.step_number == 14:
                    os.kill(os.getpid(), signal.SIGUSR1)
            session.evaluate(split="valid")

    summary = ph.run(config(data, tmp_path / "run"), main, quiet=True)
    assert (summary["status"], summary["steps"]) == ("interrupted", 15)
    assert [p.name for p in whole_checkpoints(tmp_path / "run")] == ["step-00000015"]


def test_a_checkpoint_with_gradients_in_flight_is_refused(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(session: Any) -> None:
        from persia_hpc.models import build_model
        from persia_hpc.trainer.losses import load_loss

        model = session.prepare(build_model("tests.support.models:Small", session.inputs, {}))
        for batch in session.batches():
            session.step(load_loss("bce")(model(batch), batch))
            if session.step_number == 5:
                with pytest.raises(UserError, match="while gradients are in flight"):
                    session.save()
                break

    ph.run(config(data, tmp_path / "run"), main, quiet=True)
    assert "no checkpoint is written: the loop over session.batches was left" in capsys.readouterr().err
    assert not whole_checkpoints(tmp_path / "run")


def test_what_is_newer_than_where_a_run_goes_on_is_out_of_its_way(data: str, tmp_path: Path) -> None:
    """Else it would be taken for the newest again, and what the run writes next be removed in its place."""
    run = tmp_path / "run"
    settings = {"checkpoint.every": 3, "checkpoint.full_every": 3}
    train(data, run, Interrupt(17), **settings, **{"checkpoint.keep": 100})
    assert [p.name[-2:] for p in whole_checkpoints(run)][:4] == ["18", "15", "12", "09"]
    damage(run / "step-00000012" / "dense.pt")  # a full one, which nothing is based on
    for name in ("step-00000018", "step-00000015"):
        damage(run / name / "dense.pt")
    first = train(data, run, Interrupt(13), **settings, **{"checkpoint.resume": True})
    assert (first["this_run"]["steps"], (run / "latest").resolve().name) == (5, "step-00000014")
    assert len(list(run.glob("*.damaged"))) == 3
    last = train(data, run, **settings, **{"checkpoint.resume": True})
    assert last["this_run"]["steps"] == STEPS - 14


def test_an_early_stop_that_was_decided_is_not_forgotten(data: str, tmp_path: Path) -> None:
    class Worse(ph.Callback):
        """A signal comes while the last evaluation before the early stop is under way."""

        def on_evaluate(self, run: Any, metrics: dict[str, Any]) -> None:
            if run.step == 20:
                os.kill(os.getpid(), signal.SIGTERM)

    settings = {"train.evaluate_every": 10, "train.early_stop": {"metric": "mean_logit", "patience": 1}}
    settings["train.metrics"] = ["tests.support.models:falling"]
    settings["train.early_stop"]["metric"] = "falling"
    first = train(data, tmp_path / "run", Worse(), **settings, **{"checkpoint.every": 10})
    if first["status"] == "interrupted":
        first = train(data, tmp_path / "run", **settings, **{"checkpoint.resume": True})
    assert (first["status"], first["steps"]) == ("stopped", 20)
