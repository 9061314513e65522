"""What `persia-hpc doctor` says of broken machines: the line of what is broken names it and its repair."""

from __future__ import annotations

import ast
import errno
import fcntl
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from persia_hpc.launch import doctor, doctor_gpu, doctor_lines, doctor_machine, doctor_mpi
from persia_hpc.launch.doctor import Wanted
from persia_hpc.launch.doctor_lines import Line

TORCH = {"version": "2", "cuda": "12.8", "kernels": "", "nccl": True, "devices": []}
PAIR = {
    "size": 2,
    "unified": True,
    "moved": True,
    "multiple": True,
    "thread": 3,
    "library": "MPICH Version: 4.2",
    "put": 2e-6,
    "large": 1e-4,
    "skew": 0.0,
    "places": [["n1", [0, 1]], ["n2", [0, 1]]],
}
HOROVOD = {"mpi": True, "libraries": ["libmpi.so"], "nccl": False, "gpus": 2}
RUN_PROBE = doctor_lines.run_probe


class Machine:
    """This machine, and what a test breaks of it; all is as before afterwards."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch, self.environment = folder, monkeypatch.setattr, monkeypatch.setenv
        self.wanted = Wanted(run_dir=str(folder))
        self._limits: list[tuple[int, tuple[int, int]]] = []
        self._cores = os.sched_getaffinity(0)
        (folder / "bin").mkdir()
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
        for name in (
            "SLURM_MPI_TYPE",
            "SLURM_JOB_ID",
            "SLURM_JOB_NUM_NODES",
            "CUDA_VISIBLE_DEVICES",
            "MPI4PY_MPIABI",
        ):
            monkeypatch.delenv(name, raising=False)

    def program(self, name: str, text: str, code: int = 0) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
        path.chmod(0o755)

    def torch(self, **changes: object) -> None:
        """What a Python with this torch would say."""

        def probe(command: list[str], env: object = None) -> tuple[int, object, str]:
            return (0, {**TORCH, **changes}, "") if command[0] == sys.executable else RUN_PROBE(command)

        self.patch(doctor_gpu, "run_probe", probe)

    def srun(self, **changes: object) -> None:
        """A Slurm whose srun lists pmi2, and starts two ranks that find this."""
        self.program("srun", "    pmi2\nPROBE" + json.dumps({**PAIR, **changes}))
        self.wanted = Wanted(run_dir=str(self.folder), srun="")

    def limit(self, what: int, soft: int) -> None:
        before = resource.getrlimit(what)
        self._limits.append((what, before))
        resource.setrlimit(what, (soft, before[1]))

    def mend(self) -> None:
        for what, before in reversed(self._limits):
            resource.setrlimit(what, before)
        os.sched_setaffinity(0, self._cores)

    def lines(self, what: str) -> list[Line]:
        """The lines of the check that speaks of this."""
        wanted = self.wanted
        if what in ("GPU", "nvcc", "NCCL"):
            return doctor_gpu.check_torch(wanted.reducer)
        if what == "MPI":
            return doctor_mpi.check_mpi(None)
        if what == "PMI":
            return doctor_mpi._check_slurm("MPICH", wanted.srun)
        if what.startswith("srun"):
            return doctor_mpi._try_srun(str(self.folder / "bin" / "srun"), "MPICH", "")
        if what == "native extension":
            return doctor._native()
        if what == "horovod":
            return doctor._horovod(2)
        if what == "run directory":
            return doctor_machine.check_run_dir(Path(wanted.run_dir))
        return doctor_machine.check_machine(wanted.shared_bytes, wanted.ranks)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine(tmp_path, monkeypatch)
    yield machine
    machine.mend()


def old_driver(m: Machine) -> None:
    m.torch()
    m.program("nvidia-smi", "| NVIDIA-SMI 470.1    Driver Version: 470.1    CUDA Version: 11.4 |")


def broken_driver(m: Machine) -> None:
    m.torch()
    m.program("nvidia-smi", "Failed to initialize NVML: Driver/library version mismatch", 18)


def hidden_gpus(m: Machine) -> None:
    m.torch()
    m.program("nvidia-smi", "CUDA Version: 12.8")
    m.environment("CUDA_VISIBLE_DEVICES", "")


def other_nvcc(m: Machine) -> None:
    m.torch(devices=["H"])
    m.program("nvcc", "Cuda compilation tools, release 11.8, V11.8.89")


def no_nccl(m: Machine) -> None:
    m.torch(cuda=None, nccl=False)
    m.wanted = Wanted(reducer="nccl")


def horovod_without_nccl(m: Machine) -> None:
    m.patch(doctor.importlib.util, "find_spec", lambda _: object())
    m.patch(doctor, "run_probe", lambda *_: (0, HOROVOD, ""))


def old_processor(m: Machine) -> None:
    m.patch(doctor, "ELSEWHERE", f"import os; os.kill(os.getpid(), {int(signal.SIGILL)})\n")


def no_pmi(m: Machine) -> None:
    m.program("srun", "MPI plugin types are...\n\tnone\n\tpmix\n\tpmix_v4")


def other_pmi(m: Machine) -> None:
    m.program("srun", "MPI plugin types are...\n\tnone\n\tpmix\n\tpmi2")
    m.program("scontrol", "MpiDefault              = pmix\nMpiParams               = (null)")


def no_allocation(m: Machine) -> None:
    m.program("srun", "srun: error: Unable to allocate resources: Invalid account", 1)


def small_room(m: Machine) -> None:
    m.patch(doctor_machine, "shared_memory_room", lambda: (64 << 20, 64 << 20))
    m.wanted = Wanted(shared_bytes=300 << 20, ranks=4)


def no_room(m: Machine) -> None:
    m.patch(doctor_machine, "shared_memory_room", lambda: (1 << 20, 1 << 20))
    m.wanted = Wanted(shared_bytes=300 << 20, ranks=4)


def little_locked_memory(m: Machine) -> None:
    m.limit(resource.RLIMIT_MEMLOCK, 65536)
    (m.folder / "infiniband" / "mlx5_0").mkdir(parents=True)
    m.patch(doctor_machine, "INFINIBAND", m.folder / "infiniband")


def small_pages(m: Machine) -> None:
    (m.folder / "enabled").write_text("always madvise [never]\n")
    m.patch(doctor_machine, "HUGE_PAGES", m.folder / "enabled")


def no_locks(m: Machine) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    m.patch(fcntl, "flock", refuse)


def lost_locks(m: Machine) -> None:
    m.patch(doctor_machine, "_TRY_LOCK", "pass")  # another process gets the lock as well


def local_locks(m: Machine) -> None:
    m.patch(doctor_machine, "host_only", lambda _: "localflock")


Break = Callable[[Machine], object]
BROKEN: list[tuple[Break, str, str, str, str]] = [
    (lambda m: m.torch(), "note", "GPU", "no NVIDIA driver on this node", "srun --gpus=1"),
    (
        old_driver,
        "BAD",
        "GPU",
        "the driver is for CUDA 11.4",
        "--index-url https://download.pytorch.org/whl/",
    ),
    (broken_driver, "BAD", "GPU", "version mismatch", "reinstall the driver"),
    (hidden_gpus, "note", "GPU", "CUDA_VISIBLE_DEVICES is ''", "unset CUDA_VISIBLE_DEVICES"),
    (other_nvcc, "note", "nvcc", "11.8, but torch has CUDA 12.8", "load a module of CUDA 12"),
    (no_nccl, "BAD", "NCCL", "this torch has none", 'train.reducer = "mpi"'),
    (horovod_without_nccl, "note", "horovod", "without NCCL", "tools/build_horovod.sh"),
    (
        old_processor,
        "BAD",
        "native extension",
        "ended by signal 4",
        "in the source tree: CMAKE_ARGS=-DPERSIA_HPC_ARCH=native pip install .",
    ),
    (
        lambda m: m.environment("MPI4PY_LIBMPI", "/absent/libmpi.so"),
        "BAD",
        "MPI",
        "/absent/libmpi.so: cannot open",
        "unset MPI4PY_LIBMPI",
    ),
    (no_pmi, "note", "PMI", "needs --mpi=pmi2, but srun has none, pmix", "--launcher mpiexec"),
    (other_pmi, "note", "PMI", "but srun would take pmix", "export SLURM_MPI_TYPE=pmi2"),
    (no_allocation, "BAD", "srun MPI", "Unable to allocate resources", "inside of salloc"),
    (lambda m: m.srun(size=1), "BAD", "srun ranks", "each rank is alone", "srun --mpi=pmi2"),
    (lambda m: m.srun(multiple=False, thread=2), "BAD", "srun threads", "level 2", "thread support"),
    (lambda m: m.srun(unified=False), "BAD", "srun RMA", "separate memory model", "use another MPI"),
    (lambda m: m.srun(moved=False), "BAD", "srun RMA", "didn't arrive", "use another MPI"),
    (lambda m: m.srun(put=2e-3), "note", "srun put", "2000.0 us, 1 MiB at 10.49 GB/s, between n1", "UCX_TLS"),
    (
        lambda m: m.srun(large=0.1),
        "note",
        "srun put",
        "0.01 GB/s, between n1 and n2: slow",
        "UCX_NET_DEVICES",
    ),
    (
        lambda m: m.srun(places=[["n1", [1]], ["n1", [1]]]),
        "note",
        "srun pinning",
        "to core 1 of",
        "bind=none",
    ),
    (lambda m: m.srun(skew=-5.0), "note", "srun clocks", "n2 is -5.0 s from n1", "NTP"),
    (small_room, "note", "/dev/shm", "4 ranks here want 300 for rings", "--shm-size="),
    (no_room, "BAD", "/dev/shm", "MPI can't start", "remount,size="),
    (lambda m: m.limit(resource.RLIMIT_NOFILE, 256), "note", "open files", "at most 256", "ulimit -n 1024"),
    (little_locked_memory, "note", "locked memory", "InfiniBand can't register", "memlock unlimited"),
    (
        lambda m: m.limit(resource.RLIMIT_AS, 1 << 44),
        "note",
        "address space",
        "at most 16777216 MiB",
        "-v unlim",
    ),
    (small_pages, "note", "huge pages", "never", "echo madvise > "),
    (
        lambda m: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
        "note",
        "cores",
        "1 for this",
        "-per-task",
    ),
    (no_locks, "BAD", "run directory", "No locks available", "another --run-dir"),
    (lost_locks, "note", "run directory", "doesn't keep locks", "-o flock"),
    (local_locks, "note", "run directory", "on this host only (localflock)", "never start two jobs"),
]


@pytest.mark.parametrize(
    ("broken", "level", "what", "found", "fix"), BROKEN, ids=[f"{each[2]}-{each[3][:12]}" for each in BROKEN]
)
def test_what_is_broken_is_named_with_its_repair(
    machine: Machine, broken: Break, level: str, what: str, found: str, fix: str
) -> None:
    broken(machine)
    lines = {line.what: line for line in machine.lines(what)}
    assert lines[what].level == level, lines[what]
    assert found in lines[what].found
    assert fix in lines[what].fix


@pytest.mark.parametrize(
    "what", ["run directory", "/dev/shm", "open files", "srun put", "srun pinning", "srun clocks", "PMI"]
)
def test_what_is_whole_is_good(machine: Machine, what: str) -> None:
    machine.srun()
    machine.wanted = Wanted(run_dir=str(machine.folder / "not" / "yet"), shared_bytes=1 << 10, ranks=1)
    assert {line.what: line.level for line in machine.lines(what)}[what] == "ok"


def test_every_line_that_is_not_good_has_a_repair() -> None:
    count = 0
    for path in Path(doctor.__file__).parent.glob("doctor*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Line":
                level = node.args[0]
                if isinstance(level, ast.Name) and level.id in ("NOTE", "BAD"):
                    count += 1
                    assert len(node.args) == 4, f"{path.name}:{node.lineno}"
                    assert not (isinstance(node.args[3], ast.Constant) and not node.args[3].value)
    assert count > 20


def test_what_does_not_end_is_said_in_a_few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_lines, "PROBE_SECONDS", 0.2)
    code, probe, text = doctor_lines.run_probe(["sleep", "9"])
    assert (code, probe, text) == (-1, None, "sleep didn't end within 0.2 s")


@pytest.mark.parametrize("printed", ["PROBE", 'PROBE{"version": "2.', 'PROBE\n{"version": 2}'])
@pytest.mark.parametrize(("end", "code"), [("kill -9 $$", -9), ("exit 137", 137), ("exit 0", 0)])
def test_an_answer_that_is_cut_off_is_none(printed: str, end: str, code: int) -> None:
    got, probe, text = doctor_lines.run_probe(["sh", "-c", f"printf '%s' '{printed}'; {end}"])
    said = "ended by signal 9" if code < 0 else "its answer is cut off: "
    assert (got, probe) == (code, None)
    assert doctor_lines.last_line(text).startswith(said)


def test_a_run_directory_in_which_nobody_may_write(machine: Machine) -> None:
    machine.wanted = Wanted(run_dir="/proc/runs")
    (line,) = machine.lines("run directory")
    assert (line.level, "/proc takes no files" in line.found) == ("BAD", True)


def test_two_nodes_of_an_allocation_are_tried(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    path = machine.folder / "bin" / "srun"
    path.write_text(f'#!/bin/sh\necho "$@" >{machine.folder}/given\n')
    path.chmod(0o755)
    for nodes, spread in (("1", False), ("3", True)):
        monkeypatch.setenv("SLURM_JOB_NUM_NODES", nodes)
        doctor_mpi._try_srun(str(path), None, "pmix")
        given = (machine.folder / "given").read_text()
        assert given.startswith("-n2 ")
        assert ("-N2 --ntasks-per-node=1" in given) == spread
        assert "--mpi=pmix" in given


@pytest.mark.parametrize(
    ("library", "pmi"),
    [
        ("MPICH Version: 5.0.2", "pmi2"),
        ("MPI VERSION    : CRAY MPICH version 8.1.29.8", "cray_shasta"),
        ("Intel(R) MPI Library 2021.12", "pmi2"),
        ("MVAPICH2 Version: 2.3.7", "pmi2"),
        ("Open MPI v5.0.3", "pmix"),
        ("another", None),
        (None, None),
    ],
)
def test_which_pmi_a_library_needs(library: str | None, pmi: str | None) -> None:
    assert doctor_mpi.pmi_for(library) == pmi
