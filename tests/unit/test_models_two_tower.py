"""The two-tower model on batches made by hand, and the options that it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from persia_hpc.errors import UserError
from persia_hpc.models import build_model
from persia_hpc.trainer.batch import Batch, FeatureSpec, Inputs
from persia_hpc.trainer.jagged import Jagged
from persia_hpc.trainer.retrieval import check_matches

B, C, D = 5, 3, 4


def spec(name: str, table: str, pooling: str = "sum", **more: Any) -> FeatureSpec:
    return FeatureSpec(name, table, 0, D, pooling, pooling in ("jagged", "sequence"), **more)


INPUTS = Inputs(
    (
        spec("user", "user"),
        spec("history", "item", "jagged"),
        spec("item", "item"),
        spec("kind", "kind"),
        spec("negatives", "item", "jagged", like="item"),
        spec("kinds", "kind", "jagged", like="kind"),
    ),
    2,
    ("liked",),
    ("age", "price"),
    (),
    ("item", "kind", "price"),
)
OPTIONS: dict[str, Any] = {
    "items": ["item", "kind", "price"],
    "queries": ["user", "age", "history"],
    "hidden": [8],
}


def without_drawn(inputs: Inputs) -> Inputs:
    return replace(inputs, features=tuple(f for f in inputs.features if f.like is None))


def make_batch() -> Batch:
    torch.manual_seed(1)
    offsets = torch.tensor([0, 2, 2, 3, 7, 8])
    drawn = torch.arange(B + 1) * C
    return Batch(
        step=1,
        num_samples=B,
        dense=torch.rand(B, 2),
        labels=torch.ones(B, 1),
        weight=None,
        group=None,
        pooled={name: torch.rand(B, D) for name in ("user", "item", "kind")},
        sequence={},
        blocks={},
        jagged={
            "history": Jagged(torch.rand(8, D), offsets, 4),
            "negatives": Jagged(torch.rand(B * C, D), drawn, C),
            "kinds": Jagged(torch.rand(B * C, D), drawn, C),
        },
        ids={"item": torch.arange(B), "negatives": torch.arange(B * C)},
        log_q={"item": torch.rand(B), "negatives": torch.rand(B * C)},
    )


def tower(layers: Any, parts: list[Tensor], normalize: bool) -> Tensor:
    x = torch.cat(parts, dim=1)
    x = torch.relu(x @ layers[0].weight.T + layers[0].bias) @ layers[2].weight.T + layers[2].bias
    return functional.normalize(x, dim=1) if normalize else x


@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_and_scores_are_those_of_two_networks(normalize: bool) -> None:
    options = OPTIONS | {"items": ["item", "price", "kind"], "width": 6, "normalize": normalize}
    model: Any = build_model("two_tower", without_drawn(INPUTS), options)
    batch = make_batch()
    queries = tower(
        model.query_tower.layers,
        [batch.dense[:, :1], batch.pooled["user"], batch.jagged["history"].mean()],
        normalize,
    )
    items = tower(
        model.item_tower.layers, [batch.dense[:, 1:], batch.pooled["item"], batch.pooled["kind"]], normalize
    )
    torch.testing.assert_close(model.queries(batch), queries)
    torch.testing.assert_close(model.items(batch), items)
    torch.testing.assert_close(model(batch), (queries * items).sum(dim=1, keepdim=True))
    found = model.matches(batch)
    check_matches(found, B)
    torch.testing.assert_close(found.queries, queries)
    torch.testing.assert_close(found.positives, items)
    assert found.ids is batch.ids["item"]
    assert found.log_q is batch.log_q["item"]
    assert found.negatives is found.samples is None


def test_drawn_items_go_through_the_items_tower() -> None:
    model: Any = build_model("two_tower", INPUTS, OPTIONS | {"items": ["item", "kind"], "width": 6})
    batch = make_batch()
    found = model.matches(batch)
    check_matches(found, B)
    parts = [batch.jagged["negatives"].values, batch.jagged["kinds"].values]
    expected = tower(model.item_tower.layers, parts, True)
    torch.testing.assert_close(found.negatives.reshape(B * C, 6), expected)
    assert found.negative_ids.flatten().tolist() == batch.ids["negatives"].tolist()
    assert found.negative_log_q.flatten().tolist() == batch.log_q["negatives"].tolist()
    # The same item in both places has the same vector.
    same = replace(
        batch,
        jagged={
            "negatives": Jagged(batch.pooled["item"], torch.arange(B + 1), 1),
            "kinds": Jagged(batch.pooled["kind"], torch.arange(B + 1), 1),
        }
        | {"history": batch.jagged["history"]},
        ids={"item": torch.arange(B), "negatives": torch.arange(B)},
        log_q={},
    )
    again = model.matches(same)
    torch.testing.assert_close(again.negatives[:, 0], again.positives)
    assert again.negative_log_q is None


def test_an_item_table_hashed_in_many_rounds_is_refused() -> None:
    model: Any = build_model("two_tower", INPUTS, OPTIONS | {"items": ["item", "kind"]})
    with pytest.raises(UserError, match="hashed in more than two rounds"):
        model.matches(replace(make_batch(), ids={}))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"items": []}, "items must name features or dense columns, each once and of one tower, got none"),
        ({"items": ["item", "color"]}, "got 'color'; there are: user, history, item, kind, age, price"),
        ({"items": ["item", "item"]}, "got 'item'"),
        ({"items": ["item", "negatives"]}, "got 'negatives'"),
        ({"queries": ["user", "kind"]}, "queries must name .* got 'kind'; there are: user, history, age"),
        ({"items": ["price"]}, "items must begin with the feature that tells items apart.* got 'price'"),
        ({"items": ["history"], "queries": ["user"]}, "items must begin with .* got 'history'"),
        (
            {"items": ["item", "user"], "queries": ["age"]},
            "items names 'user', which the catalogue doesn't have",
        ),
        ({"items": ["item", "price"]}, "all features of an item must be drawn .* like 'price'"),
        ({"normalize": 1}, "normalize must be true or false"),
        ({"width": 0}, "width must be"),
        ({"hidden": [0]}, "hidden must be"),
        ({"item_hidden": ["x"]}, "item_hidden must be"),
        ({"dropout": 2}, "dropout must be"),
    ],
)
def test_wrong_options_are_refused_in_one_line(changes: dict[str, Any], text: str) -> None:
    options = {"items": ["item", "kind"], "queries": ["user", "age", "history"]}
    with pytest.raises(UserError, match=text) as error:
        build_model("two_tower", INPUTS, options | changes)
    assert "\n" not in str(error.value)
