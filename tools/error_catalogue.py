"""Writes the catalogue of docs/errors.md: every message of an error that a user can meet, from the source.

    python tools/error_catalogue.py [REPOSITORY] [--write]   without --write: exit code 1 if the page is stale

A message is the text of a `PersiaError` (or of a subclass) where it is raised. What it is filled with is
shown in capitals: PATH, N. What the page has above the mark is written by people.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PAGE = Path("docs/errors.md")
MARK = "<!-- What follows is made by tools/error_catalogue.py: make errors -->"
SOURCE = Path("src/persia_hpc")
LEAST_LETTERS = 12  # of its own, that a message must have to be looked for
WIDTH = 118

# Chapters in the order in which a user comes by them, with beginnings of paths; the first that fits counts.
CHAPTERS: Mapping[str, tuple[str, ...]] = {
    "Configuration": ("config/", "user_objects", "tasks", "schedule", "table_layout"),
    "Preparing data": ("preprocess/", "commands/preprocess", "commands/init", "commands/inspect"),
    "Reading data": ("samples/", "arrays"),
    "Models and losses": ("models/", "trainer/losses", "trainer/metrics", "trainer/ranking"),
    "Checkpoints": (
        "checkpoint/",
        "commands/checkpoint",
        "trainer/restoring",
        "trainer/saving",
        "job/resume",
    ),
    "Exporting and serving": ("serving/", "commands/export", "trainer/exporting", "job/export_model"),
    "Looking at runs, planning, measuring": (
        *("reporting/", "cost_model/", "bench/", "job/planner", "job/importance", "job/predictions"),
        *(f"commands/{name}" for name in ("plan", "report", "bench", "importance", "predict", "status")),
    ),
    "Starting a job": ("launch/", "topology/", "transport/", "commands/", "cli", "job/agreement", "job/rank"),
    "Training": ("",),
}
EXIT_CODES = {"UserError": 2, "DataError": 3, "PersiaError": 1}


def catalogue(root: Path) -> dict[str, list[str]]:
    """Returns the messages of each chapter, in the order of files and lines."""
    source = root / SOURCE
    trees = {p.relative_to(source).as_posix(): _parsed(p) for p in sorted(source.rglob("*.py"))}
    codes = _error_classes(trees)
    makers = _makers(trees, codes)
    found: dict[str, dict[str, None]] = {chapter: {} for chapter in CHAPTERS}
    for name, tree in trees.items():
        chapter = next(c for c, begins in CHAPTERS.items() if name.startswith(begins))
        for error, message in _messages(tree, codes, {**makers[""], **makers.get(name, {})}):
            code = codes[error]
            found[chapter][message if code == 2 else f"{message} (exit code {code})"] = None
    return {chapter: list(messages) for chapter, messages in found.items()}


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _error_classes(trees: Mapping[str, ast.Module]) -> dict[str, int]:
    """Returns the exit code of each class of errors for users, by its name."""
    codes = dict(EXIT_CODES)
    classes = [n for tree in trees.values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    for _ in range(3):  # subclasses of subclasses
        for each in classes:
            for base in each.bases:
                if isinstance(base, ast.Name) and base.id in codes:
                    codes.setdefault(each.name, codes[base.id])
    return codes


@dataclass(frozen=True)
class Maker:
    """Holds a function that returns an error: `raise unreadable(path, error)`."""

    parameters: list[str]
    error: str
    text: ast.expr
    known: Mapping[str, ast.expr]


def _makers(trees: Mapping[str, ast.Module], codes: Mapping[str, int]) -> dict[str, dict[str, Maker]]:
    """Returns the functions that return errors, by file and name; those of any file under ""."""
    found: dict[str, dict[str, Maker]] = {"": {}}
    for name, tree in trees.items():
        for each in ast.walk(tree):
            for node in _own(each) if isinstance(each, ast.FunctionDef) else ():
                call = node.value if isinstance(node, ast.Return) else None
                if (error := _error(call, codes)) is not None and call.args:
                    parameters = [a.arg for a in (*each.args.args, *each.args.kwonlyargs) if a.arg != "self"]
                    made = Maker(parameters, error, call.args[0], _texts(each))
                    found.setdefault(name, {})[each.name] = found[""][each.name] = made
    return found


def _error(node: ast.AST | None, codes: Mapping[str, int]) -> str | None:
    """Returns the class of error that an expression makes, None if it makes none."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in codes:
        return node.func.id
    return None


