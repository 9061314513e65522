"""A changed bit, link or value in any file of a checkpoint: readers refuse it, or it makes no difference."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.config import load_config
from persia_hpc.errors import EXIT_DATA, EXIT_USER, DataError, PersiaError
from tests.support.checkpoints import CHANGES, IDS, LAST, TABLES, change_shard, own, sign
from tests.support.tiny import digest

PLACES = 6  # of a file, at each of which one bit is turned over


def command(*arguments: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def loaded(directory: Path) -> str:
    run = ph.load(directory)
    weights = {name: value.numpy() for name, value in run.model().state_dict().items()}
    return digest({**{name: run.rows(name, IDS) for name in TABLES}, **weights})


def exported(directory: Path) -> bytes:
    out = directory.parent / "item.parquet"
    out.unlink(missing_ok=True)
    expect(command("checkpoint", "export", directory, "--table", "item", "--out", out))
    return out.read_bytes()


def listed(directory: Path) -> dict[str, Any]:
    """What `ls` says without reading rows; what it can't read, it tells as a problem."""
    facts = json.loads(expect(command("checkpoint", "ls", directory, "--json")))
    if "problem" in facts:
        raise PersiaError(facts["problem"])
    facts.pop("written")
    return dict(facts)


def expect(result: tuple[int, str, str]) -> str:
    """Returns the output of a command; raises its refusal, which must be one line.

    What a command says before it imports a run's code is none.
    """
    code, out, err = result
    lines = err.splitlines(keepends=True)
    err = "".join(line for line in lines if not line.startswith("persia-hpc: the run imports "))
    if code:
        assert code in (EXIT_USER, EXIT_DATA), result
        assert err.count("\n") == 1, err
        assert err.startswith("persia-hpc: error: "), err
        raise PersiaError(err)
    return out


READERS: dict[str, Callable[[Path], Any]] = {
    "load": loaded,
    "export": exported,
    "evaluate": lambda d: expect(command("evaluate", d, "--split", "train")),
    "verify": lambda d: expect(command("checkpoint", "verify", d)),
    "ls": lambda d: listed(d),
}
READ_BY = {
    "manifest.json": {*READERS},
    "dense.pt": {"load", "evaluate", "verify"},
    "server-0000.h5": {"load", "evaluate", "verify", "export"},
}


def outcome(reader: Callable[[Path], Any], directory: Path) -> Any:
    """Returns what a reader finds, or None if it refuses."""
    text = ""
    try:
        return reader(directory)
    except PersiaError as error:
        text = str(error).strip()
    assert "\n" not in text
    return None


@pytest.mark.parametrize("name", ["manifest.json", "dense.pt", "server-0000.h5"])
@pytest.mark.parametrize("step", [LAST, CHANGES])
def test_a_flipped_bit_is_refused_or_makes_no_difference(step: str, name: str, run: Path) -> None:
    directory = run / step
    sound = {reader: outcome(READERS[reader], directory) for reader in READERS}
    assert None not in sound.values()
    content = own(directory / name).read_bytes()
    rng = np.random.default_rng(len(name))
    refused: Counter[str] = Counter()
    for at in rng.integers(0, len(content), PLACES).tolist():
        changed = bytearray(content)
        changed[at] ^= 1 << int(rng.integers(8))
        (directory / name).write_bytes(changed)
        for reader, expected in sound.items():
            found = outcome(READERS[reader], directory)
            refused[reader] += found is None
            assert found in (None, expected), (reader, at)
    # A manifest whose key "sha256" has another name is as those of before: without a checksum of its own.
    least = PLACES - (name == "manifest.json")
    assert {reader for reader in READERS if refused[reader] >= least} == READ_BY[name]


def resumed(directory: Path) -> None:
    """Continues the run from this checkpoint, as its configuration says."""
    for other in directory.parent.glob("step-*"):
        if other.name > directory.name:
            shutil.rmtree(other)
    settings = load_config(directory.parent / "config.toml", {"checkpoint.resume": True, "train.epochs": 2})
    ph.train(load_config(settings.resolved(), {"run_dir": str(directory.parent)}), quiet=True)


