"""Checks that docstrings can be understood without the code (docs/developing.md, "Docstrings").

    python tools/check_docstrings.py [REPOSITORY]        prints each fault, exit code 1 if there is any

Each public module, class, function and method says in its first line, a full clause, what it is or does. What
a contract holds besides stands in labelled lines, in this order: Shapes, Collective over, Raises.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path("src") / "persia_hpc"
LABELS = ("Shapes:", "Collective over", "Raises")
ERRORS = {"UserError", "DataError", "PersiaError"}
# Words that end like a verb of the third person and are none, at the beginning of a sentence.
NO_VERBS = {
    *(
        "Across",
        "Always",
        "Args",
        "As",
        "Batches",
        "Bytes",
        "Columns",
        "Counters",
        "Counts of",
        "Errors",
        "Features",
    ),
    *(
        "Files",
        "Gradients",
        "Ids",
        "Its",
        "Keys",
        "Labels",
        "Less",
        "Names",
        "Options",
        "Parts",
        "Perhaps",
        "Ranks",
    ),
    *(
        "Rows",
        "Samples",
        "Seconds",
        "Settings",
        "Signals",
        "Steps",
        "Tables",
        "Tensors",
        "This",
        "Values",
        "Words",
    ),
}
DOCUMENTED = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def check(root: Path) -> list[str]:
    """Returns all faults in a repository, as 'path:line: what, got, expected'."""
    found: list[str] = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        where = path.relative_to(root).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        if tree.body:
            found += [f"{where}:{line}: {text}" for line, text in _module_faults(tree)]
    return found


def _module_faults(tree: ast.Module) -> Iterator[tuple[int, str]]:
    text = ast.get_docstring(tree)
    if text is None:
        yield 1, "module: got no docstring, expected a sentence on what it holds or does"
    elif not _first_line(text).endswith((".", ":")):
        yield 1, f"module: got {_first_line(text)!r}, expected a sentence that ends in its first line"
    for node in tree.body:
        if isinstance(node, DOCUMENTED):
            yield from _faults(node, "")


def _faults(node: DOCUMENTED, owner: str, *, documented: bool = False) -> Iterator[tuple[int, str]]:
    """Yields the faults of a definition; `documented`: of a method whose protocol says what it does."""
    if node.name.startswith("_"):
        return
    name, text = owner + node.name, ast.get_docstring(node)
    if text is None:
        if not documented and not _is_overload(node):
            yield node.lineno, f"{name}: got no docstring, expected a clause with a verb"
    else:
        yield from ((node.lineno, f"{name}: {fault}") for fault in _text_faults(text))
    if isinstance(node, ast.ClassDef):
        protocol = text is not None and "See `" in text
        for inner in node.body:
            if isinstance(inner, DOCUMENTED):
                yield from _faults(inner, f"{name}.", documented=protocol)
    elif text is not None and not re.search(r"^ *Raises\b", text, re.M) and (raised := _raised(node)):
        yield node.lineno, f"{name}: raises {raised}, expected a line that begins with Raises"


def _text_faults(text: str) -> Iterator[str]:
    first = _first_line(text)
    word = first.split(maxsplit=1)[0].rstrip(",:") if first else ""
    if not re.fullmatch(r"[A-Z][a-z]*s", word) or word in NO_VERBS:
        yield f"got {first[:60]!r}, expected a verb first: Returns, Writes, Holds, Is, ..."
    if not first.endswith((".", ":", ";")) and not re.search(r"[.;:] |\.$", first):
        yield f"got {first[-60:]!r}, expected a sentence that ends in its first line"
    last = text.rstrip().rpartition("\n")[2].strip()
    if "\n" in text and re.fullmatch(r"\w+\.", last):
        yield f"got {last!r} alone in the last line"
    order = [
        i for line in text.splitlines() for i, label in enumerate(LABELS) if line.strip().startswith(label)
    ]
    if order != sorted(order):
        yield f"got {', '.join(LABELS[i] for i in order)}, expected the order {', '.join(LABELS)}"
    for label in re.findall(r"(?<=\S) (?:Collective over|Collective\.|Raises [A-Z]\w+Error)", text):
        yield f"got {label.strip()!r} inside a line, expected it to begin one"
    if re.search(r"^ *Collective\.", text, re.M):
        yield "got 'Collective.', expected 'Collective over' and whom"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()


def _is_overload(node: DOCUMENTED) -> bool:
    return any("overload" in ast.unparse(d) or "setter" in ast.unparse(d) for d in node.decorator_list)


def _raised(node: ast.AST) -> str:
    """Returns the name of an error of ours that a function raises itself, '' if none."""
    pending = list(ast.iter_child_nodes(node))
    while pending:
        inner = pending.pop()
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(inner, ast.Raise) and isinstance(inner.exc, ast.Call):
            name = ast.unparse(inner.exc.func)
            if name in ERRORS:
                return name
        pending += ast.iter_child_nodes(inner)
    return ""


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    found = check(root)
    print("\n".join(found) if found else "docstrings: kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
