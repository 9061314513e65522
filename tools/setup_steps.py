"""The steps of the set-up: what each does, what it depends on, and what to do when it fails."""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from setup_environment import (
    BUILD,
    ROOT,
    Environment,
    compiler,
    found_outside,
    hash_sources,
    name_of,
    version_of,
)
from setup_runner import Commands, Runner, SetupError, Step, end_group, read_stamp

PYTHON_NAME = f"python{sys.version_info.major}.{sys.version_info.minor}"
DEFAULT_TORCH = "torch==2.13.0"
# What an NVIDIA driver brings. Containers and sandboxes often have the devices alone, WSL has the third,
# Tegra the last. Images for CUDA set NVIDIA_VISIBLE_DEVICES and bring nvidia-smi also where there is no GPU.
DRIVERS = tuple(map(Path, ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg", "/dev/nvmap")))
NETWORK = "if a download failed: check the network or the proxy, then run `make` again (it goes on from here)"


def main() -> None:
    """Entry point, called by setup.py."""
    parser = argparse.ArgumentParser(
        prog="setup.py", description="Builds the environment that everything runs in."
    )
    parser.add_argument("--mpi", choices=["embedded", "site"], default="embedded")
    parser.add_argument("--torch", default=DEFAULT_TORCH, help="pip requirement (or several words for pip)")
    parser.add_argument(
        "--chosen", action="store_true", help="the Python was chosen by the user (PYTHON=...)"
    )
    parser.add_argument("--for", dest="purpose", choices=["run", "demo", "lint", "wheel"], default="run")
    parser.add_argument("--reducer", choices=["horovod", "mpi"], default="horovod", help="mpi: no Horovod")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.chdir(ROOT)
    setup = Setup(options.mpi, options.torch, options.purpose, options.reducer)
    runner = Runner(setup.at.venv, BUILD, setup.at.environment, setup.at.recover)
    with runner.locked():
        shutil.rmtree(setup.at.scratch, ignore_errors=True)
        setup.at.scratch.mkdir(parents=True)
        try:
            for make_step in setup.steps():
                runner.run(make_step())
        finally:
            if setup.compiling is not None:
                end_group(setup.compiling[1])
        shutil.rmtree(setup.at.scratch, ignore_errors=True)
        runner.close()


class Setup:
    """Makes each step when its turn comes, from what is there by then."""

    def __init__(self, mpi: str, torch: str, purpose: str, reducer: str = "horovod") -> None:
        self.at = Environment(mpi)
        self.torch = torch
        self.purpose = purpose
        self.reducer = reducer
        self.cuda = self._cuda()
        self.compiling: tuple[Commands, subprocess.Popen[bytes]] | None = None

    def _cuda(self) -> str:
        """Whether to build the CUDA module: for a demo only where it can run, as nvcc takes longer than pip.

        What has been built for another purpose stays.
        """
        built = read_stamp(self.at.stamps / "extension") or {}
        needed = self.purpose != "demo" or built.get("CUDA module") == "auto"
        return "auto" if needed or any(path.exists() for path in DRIVERS) else "off"

    def steps(self) -> list[Callable[[], Step]]:
        """The steps in order."""
        if self.purpose == "lint":
            packages = [self.step_torch, self.step_dependencies, self.step_test_packages]
            return [self.step_venv, *packages, self.step_lint_tools]
        if self.purpose == "wheel":
            return [self.step_compiler, self.step_venv, self.step_wheel_tools]
        site = self.at.mpi == "site"
        return [
            self.step_compiler,
            *([self.step_mpi] if site else []),
            self.step_venv,
            self.step_build_tools,
            self.step_compiling,
            self.step_torch,
            self.step_dependencies,
            *([self.step_test_packages] if self.purpose == "run" else []),
            *([self.step_mpi4py] if site else []),
            self.step_extension,
            *([self.step_horovod] if self.reducer == "horovod" else []),
            self.step_check,
        ]

    # What is there before the environment.

    def step_compiler(self) -> Step:
        found = compiler()
        headers = Path(sysconfig.get_paths()["include"]) / "Python.h"

        def action(commands: Commands) -> None:
            if not found:
                raise SetupError("there is no C++ compiler (c++, g++ or clang++) on PATH")
            if not headers.exists():
                raise SetupError(f"the headers of Python are missing ({headers})")
            source = self.at.scratch / "probe.cpp"
            source.write_text("#include <optional>\nint main() { return std::optional<int>(0).value(); }\n")
            commands.run([found, "-std=c++17", str(source), "-o", str(self.at.scratch / "probe")])
            commands.run([str(self.at.scratch / "probe")])

        return Step(
            "compiler",
            f"C++17 compiler {found or '(none)'}",
            {"compiler": version_of(found), "python headers": str(headers.exists())},
            action,
            "install g++ 9 or newer and Python's headers (Debian, Ubuntu: build-essential and "
            f"{PYTHON_NAME}-dev; cluster: `module load gcc`; without root: miniforge, with its "
            "`conda install cxx-compiler python`)",
        )

    def step_mpi(self) -> Step:
        cc, cxx = shutil.which("mpicc"), shutil.which("mpicxx")

        def action(commands: Commands) -> None:
            if not cc or not cxx:
                raise SetupError(f"{'mpicc' if not cc else 'mpicxx'} is not on PATH")
            source = self.at.scratch / "probe.cpp"
            source.write_text("#include <mpi.h>\nint main() { return MPI_VERSION < 3; }\n")
            commands.run([cxx, str(source), "-o", str(self.at.scratch / "probe")])

        return Step(
            "mpi",
            f"MPI compiler wrappers {cc or '(none)'}",
            {"mpi": self.at.mpi_identity()},
            action,
            "load the MPI that jobs will use before `make MPI=site` (cluster: `module load openmpi`; Debian: "
            "libopenmpi-dev and openmpi-bin), or leave MPI=site out to use the embedded one",
        )

    def step_venv(self) -> Step:
        def action(commands: Commands) -> None:
            if not self.at.fits():
                self.make_venv(commands)
            self.at.pip(commands, "--upgrade", "pip")

        return Step(
            "venv",
            f"{self.at.venv.name}, Python {sys.version.split()[0]}",
            {"python": f"{sys.version} {os.path.realpath(sys.base_prefix)}", "folder": str(self.at.venv)},
            action,
            NETWORK,
        )

    def make_venv(self, commands: Commands) -> None:
        if (self.at.venv / "pyvenv.cfg").exists():
            # Only what set-up made may be thrown away, never an environment that somebody filled by hand.
            if not (self.at.stamps / "venv.made").exists():
                raise SetupError(
                    f"{self.at.venv.name} wasn't made by this set-up and doesn't fit {sys.executable}",
                    "move it away, or name the Python that made it: `make setup PYTHON=/path/to/python3`",
                )
            shutil.rmtree(self.at.venv)
            shutil.rmtree(self.at.build_dir, ignore_errors=True)
        base = str(getattr(sys, "_base_executable", sys.executable))
        probe = subprocess.run([base, "-c", "import venv, ensurepip"], capture_output=True, check=False)
        if probe.returncode:
            raise SetupError(
                f"{base} has no venv or no ensurepip module",
                f"install Debian's {PYTHON_NAME}-venv; or without root take another Python: `make setup "
                "PYTHON=/path/to/python3` (miniforge, pyenv, `module avail python`)",
            )
        self.at.stamps.mkdir(parents=True, exist_ok=True)
        (self.at.stamps / "venv.made").touch()
        commands.run([base, "-m", "venv", str(self.at.venv)])

    # What pip installs.

    def step_torch(self) -> Step:
        wanted = self.torch

        def action(commands: Commands) -> None:
            self.at.constraints.unlink(missing_ok=True)
            try:
                self.at.pip(commands, *shlex.split(wanted))
            except SetupError:
                log = commands.log.read_text(encoding="utf-8", errors="replace")
                if wanted != DEFAULT_TORCH or "No matching distribution" not in log:
                    raise
                # Another CPU type or a newer Python: whatever release the package itself admits.
                self.at.pip(commands, self.at.requirement("torch"))
            self.at.write_constraints()

        return Step(
            "torch",
            f"PyTorch ({wanted}; the largest download)",
            {"torch": wanted},
            action,
            "choose another release: `make setup TORCH_SPEC='torch==2.6.*'`; for a CPU or CUDA build of your "
            "own choice name PyTorch's index for it in PIP_EXTRA_INDEX_URL (pytorch.org, 'Get Started'). "
            + NETWORK,
        )

    def step_build_tools(self) -> Step:
        wanted = self.at.project()["build-system"]["requires"]
        wanted += [tool for tool in ("cmake", "ninja") if self.at.mpi == "site" or not found_outside(tool)]
        return self._tools("build-tools", "what builds the C++ extension", wanted)

    def step_dependencies(self) -> Step:
        site = self.at.mpi == "site"
        skipped = {"torch", *(["mpi4py"] if site else [])}
        project = self.at.project()
        extras = project["project"]["optional-dependencies"]
        wanted = [r for r in project["project"]["dependencies"] if name_of(r) not in skipped]
        wanted += [] if site else extras["mpich"]

        def action(commands: Commands) -> None:
            self.at.write_constraints()
            self.at.pip(commands, *wanted)

        return Step(
            "dependencies",
            "Python packages" + ("" if site else " and the embedded MPI"),
            {"requirements": "\n".join(wanted), "torch": self.at.installed("torch")},
            action,
            NETWORK,
        )

    def step_mpi4py(self) -> Step:
        def action(commands: Commands) -> None:
            self.at.pip(
                commands,
                *("--force-reinstall", "--no-deps", "--no-cache-dir", "--no-binary", "mpi4py"),
                self.at.requirement("mpi4py"),
                MPICC=str(shutil.which("mpicc")),
            )

        return Step(
            "mpi4py",
            "mpi4py from source against that MPI",
            {"mpi": self.at.mpi_identity(), "requirement": self.at.requirement("mpi4py")},
            action,
            f"the end of the log says what mpicc ({shutil.which('mpicc')}) refused. {NETWORK}",
        )

    @property
    def editable(self) -> list[str]:
        """What pip is told of this package."""
        # A build folder per environment: CMake would remember the other one's Python.
        build_dir = f"--config-settings=build-dir={self.at.build_dir}"
        # Said always, as CMake remembers this too. CMAKE_ARGS has the last word.
        cuda = f"--config-settings=cmake.define.PERSIA_HPC_CUDA={self.cuda}"
        return ["--no-build-isolation", "--no-deps", "--editable", ".", build_dir, cuda]

    def extension_inputs(self) -> dict[str, str]:
        return {
            "sources": hash_sources(),
            "compiler": version_of(compiler()),
            "nvcc": version_of(nvcc) if (nvcc := shutil.which("nvcc")) else "none",
            "CUDA module": self.cuda,
            "build tools": ", ".join(self.at.installed(n) for n in ("pybind11", "scikit_build_core")),
            "environment": os.environ.get("CXXFLAGS", "") + os.environ.get("CMAKE_ARGS", ""),
        }

    def step_compiling(self) -> Step:
        """Compiles beside pip's downloads; whether that went well is for step_extension to find out."""

        def action(commands: Commands) -> None:
            self.compiling = commands, self.at.start_pip(commands, *self.editable)

        title = "C++ extension, beside what follows"
        return Step("compiling", title, self.extension_inputs(), action, "", begins="extension")

    def step_extension(self) -> Step:
        def action(commands: Commands) -> None:
            begun, self.compiling = self.compiling, None
            if begun is not None:
                try:
                    begun[0].end(begun[1])
                    return
                except SetupError as error:  # perhaps because pip has replaced a package meanwhile
                    more = f"{error}, beside pip's installations: once more, alone\n"
                finally:
                    commands.log.write_bytes(begun[0].log.read_bytes())
                with commands.log.open("a", encoding="utf-8") as log:
                    log.write(more)
            self.at.pip(commands, *self.editable)

        return Step(
            "extension",
            "persia_hpc and its C++ extension",
            self.extension_inputs(),
            action,
            "the log names the file and line that the compiler refused; if it is about CMake: `make clean`",
        )

    def step_horovod(self) -> Step:
        script = ROOT / "tools" / "build_horovod.sh"

        def action(commands: Commands) -> None:
            commands.run(
                ["bash", str(script), self.at.python],
                **self.at.pip_environment(),
                PERSIA_HPC_MPI_BIN=str(Path(self.at.mpicxx()).parent),
            )

        return Step(
            "horovod",
            "Horovod from source (about 4 minutes on two cores)",
            {
                "script": hashlib.sha256(script.read_bytes()).hexdigest(),
                "torch": self.at.installed("torch"),
                "mpi": self.at.mpi_identity(),
                "compiler": version_of(compiler()),
                "nccl": os.environ.get("HOROVOD_NCCL_HOME", "") + (shutil.which("nvcc") or ""),
                "architectures": os.environ.get("HOROVOD_BUILD_CUDA_CC_LIST", ""),
            },
            action,
            "the first `error:` in the log tells; a compiler older than torch wants, or too little memory "
            f"(`make setup JOBS=1`), are the usual causes. {NETWORK}",
        )

    def step_check(self) -> Step:
        def action(commands: Commands) -> None:
            script = str(ROOT / "tools" / "check_setup.py")
            # Login nodes often refuse to start jobs, so a site MPI is only asked to load.
            launcher = [str(self.at.venv / "bin" / "mpiexec"), "-n", "2"] if self.at.mpi == "embedded" else []
            commands.run([*launcher, self.at.python, script])

        return Step(
            "check",
            f"check: MPI{', Horovod' * (self.reducer == 'horovod')} and the extension work together",
            {
                "mpi": self.at.mpi_identity(),
                "torch": self.at.installed("torch"),
                "mpi4py": self.at.installed("mpi4py"),
                "horovod": self.at.installed("horovod"),
            },
            action,
            f"`make distclean`, then again; if it still fails: `{self.at.python} tools/check_setup.py`",
        )

    def step_test_packages(self) -> Step:
        wanted = self.at.project()["project"]["optional-dependencies"]["test"]
        return self._tools("test-packages", "what the tests need", wanted)

    def step_lint_tools(self) -> Step:
        wanted = self.at.project()["project"]["optional-dependencies"]["lint"]
        return self._tools("lint-tools", "ruff, mypy, clang-format", wanted)

    def step_wheel_tools(self) -> Step:
        project = self.at.project()
        wanted = project["build-system"]["requires"] + project["project"]["optional-dependencies"]["wheel"]
        wanted += [tool for tool in ("cmake", "ninja") if not found_outside(tool)]
        return self._tools("wheel-tools", "what builds and checks a wheel", wanted)

    def _tools(self, name: str, title: str, wanted: list[str]) -> Step:
        requirements = {"requirements": "\n".join(wanted)}
        return Step(name, title, requirements, lambda commands: self.at.pip(commands, *wanted), NETWORK)
