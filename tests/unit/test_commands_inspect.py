"""`persia-hpc inspect`: every figure against a plain count."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.cli import main
from persia_hpc.preprocess import inspection
from persia_hpc.preprocess.inspection import Frequencies
from tests.support.tiny import write_tiny


@settings(max_examples=60, deadline=None)
@given(blocks=st.lists(st.lists(st.integers(0, 9) | st.integers(0, 2**64 - 1), max_size=20), max_size=6))
def test_counts_are_those_of_a_counter(blocks: list[list[int]]) -> None:
    counts, expected = Frequencies(), Counter[int]()
    for block in blocks:
        counts.add(np.array(block, np.uint64), None)
        expected.update(block)
        assert counts.ranked().height == len(expected)
    ranked = sorted(expected.items(), key=lambda item: (-item[1], item[0]))
    assert list(counts.ranked().iter_rows()) == ranked
    assert counts.num_ids == sum(map(len, blocks))


@pytest.mark.parametrize("missing", [0, 120, 300])
def test_inspect_counts_missing_labels_and_leaves_them_out_of_the_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    path = write_tiny(tmp_path / "train.h5", 300)
    with h5py.File(path, "r+") as file:
        file.attrs["label_min"] = file.attrs["label_max"] = [np.nan]
        label = file["label"][:]
        label[:missing] = np.nan
        file["label"][:] = label
    monkeypatch.setattr(inspection, "BLOCK_ROWS", 128)
    assert main(["inspect", path, "--json", str(tmp_path / "facts.json")]) == 0
    facts = json.loads((tmp_path / "facts.json").read_text())
    mean = pytest.approx(label[missing:].mean()) if missing < 300 else None
    assert (facts["labels"], facts["missing_labels"]) == ({"label": mean}, {"label": missing})
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("label "))
    assert line.startswith("label label: no value" if mean is None else "label label: mean 0.")
    assert line.endswith(f"missing in {missing} samples") == bool(missing)


def test_inspect_tells_what_is_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny(tmp_path / "train.h5", 300)
    monkeypatch.setattr(inspection, "BLOCK_ROWS", 128)
    assert main(["inspect", path, "--json", str(tmp_path / "facts.json"), "--top", "2"]) == 0
    facts = json.loads((tmp_path / "facts.json").read_text())
    with h5py.File(path) as file:
        item, tags = file["ids/item"][:], file["ids/tags/values"][:]
        offsets, label, dense = file["ids/tags/offsets"][:], file["label"][:], file["dense"][:]
    assert facts["samples"] == 300
    assert list(facts["labels"].values()) == [pytest.approx(label[:, 0].mean())]
    for ids, name in ((item, "item"), (tags, "tags")):
        expected = sorted(Counter(ids.tolist()).items(), key=lambda pair: (-pair[1], pair[0]))
        found = facts["features"][name]
        assert [(t["id"], t["count"]) for t in found["top"]] == expected[:2]
        assert found["different_ids"] == len(expected)
        assert found["seen_once"] == sum(count == 1 for _, count in expected)
        assert found["ids_per_sample"] == len(ids) / 300
    lengths = np.diff(offsets)
    assert facts["features"]["tags"]["longest"] == lengths.max()
    assert facts["features"]["tags"]["empty_samples"] == (lengths == 0).sum()
    first = next(iter(facts["dense"].values()))
    assert first["least"] == pytest.approx(dense[:, 0].min())
    assert first["mean"] == pytest.approx(dense[:, 0].mean(), abs=1e-6)
    out = capsys.readouterr().out
    assert "300 samples" in out
    assert f"{facts['features']['item']['different_ids']:,}" in out
    assert main(["inspect", path, "--limit", "10"]) == 0
    assert "10 samples" in capsys.readouterr().out


def test_a_label_that_never_varies_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny(tmp_path / "train.h5", 300)
    with h5py.File(path) as file:
        labels = file["label"][:, 0]
    first = int(np.flatnonzero(labels != labels[0])[0])  # the labels before this row are all the same
    for rows, constant in ((first, True), (first + 1, False)):
        facts = tmp_path / "facts.json"
        assert main(["inspect", path, "--limit", str(rows), "--json", str(facts)]) == 0
        assert bool(json.loads(facts.read_text())["constant_labels"]) == constant
        assert ("the same in every sample" in capsys.readouterr().out) == constant


def test_curves_are_drawn(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "train.h5", 300)
    assert main(["inspect", path, "--plot", str(tmp_path / "curves.svg")]) == 0
    drawn = (tmp_path / "curves.svg").read_text()
    assert drawn.count('id="line2d_') > 4
    assert main(["inspect", path, "--plot", str(tmp_path / "curves.png")]) == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "--limit: got 0, expected 1 or more"),
        (["--plot", "curves.gif"], "got curves.gif, expected a name that ends with"),
        (["--json", "no/such/folder/x.json"], "can't be written"),
        (["--plot", "no/such/folder/x.svg"], "can't be written"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny(tmp_path / "train.h5", 30)
    assert main(["inspect", path, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_inspect_tells_the_encoding_and_that_there_are_no_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny(tmp_path / "new.h5", 9, encoding="0123456789abcdef", labels=False)
    assert main(["inspect", path, "--json", str(tmp_path / "facts.json")]) == 0
    out = capsys.readouterr().out
    assert "encoding 0123456789ab\nno labels\n" in out
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert (facts["encoding"], facts["labels"]) == ("0123456789abcdef", {})
    assert main(["inspect", write_tiny(tmp_path / "old.h5", 9)]) == 0
    assert "encoding not named\nlabel label: mean" in capsys.readouterr().out
