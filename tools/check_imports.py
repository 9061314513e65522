"""Holds the directions in which the parts of the package may know each other (docs/developing.md, "Layout").

    python tools/check_imports.py [REPOSITORY]        prints each violation, exit code 1 if there is any

Imports under `if TYPE_CHECKING` don't count for directions, since nothing is loaded by them, but they do for
circles.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

PACKAGE = "persia_hpc"
MODELS_MAY = tuple(f"{PACKAGE}.trainer.{name}" for name in ("batch", "jagged", "retrieval"))
MAX_LINES = 400
ROLES = ("embedding_worker", "parameter_server", "trainer")

# Who puts the roles together; nobody else may know more than one of them.
COMPOSERS = ("job/*", "bench/*")
# Who knows a single role besides, and why: `checkpoint verify` opens what a trainer has saved.
KNOWS_ONE_ROLE = ("commands/checkpoint.py",)

# Package from outside -> the only files that may import it (paths below src/persia_hpc), and why.
ALLOWED = {
    "torch": (
        # checkpoint/foreign.py: a state dict is a file of torch's, and is read only where one is named.
        # reporting: TensorBoard's files are written by torch's own writer, on trainer 0.
        (
            *("trainer/*", "models/*", "bench/*", "job/*"),
            *("checkpoint/foreign.py", "reporting/exporters.py"),
        ),
        "servers and workers must start without paying for it",
    ),
    "horovod": (("trainer/dense/horovod_sums.py",), "jobs must work without it"),
    "mpi4py": (
        (
            "topology/communicators.py",
            "transport/*",
            "*/serve.py",
            "trainer/dense/mpi_sums.py",  # AllReduce between nodes, without Horovod
            "job/*",
            "commands/*",
            "launch/*",
            "bench/*",
        ),
        "engines, samples, models and configuration work without MPI",
    ),
    "h5py": (
        ("samples/*", "preprocess/*", "checkpoint/*", "job/predictions.py", "bench/*"),
        "file formats have one home",
    ),
    "hdf5plugin": (("samples/*", "checkpoint/*"), "file formats have one home"),
    "polars": (
        # Parquet: for `checkpoint export` and `predict`, for data that are read as they are, to measure that.
        (
            "preprocess/*",
            "checkpoint/export.py",
            "checkpoint/foreign.py",  # --init-from
            "job/predictions.py",
            "samples/parquet.py",
            "bench/read.py",
        ),
        "training on HDF5 must not depend on a table parser",
    ),
    "sklearn": ((), "it is a reference for tests"),
    "scipy": ((), "it is not a dependency"),
    "pandas": ((), "it is not a dependency"),
}

# Part of the package -> the files besides its own that may import it.
WHO_KNOWS = {
    # samples/parquet.py: what a table's columns become must be one code, whether it is written or read.
    "preprocess": ("cli.py", "commands/*", "samples/parquet.py"),
    "commands": ("cli.py", "commands/*"),
    "bench": ("commands/bench.py", "commands/plan.py"),
    "launch": ("api.py", "cli.py", "commands/*", *COMPOSERS),
    "cli": (),  # the entry point of the command
}

# Pure modules: what they may import of the package, and no third-party package at all.
PURE = {
    "schedule.py": ("config", "errors"),
    "config/learning_rate.py": (),
    "topology/roles.py": ("errors",),
    "topology/sharding.py": ("errors",),
}


def check(root: Path) -> list[str]:
    """All violations in a repository, as 'path:line: what, why'."""
    source = root / "src" / PACKAGE
    found: list[str] = []
    for path in sorted(source.rglob("*.py")):
        name = path.relative_to(source).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for line, module in _imports(tree, name):
            problem = _problem(name, module)
            if problem:
                found.append(f"{path.relative_to(root)}:{line}: {problem}")
        if not name.startswith("transport/"):
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and node.attr == "Win" and _is_mpi(node.value):
                    found.append(f"{path.relative_to(root)}:{node.lineno}: MPI.Win outside transport/")
    found += [f"src/{PACKAGE}:1: circle of imports: {', '.join(circle)}" for circle in circles(source)]
    found += _check_native(root)
    for folder in ("src", "native", "tools", "tests", "benchmarks", "datasets"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in {".py", ".pyi", ".cpp", ".h", ".cu", ".cuh", ".sh"}:
                lines = len(path.read_text(encoding="utf-8").splitlines())
                if lines > MAX_LINES and path.name != "_native.pyi":  # one module has one stub
                    found.append(f"{path.relative_to(root)}:1: {lines} lines; split files over {MAX_LINES}")
    return found


def circles(source: Path) -> list[list[str]]:
    """Returns the groups of modules that import each other, each sorted by name.

    Imports in functions and under `if TYPE_CHECKING` count too: a module that names another's types can't be
    read or moved without it. A package's `__init__` is a module like any other.
    """
    files = {
        _module(path.relative_to(source)): path
        for path in sorted(source.rglob("*.py*"))
        if path.suffix in {".py", ".pyi"}
    }
    return _components({name: _imported(name, path, files) for name, path in files.items()})


def _module(path: Path) -> str:
    parts = [PACKAGE, *path.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(name: str, path: Path, files: dict[str, Path]) -> set[str]:
    """Returns the modules of the package that a file imports anywhere, itself left out."""
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                below = f"{module}.{alias.name}"
                found.add(below if below in files else module)
    return (found & files.keys()) - {name}


def _components(imports: dict[str, set[str]]) -> list[list[str]]:
    """Returns the strongly connected components with more than one module."""
    reached = {name: _reach(name, imports) for name in imports}
    groups = {
        tuple(sorted({name} | {other for other in reached[name] if name in reached[other]}))
        for name in imports
    }
    return [list(group) for group in sorted(groups) if len(group) > 1]


def _reach(start: str, imports: dict[str, set[str]]) -> set[str]:
    """Returns all modules that a module imports, directly or by way of others."""
    seen: set[str] = set()
    pending = [start]
    while pending:
        new = imports[pending.pop()] - seen
        seen |= new
        pending += new
    return seen


def _problem(name: str, module: str) -> str:
    """What is wrong with file `name` importing `module` ('' if nothing)."""
    top, _, rest = module.partition(".")
    if top != PACKAGE:
        if name in PURE and top not in sys.stdlib_module_names:
            return f"imports {module}; it is a pure module"
        files, why = ALLOWED.get(top, (("*",), ""))
        if not any(fnmatch(name, pattern) for pattern in files):
            return f"imports {module}; only {', '.join(files) or 'tests'} may: {why}"
        return ""
    part = rest.partition(".")[0]
    own = name.removesuffix(".py").partition("/")[0]
    if part == own or not part:
        return ""
    if name in PURE and part not in PURE[name]:
        return f"imports {module}; it is a pure module"
    if part in ROLES and not _fits(name, (*COMPOSERS, *KNOWS_ONE_ROLE)):
        if own in ROLES:
            return f"imports {module}; roles never import each other"
        # What models get and give is declared there.
        if not (own == "models" and module.startswith(MODELS_MAY)):
            return f"imports {module}; only {', '.join(COMPOSERS)} know the roles"
    if part in WHO_KNOWS and not _fits(name, WHO_KNOWS[part]):
        return f"imports {module}; only {', '.join(WHO_KNOWS[part]) or 'the command'} may"
    return ""


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _imports(tree: ast.Module, name: str) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import that runs, at any depth."""
    package = [PACKAGE, *name.split("/")[:-1]]
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import x` names modules of the package; elsewhere the module alone decides.
            inside = module == PACKAGE or (node.level and not node.module)
            yield from ((node.lineno, f"{module}.{a.name}" if inside else module) for a in node.names)


def _is_mpi(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "MPI"


NATIVE_RULES = (
    (re.compile(r'#\s*include\s*[<"]mpi\.h'), "", "the library knows no MPI"),
    (re.compile(r'#\s*include\s*[<"](torch|ATen|c10)/'), "", "the library knows no torch"),
    (
        re.compile(r'#\s*include\s*[<"](pybind11|Python\.h)'),
        "native/bindings",
        "only the bindings know Python",
    ),
    (re.compile(r"\b(getenv|setenv|putenv)\s*\("), "", "settings are arguments, not environment variables"),
)


def _check_native(root: Path) -> Iterator[str]:
    for path in sorted((root / "native").rglob("*")):
        if path.suffix not in {".cpp", ".h", ".cu", ".cuh"}:
            continue
        name = path.relative_to(root).as_posix()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for pattern, folder, why in NATIVE_RULES:
                if pattern.search(line) and not (folder and name.startswith(f"{folder}/")):
                    yield f"{name}:{number}: {line.strip()}: {why}"


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    found = check(root)
    print("\n".join(found) if found else "import rules: kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
