"""The parts of benchmarks/gpu.sh on a bare machine, as far as they come without a GPU."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from persia_hpc.commands import bench, doctor
from tests.support.bare import Bare
from tests.support.mpi import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
KINDS = ("json", "log", "tar.gz")
HOST = ("--device", "cpu", "--limit", "400")  # seconds; a busy machine needs more than a GPU machine may


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Bare:
    return Bare(tmp_path_factory.mktemp("bare"))


def report(out: Path, part: str) -> dict[str, Any]:
    """What a part left: three files, and this in one of them."""
    assert sorted(path.name for path in out.glob(f"{part}*")) == [f"{part}.{kind}" for kind in KINDS]
    assert (out / f"{part}.log").stat().st_size > 0
    with tarfile.open(out / f"{part}.tar.gz") as archive:
        archive.getnames()
    return json.loads((out / f"{part}.json").read_text())


def statuses(out: Path, part: str) -> dict[str, str]:
    return {step["name"]: step["status"] for step in report(out, part)["steps"]}


def test_a_part_makes_its_environment_and_none_is_half_made(bare: Bare) -> None:
    half = bare.root / "build" / "gpu-venv" / "bin"
    half.mkdir(parents=True)
    (half / "python").symlink_to("/bin/true")  # a call ended while it was being made
    done = bare.script("smoke", *HOST, "--only", "module", "trainer-tests")
    assert done.returncode == 0, done.stdout
    expected = dict.fromkeys(("machine", "environment", "module", "trainer-tests"), "ok")
    assert statuses(bare.out, "smoke") == expected
    python = bare.root / "build" / "gpu-venv" / "bin" / "python"
    names = "polars", "hdf5plugin", "horovod"
    absent = f"import importlib.util as u; print(*(n for n in {names} if u.find_spec(n)))"
    assert subprocess.check_output([python, "-c", absent], text=True).strip() == ""
    found = "import persia_hpc, torch; print(persia_hpc.__file__)"
    home = str(bare.root / "build" / "gpu-venv")
    assert subprocess.check_output([python, "-c", found], text=True).startswith(home)


def test_training_from_its_data_to_the_table(bare: Bare) -> None:
    done = bare.script("train", *HOST, "--only", "dcn_v2")
    assert done.returncode == 0, done.stdout
    assert statuses(bare.out, "train")["dcn_v2"] == "ok"
    [case] = report(bare.out, "train")["results"]["dcn_v2"]["results"]
    assert case["samples_per_second"] > 0
    assert case["planned"] > 0
    assert case["bound_by"].startswith(("trainer", "embedding worker", "parameter server"))
    with tarfile.open(bare.out / "train.tar.gz") as archive:
        assert any(name.endswith("metrics.jsonl") for name in archive.getnames())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_looks_well(bare: Bare) -> None:
    done = bare.script("smoke", "--only", "module", "memcheck")
    assert done.returncode == 1, done.stdout
    assert statuses(bare.out, "smoke")["module"] == "FAILED"


STEPS = """
import signal, sys
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
from gpu_steps import Runner, Step, end
signal.signal(signal.SIGTERM, end)
# Ends at no signal but SIGKILL, and has started what isn't in its process group.
hang = "import signal, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
hang += "print(subprocess.Popen(['setsid', 'sleep', '600']).pid, flush=True); time.sleep(600)"
steps = [
    Step("hangs", float(sys.argv[2]), [sys.executable, "-c", hang]),
    Step("works", 9, ["echo", "3 passed"], tests=True),
    Step("skips", 9, ["echo", "3 skipped"], tests=True),
    Step("lacks", 9, ["no-such-sanitizer"], tool="no-such-sanitizer"),
    Step("breaks", 9, ["false"]),
    Step("unable", 9, ["sh", "-c", "echo Device not supported; false"]),
    Step("long", 60, ["sleep", "60"]),
    Step("late", 9, ["true"]),
]
work = Path(sys.argv[1]) / "work"
work.mkdir()
(work / "figures.json").write_text('{{"rate": 7}}')
sys.exit(not Runner("smoke", float(sys.argv[3]), Path(sys.argv[1]) / "out", work).run(steps))
"""


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[list[str]]:
    program = tmp_path / "steps.py"
    program.write_text(STEPS.format(benchmarks=str(BENCHMARKS)))
    yield [sys.executable, str(program), str(tmp_path)]
    log = tmp_path / "out" / "smoke.log"
    left = next(line for line in log.read_text().splitlines() if line.isdigit())
    assert not Path(f"/proc/{left}").exists(), "what a step started lives on"


def test_a_step_that_hangs_is_cut_and_the_rest_runs(runner: list[str], tmp_path: Path) -> None:
    begin = time.monotonic()
    done = subprocess.run([*runner, "0.5", "12"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert time.monotonic() - begin < 12
    assert statuses(tmp_path / "out", "smoke") == {
        "hangs": "CUT",
        "works": "ok",
        "skips": "FAILED",
        "lacks": "skipped",
        "breaks": "FAILED",
        "unable": "skipped",
        "long": "CUT",
        "late": "NOT RUN",
    }
    assert report(tmp_path / "out", "smoke")["results"] == {"figures": {"rate": 7}}


def test_what_there_is_is_kept_when_a_part_is_ended(runner: list[str], tmp_path: Path) -> None:
    with subprocess.Popen([*runner, "60", "120"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while not process.stdout.readline().strip().isdigit():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert statuses(tmp_path / "out", "smoke") == {"hangs": "CUT"}
    with tarfile.open(tmp_path / "out" / "smoke.tar.gz") as archive:
        assert archive.getnames() == ["figures.json"]


def test_all_steps_name_tests_and_options_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_parts
    import gpu_train

    nodes = set()
    for part, device in product(gpu_parts.LIMITS, ("cuda", "cpu")):
        for step in gpu_parts.parts(part, device, tmp_path):
            program, *rest = list(step.command)
            if step.tool:
                at = next(i for i, word in enumerate(rest) if word in ("python", "persia-hpc"))
                program, *rest = rest[at:]
            if program == "persia-hpc":
                parser = argparse.ArgumentParser()
                {"bench": bench, "doctor": doctor}[rest[0]].add_arguments(parser)
                parser.parse_args(rest[1:])
            elif rest[0] == "benchmarks/gpu_train.py":
                gpu_train.make_parser().parse_args(rest[1:])
            elif rest[:2] == ["-m", "pytest"]:
                nodes.update(word for word in rest if word.startswith("tests/"))
            else:
                assert program in ("bash", "python")
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *sorted(nodes)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert collected.returncode == 0, collected.stdout[-2000:]


@pytest.mark.parametrize(("size", "code"), [(20_000_000, 0), (25_000_001, 1)])
def test_a_pack_that_is_too_large_to_travel_is_refused(tmp_path: Path, size: int, code: int) -> None:
    script = tmp_path / "benchmarks" / "gpu.sh"
    pack = tmp_path / "build" / "gpu-pack"
    for folder in (script.parent, pack):
        folder.mkdir(parents=True)
    script.write_text((BENCHMARKS / "gpu.sh").read_text())
    with (pack / "mpich.whl").open("wb") as file:
        file.truncate(size)
    done = subprocess.run(["bash", str(script), "sizes"], capture_output=True, text=True)
    assert done.returncode == code
    assert f"{size / 1e6:.1f} MB  mpich.whl" in done.stdout
    assert ("expected at most 25000000" in done.stderr) == bool(code)


def test_a_forgotten_pack_is_said(tmp_path: Path) -> None:
    script = tmp_path / "benchmarks" / "gpu.sh"
    for folder in (script.parent, tmp_path / "src", tmp_path / "native"):
        folder.mkdir()
    script.write_text((BENCHMARKS / "gpu.sh").read_text())
    (tmp_path / "CMakeLists.txt").touch()
    (tmp_path / "pyproject.toml").write_text('[build-system]\nrequires = []\nbuild-backend = "none"\n')
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", str(script), "environment"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "there is no wheel in build/gpu-pack" in done.stdout
    assert "building the package here" in done.stdout


@pytest.mark.parametrize("gpu", [True, False])
def test_shared_memory_is_enlarged_on_gpu_machines_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_parts

    called = tmp_path / "mounted"
    programs = {"id": "echo 0", "df": "echo 1024", "mount": f"echo $* >{called}"}
    for name, text in (programs | {"nvidia-smi": f"exit {int(not gpu)}"}).items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(gpu_parts.machine("cuda").command, env=environment, capture_output=True, check=True)
    assert called.exists() == gpu
    if gpu:
        assert called.read_text().startswith("-o remount,size=")


@pytest.mark.parametrize(
    ("option", "variable", "said"),
    [
        (["--limit", "nan"], "", "argument --limit: invalid seconds value: 'nan'"),
        (["--limit", "0"], "", "argument --limit: invalid seconds value: '0'"),
        ([], "/proc/none", "OUT=/proc/none: No such file or directory; name a folder that can be written"),
        (["--only", "all"], "", "--only all: expected some of machine, environment, module, kernel-tests, "),
    ],
)
def test_what_a_part_cannot_do_is_one_line(option: list[str], variable: str, said: str) -> None:
    command = ["bash", str(BENCHMARKS / "gpu.sh"), "smoke", *option]
    done = subprocess.run(command, env={**os.environ, "OUT": variable}, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]


def test_a_pack_of_other_sources_is_found_out(bare: Bare) -> None:
    changed = bare.root / "src" / "persia_hpc" / "errors.py"
    before = changed.read_bytes()
    assert "sources have changed" not in bare.script("sizes").stdout
    changed.write_bytes(before + b"# changed\n")
    assert "sources have changed" in bare.script("sizes").stdout
    changed.write_bytes(before)
    assert "sources have changed" not in bare.script("sizes").stdout
