"""Containers and recipes: they name what the package needs, and the tools that they are for can read them.

The tools are the extra `packaging`; without one its test is skipped.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTAINERFILE = ROOT / "containers" / "Containerfile"
DEFINITION = ROOT / "containers" / "persia-hpc.def"
SPACK = ROOT / "packaging" / "spack" / "package.py"
(EASYCONFIG,) = (ROOT / "packaging" / "easybuild").glob("*.eb")
CONDA = ROOT / "packaging" / "conda" / "recipe.yaml"
PROJECT = (ROOT / "pyproject.toml").read_text()
VERSION = re.search(r'^version = "(.+)"$', PROJECT, re.MULTILINE)


def requirements() -> dict[str, str]:
    """The least version of each package that this one depends on."""
    text = PROJECT.partition("dependencies = [")[2].partition("]")[0]
    return dict(re.findall(r'"([a-z0-9]+)>=([\d.]+)', text))


def test_requirements_are_found() -> None:
    assert requirements()["mpi4py"] == "4.0"
    assert len(requirements()) >= 6


def test_spack_asks_for_the_same() -> None:
    calls = [node for node in ast.walk(ast.parse(SPACK.read_text())) if isinstance(node, ast.Call)]
    asked = {call.args[0].value for call in calls if getattr(call.func, "id", "") == "depends_on"}
    for name, version in requirements().items():
        assert f"py-{name}@{version}:" in asked
    assert {"mpi", "cxx", "python@3.10:"} <= asked


def test_conda_asks_for_the_same() -> None:
    text = CONDA.read_text()
    assert VERSION is not None
    assert f'version: "{VERSION[1]}"' in text
    for name, version in requirements().items():
        assert f"    - {'pytorch' if name == 'torch' else name} >={version}\n" in text


def test_easybuild_is_for_this_version() -> None:
    assert VERSION is not None
    assert EASYCONFIG.name.startswith(f"persia-hpc-{VERSION[1]}-")
    text = EASYCONFIG.read_text()
    for name in {*requirements()} - {"numpy", "tomli", "torch"}:  # in SciPy-bundle, Python 3.12, PyTorch
        assert f"('{name}', " in text
    assert "('PyTorch', " in text


def test_containers_take_what_there_is() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", CONTAINERFILE.read_text(), re.MULTILINE)
    copied = [name for names in copied for name in names.split()]
    files = DEFINITION.read_text().partition("%files\n")[2].partition("\n\n")[0]
    assert sorted(copied) == sorted(line.split()[0] for line in files.splitlines())
    kept = re.findall(r"^!(.+)$", (ROOT / ".containerignore").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(kept)
    assert all((ROOT / name).exists() for name in copied)


def test_containers_have_the_tested_torch() -> None:
    tested = re.search(r"^TORCH_SPEC \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert tested is not None
    for path in (CONTAINERFILE, DEFINITION):
        assert set(re.findall(r"torch==[\d.]+", path.read_text())) == {tested[1]}


def test_scripts_of_the_image_are_shell() -> None:
    text = re.sub(r"\{\{ *\w+ *\}\}", "X", DEFINITION.read_text())
    scripts = re.findall(r"^%(?:post|runscript|environment|test)\n((?:    .*\n)+)", text, re.MULTILINE)
    assert len(scripts) == 5
    for script in scripts:
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_spython_reads_the_image() -> None:
    parsers = pytest.importorskip("spython.main.parse.parsers")
    stages = parsers.get_parser("singularity")(str(DEFINITION)).recipe
    assert list(stages) == ["build", "final"]
    assert any("pip wheel" in line for line in stages["build"].install)


EASYBUILD = """
import sys
from easybuild.tools.options import set_up_configuration
set_up_configuration(args=["--allow-use-as-root-and-accept-consequences"], silent=True)
from easybuild.framework.easyconfig.parser import EasyConfigParser
parsed = EasyConfigParser(sys.argv[1]).get_config_dict()
print(parsed["name"], parsed["version"], parsed["exts_list"][-1][0], parsed["easyblock"])
"""


def test_easybuild_reads_its_recipe(tmp_path: Path) -> None:
    pytest.importorskip("easybuild.framework")
    done = subprocess.run(
        [sys.executable, "-c", EASYBUILD, str(EASYCONFIG)],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=True,
    )
    assert VERSION is not None
    assert done.stdout.splitlines()[-1] == f"persia-hpc {VERSION[1]} persia-hpc PythonBundle"


def test_rattler_build_reads_the_recipe() -> None:
    rattler_build = pytest.importorskip("rattler_build")
    recipe = rattler_build.Stage0Recipe.from_file(str(CONDA)).to_dict()
    assert recipe["package"]["name"] == "persia-hpc"
