"""The pages' links lead somewhere, examples of configuration and Python are accepted, lines are short."""

from __future__ import annotations

import ast
import builtins
import re
from pathlib import Path

import pytest

from persia_hpc.config import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "slurm/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "datasets").glob("*/README.md")),
]
LINE = 120  # characters of a line that isn't a table's
CELL = 400  # characters of a table's cell


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def links(text: str) -> list[str]:
    """Targets of all inline links and images outside code blocks, without those of other sites."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [t for t in targets if not re.match(r"[a-z]+:", t)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_relative_links_lead_to_files(page: Path) -> None:
    for target in links(page.read_text()):
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), f"{page.name} links to {target}, which doesn't exist"
        if anchor:
            assert anchor in anchors(found), f"{page.name} links to {target}: no such heading"


def test_readme_links_to_every_page() -> None:
    linked = {t.partition("#")[0] for t in links((ROOT / "README.md").read_text())}
    assert {f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")} <= linked


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_examples_compile(page: Path) -> None:
    for number, block in enumerate(blocks(page, "python")):
        compile(block, f"{page.name}, example {number + 1}", "exec")


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_examples_import_what_they_use(page: Path) -> None:
    for number, block in enumerate(blocks(page, "python")):
        nodes = list(ast.walk(ast.parse(block)))
        known = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
        known |= {n.arg for n in nodes if isinstance(n, ast.arg)}
        known |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                known |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        used = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        unknown = used - known - set(dir(builtins))
        assert not unknown, f"{page.name}, example {number + 1}: {unknown} must be imported or made"


@pytest.mark.parametrize("name", ["README.md", "docs/configuration.md"])
def test_whole_configurations_are_accepted(name: str, tmp_path: Path) -> None:
    whole = [b for b in blocks(ROOT / name, "toml") if "[data]" in b]
    assert whole, f"{name} has an example of a whole configuration"
    for block in whole:
        file = tmp_path / "train.toml"
        file.write_text(block)
        load_config(file)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_lines_and_cells_are_short(page: Path) -> None:
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("|"):
            longest = max(len(cell.strip()) for cell in line.strip("|").split("|"))
            assert longest <= CELL, f"{page.name}:{number}: a cell of {longest} characters; move prose out"
        else:
            assert len(line) <= LINE, f"{page.name}:{number}: {len(line)} characters"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_files_of_the_repository_that_a_page_names_exist(page: Path) -> None:
    made_by_readers = re.compile(r"foo|my_model|make_clicks|job\.sbatch")
    folders = [
        ROOT / name
        for name in ("src/persia_hpc", "native", "tests", "tools", "benchmarks", "slurm", "datasets")
    ]
    known = [path.as_posix() for folder in folders for path in folder.rglob("*.*")]
    for name in re.findall(r"`([\w/.]+\.(?:py|pyi|h|cpp|cu|sh|sbatch))`", page.read_text()):
        assert made_by_readers.search(name) or any(path.endswith(f"/{name}") for path in known), name


def test_every_target_of_make_that_a_page_names_has_a_rule() -> None:
    """A name that is only .PHONY does nothing, and `make` says that nothing is to be done."""
    rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = "\n".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"(?:`|^|  )make ([a-z][\w-]*)", pages, re.MULTILINE))
    assert {"errors", "test", "wheel"} <= named <= rules
