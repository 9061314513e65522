"""What `make wheel` refuses to hand out."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "persia_hpc-0.1.0-cp311-cp311-manylinux_2_34_x86_64.whl"
NATIVE = "persia_hpc/_native.cpython-311-x86_64-linux-gnu.so"
SPEC = importlib.util.spec_from_file_location("check_wheel", ROOT / "tools" / "check_wheel.py")
assert SPEC is not None
assert SPEC.loader is not None
CHECKER = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CHECKER)


def sound() -> dict[str, bytes]:
    """A wheel with all that it must have."""
    source = ROOT / "src" / "persia_hpc"
    files = [*source.rglob("*.py"), *source.rglob("*.pyi"), *source.rglob("*.css"), source / "py.typed"]
    content = {f"persia_hpc/{path.relative_to(source).as_posix()}": b"" for path in files}
    content |= {f"persia_hpc/datasets/adult/{name}": b"" for name in CHECKER.DATA}
    content |= {f"persia_hpc-0.1.0.dist-info/licenses/{name}": b"" for name in CHECKER.LICENCES}
    return {**content, NATIVE: b"\x7fELF libm.so.6 libc.so.6"}


def problems(folder: Path, content: dict[str, bytes], name: str = NAME) -> list[str]:
    with zipfile.ZipFile(folder / name, "w") as archive:
        for each, text in content.items():
            archive.writestr(each, text)
    found: list[str] = CHECKER.check(folder / name)
    return found


def test_a_sound_wheel_passes(tmp_path: Path) -> None:
    assert problems(tmp_path, sound()) == []


def test_one_that_was_not_repaired_is_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, sound(), "persia_hpc-0.1.0-cp311-cp311-linux_x86_64.whl")
    assert len(found) == 1
    assert "manylinux" in found[0]


@pytest.mark.parametrize(
    "name",
    [
        "persia_hpc/cli.py",
        "persia_hpc/reporting/page.css",
        "persia_hpc/py.typed",
        "persia_hpc/datasets/adult/adult.toml",
        "persia_hpc-0.1.0.dist-info/licenses/LICENSE.pybind11",
        NATIVE,
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, name: str) -> None:
    content = sound()
    del content[name]
    (found,) = problems(tmp_path, content)
    assert Path(name).name.partition(".")[0] in found


@pytest.mark.parametrize("library", [b"libtorch_cpu.so", b"libc10.so", b"libmpi.so.12", b"libpython3.so"])
def test_a_library_that_other_machines_have_differently_is_named(tmp_path: Path, library: bytes) -> None:
    (found,) = problems(tmp_path, {**sound(), NATIVE: b"\x7fELF libm.so.6\0" + library})
    assert "needs lib" in found


@pytest.mark.parametrize("name", ["tests/test_x.py", "persia_hpc/_old.so", "persia_hpc.libs/libgomp.so"])
def test_what_nobody_needs_is_named(tmp_path: Path, name: str) -> None:
    (found,) = problems(tmp_path, {**sound(), name: b""})
    assert found == f"{name} is in it, which nobody needs"
