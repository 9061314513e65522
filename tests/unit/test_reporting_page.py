"""The page of a report: its numbers are those of summary.json, it needs nothing else, it can be read."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.reporting.page import html_page
from persia_hpc.reporting.run_record import RunRecord
from tests.support.recorded import SUMMARY, evaluate_event, some_events, train_event, write_record
from tests.support.tiny import tiny_config, write_tiny

LIMIT = 500_000  # bytes
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


class Numbers(HTMLParser):
    """Collects <data> and the cells of the table of all numbers."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.data: list[tuple[str, str, str]] = []  # name, exact value, as shown
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self._open: tuple[str, str] | None = None
        self._cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        if tag == "data":
            self._open = (str(given["data-name"]), str(given["value"]))
        elif tag == "tr":
            self.rows.append([])
        self._cell = tag in ("th", "td")
        if self._cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.data.append((*self._open, data))
            self._open = None
        if self._cell:
            self.rows[-1][-1] += data


def leaf(name: str) -> object:
    value: object = SUMMARY
    for key in name.split("."):
        assert isinstance(value, dict)
        value = value[key]
    return value


def test_every_number_equals_the_summary(tmp_path: Path) -> None:
    run = RunRecord(write_record(tmp_path / "run"))
    page = Numbers(html_page([run]))
    assert {
        "steps",
        "samples",
        "train_seconds",
        "valid.auc",
        "embedding.pulled_rows",
        "embedding.disk_rows",
    } <= {name for name, _, _ in page.data}
    for name, exact, shown in page.data:
        assert json.loads(exact) == leaf(name), name
        figures, _, unit = shown.replace(",", "").partition(" ")
        decimals = len(figures.partition(".")[2])
        size = UNITS.get(unit, 1)
        assert abs(float(figures) * size - float(exact)) <= 0.5000001 * size * 10**-decimals, (name, shown)
    everything = {row[0]: row[1] for row in page.rows if len(row) == 2}
    for name, value in run.leaves():
        assert everything[name] == (value if isinstance(value, str) else json.dumps(value))


def test_two_runs_stand_side_by_side(tmp_path: Path) -> None:
    runs = [
        write_record(tmp_path / "a"),
        write_record(tmp_path / "b", some_events(8000), {"status": "stopped"}),
    ]
    page = html_page([RunRecord(run) for run in runs])
    assert page.count('<h3><span class="key">') >= 4
    for chart in re.findall(r"<figcaption>train loss.*?</figure>", page, re.S):
        assert [chart.count(f'<polyline class="c{i}"') for i in (0, 1)] == [1, 1]
        assert str(tmp_path / "a") in chart
        assert str(tmp_path / "b") in chart
    rows = {row[0]: row[1:] for row in Numbers(page).rows if len(row) == 3}
    assert rows["status"] == ["completed", "stopped"]
    assert rows["steps"] == ["4321", "–"]


