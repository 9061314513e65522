"""Code that a run names: said before it is imported, and only with consent from another user's run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.errors import UserError
from tests.support.tiny import tiny_config, write_tiny

MODULE = """
from tests.support.models import Small

class Model(Small):
    pass

def mean(logits, labels, weight, group):
    return float(logits.mean())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in [n for n in os.environ if n.startswith(("PMI", "OMPI", "SLURM"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "consented.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("consented", None)


def trained(folder: Path, **changes: object) -> Path:
    data = write_tiny(folder / "train.h5", 64)
    config = tiny_config(data, **{"run_dir": str(folder / "run"), "data.test": [data], **changes})
    ph.train(config, quiet=True)
    return folder / "run"


def test_what_a_run_imports_is_said_and_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(folder, **{"model": {"class": "consented:Model"}, "train.metrics": ["consented:mean"]})
    file = folder / "consented.py"
    said = f"model consented:Model ({file}); train.metrics consented:mean ({file})"
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    assert capsys.readouterr().err.splitlines() == [f"persia-hpc: the run imports {said}"]

    somebody = os.geteuid() + 12_345
    monkeypatch.setattr(os, "geteuid", lambda: somebody)
    sys.modules.pop("consented")
    predict = ["predict", str(run), "--data", str(folder / "train.h5"), "--out", str(folder / "out.csv")]
    for command in (["evaluate", str(run)], predict):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "belongs to " in line
        assert said in line
        assert "--trust" in line
    assert not (folder / "out.csv").exists()
    loaded = ph.load(run)
    assert loaded.rows("item", [1]).shape == (1, 4)  # rows need no code
    with pytest.raises(UserError, match="makes this process import model consented:Model"):
        loaded.model()
    assert "consented" not in sys.modules
    assert main([*predict, "--trust"]) == 0
    assert main(["evaluate", str(run), "--trust"]) == 0
    ph.load(run, trust=True).model()


def test_a_link_in_a_checkpoint_is_as_trustworthy_as_its_owner_and_its_target(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(folder, model={"class": "consented:Model"})
    link = run / "latest" / "note"
    link.symlink_to("nowhere")
    assert main(["evaluate", str(run)]) == 0
    if os.geteuid() != 0:
        pytest.skip("giving files to another user needs root")
    other = folder / "other"
    for path, target in ((link, "nowhere"), (other, other)):
        link.unlink()
        other.touch()
        link.symlink_to(target)
        os.chown(path, 12_345, 12_345, follow_symlinks=False)
        capsys.readouterr()
        assert main(["evaluate", str(run)]) == 2
        assert "--trust" in capsys.readouterr().err


def test_a_run_without_code_of_its_own_needs_no_consent(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(folder, model={"class": "tower"})
    capsys.readouterr()
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    assert main(["evaluate", str(run)]) == 0
    assert capsys.readouterr().err == ""
