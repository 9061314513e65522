"""Runs one part of what needs a GPU; benchmarks/gpu.sh calls this, with the machine's own Python.

    benchmarks/gpu.sh PART [--only STEP ...] [--limit SECONDS] [--device cpu]

A part is a list of steps, the most valuable first. Each has a limit of its own, and all together the part's:
a step that hangs is cut with all that it started, and those after it still run. What a step prints goes to
the screen and into OUT/PART.log at once. OUT/PART.json (steps, and the results that they left) is written
after each step, OUT/PART.tar.gz (their other files) at the end, also when SIGTERM ends the part. Exit code 0:
every step went well, or the machine lacks what it needs (a sanitizer, say). `--device cpu` runs the same
steps small, on the host: to try them out.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

from gpu_steps import ROOT, Runner, Step, end

LIMITS = {"smoke": 230, "jobs": 200, "train": 330, "rest": 120}  # seconds, all included
KERNEL_TESTS = "tests/native/test_pool_cuda.py"
MANY_IDS = f"{KERNEL_TESTS}::test_rows_that_many_ids_use_repeat_and_are_summed_well"


def shell(text: str) -> list[str]:
    return ["bash", "-c", text]


def pytest(*arguments: str) -> list[str]:
    return ["python", "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *arguments]


def machine(device: str) -> Step:
    """What the machine is. Rings may need more than the half of memory that /dev/shm has: root gives it.

    A machine without a GPU is not one to change: whoever calls this there tries it out.
    """
    text = """
    uname -sr; getconf _NPROCESSORS_ONLN; python3 -c 'import sys; print(sys.version)'
    nvidia-smi || echo 'there is no nvidia-smi'
    nvcc --version | tail -n 2
    """
    if device != "cpu":
        text += """
        if [ "$(id -u)" = 0 ] && nvidia-smi -L >/dev/null 2>&1; then
            wanted=$(awk '/MemTotal/ {g = int($2 / 1048576 * 3 / 4); print g < 48 ? g : 48}' /proc/meminfo)
            has=$(df -k --output=size /dev/shm | awk 'END {print int($1 / 1048576)}')
            [ "$has" -ge "$wanted" ] || mount -o "remount,size=${wanted}g" /dev/shm
        fi
        """
    return Step("machine", 15, shell(text + "free -g; df -h /dev/shm /tmp ."))


def parts(part: str, device: str, work: Path) -> list[Step]:
    """The steps of a part. What needs no GPU is the same for any device; cpu makes the rest small."""
    gpu = device != "cpu"
    cuda = "" if gpu else "CUDA=off "
    steps = [
        machine(device),
        Step("environment", 170, shell(f"{cuda}PYTHON={sys.executable} benchmarks/gpu.sh environment")),
    ]
    steps += {"smoke": smoke, "jobs": jobs, "train": train, "rest": rest}[part](gpu, work)
    return steps if gpu else [replace(step, seconds=3 * step.seconds) for step in steps]


def smoke(gpu: bool, work: Path) -> list[Step]:
    which = ["-m", "gpu" if gpu else "not gpu"]
    # Not all of tests/unit: to collect them takes time, and packages that the machine may lack.
    paths = sorted(ROOT.glob("tests/unit/test_*.py"))
    units = [str(path.relative_to(ROOT)) for path in paths if "mark.gpu" in path.read_text()]
    module = """
    import torch, persia_hpc._native
    print("torch", torch.__version__, "of CUDA", torch.version.cuda)
    """
    if gpu:
        module += """
    import persia_hpc._cuda as cuda
    problem = cuda.problem(0)
    print("kernels of CUDA", cuda.cuda_version, "problem:", problem or "none")
    print(torch.cuda.get_device_name(), torch.cuda.mem_get_info())
    raise SystemExit(bool(problem))
    """
    module = "\n".join(line.strip() for line in module.splitlines())
    return [
        Step("module", 40, ["python", "-c", module]),
        Step("kernel-tests", 90, pytest(KERNEL_TESTS, *which), tests=True),
        Step("trainer-tests", 60, pytest(*units, *which), tests=True),
        *([sanitizer("memcheck", 60, "--report-api-errors", "no")] if gpu else []),
        Step("doctor", 40, ["persia-hpc", "doctor"]),
    ]


def sanitizer(tool: str, seconds: float, *options: str) -> Step:
    """One test of the kernels under compute-sanitizer: all of them would take an hour."""
    check = ["compute-sanitizer", "--tool", tool, *options, "--error-exitcode", "1"]
    test = pytest(f"{MANY_IDS}[64-scaled_fp16-cuda]")
    return Step(tool, seconds, [*check, *test], tests=True, tool=check[0])


def jobs(gpu: bool, work: Path) -> list[Step]:
    two = "test_a_gpu_gives_what_the_cpu_gives_and_repeats[2]"  # needs Horovod: see `rest`
    tests = pytest("tests/system/test_gpu.py", "--deselect", f"tests/system/test_gpu.py::{two}")
    steps = [Step("jobs", 110, tests, tests=True)] if gpu else []
    for exponent in ("1.2", "1.05"):
        for ids, batch in (("1", "65536"), ("10", "16384")):
            name = f"kernels-{ids}-ids-zipf-{exponent}"
            size = ["--batches", batch, "--dims", "64", "128", "--wires", "fp16", "scaled_fp16"]
            if not gpu:
                size = ["--device", "cpu", "--batches", "512", "--dims", "8", "--wires", "fp16"]
            command = ["persia-hpc", "bench", "gpu", *size, "--ids-per-sample", ids, "--exponent", exponent]
            steps.append(Step(name, 40, [*command, "--repeats", "5", "--json", str(work / f"{name}.json")]))
    return steps


def gpu_train(gpu: bool, work: Path, name: str, seconds: float, *arguments: str) -> Step:
    """End-to-end training; its last argument wins, so that a host gets less to do."""
    command = ["python", "benchmarks/gpu_train.py", "--json", str(work / f"{name}.json"), *arguments]
    if not gpu:
        command += [
            "--device",
            "cpu",
            "--dims",
            "8",
            "--batches",
            "256",
            "--rows",
            "4096",
            "--samples",
            "4096",
        ]
        command += ["--seconds", "1", "--servers", "1", "--server-threads", "1", "--workers", "1"]
        command += ["--table-mib", "16"]
    return Step(name, seconds, command)


def train(gpu: bool, work: Path) -> list[Step]:
    big = ["--batches", "65536", "--seconds", "10"]
    rows = ["--workers", "9", "--server-threads", "1"]  # many rows a sample: workers are what it lacks
    return [
        gpu_train(gpu, work, "tower", 95, "--cases", "tower", "--dims", "128", *big),
        gpu_train(gpu, work, "dlrm-128", 120, "--cases", "dlrm", "dlrm_bf16", "--dims", "128", *big),
        gpu_train(gpu, work, "dcn_v2", 110, "--cases", "dcn_v2", "--dims", "128", *big, *rows),
        gpu_train(gpu, work, "dlrm-64", 120, "--cases", "dlrm", "dlrm_bf16", "--dims", "64", *big),
    ]


def rest(gpu: bool, work: Path) -> list[Step]:
    reuse = ["--cases", "dlrm", "--dims", "128", "--batches", "65536", "--seconds", "5", "--workers", "1"]
    reuse_rows = gpu_train(gpu, work, "reuse", 110, *reuse, "--reuse-steps", "0", "1", "3")
    if not gpu:
        return [reuse_rows]
    ncu = ["ncu", "--clock-control", "none", "-k", "regex:backward|long|forward", "-c", "6"]
    bench = ["persia-hpc", "bench", "gpu", "--batches", "65536", "--dims", "128", "--wires", "scaled_fp16"]
    build = """
    python -c 'import horovod.torch' 2>/dev/null && exit
    PIP_NO_INDEX=1 PIP_FIND_LINKS=$PWD/build/gpu-pack bash tools/build_horovod.sh build/gpu-venv/bin/python
    """
    two = pytest("tests/system/test_gpu.py::test_a_gpu_gives_what_the_cpu_gives_and_repeats[2]")
    return [
        *(sanitizer(tool, 40) for tool in ("racecheck", "synccheck")),
        reuse_rows,
        Step("ncu", 40, [*ncu, *bench, "--ids-per-sample", "1", "--repeats", "1"], tool="ncu"),
        Step("horovod", 300, shell(build)),
        Step("two-trainers", 60, two, tests=True),
    ]


def seconds(text: str) -> float:
    """A time that one can wait."""
    if not 0 < (number := float(text)) < math.inf:
        raise ValueError(text)
    return number


def main() -> int:
    """Runs a part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=list(LIMITS))
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps, and those that they need")
    parser.add_argument(
        "--limit", type=seconds, metavar="S", help=f"seconds of the whole part (default: {LIMITS})"
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: small, to try it out")
    options = parser.parse_args()
    work = ROOT / "build" / "gpu-work" / options.part
    steps = parts(options.part, options.device, work)
    if options.only:
        unknown = set(options.only) - {step.name for step in steps}
        if unknown:
            names = ", ".join(step.name for step in steps)
            parser.error(f"--only {' '.join(sorted(unknown))}: expected some of {names}")
        steps = [step for step in steps if step.name in ("machine", "environment", *options.only)]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    out = Path(os.environ.get("OUT") or ROOT / "build" / "gpu")
    try:
        runner = Runner(options.part, options.limit or LIMITS[options.part], out, work, options.device)
    except OSError as error:
        parser.error(f"OUT={out}: {error.strerror}; name a folder that can be written")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    return 0 if runner.run(steps) else 1


if __name__ == "__main__":
    sys.exit(main())