DENSE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no model": lambda d: d.pop("model"),
    "a missing parameter": lambda d: d["model"].pop("head.bias"),
    "one too many": lambda d: d["model"].update(more=torch.zeros(3)),
    "another shape": lambda d: d["model"].update({"head.bias": torch.zeros(3)}),
    "no tensor": lambda d: d["model"].update({"head.bias": "text"}),
    "a list for a model": lambda d: d.update(model=[1, 2]),
    "another step": lambda d: d.update(step=4),
    "a step that is no number": lambda d: d.update(step="10"),
    "skipped steps that are no number": lambda d: d.update(skipped_steps="1"),
    "something else": lambda d: d.update(more=1),
    "another driver": lambda d: d.update(driver={"more": 1}),
}
ONLY_RESUMED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no state of a parameter": lambda d: d["optimizer"]["param_groups"][0]["params"].pop(),
    "another shape of it": lambda d: d["optimizer"]["state"][0].update(exp_avg=torch.zeros(7, 7)),
    "no optimizer": lambda d: d["optimizer"].clear(),
    "no random state": lambda d: d["random"][0].clear(),
    "another random state": lambda d: d["random"][0].update(torch=torch.zeros(3)),
}


@pytest.mark.parametrize("kind", [*DENSE, *ONLY_RESUMED])
def test_another_dense_part_is_refused_in_one_line(kind: str, run: Path) -> None:
    """One that torch can read, with the right checksum."""
    directory = run / LAST
    dense = torch.load(directory / "dense.pt", weights_only=True)
    (DENSE | ONLY_RESUMED)[kind](dense)
    torch.save(dense, own(directory / "dense.pt"))
    sign(directory, "dense.pt")
    readers = [loaded, READERS["evaluate"]] if kind in DENSE else []
    for reader in readers:
        assert outcome(reader, directory) is None
    shutil.rmtree(run / CHANGES)  # else a damaged one is passed over
    for step in (2, 4, 8):
        shutil.rmtree(run / f"step-{step:08d}")
    assert outcome(resumed, directory) is None


@pytest.mark.parametrize("name", ["dense.pt", "server-0000.h5", "manifest.json"])
def test_a_run_that_begins_with_another_one_reads_no_damage(name: str, run: Path, tmp_path: Path) -> None:
    content = bytearray(own(run / LAST / name).read_bytes())
    content[len(content) // 2] ^= 4
    (run / LAST / name).write_bytes(content)
    settings = load_config(run / "config.toml", {"run_dir": str(tmp_path / "new")}).resolved()
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        ph.train(load_config(settings, {"checkpoint.init_from": str(run)}), quiet=True)


def test_a_run_with_only_a_half_written_checkpoint_has_none_that_is_whole(tmp_path: Path) -> None:
    (tmp_path / "step-00000002.partial").mkdir()
    code, out, err = command("checkpoint", "verify", tmp_path)
    assert (code, out) == (EXIT_DATA, "")
    assert err.count("\n") == 1
    assert "no whole checkpoint" in err


@pytest.mark.parametrize(
    "change",
    [
        lambda shard: shard.create_dataset("extra", data=[1]),
        lambda shard: shard["item"].create_dataset("group", data="text"),
        lambda shard: (shard["item"].pop("keys"), shard["item"].create_group("keys")),
        lambda shard: shard["item"].attrs.update(num_buckets="many"),
        lambda shard: shard["item"].attrs.update(complete=[1, 2]),
        lambda shard: shard["item"].attrs.pop("dim"),
        lambda shard: (shard["item"].pop("buckets"), shard["item"].create_dataset("buckets", data="text")),
        lambda shard: shard.update({"item/item": shard["/"]}),
    ],
)
def test_a_server_file_of_another_kind_is_refused_in_one_line(change: Any, run: Path) -> None:
    """Written so, with the right checksum: by another program, or to do harm."""
    directory = run / LAST
    change_shard(directory, change)
    code, out, err = command("checkpoint", "verify", directory)
    assert code == EXIT_DATA
    assert out.startswith(f"{LAST} damaged")
    assert err.count("\n") == 1
    for name in ("load", "export", "ls"):
        outcome(READERS[name], directory)  # refused in one line, or it makes no difference
