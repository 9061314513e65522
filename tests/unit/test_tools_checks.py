"""Docstrings and assignments keep their rules, and the checkers notice each kind of breach."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DOCSTRINGS, ASSIGNMENTS = load("check_docstrings"), load("check_assignments")


def check(checker: ModuleType, folder: Path, text: str) -> list[str]:
    (folder / "src" / "persia_hpc").mkdir(parents=True)
    (folder / "src" / "persia_hpc" / "x.py").write_text(text)
    return checker.check(folder)


@pytest.mark.parametrize("checker", [DOCSTRINGS, ASSIGNMENTS])
def test_the_repository_keeps_the_rules(checker: ModuleType) -> None:
    assert checker.check(ROOT) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1", "module: got no docstring"),
        ('"""Has x."""\ndef f():\n    """Of rows."""', "a verb first"),
        ('"""Has x."""\ndef f():\n    """Rows of a table."""', "a verb first"),
        ('"""Has x."""\ndef f(): pass', "f: got no docstring"),
        ('"""Has x."""\nclass A:\n    """Is a."""\n    def f(self): pass', "A.f: got no docstring"),
        ('"""Has x."""\ndef f():\n    """Does f."""\n    raise UserError("x")', "raises UserError"),
        ('"""Has x."""\ndef f():\n    """Does f.\n\n    Raises X.\n    Shapes: (B,)."""', "the order"),
        ('"""Has x."""\ndef f():\n    """Does f. Collective over all."""', "inside a line"),
        ('"""Has x."""\ndef f():\n    """Does f with a long\n    list.\n    """', "ends in its first line"),
    ],
)
def test_a_docstring_that_breaks_a_rule_is_found(tmp_path: Path, text: str, reason: str) -> None:
    found = check(DOCSTRINGS, tmp_path, text)
    assert any(reason in line for line in found), found


@pytest.mark.parametrize(
    "text",
    [
        '"""Has x."""\ndef _f(): pass\nclass A:\n    """Is a. See `B`."""\n    def f(self): pass',
        '"""Has x."""\ndef f():\n    """Does f.\n\n    Raises UserError.\n    """\n    raise UserError("x")',
    ],
)
def test_docstrings_that_keep_the_rules_pass(tmp_path: Path, text: str) -> None:
    assert check(DOCSTRINGS, tmp_path, text) == []


@pytest.mark.parametrize(
    "line",
    [
        "session.saver = 1",
        "self.server.clock.last = 1",
        "dog.describe, x = 1, 2",
        "self.driver.loggers += []",
    ],
)
def test_an_assignment_from_outside_is_found(tmp_path: Path, line: str) -> None:
    assert len(check(ASSIGNMENTS, tmp_path, f"def f(self, session, dog):\n    {line}\n")) == 1


@pytest.mark.parametrize(
    "line", ["self.saver = 1", "made = A()\n    made.saver = 1", "self.ledger.rows += 1"]
)
def test_an_objects_own_assignment_passes(tmp_path: Path, line: str) -> None:
    assert check(ASSIGNMENTS, tmp_path, f"def f(self):\n    {line}\n") == []


def test_unit_and_native_tests_are_named_after_what_they_test() -> None:
    package = ROOT / "src" / "persia_hpc"
    places = [path.relative_to(package).with_suffix("") for path in package.rglob("*.py")]
    names = {"_".join(part for part in place.parts if part != "__init__") for place in places}
    named = {name for name in names if name} | {"docs", "packaging", "tools"}
    sources = {path.stem for path in (ROOT / "native" / "include" / "persia").glob("*.h")}
    sources |= {"native_stub", "arguments"}  # of the module as a whole
    for folder, known in (("unit", named), ("native", sources)):
        for path in (ROOT / "tests" / folder).glob("test_*.py"):
            name = path.stem.removeprefix("test_")
            assert any(name == each or name.startswith(f"{each}_") for each in known), path.name
