"""Checks that a wheel has all that a machine without the source tree needs, and needs only Python there.

python tools/check_wheel.py WHEEL...        prints each problem, exit code 1 if there is any
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "persia_hpc"
# Libraries whose binary interface changes from release to release, or of which a machine has another kind.
FOREIGN = (b"libtorch", b"libc10", b"libmpi", b"libpython", b"libhdf5")
DATA = ("adult.data.gz", "adult.test.gz", "adult.names", "adult.toml", "LICENSE.data")
LICENCES = ("LICENSE", "LICENSE.data", "LICENSE.pybind11")


def check(wheel: Path) -> list[str]:
    """All problems of a wheel."""
    found = (
        [] if "-manylinux_" in wheel.name else ["its name has no manylinux tag: auditwheel didn't repair it"]
    )
    wanted = {
        f"persia_hpc/{path.relative_to(SOURCE).as_posix()}"
        for path in SOURCE.rglob("*")
        if path.suffix in {".py", ".pyi", ".css", ".typed"}
    } | {f"persia_hpc/datasets/adult/{name}" for name in DATA}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        found += [f"{name} is missing" for name in sorted(wanted - names)]
        licences = {Path(name).name for name in names if ".dist-info/licenses/" in name}
        found += [f"the licence {name} is missing" for name in LICENCES if name not in licences]
        for name in sorted(names - wanted):
            inside = ".dist-info/" in name or name.endswith("/")
            native = name.startswith(("persia_hpc/_native.", "persia_hpc/_cuda.")) and name.endswith(".so")
            if native:
                content = archive.read(name)
                found += [f"{name} needs {library.decode()}" for library in FOREIGN if library in content]
            elif not inside:
                found.append(f"{name} is in it, which nobody needs")
        if not any(name.startswith("persia_hpc/_native.") for name in names - wanted):
            found.append("it has no persia_hpc/_native*.so")
    return found


def main() -> int:
    code = 0
    for name in sys.argv[1:]:
        for problem in check(Path(name)):
            print(f"{Path(name).name}: {problem}")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
