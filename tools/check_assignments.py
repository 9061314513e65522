"""Checks that no object is given attributes from outside (docs/developing.md, "Layout").

    python tools/check_assignments.py [REPOSITORY]        prints each breach, exit code 1 if there is any

An attribute is assigned by its own object, or by the function that has just made the object. What else is
allowed is data: records of counts and of one batch, which have no behaviour that could be surprised.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path("src") / "persia_hpc"
# The last name before the attribute -> what it is. A dataclass without invariants, or another library's.
RECORDS = {
    "batch": "a KeyBatch, filled hop by hop",
    "row_batch": "a RowBatch, whose rows are completed before it is embedded",
    "pull": "a PendingPull, whose slots are known once it is answered",
    "ledger": "the counts of a server",
    "state": "a RunState, shared by a session and those who decide with it",
    "_state": "the same",
    "tally": "counts of a comparison",
    "done": "counts of an export",
    "report": "what a verification has found",
    "sharding": "what is known of the pieces of input, step by step",
    "ctx": "torch's autograd context",
    "flags": "NumPy's",
    "fallocate": "a function of ctypes",
}
# Attributes of other libraries' objects that are set by their users.
ATTRIBUTES = {"grad"}  # of torch's parameters


def check(root: Path) -> list[str]:
    """Returns all breaches in a repository, as 'path:line: what, why'."""
    found: list[str] = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                made = _made(node)
                for line, target in _assigned(node):
                    if not _is_own(target, made):
                        what = ast.unparse(target)
                        where = path.relative_to(root).as_posix()
                        found.append(f"{where}:{line}: assigns {what}; let its object do that in a method")
    return sorted(set(found))


def _is_own(target: ast.Attribute, made: set[str]) -> bool:
    owner = target.value
    if target.attr in ATTRIBUTES:
        return True
    if isinstance(owner, ast.Name):
        return owner.id in {"self", "cls", *made, *RECORDS}
    return isinstance(owner, ast.Attribute) and owner.attr in RECORDS


def _made(function: ast.AST) -> set[str]:
    """Returns the names that a function binds to what a call returned."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def _assigned(function: ast.AST) -> Iterator[tuple[int, ast.Attribute]]:
    for node in ast.walk(function):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            for each in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
                if isinstance(each, ast.Attribute):
                    yield node.lineno, each


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    found = check(root)
    print("\n".join(found) if found else "assignments: kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
