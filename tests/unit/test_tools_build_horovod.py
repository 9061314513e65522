"""What Horovod would be built with: the C++ standard of torch, the GPUs' architectures, jobs that fit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "build_horovod.sh"
TORCH = """
__version__ = {version!r}
class version:
    cuda = {cuda!r}
class cuda:
    device_count = staticmethod(lambda: len({gpus!r}))
    get_device_capability = staticmethod(lambda index: {gpus!r}[index])
"""


def plan(
    folder: Path,
    version: str = "2.13.0+cu130",
    cuda: str | None = "13.0",
    gpus: tuple[tuple[int, int], ...] = (),
    **variables: str,
) -> dict[str, str]:
    """What --plan says of an environment with this torch, an nvcc, and the NCCL of torch's wheel."""
    (folder / "torch.py").write_text(TORCH.format(version=version, cuda=cuda, gpus=gpus))
    library = folder / "nvidia" / "nccl" / "lib" / "libnccl.so.2"
    library.parent.mkdir(parents=True, exist_ok=True)
    library.touch()
    (folder / "nvcc").write_text("#!/bin/sh\n")
    (folder / "nvcc").chmod(0o755)
    names = ("JOBS", "HOROVOD_NCCL_HOME", "HOROVOD_BUILD_CUDA_CC_LIST", "PERSIA_HPC_MPI_BIN")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"PATH": f"{folder}:/usr/bin:/bin", "PYTHONPATH": str(folder), **variables}
    done = subprocess.run(
        ["bash", str(SCRIPT), "--plan", sys.executable],
        env=environment,
        text=True,
        capture_output=True,
        check=True,
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("version", "standard"),
    [("2.4.1", 17), ("2.11.0+cu130", 17), ("2.13.1", 17), ("2.14.0a0+git1", 20), ("2.20.0", 20), ("3.0", 20)],
)
def test_the_standard_is_the_one_that_torchs_headers_ask_for(
    tmp_path: Path, version: str, standard: int
) -> None:
    found = plan(tmp_path, version)
    assert (found["torch"], found["standard"]) == (version, str(standard))


@pytest.mark.parametrize(
    ("gpus", "variables", "architectures"),
    [
        (((9, 0),), {}, "90"),
        (((9, 0), (9, 0)), {}, "90"),
        (((12, 0), (8, 6), (9, 0)), {}, "86,90,120"),
        ((), {}, "80,90"),
        (((9, 0),), {"HOROVOD_BUILD_CUDA_CC_LIST": "80"}, "80"),
        ((), {"HOROVOD_BUILD_CUDA_CC_LIST": "75,80"}, "75,80"),
    ],
)
def test_kernels_are_compiled_for_the_gpus_that_are_there(
    tmp_path: Path, gpus: tuple[tuple[int, int], ...], variables: dict[str, str], architectures: str
) -> None:
    assert plan(tmp_path, gpus=gpus, **variables)["architectures"] == architectures


def test_nccl_is_that_of_the_wheel_or_the_one_that_is_named(tmp_path: Path) -> None:
    assert plan(tmp_path)["nccl"] == str(tmp_path / "nvidia" / "nccl")
    assert plan(tmp_path, HOROVOD_NCCL_HOME="/opt/nccl")["nccl"] == "/opt/nccl"


def test_a_torch_for_cpus_gets_no_gpu_code(tmp_path: Path) -> None:
    found = plan(tmp_path, "2.13.0+cpu", None, HOROVOD_BUILD_CUDA_CC_LIST="90")
    assert (found["nccl"], found["architectures"]) == ("none", "none")


def test_jobs_are_those_asked_for_or_fit_cores_and_memory(tmp_path: Path) -> None:
    assert plan(tmp_path, JOBS="3")["jobs"] == "3"
    with open("/proc/meminfo") as lines:
        available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    jobs = int(plan(tmp_path, JOBS="")["jobs"])
    assert 1 <= jobs <= min(16, len(os.sched_getaffinity(0)))
    assert jobs == 1 or jobs * (3 << 29) < 2 * available


def test_what_a_machine_without_network_must_be_given_is_named(tmp_path: Path) -> None:
    assert {"cffi", "pycparser", "wheel", "setuptools<81"} <= set(plan(tmp_path)["packages"].split())


def test_a_python_without_torch_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError")
    done = subprocess.run(
        ["bash", str(SCRIPT), "--plan", sys.executable],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 1
    assert done.stderr == f"build_horovod: torch is not installed in {sys.executable}; install it first\n"
