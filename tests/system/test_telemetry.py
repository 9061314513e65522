"""What ranks write down while they train agrees with the summary and reaches TensorBoard and loggers.

Its names are those of docs/monitoring.md.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import persia_hpc as ph
from persia_hpc.parameter_server.ledger import Ledger
from persia_hpc.runtime.phases import LOCAL_STREAM, SERVER, TRAINER, WORKER
from tests.support.cases import run_cases, settings, summary
from tests.support.tiny import write_tiny

OFTEN = {"metrics.every_seconds": 1e-4, "metrics.tensorboard": True, "metrics.prometheus": True}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "monitoring.md"
PLACES = {"event", "role", "rank", "step", "time"}
# Of a role's numbers in docs/monitoring.md: whose rows of the table are its own, and its phases.
ROLES = {
    "parameter_server": (("servers",), SERVER),
    "embedding_worker": (("workers",), WORKER),
    "trainer": (("trainers",), TRAINER),
    "one_process": (("servers", "trainers"), TRAINER + LOCAL_STREAM),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_tiny(folder / "train.h5", 333), write_tiny(folder / "valid.h5", 150, seed=1)


def lines(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    files = (run_dir / "telemetry").glob("*.jsonl")
    return {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in files}


def check(run_dir: Path, roles: set[str]) -> None:
    found, end = lines(run_dir), summary(run_dir)
    assert set(found) == roles
    for events in found.values():
        for name in (name.removesuffix("_per_second") for name in events[0] if name.endswith("_per_second")):
            values = [event[name] for event in events]
            assert values == sorted(values), name
    servers = [events[-1] for events in found.values() if "pulled_rows" in events[-1]]
    for name in ("pulled_rows", "applied_rows", "evicted_rows"):
        assert 0 <= sum(server[name] for server in servers) <= end["embedding"][name]
    assert sum(server["pulled_rows"] for server in servers) > 0
    assert max(server["max_staleness"] for server in servers) <= end["staleness"]["max"]
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    tags = {tag.rpartition("/")[0] for tag in board.Tags()["scalars"]}
    assert {role.replace("-", "/") for role in roles} | {"train", "valid"} <= tags
    assert board.Scalars("valid/auc")[-1].value == pytest.approx(end["valid"]["auc"], abs=1e-6)
    assert 'persia_hpc_auc{run="' in (run_dir / "metrics.prom").read_text()


def rows_of(head: str) -> list[list[str]]:
    """Returns the cells of a table of docs/monitoring.md, without its head."""
    lines = PAGE.read_text().partition(head)[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


def documented(role: str) -> set[str]:
    whose, phases = ROLES[role]
    names = {f"{phase}_share" for phase in phases}
    for text, roles, meaning in rows_of("| name | roles | meaning |"):
        if roles not in ("all", *whose) or (role == "one_process" and "not without MPI" in meaning):
            continue
        found = names_in(text) - {"PHASE_share"}
        if "..." in text:
            assert found < set(vars(Ledger()))
            found = set(vars(Ledger()))
        names |= found | ({f"{name}_per_second" for name in found} if "so far" in meaning else set())
    return names


def check_names(run_dir: Path) -> None:
    """Whatever is written is documented, and the reverse."""
    for rank, events in lines(run_dir).items():
        for event in events:
            assert set(event) - PLACES == documented(rank.rpartition("-")[0]), rank


class Kept:
    """Keeps the names of the events' numbers, by group."""

    def __init__(self) -> None:
        self.groups: dict[str, set[str]] = {}

    def log(self, event: dict[str, Any]) -> None:
        for each in ph.scalars(event):
            self.groups.setdefault(each.group, set()).add(each.name)


def test_one_process_writes_down_what_it_counts(tmp_path, data):
    kept = Kept()
    config = settings(data, tmp_path / "run", 1, 1, 1, **OFTEN, **{"train.progressive": 100})
    ph.train(config, quiet=True, loggers=[kept])
    check(tmp_path / "run", {"one_process-0"})
    check_names(tmp_path / "run")
    rows = rows_of("| group | from | names |")
    groups = {group: names_in(names) for where, _, names in rows for group in names_in(where)}
    assert kept.groups.keys() == groups.keys() - {"test"} | {"one_process/0"}
    assert kept.groups["train"] == groups["train"] - {"train"}
    assert kept.groups["valid"] == groups["valid"]
    assert kept.groups["progressive"] == groups["valid"] | groups["progressive"]


def test_all_ranks_write_down_what_they_count(tmp_path, data):
    run_cases(settings(data, tmp_path / "run", 2, 1, 2, **OFTEN))
    ranks = ("parameter_server-0", "parameter_server-1", "embedding_worker-0", "trainer-0", "trainer-1")
    check(tmp_path / "run", set(ranks))
    check_names(tmp_path / "run")
