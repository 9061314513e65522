"""What a run says of checkpoints that it can't write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from persia_hpc.checkpoint.names import BEST, BEST_NOTE, MANIFEST, step_name
from persia_hpc.config import load_config
from persia_hpc.errors import PersiaError
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.trainer.saving import Saver

BEST_OF_STEP_2 = {"step": 2, "metric": "auc", "value": 0.75}


def saver_of(run_dir: Path) -> Saver:
    config = load_config(
        {
            "data": {"train": ["none"], "batch_size": 1},
            "model": {"class": "tower"},
            "tables": {"default": {"dim": 4}},
        }
    )
    peers = cast(Any, SimpleNamespace(rank=0))
    return Saver(config, cast(Any, None), peers, run_dir, DatasetSchema((), ()), {})


@pytest.mark.parametrize(("best", "blocked"), [(None, BEST), (None, BEST_NOTE), (BEST_OF_STEP_2, BEST)])
def test_a_best_checkpoint_that_cannot_be_named_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: Mapping[str, Any] | None, blocked: str
) -> None:
    for step in (2, 4):
        (tmp_path / step_name(step)).mkdir()
        (tmp_path / step_name(step) / MANIFEST).write_text("{}")
    assert saver_of(tmp_path).restore_best({**BEST_OF_STEP_2, "step": 4})

    def fail(path: Path, *_: Any, **__: Any) -> None:
        if path.name in (blocked, f"{blocked}.partial"):
            raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "unlink", fail)
    monkeypatch.setattr(Path, "symlink_to", fail)
    with pytest.raises(PersiaError, match=rf"^can't write the checkpoint .*/{BEST}: Input/output error; "):
        saver_of(tmp_path).restore_best(best)
