"""What needs no rows is computed before these are there, in `fresh`; bits are the same in all modes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from persia_hpc.config import load_config
from persia_hpc.models import build_model
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.runtime.phases import TRAINER, Phases
from persia_hpc.trainer.dense.precision import Precision
from persia_hpc.trainer.intake import Intake, has_ahead
from persia_hpc.trainer.pooling.embed import Pooling
from tests.support.models import Early, Small
from tests.support.row_batches import make_inputs, make_row_batch, random_ids

FEATURES = [("a", 4, "sum", False), ("b", 4, "mean", True)]
STEPS = 3


class Stream:
    """Gives batches, in `fresh` with rows of nan until they are asked for."""

    def __init__(self, batches: list[RowBatch], fresh: bool, log: list[tuple[str, int]]) -> None:
        self.phases = Phases(TRAINER)
        self._batches, self._fresh, self._log = batches, fresh, log
        self._final = [[rows.copy() for rows in batch.rows] for batch in batches]
        for batch in batches if fresh else ():
            for rows in batch.rows:
                rows.fill(np.nan)

    def early(self, step: int) -> RowBatch | None:
        return self._batches[step - 1] if self._fresh else None

    def next_batch(self, step: int) -> RowBatch:
        self._log.append(("final", step))
        batch = self._batches[step - 1]
        for rows, final in zip(batch.rows, self._final[step - 1], strict=True):
            rows[:] = final
        return batch


def trained(
    name: str, fresh: bool, amp: str, uses: bool = True, **options: Any
) -> tuple[list[Tensor], list[tuple[str, int]]]:
    """Logits and gradients of a few steps, and what happened in which order."""
    inputs = make_inputs(FEATURES, num_dense=3)
    rng = np.random.default_rng(0)
    batches = [make_row_batch(inputs, random_ids(inputs, 40, rng), rng) for _ in range(STEPS)]
    config = load_config(
        {
            "data": {"train": ["none"], "batch_size": 40},
            "model": {"class": "dlrm"},
            "tables": {"default": {"dim": 4}},
            "train": options.pop("train", {}),
        }
    )
    torch.manual_seed(4)
    model = build_model(name, inputs, options)
    log: list[tuple[str, int]] = []
    if (ahead := getattr(model, "ahead", None)) is not None:
        model.ahead = lambda dense: (log.append(("ahead", 0)), ahead(dense))[1]  # type: ignore[assignment]
    precision = Precision(amp, torch.device("cpu"))
    stream: Any = Stream(batches, fresh, log)
    intake = Intake(config, stream, Pooling(inputs), precision)
    intake.attach(model)
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.1), list[Any]()
    for step in range(1, STEPS + 1):
        taken = intake.take(step)
        assert taken is not None
        batch = taken[1]
        if not uses:
            batch.made = None
        with precision.autocast():
            logits = model(batch)
        assert batch.made is None
        logits.square().sum().backward()
        found += [logits.detach(), *(p.grad for p in model.parameters())]
        found += [torch.from_numpy(array.copy()) for array in taken[2].arrays()]
        optimizer.step()
        optimizer.zero_grad()
    return found, log


@pytest.mark.parametrize("amp", ["none", "bf16"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dlrm", {"hidden": [8], "bottom": [8]}),  # native, which has nothing to compute ahead
        ("dlrm", {"hidden": [8], "bottom": [8], "activation": "gelu"}),
        ("dlrm", {"hidden": [8], "bottom": [8], "bottom_dropout": 0.2, "dropout": 0.2, "batch_norm": True}),
        ("tests.support.models:Early", {}),
    ],
)
def test_fresh_is_the_other_modes_and_computes_before_rows_are_there(
    name: str, options: dict[str, Any], amp: str
) -> None:
    early, log = trained(name, True, amp, **options)
    assert log == [(what, n * (what == "final")) for n in range(1, STEPS + 1) for what in ("ahead", "final")]
    late, log = trained(name, False, amp, **options)
    assert log == [(what, n * (what == "final")) for n in range(1, STEPS + 1) for what in ("final", "ahead")]
    for one, other in zip(early, late, strict=True):
        assert torch.equal(one, other)


def test_what_is_not_used_changes_nothing_without_random_numbers() -> None:
    """A model by itself, and one that was given what was made: the same bits."""
    options = {"hidden": [8], "bottom": [8], "activation": "gelu"}
    used, unused = trained("dlrm", True, "none", **options), trained("dlrm", True, "none", False, **options)
    for one, other in zip(used[0], unused[0], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("train", [{"accumulate": 2}, {"compile": True}])
def test_parts_and_compiled_models_have_nothing_made(train: dict[str, Any]) -> None:
    _, log = trained("dlrm", True, "none", train=train)
    assert ("ahead", 0) not in log


def test_only_a_forward_that_knows_of_ahead_is_given_it() -> None:
    class Own(Early):
        def forward(self, batch: Any) -> Any:
            return super().forward(batch)

    class Both(Own):
        def ahead(self, dense: Tensor) -> Any:
            return super().ahead(dense)

    inputs = make_inputs(FEATURES, num_dense=3)
    assert [has_ahead(kind(inputs)) for kind in (Small, Early, Own, Both)] == [False, True, False, True]
    patched = Early(inputs)
    patched.forward = lambda batch: batch.dense
    assert not has_ahead(patched)


def test_it_is_given_once_and_only_while_it_would_be_the_same() -> None:
    inputs = make_inputs(FEATURES, num_dense=3)
    rng = np.random.default_rng(0)
    config = load_config(
        {
            "data": {"train": ["none"], "batch_size": 8},
            "model": {"class": "dlrm"},
            "tables": {"default": {"dim": 4}},
        }
    )
    model = build_model("dlrm", inputs, {"activation": "gelu"})
    batches = [make_row_batch(inputs, random_ids(inputs, 8, rng), rng)]
    stream: Any = Stream(batches, True, [])
    intake = Intake(config, stream, Pooling(inputs), Precision("none", torch.device("cpu")))
    intake.attach(model)

    def made() -> Any:
        taken = intake.take(1)
        assert taken is not None
        return taken[1]

    batch = made()
    assert batch.made_ahead(build_model("dlrm", inputs, {})) is None  # a teacher's, say
    with torch.no_grad():
        assert batch.made_ahead(model) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert batch.made_ahead(model) is None
    model.eval()
    assert batch.made_ahead(model) is None
    model.train()
    assert batch.made_ahead(model) is not None
    assert batch.made_ahead(model) is None
    batch = made()
    batch.dense.mul_(2)
    assert batch.made_ahead(model) is None
    batch = made()
    with torch.no_grad():
        model.bottom[0].weight.mul_(2)
    assert batch.made_ahead(model) is None
