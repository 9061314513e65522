"""Who waits for whom is said once, and given up in the end; what only looks like waiting isn't."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from persia_hpc.config.types import TransportConfig
from persia_hpc.errors import PersiaError
from persia_hpc.runtime import watchdog as module
from persia_hpc.runtime.watchdog import Wait, Watchdog

STALL, GIVE_UP = 0.1, 0.4
LONG = 1.0


def watchdog(
    failed: list[str], failure: Path | None = None, stall: float = STALL, give_up: float = GIVE_UP
) -> Watchdog:
    config = TransportConfig(stall_seconds=stall, give_up_seconds=give_up)
    made = Watchdog("parameter_server 1", config, failure, lambda error: failed.append(str(error)))
    made.start()
    return made


def passes(act: Callable[[], None], seconds: float, until: list[str]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until:
        act()
        time.sleep(0.01)


def test_a_wait_is_said_once_and_given_up(capfd: pytest.CaptureFixture[str]) -> None:
    failed: list[str] = []
    dog = watchdog(failed)
    dog.start(lambda: Wait("rows from nobody"))
    passes(dog.idle, 10, failed)
    dog.stop()
    err = capfd.readouterr().err
    assert err == "persia-hpc: parameter server 1 has waited 0 s for rows from nobody\n"
    assert failed[0] == (
        "parameter server 1 has waited 0 s for rows from nobody; gave up (transport.give_up_seconds); "
        "go on with --resume"
    )


def test_a_call_that_does_not_return_is_given_up() -> None:
    failed: list[str] = []
    dog = watchdog(failed)
    dog.moved()
    passes(lambda: None, 10, failed)
    dog.stop()
    assert "for a call to return, of MPI" in failed[0]


def test_an_outer_wait_goes_on_after_one_within_it() -> None:
    failed: list[str] = []
    dog = watchdog(failed)
    with dog.waits_for("the servers"):
        with pytest.raises(KeyError), dog.waits_for("the other trainers", patient=True):
            raise KeyError
        passes(dog.idle, 10, failed)
    dog.stop()
    assert "for the servers; gave up" in failed[0]


def test_a_wait_within_none_ends_with_it() -> None:
    failed: list[str] = []
    dog = watchdog(failed)
    with pytest.raises(KeyError), dog.waits_for("the servers"):
        raise KeyError
    passes(lambda: None, LONG, failed)
    dog.stop()
    assert not failed


@pytest.mark.parametrize("how", ["moves", "owes nothing", "computes", "patient", "never"])
def test_what_goes_on(how: str, capfd: pytest.CaptureFixture[str]) -> None:
    failed: list[str] = []
    dog = watchdog(failed, give_up=0.0 if how == "never" else GIVE_UP)
    dog.start(lambda: Wait(None if how == "owes nothing" else "something"))
    if how == "patient":
        with dog.waits_for("the servers to write", patient=True):
            passes(dog.idle, LONG, failed)
    elif how == "computes":
        with dog.waits_for("a batch"):
            pass
        passes(lambda: None, LONG, failed)
    else:
        passes(dog.moved if how == "moves" else dog.idle, LONG, failed)
    dog.stop()
    assert not failed
    assert ("has waited" in capfd.readouterr().err) == (how in ("patient", "never"))


def test_an_idle_rank_leaves_a_job_that_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENDED_SECONDS", 1.0)
    failed: list[str] = []
    dog = watchdog(failed, tmp_path / "failure.json")
    (tmp_path / "failure.json").write_text("{}")
    passes(dog.idle, 0.5, failed)
    assert not failed, "it may still be ended as it should"
    passes(dog.idle, 20, failed)
    dog.stop()
    assert failed == ["parameter server 1: the job has failed, and nobody has ended this rank"]


def test_without_a_way_to_fail_nothing_is_given_up(capfd: pytest.CaptureFixture[str]) -> None:
    died: list[BaseException | None] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.threading, "excepthook", lambda args: died.append(args.exc_value))
        dog = Watchdog("trainer 0", TransportConfig(stall_seconds=STALL, give_up_seconds=GIVE_UP))
        dog.start(lambda: Wait("a batch"))
        passes(dog.idle, LONG, [])
        dog.stop()
    assert died == []
    # It says once that it waits, and nothing about an end.
    assert capfd.readouterr().err == "persia-hpc: trainer 0 has waited 0 s for a batch\n"


def test_the_error_is_one_for_the_user() -> None:
    errors: list[BaseException] = []
    config = TransportConfig(stall_seconds=STALL, give_up_seconds=GIVE_UP)
    dog = Watchdog("trainer 0", config, None, errors.append)
    dog.start()
    with dog.waits_for("a batch"):
        end = time.monotonic() + 10
        while not errors and time.monotonic() < end:
            dog.idle()
            time.sleep(0.01)
    dog.stop()
    assert isinstance(errors[0], PersiaError)
