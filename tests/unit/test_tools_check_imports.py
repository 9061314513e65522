"""The directions of imports hold in the repository, and the checker notices each kind of breach."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_imports", ROOT / "tools" / "check_imports.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECKER = load_checker()


def violations(tmp_path: Path, path: str, text: str) -> list[str]:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return CHECKER.check(tmp_path)


def test_repository_keeps_the_rules() -> None:
    assert CHECKER.check(ROOT) == []


def test_checker_sees_the_package() -> None:
    # Guards against a checker that passes because it looks at nothing.
    assert any(CHECKER._imports(CHECKER.ast.parse((ROOT / "src/persia_hpc/api.py").read_text()), "api.py"))


def test_every_rule_matches_something() -> None:
    # A rule for a file that has moved away would keep nothing.
    source = ROOT / "src" / "persia_hpc"
    names = [path.relative_to(source).as_posix() for path in source.rglob("*.py")]
    patterns = {*CHECKER.COMPOSERS, *CHECKER.PURE, *(f"{role}/*" for role in CHECKER.ROLES)}
    patterns |= {pattern for files, _ in CHECKER.ALLOWED.values() for pattern in files}
    patterns |= {pattern for files in CHECKER.WHO_KNOWS.values() for pattern in files}
    unused = {p for p in patterns if not any(CHECKER.fnmatch(name, p) for name in names)}
    assert not unused
    parts = {name.removesuffix(".py").partition("/")[0] for name in names}
    known = {*CHECKER.WHO_KNOWS, *(part for allowed in CHECKER.PURE.values() for part in allowed)}
    assert known <= parts
    folders = [folder for _, folder, _ in CHECKER.NATIVE_RULES if folder]
    assert all((ROOT / folder).is_dir() for folder in folders)


CIRCLES = [
    {"a.py": "from .b import B", "b.py": "if TYPE_CHECKING:\n    from .a import A"},
    {"a.py": "from . import b", "b.py": "def f():\n    import persia_hpc.a"},
    {"a/__init__.py": "from .c import C", "a/c.py": "from ..b import B", "b.py": "from .a import C"},
]


@pytest.mark.parametrize("files", CIRCLES)
def test_circle_is_found(tmp_path: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        found = violations(tmp_path, f"src/persia_hpc/{path}", text)
    assert len(found) == 1, found
    assert "circle of imports: persia_hpc.a, persia_hpc." in found[0]


def test_a_chain_is_no_circle(tmp_path: Path) -> None:
    violations(tmp_path, "src/persia_hpc/a.py", "from .b import B\nfrom .c import C")
    assert violations(tmp_path, "src/persia_hpc/b.py", "from .c import C") == []


BREACHES = [
    (
        "src/persia_hpc/trainer/x.py",
        "from ..parameter_server.engine import E",
        "roles never import each other",
    ),
    ("src/persia_hpc/trainer/x.py", "from .. import parameter_server", "roles never import each other"),
    ("src/persia_hpc/embedding_worker/x.py", "import persia_hpc.trainer.session", "roles never"),
    ("src/persia_hpc/samples/x.py", "from ..trainer.session import S", "know the roles"),
    ("src/persia_hpc/models/x.py", "from ..trainer.session import S", "know the roles"),
    ("src/persia_hpc/checkpoint.py", "def f():\n    from .trainer import session", "know the roles"),
    ("src/persia_hpc/embedding_worker/engine.py", "import torch", "without paying"),
    ("src/persia_hpc/parameter_server/x.py", "def f():\n    from torch import nn", "without paying"),
    ("src/persia_hpc/trainer/session.py", "import horovod.torch as hvd", "jobs must work without it"),
    ("src/persia_hpc/parameter_server/engine.py", "from mpi4py import MPI", "without MPI"),
    (
        "src/persia_hpc/trainer/serve.py",
        "from mpi4py import MPI\nw = MPI.Win.Create(None)",
        "outside transport/",
    ),
    ("src/persia_hpc/trainer/x.py", "import h5py", "one home"),
    ("src/persia_hpc/samples/x.py", "import polars as pl", "table parser"),
    ("src/persia_hpc/schedule.py", "import numpy as np", "pure module"),
    ("src/persia_hpc/topology/roles.py", "from ..transport.ring import R", "pure module"),
    ("src/persia_hpc/trainer/x.py", "from ..launch.supervisor import supervise", "may"),
    ("src/persia_hpc/x.py", "a = 1\n" * 401, "split files"),
    ("src/persia_hpc/x.pyi", "a = 1\n" * 401, "split files"),
    ("native/src/x.cpp", "\n".join(["// line"] * 401), "split files"),
    ("native/src/x.cpp", "#include <mpi.h>", "no MPI"),
    ("native/src/x.cpp", "#include <pybind11/numpy.h>", "only the bindings"),
    ("native/bindings/x.cpp", "#include <torch/extension.h>", "no torch"),
    ("native/src/x.cpp", 'auto* v = std::getenv("X");', "environment variables"),
]


@pytest.mark.parametrize(("path", "text", "reason"), BREACHES)
def test_breach_is_found(tmp_path: Path, path: str, text: str, reason: str) -> None:
    found = violations(tmp_path, path, text)
    assert len(found) == 1, found
    assert found[0].startswith(path)
    assert reason in found[0]


FINE = [
    (
        "src/persia_hpc/trainer/session.py",
        "import torch\nfrom ..samples.batch import B\nfrom .feeding import F",
    ),
    ("src/persia_hpc/trainer/dense/horovod_sums.py", "def f():\n    import horovod.torch as hvd"),
    ("src/persia_hpc/job/rank.py", "from .trainer.serve import S\nfrom .parameter_server.serve import P"),
    ("src/persia_hpc/checkpoint.py", "if TYPE_CHECKING:\n    from .parameter_server.engine import P"),
    ("src/persia_hpc/models/dlrm.py", "from torch import nn\nfrom ..trainer.batch import Batch"),
    ("src/persia_hpc/transport/window.py", "from mpi4py import MPI\nw = MPI.Win.Create(None)"),
    ("src/persia_hpc/x.py", "a = 1\n" * 400),
    ("native/bindings/x.cpp", "#include <pybind11/numpy.h>"),
]


@pytest.mark.parametrize(("path", "text"), FINE)
def test_what_is_allowed_passes(tmp_path: Path, path: str, text: str) -> None:
    assert violations(tmp_path, path, text) == []


def test_command_says_it_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["check_imports.py", str(tmp_path)])
    assert CHECKER.main() == 0
    violations(tmp_path, "src/persia_hpc/samples/x.py", "import torch")
    assert CHECKER.main() == 1
    assert "src/persia_hpc/samples/x.py:1: imports torch" in capsys.readouterr().out
