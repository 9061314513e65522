"""The environment that set-up fills: its Python, its packages, its MPI, and what is found around it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setup_runner import Commands, capture

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"


class Environment:
    """The virtual environment for one choice of MPI ("embedded" or "site")."""

    def __init__(self, mpi: str) -> None:
        self.mpi = mpi
        self.venv = ROOT / (".venv" if mpi == "embedded" else ".venv-site")
        self.python = str(self.venv / "bin" / "python")
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.site_packages = self.venv / "lib" / version / "site-packages"
        # Not /tmp: on login nodes it is often tiny; and here we find and remove what a killed set-up left.
        self.scratch = BUILD / f"scratch{self.venv.name}"
        removed = {"PYTHONPATH", "PYTHONHOME", "PIP_REQUIRE_VIRTUALENV", "PIP_USER"}
        self.environment = {k: v for k, v in os.environ.items() if k not in removed}
        self.environment["PATH"] = f"{self.venv / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        self.environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
        self.environment["VIRTUAL_ENV"] = str(self.venv)

    @property
    def build_dir(self) -> Path:
        return BUILD / f"extension{self.venv.name}"

    @property
    def stamps(self) -> Path:
        return self.venv / ".stamps"

    def fits(self) -> bool:
        """Whether the environment is there, works, is of this Python, and wasn't made in another folder."""
        try:
            head = (self.venv / "bin" / "pip").read_text(encoding="utf-8")[:1000]
        except OSError:
            return False
        version = capture([self.python, "-c", "import pip, sys; print(sys.version)"], self.environment)
        return version == sys.version and f"{self.venv}/" in head

    def pip(self, commands: Commands, *arguments: str, **environment: str) -> None:
        commands.end(self.start_pip(commands, *arguments, **environment))

    def start_pip(self, commands: Commands, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        command = [self.python, "-m", "pip", "install", *arguments]
        return commands.start(command, **self.pip_environment(), **environment)

    def pip_environment(self) -> dict[str, str]:
        environment = {"TMPDIR": str(self.scratch)}
        if self.constraints.exists():
            own = os.environ.get("PIP_CONSTRAINT", "")
            environment["PIP_CONSTRAINT"] = f"{own} {self.constraints}".strip()
        return environment

    @property
    def constraints(self) -> Path:
        return self.stamps / "constraints.txt"

    def write_constraints(self) -> None:
        """Keeps later pip calls from replacing torch by another build of gigabytes."""
        self.constraints.write_text(f"torch=={self.installed('torch').partition(' ')[2]}\n")

    def installed(self, name: str) -> str:
        """'name version' of what is installed, or 'name -'; reads a folder name, no metadata."""
        found = sorted(self.site_packages.glob(f"{name}-*.dist-info"))
        return f"{name} {found[-1].name.split('-')[1]}" if found else f"{name} -"

    def project(self) -> dict[str, Any]:
        """pyproject.toml."""
        try:
            import tomllib
        except ModuleNotFoundError:  # Python 3.10: pip, which the environment has by now, brings a copy
            sys.path.append(str(self.site_packages))
            from pip._vendor import tomli as tomllib  # type: ignore[no-redef]

            sys.path.pop()
        return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    def requirement(self, name: str) -> str:
        """The package's own requirement of that name."""
        return next(str(r) for r in self.project()["project"]["dependencies"] if name_of(r) == name)

    def mpicxx(self) -> str:
        """The wrapper compiler of the environment's MPI."""
        if self.mpi == "site":
            return shutil.which("mpicxx") or "mpicxx"
        return str(self.venv / "bin" / "mpicxx")

    def mpi_identity(self) -> str:
        """What MPI it is: a site MPI by its wrapper's place and flags, the embedded one by its release."""
        if self.mpi == "embedded":
            return self.installed("mpich")
        cxx = self.mpicxx()
        return f"{os.path.realpath(cxx)} {cxx} {capture([cxx, '-show'])}"

    def recover(self) -> None:
        """Throws away what an interrupted step left half done."""
        shutil.rmtree(self.build_dir, ignore_errors=True)
        # pip would take a half installed package for whole.
        for distribution in importlib.metadata.distributions(path=[str(self.site_packages)]):
            folder = getattr(distribution, "_path", None)
            if folder is not None and not _whole(distribution):
                shutil.rmtree(folder, ignore_errors=True)
        for leftover in self.site_packages.glob("~*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _whole(distribution: importlib.metadata.Distribution) -> bool:
    files = distribution.files
    if files is None:
        return False
    for file in files:
        try:
            size = os.stat(str(distribution.locate_file(file))).st_size
        except OSError:
            if file.suffix == ".pyc":
                continue
            return False
        if file.size is not None and size != file.size:
            return False
    return True


def compiler() -> str:
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), "")


def version_of(tool: str) -> str:
    return f"{os.path.realpath(tool)} {capture([tool, '--version'])}" if tool else ""


def found_outside(tool: str) -> bool:
    """Whether a build tool is there without our help: on PATH and (cmake) new enough."""
    path = os.pathsep.join(p for p in os.environ.get("PATH", "").split(os.pathsep) if ".venv" not in p)
    found = shutil.which(tool, path=path)
    if not found or tool != "cmake":
        return bool(found)
    version = capture([found, "--version"]).split()
    return len(version) > 2 and tuple(int(n) for n in version[2].split("-")[0].split(".")[:2]) >= (3, 20)


def name_of(requirement: str) -> str:
    return requirement.replace(">", " ").replace("=", " ").replace("<", " ").replace(";", " ").split()[0]


def hash_sources() -> str:
    digest = hashlib.sha256()
    native = (p for p in (ROOT / "native").rglob("*") if p.suffix in {".cpp", ".h", ".cu", ".cuh", ".hpp"})
    built = sorted(p for p in native if not {"tests", "bench"} & set(p.relative_to(ROOT).parts))
    for path in [ROOT / "CMakeLists.txt", ROOT / "pyproject.toml", *built]:
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    # An editable install remembers where each module lies: a moved one must be installed again.
    for path in sorted((ROOT / "src").rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT)}\0".encode())
    return digest.hexdigest()
