"""DIN is what its paper writes, computed event by event."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from persia_hpc.errors import UserError
from persia_hpc.models import build_model
from persia_hpc.trainer.batch import Batch, Inputs
from persia_hpc.trainer.pooling.embed import Pooling
from tests.support.row_batches import make_inputs, make_row_batch, random_ids

HISTORIES = [
    ("item", 4, "sum", False),
    ("shop", 2, "sum", False),
    ("items", 4, "sequence", True),
    ("shops", 2, "sequence", True),
    ("others", 2, "sequence", True),
]
ATTEND = [{"targets": ["item", "shop"], "histories": ["items", "shops"]}]


def built(name: str, inputs: Inputs, **options: Any) -> Any:
    torch.manual_seed(1)
    return build_model(name, inputs, options)


def batch_of(inputs: Inputs, num_samples: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    ids = random_ids(inputs, num_samples, rng)
    if "shops" in ids:
        ids["shops"] = [rng.integers(0, 12, len(items)).tolist() for items in ids["items"]]
    return Pooling(inputs).embed(make_row_batch(inputs, ids, rng), training=True)[0]


@settings(deadline=None, max_examples=15)
@given(st.booleans(), st.sampled_from(["relu", "dice"]), st.integers(0, 10**6))
def test_din_is_its_definition(softmax: bool, activation: str, seed: int) -> None:
    inputs = make_inputs(HISTORIES)
    model = built(
        "din", inputs, attend=ATTEND, softmax=softmax, attention_activation=activation, activation="relu"
    ).eval()
    batch = batch_of(inputs, 8, seed)
    unit = model.attentions[0].unit
    rows = []
    for i in range(8):
        target = torch.cat([batch.pooled["item"][i], batch.pooled["shop"][i]])
        length = int(batch.sequence["items"][1][i].sum())
        events = [
            torch.cat([batch.sequence[name][0][i, j] for name in ("items", "shops")]) for j in range(length)
        ]
        scores = [unit(torch.cat([target, e, target - e, target * e])[None])[0, 0] for e in events]
        if softmax and scores:
            scores = list(torch.softmax(torch.stack(scores), dim=0))
        user = sum((a * e for a, e in zip(scores, events, strict=True)), torch.zeros(6))
        values, mask = batch.sequence["others"]
        other = values[i][mask[i]].mean(dim=0) if mask[i].any() else torch.zeros(2)
        rows.append(torch.cat([batch.dense[i], target, user, other]))
    torch.testing.assert_close(model(batch), model.layers(torch.stack(rows)))


@pytest.mark.parametrize("softmax", [False, True])
def test_din_learns_everything_also_from_samples_without_history(softmax: bool) -> None:
    inputs = make_inputs(HISTORIES)
    rng = np.random.default_rng(1)
    ids = random_ids(inputs, 40, rng)
    ids["shops"] = [rng.integers(0, 12, len(items)).tolist() for items in ids["items"]]
    assert any(not items for items in ids["items"])
    batch, gradients = Pooling(inputs).embed(make_row_batch(inputs, ids, rng), training=True)
    model = built("din", inputs, attend=ATTEND, softmax=softmax)
    nn.functional.binary_cross_entropy_with_logits(model(batch), batch.labels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    for gradient in gradients.arrays():
        assert np.isfinite(gradient).all()
        assert gradient.any(axis=1).all()


def test_din_finds_the_target_that_shares_the_historys_table() -> None:
    inputs = make_inputs(HISTORIES)
    features = [replace(f, table=f.table.rstrip("s")) for f in inputs.features]
    model = built("din", replace(inputs, features=tuple(features)))
    assert model.pairs == [(["item"], ["items"]), (["shop"], ["shops"])]
    assert model.others == ("others",)


def test_din_refuses_histories_of_different_lengths() -> None:
    inputs = make_inputs(HISTORIES)
    batch = batch_of(inputs, 8)
    values, mask = batch.sequence["shops"]
    wrong = replace(batch, sequence={**batch.sequence, "shops": (values, ~mask)})
    with pytest.raises(UserError, match="items, shops differ in length"):
        built("din", inputs, attend=ATTEND)(wrong)


def test_din_takes_jagged_histories_as_it_takes_padded_ones() -> None:
    inputs = make_inputs(HISTORIES)
    jagged = make_inputs([(*f[:2], f[2].replace("sequence", "jagged"), f[3]) for f in HISTORIES])
    outputs = []
    for each in (inputs, jagged):
        model = built("din", each, attend=ATTEND).eval()
        outputs.append(model(batch_of(each, 8)))
    torch.testing.assert_close(outputs[1], outputs[0])


def test_din_uses_a_history_for_each_of_two_targets() -> None:
    inputs = make_inputs([("a", 4, "sum", False), ("b", 4, "sum", False), ("items", 4, "sequence", True)])
    pairs = [{"targets": [name], "histories": ["items"]} for name in ("a", "b")]
    model, batch = built("din", inputs, attend=pairs).eval(), batch_of(inputs, 8)
    parts = [batch.dense, batch.pooled["a"], batch.pooled["b"]]
    values, mask = batch.sequence["items"]
    parts += [unit(batch.pooled[n], values, mask) for unit, n in zip(model.attentions, "ab", strict=True)]
    together = torch.cat(parts, dim=1)
    assert model.layers[0].in_features == together.shape[1]
    torch.testing.assert_close(model(batch), model.layers(together))


def test_the_attention_has_a_dropout_of_its_own() -> None:
    inputs = make_inputs(HISTORIES)
    given = {"attend": ATTEND, "attention": [8, 6], "hidden": [8], "dropout": 0.25, "attention_dropout": 0.5}
    for left_out, above, inside in (
        (None, [0.25], [0.5] * 2),
        ("dropout", [], [0.5] * 2),
        ("attention_dropout", [0.25], []),
    ):
        model = built("din", inputs, **{k: v for k, v in given.items() if k != left_out})
        found = [
            [m.p for m in part.modules() if isinstance(m, nn.Dropout)]
            for part in (model.layers, model.attentions)
        ]
        assert found == [above, inside], left_out
    with pytest.raises(UserError, match="attention_dropout must be a number from 0 to below 1, got 2"):
        built("din", inputs, attend=ATTEND, attention_dropout=2)
