"""Checks PyTorch and what a GPU needs: driver, CUDA's versions, compiled kernels, NCCL."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from .doctor_lines import BAD, GOOD, NOTE, Line, last_line, run_probe
from .mpiexec import ELSEWHERE

_PROBE = """
import json, torch
kernels = ""
if torch.cuda.is_available():
    from persia_hpc.trainer.pooling.cuda_kernel import cuda_module
    kernels = cuda_module(torch.device("cuda", 0))[1]
print("PROBE" + json.dumps({"version": torch.__version__, "cuda": torch.version.cuda,
      "kernels": kernels, "nccl": torch.distributed.is_available() and torch.distributed.is_nccl_available(),
      "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]}))
"""
_BUILD_KERNELS = (
    "in the source tree, with nvcc on PATH: make setup, or pip install . -C cmake.define.PERSIA_HPC_CUDA=on, "
    "which says what it lacks"
)


def check_torch(reducer: str) -> list[Line]:
    """Returns lines on PyTorch and GPUs. reducer: `train.reducer`, of which "nccl" needs both."""
    code, probe, text = run_probe([sys.executable, "-c", ELSEWHERE + _PROBE])
    if probe is None:
        return [Line(BAD, "torch", f"can't be imported ({code}): {last_line(text)}", "pip install torch")]
    lines = [Line(GOOD, "torch", probe["version"])]
    if probe["devices"]:
        found = f"{len(probe['devices'])} x {probe['devices'][0]} (CUDA {probe['cuda']})"
        lines.append(Line(GOOD, "GPU", found))
        lines.append(
            Line(NOTE, "CUDA kernels", f"{probe['kernels']}: slow", _BUILD_KERNELS)
            if probe["kernels"]
            else Line(GOOD, "CUDA kernels", "load")
        )
    elif probe["cuda"]:
        lines.append(_why_none(probe["cuda"]))
    else:
        fix = (
            "where there is a GPU: pip install torch --index-url https://download.pytorch.org/whl/cu128, say"
        )
        lines.append(Line(NOTE, "GPU", "this torch is for CPUs: trainers compute on the CPU", fix))
    return [*lines, *_check_nvcc(probe["cuda"]), *_check_nccl(probe, reducer)]


def _why_none(cuda: str) -> Line:
    """Returns why a torch for CUDA sees no GPU."""
    found = f"none seen, though torch has CUDA {cuda}"
    if shutil.which("nvidia-smi") is None:
        fix = "for GPUs run doctor on a node that has some (srun --gpus=1 persia-hpc doctor); CPUs train too"
        return Line(NOTE, "GPU", f"{found}: no NVIDIA driver on this node", fix)
    text = run_probe(["nvidia-smi"])[2]
    version = re.search(r"CUDA Version: *(\d+)\.(\d+)", text)
    if version is None:
        fix = "nvidia-smi must list the GPUs: load or reinstall the driver (after an update of it: reboot)"
        return Line(BAD, "GPU", f"{found}: nvidia-smi says {last_line(text)}", fix)
    if int(version[1]) < int(cuda.partition(".")[0]):
        index = f"https://download.pytorch.org/whl/cu{version[1]}{version[2]} (or an older cuNNN)"
        fix = f"a newer driver, or a torch for this one: pip install torch --index-url {index}"
        return Line(BAD, "GPU", f"{found}: the driver is for CUDA {version[1]}.{version[2]}", fix)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        fix = "unset CUDA_VISIBLE_DEVICES, or ask Slurm for GPUs"
        return Line(NOTE, "GPU", f"{found}: CUDA_VISIBLE_DEVICES is {hidden!r}", fix)
    return Line(NOTE, "GPU", found, "check nvidia-smi")


def _check_nvcc(cuda: str | None) -> list[Line]:
    if cuda is None or shutil.which("nvcc") is None:
        return []
    found = re.search(r"release (\d+)\.(\d+)", run_probe(["nvcc", "--version"])[2])
    if found is None:
        return [Line(NOTE, "nvcc", "doesn't say its version", "load a CUDA module whose nvcc works")]
    version, major = f"{found[1]}.{found[2]}", cuda.partition(".")[0]
    if found[1] == major:
        return [Line(GOOD, "nvcc", f"{version}, for torch's CUDA {cuda}")]
    fix = f"load a module of CUDA {major} before `pip install .` and tools/build_horovod.sh"
    return [Line(NOTE, "nvcc", f"{version}, but torch has CUDA {cuda}: what it builds won't load", fix)]


def _check_nccl(probe: Mapping[str, Any], reducer: str) -> list[Line]:
    if reducer != "nccl":
        return []
    if probe["cuda"] and probe["nccl"]:
        return [Line(GOOD, "NCCL", "torch has it")]
    fix = 'a torch with CUDA (pip install torch), or train.reducer = "mpi"'
    return [Line(BAD, "NCCL", 'train.reducer = "nccl" needs it, and this torch has none', fix)]
