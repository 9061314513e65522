"""Modules of the user's: found beside the configuration, and never in place of Python's or of others'."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from persia_hpc.cli import main
from persia_hpc.config import load_config
from persia_hpc.errors import UserError
from persia_hpc.launch.mpiexec import MPI_PYTHON
from persia_hpc.user_objects import load_object, module_file, named_code
from tests.support.mpi import environment


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory; what a test imports from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("mine"):
            del sys.modules[name]


@pytest.fixture
def elsewhere(folder: Path) -> Path:
    """A folder on Python's path, as of installed packages."""
    other = folder / "site"
    other.mkdir()
    sys.path.insert(0, str(other))
    return other


def test_the_named_module_comes_from_the_current_directory_first(folder: Path, elsewhere: Path) -> None:
    (elsewhere / "mine_a.py").write_text("x = 'installed'\n")
    (folder / "mine_a.py").write_text("x = 'here'\n")
    assert module_file("mine_a:x") == str(folder / "mine_a.py")
    assert load_object("mine_a:x", "model") == "here"


def test_what_it_imports_comes_from_there_last(folder: Path, elsewhere: Path) -> None:
    (elsewhere / "mine_installed.py").write_text("x = 'installed'\n")
    (folder / "mine_installed.py").write_text("raise SystemExit('imported from the current directory')\n")
    (folder / "colorsys.py").write_text("raise SystemExit('imported from the current directory')\n")
    (folder / "mine_helper.py").write_text("x = 'here'\n")
    (folder / "mine_later.py").write_text("x = 'later'\n")
    (folder / "mine_b.py").write_text(
        "import colorsys, mine_installed, mine_helper\n"
        "x = mine_installed.x, mine_helper.x\n"
        "def later():\n    import mine_later\n    return mine_later.x\n"
    )
    sys.modules.pop("colorsys", None)
    assert load_object("mine_b:x", "model") == ("installed", "here")
    later = load_object("mine_b:later", "model")
    assert callable(later)
    assert later() == "later"  # imported long after the module itself


def test_packages_and_plain_folders(folder: Path) -> None:
    (folder / "mine_package").mkdir()
    (folder / "mine_package" / "__init__.py").write_text("")
    (folder / "mine_package" / "part.py").write_text("from . import other\nx = other.x\n")
    (folder / "mine_package" / "other.py").write_text("x = 1\n")
    (folder / "mine_folder").mkdir()
    (folder / "mine_folder" / "part.py").write_text("x = 2\n")
    assert module_file("mine_package.part:x") == str(folder / "mine_package" / "__init__.py")
    assert module_file("mine_folder.part:x") == str(folder / "mine_folder")
    assert module_file("mine_absent:x") == ""
    assert load_object("mine_package.part:x", "model") == 1
    assert load_object("mine_folder.part:x", "model") == 2


def test_a_module_from_elsewhere_opens_no_door_to_the_current_directory(
    folder: Path, elsewhere: Path
) -> None:
    (elsewhere / "mine_c.py").write_text(
        "try:\n    import mine_optional\nexcept ImportError:\n    mine_optional = None\n"
    )
    (folder / "mine_optional.py").write_text("raise SystemExit('imported from the current directory')\n")
    assert load_object("mine_c:mine_optional", "model") is None
    assert str(folder) not in sys.path


def test_a_module_with_the_name_of_pythons_own_is_told(folder: Path) -> None:
    (folder / "colorsys.py").write_text("class Model: ...\n")
    with pytest.raises(UserError, match=r"no 'Model'; it is a module of Python's own; give yours another"):
        load_object("colorsys:Model", "model")


def test_a_module_that_fails_can_be_mended_and_loaded(folder: Path) -> None:
    (folder / "mine_d.py").write_text("raise RuntimeError('no')\n")
    with pytest.raises(UserError, match=r"RuntimeError: no"):
        load_object("mine_d:x", "model")
    assert "mine_d" not in sys.modules
    (folder / "mine_d.py").write_text("x = 'now it is longer'\n")
    assert load_object("mine_d:x", "model") == "now it is longer"


TRAP = "import os\nos.write(2, b'TRAPPED ' + __name__.encode() + b'\\n')\nos._exit(99)\n"
# Modules of Python and of packages that commands import after they have started, and optional ones.
TRAPS = ("csv", "json", "queue", "glob", "socket", "pickle", "secrets", "numpy", "h5py", "torch", "polars")
TRAPS += ("mpi4py", "horovod", "hdf5plugin", "runpy", "cupy", "matplotlib", "pyarrow", "tomllib")


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    for name in TRAPS:
        (tmp_path / f"{name}.py").write_text(TRAP)
    return tmp_path


@pytest.mark.parametrize("arguments", ["inspect x.h5", "predict . --data x --out y.csv"])
def test_commands_import_nothing_from_the_current_directory(trapped: Path, arguments: str) -> None:
    program = f"import sys; sys.path[0] = {str(Path(sys.executable).parent)!r}\n"  # as of a console script
    program += f"from persia_hpc.cli import main\nsys.exit(main({arguments.split()!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=trapped, env=environment(), text=True, capture_output=True
    )
    assert "TRAPPED" not in done.stderr
    assert done.returncode == 2, done.stderr


def test_a_rank_imports_nothing_from_the_current_directory(trapped: Path) -> None:
    command = [*MPI_PYTHON, "-m", "persia_hpc.job.rank_main", "--run-dir", "absent"]
    done = subprocess.run(command, cwd=trapped, env=environment(), text=True, capture_output=True)
    assert "TRAPPED" not in done.stderr
    assert "absent/config.toml" in done.stderr


def test_the_command_line_leaves_the_path_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(sys.path)
    assert main(["inspect", "absent.h5"]) == 2
    assert sys.path == before
    assert os.getcwd() not in sys.path


@pytest.mark.parametrize(
    ("key", "path", "named"),
    [
        ("model.class", "mine:Net", "model"),
        ("data.transform", "mine:change", "data.transform"),
        ("train.loss", "mine:loss", "train.loss"),
        ("train.metrics", ["mine:recall"], "train.metrics"),
        ("train.metrics", ["auc"], None),
    ],
)
def test_a_configuration_says_which_code_it_names(key: str, path: str | list[str], named: str | None) -> None:
    given = {"data": {"train": ["train.h5"]}, "model": {"class": "dlrm"}}
    assert named_code(load_config(given)) == {}
    found = named_code(load_config(given, {key: path}))
    assert found == ({} if named is None else {named: path if isinstance(path, str) else path[0]})
