"""A machine as bare as those that have a GPU for minutes: few packages, no network, only the sources."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import persia_hpc._native
from tests.support.mpi import REPOSITORY

TRAVELS = ("benchmarks", "native", "src", "tests", "tools", "CMakeLists.txt", "pyproject.toml")
# mpich and the package itself come from the pack.
LACKS = ("polars", "hdf5plugin", "horovod", "mpich", "persia_hpc", "__pycache__")


class Bare:
    """A copy of the sources with a pack, and an environment as Python of the machine."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "tree"
        self.out = folder / "out"
        _copy_sources(self.root)
        self.python = _environment(folder / "machine")
        pack = self.root / "build" / "gpu-pack"
        pack.mkdir(parents=True)
        _pack_mpich(pack)
        _pack_package(pack)
        self._environment = {
            "PATH": f"{self.python.parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "OUT": str(self.out),
            "PIP_CONFIG_FILE": os.devnull,
        }
        done = self.script("sources")
        assert done.returncode == 0, done.stdout
        (pack / "sources").write_text(done.stdout)

    def script(self, *arguments: str, timeout: float = 420) -> subprocess.CompletedProcess[str]:
        """Runs gpu.sh without a network, where namespaces are allowed."""
        command = [*_without_network(), "bash", str(self.root / "benchmarks" / "gpu.sh"), *arguments]
        return subprocess.run(
            command,
            env=self._environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        )


def _without_network() -> list[str]:
    unshare = ["unshare", "--net", "--"]
    try:
        allowed = subprocess.run([*unshare, "true"], capture_output=True).returncode == 0
    except OSError:
        allowed = False
    return unshare if allowed else []


def _copy_sources(target: Path) -> None:
    target.mkdir(parents=True)
    for name in TRAVELS:
        if (REPOSITORY / name).is_file():
            shutil.copy(REPOSITORY / name, target)
        else:
            ignored = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(REPOSITORY / name, target / name, ignore=ignored, symlinks=True)


def _environment(folder: Path) -> Path:
    """An environment that has links to the packages of this one, without those that it LACKS."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    target = Path(subprocess.check_output([python, "-c", where], text=True).strip())
    for place in dict.fromkeys(path for path in sys.path if path.endswith("site-packages")):
        for entry in Path(place).iterdir() if Path(place).is_dir() else ():
            kept = entry.suffix != ".pth" and not entry.name.startswith(LACKS)
            if kept and not (target / entry.name).exists():
                (target / entry.name).symlink_to(entry)
    return python


def _pack_mpich(pack: Path) -> None:
    """The MPI wheel, of the one that is installed; nothing where MPI is the site's."""
    try:
        mpich = importlib.metadata.distribution("mpich")
    except importlib.metadata.PackageNotFoundError:
        return
    packages = "lib/python/site-packages"  # where `files` are relative to, below the environment
    files = []
    for file in mpich.files or ():
        inside = os.path.normpath(f"{packages}/{file}")
        if inside.startswith(packages):
            inside = os.path.relpath(inside, packages)
        else:
            inside = f"mpich-{mpich.version}.data/data/{inside}"
        if file.name != "RECORD" and "/include/" not in inside:
            files.append((Path(str(file.locate())), inside))
    _wheel(pack, f"mpich-{mpich.version}", files)


def _pack_package(pack: Path) -> None:
    """The package with the modules that are built for this Python."""
    package = REPOSITORY / "src" / "persia_hpc"
    files = [(path, f"persia_hpc/{path.relative_to(package)}") for path in package.rglob("*.py")]
    built = Path(persia_hpc._native.__file__).parent
    files += [(path, f"persia_hpc/{path.name}") for path in built.glob("*.so")]
    info = "persia_hpc-0.1.0.dist-info"
    texts = {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: persia-hpc\nVersion: 0.1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\npersia-hpc = persia_hpc.cli:main\n",
    }
    _wheel(pack, "persia_hpc-0.1.0", files, texts)


def _wheel(
    pack: Path, name: str, files: Iterable[tuple[Path, str]], texts: dict[str, str] | None = None
) -> None:
    with zipfile.ZipFile(pack / f"{name}-py3-none-any.whl", "w") as wheel:
        for path, inside in files:
            wheel.write(path, inside)
        for inside, text in (texts or {}).items():
            wheel.writestr(inside, text)
        wheel.writestr(f"{name}.dist-info/RECORD", "")
