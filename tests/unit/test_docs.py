"""The pages' links lead somewhere, and the examples of configuration and Python are accepted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from persia_hpc.config import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
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


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_examples_compile(page: Path) -> None:
    for number, block in enumerate(blocks(page, "python")):
        compile(block, f"{page.name}, example {number + 1}", "exec")


@pytest.mark.parametrize("name", ["README.md", "docs/configuration.md"])
def test_whole_configurations_are_accepted(name: str, tmp_path: Path) -> None:
    whole = [b for b in blocks(ROOT / name, "toml") if "[data]" in b]
    assert whole, f"{name} has an example of a whole configuration"
    for block in whole:
        file = tmp_path / "train.toml"
        file.write_text(block)
        load_config(file)