def _messages(
    tree: ast.Module, codes: Mapping[str, int], makers: Mapping[str, Maker]
) -> Iterator[tuple[str, str]]:
    """Yields (class, message) for each place where an error is made."""
    places: list[tuple[int, str, str]] = []
    for scope in ast.walk(tree):
        if not isinstance(scope, ast.FunctionDef | ast.Module):
            continue
        returned = {id(n.value) for n in _own(scope) if isinstance(n, ast.Return)}
        for node in _own(scope):
            if not isinstance(node, ast.Call) or id(node) in returned:
                continue
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if called not in codes and called not in makers and called != "fail":
                continue
            known = _texts(scope, node.lineno)
            if (error := _error(node, codes)) is not None:
                text = _template(node.args[0], known, 4) if node.args else ""
            elif called == "fail" and len(node.args) == 2:  # of config/reader.py: a key and its problem
                error, text = "UserError", " ".join(_key_and_problem(node, known))
            elif (maker := makers.get(called)) is not None:
                error = maker.error
                given = dict(zip(maker.parameters, node.args, strict=False))
                given |= {k.arg: k.value for k in node.keywords if k.arg is not None}
                text = _template(maker.text, {**known, **maker.known, **given}, 4)
            else:
                continue
            text = re.sub(r"\.{4,}", "...", " ".join(text.split()).replace(" :", ":"))
            if len(re.sub(r"[A-Z_. ]", "", text)) >= LEAST_LETTERS:
                places.append((node.lineno, error, text))
    yield from ((error, text) for _, error, text in sorted(places))


def _key_and_problem(node: ast.Call, known: Mapping[str, ast.expr]) -> tuple[str, str]:
    path, problem = node.args
    parts = path.elts if isinstance(path, ast.Tuple) else [path]
    words = ["..." if isinstance(p, ast.Starred) else _template(p, known, 2) for p in parts]
    return ".".join(words).replace("....", "..."), _template(problem, known, 4)


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes of a scope without those of functions inside of it."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, ast.FunctionDef):
            yield child
            yield from _own(child)


def _texts(scope: ast.AST, before: int = 1 << 30) -> dict[str, ast.expr]:
    """Returns what names of a scope stand for, in front of a line."""
    found: dict[str, tuple[int, ast.expr]] = {}
    for node in _own(scope):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if (
                isinstance(node.value, ast.Constant | ast.JoinedStr | ast.BinOp | ast.IfExp)
                and found.get(name, (0,))[0] <= node.lineno < before
            ):
                found[name] = (node.lineno, node.value)
    return {name: value for name, (_, value) in found.items()}


def _template(node: ast.expr, known: Mapping[str, ast.expr], depth: int) -> str:
    """Returns the text that an expression makes, with capitals for what isn't known before."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part, known, depth) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _template(node.value, known, depth)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _template(node.left, known, depth) + _template(node.right, known, depth)
    if isinstance(node, ast.IfExp):
        sides = (_template(node.body, known, depth), _template(node.orelse, known, depth))
        return max(sides, key=len)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "printable":
        return _template(node.args[0], known, depth)
    if isinstance(node, ast.Name) and depth and node.id in known:
        return _template(known[node.id], known, depth - 1)
    return _hole(node)


def _hole(node: ast.expr) -> str:
    if isinstance(node, ast.Name | ast.Attribute):
        name = node.id if isinstance(node, ast.Name) else node.attr
        return name.strip("_").upper()
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len":
        return "N"
    return "..."


def page(root: Path) -> str:
    """Returns the page as it must be: what people wrote, then the catalogue."""
    head = (root / PAGE).read_text(encoding="utf-8").partition(MARK)[0]
    parts = [head + MARK]
    for chapter, messages in catalogue(root).items():
        lines = [f"## {chapter}", ""]
        for message in messages:
            shown = message.replace("`", "'").replace("<", "&lt;").replace("*", "\\*")
            lines += textwrap.wrap(
                shown,
                WIDTH,
                initial_indent="- ",
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> int:
    """Writes the page, or says whether it is stale."""
    write = "--write" in arguments
    folders = [each for each in arguments if each != "--write"]
    root = Path(folders[0]) if folders else Path(__file__).resolve().parents[1]
    text = page(root)
    if write:
        (root / PAGE).write_text(text, encoding="utf-8")
        return 0
    if (root / PAGE).read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE} isn't what the source says: run `make errors`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
