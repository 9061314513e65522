"""The set-up: what each purpose installs, and commands that run beside others."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.jobs import wait_for
from tests.support.mpi import REPOSITORY

sys.path.append(str(REPOSITORY / "tools"))
import setup_environment
import setup_runner
import setup_steps


@pytest.fixture
def commands(tmp_path: Path) -> setup_runner.Commands:
    return setup_runner.Commands(tmp_path / "log", dict(os.environ), lock_fd=0)


@pytest.fixture
def compile_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Runs both steps that compile, with a command in place of pip; says whether it ran beside others."""

    def both(script: str, *, ended: bool = False) -> bool:
        setup = setup_steps.Setup("embedded", "torch", "demo", "mpi")
        monkeypatch.setattr(setup, "extension_inputs", lambda: {"sources": "1"})
        monkeypatch.setattr(setup.at, "start_pip", lambda commands, *_: commands.start(["sh", "-c", script]))
        (tmp_path / "build").mkdir(exist_ok=True)
        runner = setup_runner.Runner(tmp_path / ".venv", tmp_path / "build", os.environ, lambda: None)
        runner._lock_fd = 0
        runner.run(setup.step_compiling())
        beside = setup.compiling is not None
        if ended and setup.compiling is not None:  # as when pip fails
            setup_runner.end_group(setup.compiling[1])
        else:
            runner.run(setup.step_extension())
        return beside

    return both


def test_a_failed_compilation_is_told_with_its_log_and_done_beside_pip_again(
    compile_with: Callable[..., bool], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        with pytest.raises(SystemExit):
            compile_with("echo pool.cpp:3: no such type; exit 1")
        said = capsys.readouterr().out
        assert "C++ extension, beside what follows" in said
        assert said.count("\npool.cpp:3: no such type\n") == 2
        assert "beside pip's installations: once more, alone\n" in said
        assert "set-up step 'extension' failed: `sh -c" in said
    assert compile_with("true")
    assert not compile_with("exit 1")  # nothing to do


def test_what_failed_beside_pip_may_succeed_alone(compile_with: Callable[..., bool], tmp_path: Path) -> None:
    first = tmp_path / "first"
    assert compile_with(f"test -e {first} && echo compiled || {{ touch {first}; echo no header; exit 1; }}")
    lines = (tmp_path / "build" / "setup-venv-extension.log").read_text().splitlines()
    assert [line for line in lines if line in ("no header", "compiled")] == ["no header", "compiled"]
    assert any(
        line.endswith("ended with exit code 1, beside pip's installations: once more, alone")
        for line in lines
    )
    assert not compile_with("exit 1")


def test_a_compilation_that_was_ended_is_done_beside_pip_again(compile_with: Callable[..., bool]) -> None:
    assert compile_with("sleep 100", ended=True)
    assert compile_with("true")


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
    wait_for(child.exists, 5)
    setup_runner.end_group(process)
    setup_runner.end_group(process)  # it has ended by now
    assert process.returncode is not None
    status = Path(f"/proc/{child.read_text().strip()}/status")
    wait_for(lambda: not status.exists() or "State:\tZ" in status.read_text(), 5)


def test_the_demo_builds_the_cuda_module_only_where_it_can_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, stamps = tmp_path / "driver", tmp_path / "stamps"
    assert Path("/dev/nvidiactl") in setup_steps.DRIVERS  # which CUDA itself opens first
    monkeypatch.setattr(setup_steps, "DRIVERS", (tmp_path / "absent", driver))
    monkeypatch.setattr(setup_environment.Environment, "stamps", stamps)
    stamps.mkdir()

    def says(purpose: str) -> str:
        setup = setup_steps.Setup("embedded", "torch", purpose, "mpi")
        (said,) = (word for word in setup.editable if "PERSIA_HPC_CUDA" in word)
        assert said.endswith(f"={setup.extension_inputs()['CUDA module']}")
        return said.rpartition("=")[2]

    assert (says("demo"), says("run")) == ("off", "auto")
    for built, then in (("off", "off"), ("auto", "auto")):  # a demo after the tests compiles nothing
        (stamps / "extension").write_text(json.dumps({"CUDA module": built}))
        assert says("demo") == then
    (stamps / "extension").unlink()
    driver.touch()
    assert says("demo") == "auto"
