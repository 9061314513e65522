"""The stub and the module: the same names and arguments, and every one of them says what it does."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import persia_hpc

MODULES = ("_native", "_cuda")


def load(name: str) -> Any:
    if name == "_cuda":
        return pytest.importorskip("persia_hpc._cuda", reason="built without nvcc")
    return importlib.import_module(f"persia_hpc.{name}")


def stub(name: str) -> ast.Module:
    source = Path(__file__).parents[2] / "src" / "persia_hpc" / f"{name}.pyi"
    if not source.exists():
        source = Path(persia_hpc.__file__).with_name(f"{name}.pyi")
    return ast.parse(source.read_text())


def stub_members(nodes: list[ast.stmt]) -> dict[str, list[str] | None]:
    """Public names with the names of their arguments, None for what is no function."""
    found: dict[str, list[str] | None] = {}
    for node in nodes:
        if isinstance(node, ast.FunctionDef):
            arguments = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
            found[node.name] = None if node.decorator_list else arguments
        elif isinstance(node, ast.ClassDef):
            found[node.name] = None
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = None
        elif isinstance(node, ast.ImportFrom) and node.module == "_native":
            origin = stub_members(stub("_native").body)
            found |= {alias.name: origin[alias.name] for alias in node.names}
    return {name: arguments for name, arguments in found.items() if not re.match(r"_[^_]", name)}


def signature_of(function: Any) -> list[str]:
    """Names of the arguments, which pybind11 puts on the first line of the docstring."""
    inside = function.__doc__.split("\n")[0].partition("(")[2].rpartition(") ->")[0]
    while re.search(r"\[[^\[\]]*\]", inside):  # types may have commas
        inside = re.sub(r"\[[^\[\]]*\]", "", inside)
    return [part.split(":")[0].split("=")[0].strip() for part in inside.split(",") if part.strip(" *")]


def text_of(member: Any) -> str:
    """The docstring without pybind11's signature."""
    doc = inspect.getdoc(member) or ""
    return doc.partition("\n\n")[2] if re.match(r"\w+\(.*\) ->", doc) else doc


@pytest.mark.parametrize("name", MODULES)
def test_module_and_stub_agree_and_explain_themselves(name: str) -> None:
    module, tree = load(name), stub(name)
    expected = stub_members(tree.body)
    assert set(expected) == {n for n in vars(module) if not n.startswith("_")}
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    checked = 0
    for owner, members in [(module, expected)] + [
        (getattr(module, n), stub_members(node.body)) for n, node in classes.items()
    ]:
        if owner is not module:
            public = {n for n in vars(owner) if not n.startswith("_")}
            assert {n for n in members if not n.startswith("_")} == public, owner
        for member, arguments in members.items():
            found = getattr(owner, member)
            if isinstance(found, int):
                continue
            if not (isinstance(found, property) and owner.__name__ == "TableConfig"):
                first = text_of(found).split("\n")[0]
                assert re.fullmatch(r"\S.*[.)]", first), f"{owner.__name__}.{member}: {first!r} tells nothing"
            if arguments is not None and owner.__name__ != "TableConfig":
                assert signature_of(found) == arguments, f"{owner.__name__}.{member}"
                checked += 1
    assert checked >= (40 if name == "_native" else 3)
