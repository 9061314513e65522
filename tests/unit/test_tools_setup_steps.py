"""The set-up: what each purpose installs, and commands that run beside others."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from tests.support.jobs import wait_for
from tests.support.mpi import REPOSITORY

sys.path.append(str(REPOSITORY / "tools"))
import setup_runner
import setup_steps


@pytest.fixture
def commands(tmp_path: Path) -> setup_runner.Commands:
    return setup_runner.Commands(tmp_path / "log", dict(os.environ), lock_fd=0)


def steps_of(purpose: str, reducer: str = "horovod") -> list[str]:
    setup = setup_steps.Setup("embedded", "torch", purpose, reducer)
    return [make.__name__.removeprefix("step_") for make in setup.steps()]


def test_the_demo_waits_for_nothing_that_only_tests_need() -> None:
    everything, demo = steps_of("run"), steps_of("demo", "mpi")
    assert [step for step in everything if step not in demo] == ["test_packages", "horovod"]
    assert "horovod" in steps_of("demo")
    for steps in (everything, demo):  # compilers work while pip does
        assert steps.index("compiling") < steps.index("torch") < steps.index("extension")
        assert steps[-1] == "check"


def test_what_fails_beside_other_commands_is_told_when_it_is_waited_for(
    commands: setup_runner.Commands,
) -> None:
    process = commands.start([sys.executable, "-c", "print('no room'); raise SystemExit(3)"])
    commands.run([sys.executable, "-c", "print('meanwhile')"])
    with pytest.raises(setup_runner.SetupError, match="ended with exit code 3"):
        commands.end(process)
    assert {"no room", "meanwhile"} <= set(commands.log.read_text().splitlines())


def test_a_command_that_nobody_waits_for_any_more_ends_with_its_children(
    commands: setup_runner.Commands, tmp_path: Path
) -> None:
    child = tmp_path / "child"
    process = commands.start(["sh", "-c", f"sleep 100 & echo $! >{child}.new; mv {child}.new {child}; wait"])
    while not child.exists():
        time.sleep(0.01)
    setup_runner.end_group(process)
    setup_runner.end_group(process)  # it has ended by now
    assert process.returncode is not None
    status = Path(f"/proc/{child.read_text().strip()}/status")
    wait_for(lambda: not status.exists() or "State:\tZ" in status.read_text(), 5)