def test_the_page_is_one_file_that_obeys_no_text_of_a_run(tmp_path: Path) -> None:
    evil = '<script>alert(1)</script>"\x1b[31m'
    events = [*some_events(1000), {"event": "warning", "step": evil, "text": evil}]
    summary = {**SUMMARY, "mode": evil, "valid": {evil: 0.5}, "stop_reason": evil, evil: {evil: evil}}
    run = write_record(tmp_path / "run", events, summary)
    (run / "failure.json").write_text(json.dumps({"world_rank": evil, "message": evil}))
    page = html_page([RunRecord(run)])
    assert "alert(1)" in page
    assert not re.search(r"<script|https?:|url\(|@import|src=|href=|[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)
    assert set(Numbers(page).tags) <= {
        *(
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "h1",
            "h2",
            "h3",
            "section",
            "div",
            "p",
            "ul",
            "li",
        ),
        *(
            "dl",
            "dt",
            "dd",
            "data",
            "span",
            "figure",
            "figcaption",
            "svg",
            "line",
            "polyline",
            "circle",
            "rect",
        ),
        *("text", "table", "thead", "tr", "th", "td", "details", "summary", "footer"),
    }


def test_a_long_run_makes_no_larger_page(tmp_path: Path) -> None:
    many = {f"metric_{i}_of_a_long_name": 0.123456789 for i in range(40)}
    events = []
    for step in range(1, 20_001):
        events.append(train_event(step, 20_000, step / 3))
        if step % 4 == 0:
            events.append(evaluate_event(step, **many))
        if step % 10 == 0:
            events.append({"event": "warning", "step": step, "text": "x" * 1000})
    slices = {name: {str(i): {"samples": 1000, "auc": 0.123456789} for i in range(5000)} for name in "ab"}
    summary = {**SUMMARY, "valid": {**SUMMARY["valid"], **many, "slices": slices}}
    runs = [RunRecord(write_record(tmp_path / name, events, summary)) for name in ("a", "b")]
    assert len(html_page(runs).encode()) <= LIMIT


def test_a_run_without_anything_is_told_too(tmp_path: Path) -> None:
    run = write_record(tmp_path / "run", [], {})
    (run / "summary.json").unlink()
    (run / "metrics.jsonl").unlink()
    assert "the run hasn't ended" in html_page([RunRecord(run)])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, page = str(write_record(tmp_path / "run")), tmp_path / "page.html"
    assert main(["report", run, "--html", str(page)]) == 0
    assert page.read_text().startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == ["page.html"]
    (tmp_path / "run" / "summary.json").write_text("{")
    assert main(["report", run, run, "--html", str(page)]) == 3
    assert main(["report", run, run]) == 2
    assert main(["report", str(tmp_path), "--html", str(page)]) == 2
    assert main(["report", run, "--html", str(tmp_path)]) == 2
    assert main(["report", run, "--html", str(tmp_path / "none" / "page.html")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert all(line.startswith("persia-hpc: error: ") for line in errors)
    assert len(errors) == 5


def colours(css: str) -> list[dict[str, tuple[float, ...]]]:
    """The colours of the light and of the dark page, as relative luminances (WCAG 2.1)."""

    def luminance(text: str) -> float:
        parts = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    found = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{[^}]*\}", css)
    ]
    assert len(found) == 2
    return [{name: (luminance(text),) for name, text in each.items()} for each in found]


def test_colours_can_be_told_from_their_ground(tmp_path: Path) -> None:
    page = html_page([RunRecord(write_record(tmp_path / "run"))])
    for theme in colours(page):
        for ground in ("page", "card"):
            for name, least in (("ink", 7.0), ("muted", 4.5), ("bad", 4.5), ("c0", 4.5), ("c1", 4.5)):
                high, low = sorted((theme[name][0], theme[ground][0]), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= least, (name, ground)


LOOK = """
<script>
addEventListener("load", () => {
  const found = [], root = document.documentElement;
  if (root.scrollWidth > innerWidth) found.push("wider than the window: " + root.scrollWidth);
  const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
  for (const svg of document.querySelectorAll("svg.chart")) {
    const frame = svg.getBoundingClientRect();
    const boxes = [...svg.querySelectorAll("text")].map(text => text.getBoundingClientRect());
    boxes.forEach((box, i) => {
      if (box.left < frame.left - 1 || box.right > frame.right + 1) found.push("text leaves its chart");
      if (box.height < 10) found.push("text too small: " + box.height);
      for (const other of boxes.slice(i + 1)) if (!apart(box, other)) found.push("texts overlap");
    });
  }
  const cells = [...document.querySelectorAll("figure, .card, .tiles div, h1, h2, h3, li, p")];
  for (const cell of cells) {
    if (cell.scrollWidth > cell.clientWidth + 1) found.push("overflows: " + cell.textContent.slice(0, 60));
  }
  const framed = [...document.querySelectorAll("figure, .card, .tiles div")];
  const boxes = framed.map(e => e.getBoundingClientRect());
  boxes.forEach((box, i) => {
    for (const other of boxes.slice(i + 1)) if (!apart(box, other)) found.push("boxes overlap");
  });
  parent.document.title = "LOOKED " + innerWidth + " " + getComputedStyle(document.body).backgroundColor + " "
    + JSON.stringify(found);
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize(("dark", "ground"), [(False, "rgb(255, 255, 255)"), (True, "rgb(17, 22, 27)")])
def test_in_a_browser_nothing_overlaps(width: int, dark: bool, ground: str, tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "train.h5", 330)
    changes = {"checkpoint.every": 5, "train.epochs": 3, "metrics.every_seconds": 0.01}
    ph.train(tiny_config(data, run_dir=str(tmp_path / "real"), **changes), quiet=True)
    rates, warning = (
        {"train.schedule": {"name": "cosine"}},
        {"event": "warning", "step": 9, "text": "w " * 200},
    )
    folders = [
        write_record(tmp_path / "a", [*some_events(900), warning], **rates),
        write_record(tmp_path / "b", some_events(12345), **rates),
        tmp_path / "real",
    ]
    runs = [RunRecord(folder) for folder in folders]
    written = html_page(runs)
    for title in ("Memory and tables over time", "Checkpoints", "Warnings"):
        assert f"<h2>{title}</h2>" in written
    page = tmp_path / "page.html"
    inner = html.escape(written.replace("</body>", LOOK + "</body>"))
    # In a frame, since a headless window is never narrower than 500 pixels.
    page.write_text(
        '<html style="color-scheme: light dark"><title></title>'
        f'<iframe style="border: 0; width: {width}px; height: 3000px" srcdoc="{inner}"></iframe></html>'
    )
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,3000"]
    command += ["--blink-settings=preferredColorScheme=0"] * dark
    done = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120
    )
    title = re.search(r"<title>LOOKED (.*?)</title>", done.stdout)
    assert title is not None, done.stderr[-2000:]
    assert title[1] == f"{width} {ground} []"
