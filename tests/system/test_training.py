"""Real jobs under mpiexec with torch and Horovod: equal to the one-process session, reproducible, driven by
users.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import persia_hpc as ph
from tests.support.cases import run_cases, settings, summary
from tests.support.mpi import run_mpi
from tests.support.tiny import run_digest, trained_rows, write_tiny
from tests.support.traces import check_trace

PROGRAMS = Path(__file__).with_name("programs")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    # 333 samples in steps of 32: with several trainers the last step of an epoch is uneven.
    return write_tiny(folder / "train.h5", 333), write_tiny(folder / "valid.h5", 150, seed=1)


def test_sync_under_mpi_is_bit_identical_to_one_process(tmp_path, data):
    more = {
        "tables.default.schedule": {"name": "cosine", "warmup_steps": 5},
        "train.schedule": "cosine",
        "tables.item.hash": {"size": 9},  # of a one-hot feature and a sequence
    }
    ph.train(settings(data, tmp_path / "one", 1, 1, 1, **more))
    digests = run_cases(
        settings(data, tmp_path / "a", 1, 1, 1, **more), settings(data, tmp_path / "b", 3, 2, 1, **more)
    )
    assert digests == [run_digest(tmp_path / "one")] * 2
    assert summary(tmp_path / "a")["valid"] == summary(tmp_path / "one")["valid"]


def test_every_rank_accounts_for_its_time(tmp_path, data):
    traced = {"train.trace": 3}
    ph.train(settings(data, tmp_path / "one", 1, 1, 1, **traced), quiet=True)
    run_cases(settings(data, tmp_path / "two", 1, 1, 2, **traced))
    for name, ranks in (("one", 1), ("two", 4)):
        result = summary(tmp_path / name)
        for role, phases in result["phase_seconds"].items():
            each = {phase: seconds["mean"] for phase, seconds in phases.items()}
            total = each.pop("total")
            assert sum(each.values()) == pytest.approx(total), role
            busy = {
                "trainer": "pool forward backward push optimizer",
                "embedding_worker": "dedup pull feed push",
            }
            assert all(each[phase] > 0 for phase in busy.get(role, "pull push").split()), role
        assert 0 < result["steady"]["steps"] < result["steps"]
        trace = json.loads((tmp_path / name / "trace.json").read_text())["traceEvents"]
        assert check_trace(trace)  # arrows of batches
        shown = {(e["pid"], e["args"]["step"]) for e in trace if e["ph"] == "X" and "args" in e}
        last = result["steps"]
        assert shown == {(pid, step) for pid in range(1, ranks + 1) for step in range(last - 2, last + 1)}


def test_two_trainers_equal_one_and_are_reproducible(tmp_path, data):
    ph.train(settings(data, tmp_path / "one", 1, 1, 1))
    first = run_cases(settings(data, tmp_path / "a", 1, 1, 2))
    second = run_cases(settings(data, tmp_path / "b", 2, 2, 2))
    assert first == second
    # The same bits with rows that travel ahead, and with checkpoints in the middle.
    fresh = {"mode": "fresh", "lookahead": 3, "checkpoint.every": 7}
    assert run_cases(settings(data, tmp_path / "c", 2, 2, 2, **fresh)) == first
    sent = summary(tmp_path / "c")["embedding"]
    assert 0 < sent["patched_rows"] < sent["early_rows"] <= sent["pulled_rows"]
    one, two = trained_rows(tmp_path / "one"), trained_rows(tmp_path / "a")
    for name in one:
        np.testing.assert_array_equal(one[name][0], two[name][0])
        np.testing.assert_allclose(two[name][1], one[name][1], rtol=1e-5, atol=1e-6, err_msg=name)
    dense = [ph.load(tmp_path / run).model().state_dict() for run in ("one", "a")]
    for name, expected in dense[0].items():
        np.testing.assert_allclose(
            dense[1][name].numpy(), expected.numpy(), rtol=1e-5, atol=1e-6, err_msg=name
        )
    result = summary(tmp_path / "a")
    assert result["samples"] == 2 * 333
    assert result["roles"] == {"parameter_servers": 1, "embedding_workers": 1, "trainers": 2}
    assert result["staleness"]["histogram"] == {"0": 2 * 22}


@pytest.mark.parametrize("reuse", [0, 2])
def test_exact_hybrid_with_three_trainers_is_reproducible(tmp_path, data, reuse):
    exact = {"mode": "hybrid", "exact": True, "staleness_bound": 3, "wire.reuse_steps": reuse}
    first = run_cases(settings(data, tmp_path / "a", 1, 1, 3, **exact))
    second = run_cases(settings(data, tmp_path / "b", 2, 2, 3, **exact))
    assert first == second
    staleness, embedding = (summary(tmp_path / "a")[key] for key in ("staleness", "embedding"))
    assert max(map(int, staleness["histogram"])) == 3 - reuse
    assert staleness["max"] == 3
    assert embedding["applied_rows"] == embedding["pulled_rows"] > 0
    assert (embedding["reused_rows"] > embedding["pulled_rows"] / 3) == (reuse > 0)


def test_a_users_own_loop(tmp_path, data):
    config = settings(data, tmp_path / "run", 1, 1, 2, mode="hybrid", staleness_bound=2)
    run_mpi(4, PROGRAMS / "own_loop.py", "run", json.dumps(config), str(tmp_path / "metrics.json"))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["samples"] == 150
    assert summary(tmp_path / "run")["valid"] == metrics
    # The same numbers from the checkpoint, without MPI, and from scikit-learn.
    from sklearn.metrics import log_loss, roc_auc_score

    assert ph.load(tmp_path / "run").evaluate("valid")["auc"] == pytest.approx(metrics["auc"], abs=1e-6)
    out = tmp_path / "p.csv"
    assert ph.load(tmp_path / "run" / "latest").predict([data[1]], out) == 150
    scores = np.loadtxt(out, skiprows=1)
    import h5py

    with h5py.File(data[1]) as file:
        labels = file["label"][:, 0]
    assert roc_auc_score(labels, scores) == pytest.approx(metrics["auc"], abs=1e-6)
    assert log_loss(labels, scores) == pytest.approx(metrics["logloss"], abs=1e-5)


@pytest.mark.parametrize(
    ("stop_at", "changes"),
    [
        (7, {}),
        # The last step of a segment, with an evaluation after it that only some would enter.
        (11, {"train.early_stop": {"metric": "auc", "patience": 3}}),
        (0, {}),
    ],
)
def test_a_callback_stops_all_ranks_at_one_step(tmp_path, data, stop_at, changes):
    config = settings(
        data, tmp_path / "run", 2, 2, 2, mode="hybrid", staleness_bound=2, **{"train.epochs": 50, **changes}
    )
    run_mpi(6, PROGRAMS / "own_loop.py", str(stop_at), json.dumps(config), str(tmp_path / "events.json"))
    events = json.loads((tmp_path / "events.json").read_text())
    assert events[0] == "start"
    assert events[-2:] == ["evaluate valid", "end stopped"]
    result = summary(tmp_path / "run")
    assert result["status"] == "stopped"
    assert result["stop_reason"] == ("seen enough" if stop_at else "not even one")
    assert stop_at <= result["steps"] < stop_at + 12
    assert result["embedding"]["dropped_rows"] == 0
    assert result["embedding"]["applied_rows"] == result["embedding"]["pulled_rows"]


def test_a_stop_from_every_trainers_own_loop(tmp_path, data):
    config = settings(
        data, tmp_path / "run", 1, 1, 2, mode="hybrid", staleness_bound=2, **{"train.epochs": 50}
    )
    run_mpi(4, PROGRAMS / "own_loop.py", "stop", json.dumps(config))
    result = summary(tmp_path / "run")
    assert 5 <= result["steps"] < 20
    assert result["embedding"]["dropped_rows"] == 0


def test_a_loop_left_early_ends_cleanly_and_says_what_was_dropped(tmp_path, data):
    config = settings(
        data,
        tmp_path / "run",
        2,
        2,
        2,
        mode="hybrid",
        staleness_bound=4,
        **{"train.epochs": 50, "train.save": False},
    )
    run_mpi(6, PROGRAMS / "own_loop.py", "break", json.dumps(config))
    embedding = summary(tmp_path / "run")["embedding"]
    assert summary(tmp_path / "run")["steps"] == 5
    assert embedding["dropped_rows"] > 0
    assert embedding["pulled_rows"] == embedding["applied_rows"] + embedding["dropped_rows"]


def test_a_step_without_a_model_is_refused(tmp_path, data):
    def main(session):
        for batch in session.batches():
            session.step(batch.pooled["item"].sum(dim=1))

    with pytest.raises(ph.UserError, match=r"before session.prepare"):
        ph.run(settings(data, tmp_path / "run", 1, 1, 1), main)


def test_custom_loss_metric_and_early_stop_in_one_process(tmp_path, data):
    config = settings(
        data,
        tmp_path / "run",
        1,
        1,
        1,
        **{
            "train.epochs": 60,
            "train.loss": "tests.support.models:squared",
            "train.metrics": ["tests.support.models:mean_logit"],
            "train.early_stop": {"metric": "auc", "patience": 2},
        },
    )
    result = ph.train(config)
    assert result["status"] == "stopped"
    assert "auc" in result["stop_reason"]
    assert np.isfinite(result["valid"]["mean_logit"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    aucs = [line["auc"] for line in lines if line["event"] == "evaluate"]
    assert max(aucs) not in aucs[-2:], "it stopped although the metric was getting better"


def test_evaluation_changes_nothing(tmp_path, data):
    for name, every in (("often", 3), ("never", 0)):
        # Little more room than one step needs: a look-up that counted as use would evict other rows.
        tight = {
            f"tables.{t}.capacity": rows * 80 for t, rows in (("default", 70), ("item", 140), ("user", 40))
        }
        valid = {"data.valid": [data[1]] if every else [], **tight}
        ph.train(
            settings(data, tmp_path / name, 1, 1, 1, **{"train.evaluate_every": every, **valid}), quiet=True
        )
    assert summary(tmp_path / "often")["embedding"]["evaluation_rows"] > 0
    assert run_digest(tmp_path / "often") == run_digest(tmp_path / "never")


@pytest.mark.parametrize(
    "change",
    [
        {"wire.rows": "fp16", "wire.gradients": "fp16"},
        {"wire.rows": "scaled_fp16", "wire.gradients": "bf16"},
        {"wire.rows": "bf16", "wire.gradients": "scaled_fp16"},
        {"tables.default.storage": "bf16", "tables.default.state_storage": "same", "server_threads": 2},
        {"tables.default.ttl": 9, "tables.default.admission": {"after": 2}},
        {"train.amp": "bf16"},
        {"train.amp": "fp16"},
        {"train.clip_norm": 0.05},
        {"data.shuffle": False},
        {"model": {"class": "dcn_v2", "hidden": [8]}, "features.history.pooling": "sum"},
    ],
)
def test_options_change_the_result_and_train_all_the_same(tmp_path, data, change):
    losses = []
    for name, changes in (("base", {}), ("changed", change)):
        result = ph.train(
            settings(data, tmp_path / name, 1, 1, 1, **{"train.epochs": 4, **changes}), quiet=True
        )
        losses.append(result["valid"]["logloss"])
        assert result["embedding"]["nonfinite_rows"] == 0
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=0.4)  # the labels are random: all overfit a little


def test_a_single_async_trainer_with_bound_0_is_sync(tmp_path, data):
    digests = [
        run_cases(settings(data, tmp_path / name, 2, 1, 1, **changes))[0]
        for name, changes in (("sync", {}), ("async", {"mode": "async", "staleness_bound": 0}))
    ]
    assert digests[0] == digests[1]


def test_async_trainers_have_one_model_where_they_meet(tmp_path, data):
    changes = {"mode": "async", "train.evaluate_every": 10, "train.max_steps": 20}
    config = settings(data, tmp_path / "run", 1, 2, 2, **changes)
    run_mpi(5, PROGRAMS / "own_loop.py", "inside", json.dumps(config))


def test_async_trainers_share_what_they_learn(tmp_path, data):
    """Each on its own: the ledger closes, the bound holds for each, and the loss comes down for all."""
    changes = {"mode": "async", "staleness_bound": 2, "train.epochs": 4, "train.evaluate_every": 10}
    resumed = {**changes, "checkpoint.every": 7, "checkpoint.resume": True}
    cases = [("first", changes), ("half", {**resumed, "train.max_steps": 21}), ("half", resumed)]
    for name, case in cases:
        run_cases(settings(data, tmp_path / name, 2, 2, 2, **case))
        if "train.max_steps" in case:
            stopped = summary(tmp_path / name)
            assert stopped["steps"] == 21
    once = ph.train(settings(data, tmp_path / "sync", 1, 1, 1, **{"train.epochs": 4}), quiet=True)
    for name in ("first", "half"):
        found = summary(tmp_path / name)
        embedding = found["embedding"]
        assert found["mode"] == "async"
        assert found["status"] == "completed"
        assert embedding["dropped_rows"] == 0
        accounted = ("applied", "evicted_in_flight", "unadmitted", "nonfinite", "dropped")
        assert embedding["pulled_rows"] == sum(embedding[f"{what}_rows"] for what in accounted)
        assert found["staleness"]["max"] <= 2
        assert found["valid"]["logloss"] == pytest.approx(once["valid"]["logloss"], abs=0.3)


def test_a_dry_run_trains_nothing(tmp_path, data, monkeypatch):
    from persia_hpc.job.dry_run import dry_run

    monkeypatch.chdir(tmp_path)
    text = dry_run(
        ph.load_config(settings(data, tmp_path / "run", 2, 1, 2, **{"transport.ring_bytes": "4 MiB"}))
    )
    assert "2 parameter_servers" in text
    assert "item: dim 4" in text
    assert "first step: 32 samples" in text
    assert not list(tmp_path.iterdir())
    # Rings of 4 MiB: 3 between a worker and a server, 2 between a trainer and a worker; and what orders them
    memory = dict(re.findall(r"each of \d (\w+)s: .* \+ ([\d.]+) MiB rings", text))
    for role, mib in (("parameter_server", 8), ("embedding_worker", 16), ("trainer", 4)):
        assert mib <= float(memory[role]) < 1.25 * mib
    import h5py

    with h5py.File(data[0]) as file:
        mean = len(file["ids/tags/values"]) / 333
    assert f"tags (ids a sample: {mean:.3g} on average" in text


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            {"model": {"class": "tests.support.models:TooWide"}},
            ["fails on the first batch", "shapes", "models.py:"],
        ),
        ({"model": {"class": "tests.support.models:TwoLogits"}}, ["shape (32, 2), expected (32, 1)"]),
        ({"model.class": "dlrm"}, ["dlrm", "dim"]),
        ({"train.loss": "tests.support.models:bad_loss"}, ["bad_loss", "no loss today", "models.py"]),
        ({"train.optimizer": {"name": "Adam", "momentum": 0.9}}, ["train.optimizer", "momentum"]),
    ],
)
def test_a_dry_run_refuses_what_a_step_would(tmp_path, data, change, parts):
    from persia_hpc.job.dry_run import dry_run

    with pytest.raises(ph.UserError) as caught:
        dry_run(ph.load_config(settings(data, tmp_path / "run", 1, 1, 1, **change)))
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
