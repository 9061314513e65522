"""What a configuration of retrieval means, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from persia_hpc.config import Config, load_config
from persia_hpc.config.retrieval import label_metrics, ranked_metrics, retrieval_loss, sampled_features
from persia_hpc.config.watching import check_metrics
from persia_hpc.errors import UserError
from persia_hpc.job.facts import make_facts
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout
from tests.support.retrieval import SCHEMA, retrieval_config

DATA = {
    "train": "t.h5",
    "valid": "v.h5",
    "items": "i.h5",
    "item_feature": "item",
    "exclude_feature": "history",
}
SHARED = {"item": {"table": "item"}, "history": {"table": "item"}}
LOSS = "tasks.liked.loss"


def made(**keys: Any) -> Config:
    changes = {key.replace("__", "."): value for key, value in keys.items()}
    return load_config(retrieval_config(DATA, Path("run")), changes)


def test_a_configuration_is_what_is_written_and_stays_so() -> None:
    config = made()
    assert retrieval_loss(config) == {
        "temperature": 0.2,
        "logq": "weights",
        "halve_every": 0,
        "negatives": "both",
    }
    assert sampled_features(config) == {"negatives": ("item", 6), "negative_kind": ("kind", 6)}
    assert load_config(config.resolved()) == config
    assert ranked_metrics(config) == ["recall@5", "ndcg@5", "hr@3"]
    assert label_metrics(made(train__metrics=["gauc", "recall@5"])) == ["gauc"]
    simple = made(tasks={}, train__loss="in_batch_softmax")
    assert retrieval_loss(simple) == {
        "temperature": 1.0,
        "logq": "off",
        "halve_every": 0,
        "negatives": "batch",
    }
    assert retrieval_loss(made(tasks={})) is None


def test_drawn_features_are_jagged_and_use_the_table_of_what_they_are_like() -> None:
    layout = make_layout(made(), SCHEMA)
    features = {f.name: f for f in layout.features}
    for name, like in (("negatives", "item"), ("negative_kind", "kind")):
        assert features[name].table == features[like].table
        assert (features[name].pooling, features[name].multi, features[name].like) == ("jagged", True, like)
    taken = DatasetSchema((*SCHEMA.features, FeatureSchema("negatives")), (), ("liked",))
    with pytest.raises(UserError, match=r"\[features.negatives\] is sampled, but the dataset has"):
        make_layout(made(), taken)


def test_ranked_metrics_can_be_watched_and_need_no_group() -> None:
    config = made(train__early_stop={"metric": "recall@5"}, train__keep_best="ndcg@5")
    check_metrics(config, ["liked"])
    counts = {"train": 10, "valid": 10, "items": 5}
    make_facts(config, SCHEMA, counts)
    with pytest.raises(UserError, match=r"got 'recall@5', expected K of at most 4"):
        make_facts(config, SCHEMA, counts | {"items": 4})
    with pytest.raises(UserError, match="group"):
        make_facts(made(train__metrics=["gauc"], train__loss="bce", tasks={}), SCHEMA, counts)


def test_one_label_is_learned() -> None:
    labels = DatasetSchema(SCHEMA.features, (), ("a", "b"))
    with pytest.raises(UserError, match="learns one label, but the data have a, b"):
        make_layout(made(tasks={}, train__loss="in_batch_softmax"), labels)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data.items": []}, r"data.item_feature is given without data.items"),
        ({"data.items": [""]}, r"data.items contains an empty path"),
        ({"data.item_feature": None, "data.exclude_feature": None}, r"data.item_feature is missing"),
        (
            {"features.history.table": None},
            r"exclude_feature = 'history': its ids are compared with those of",
        ),
        ({"train.metrics": ["hr@0"]}, r"whole number K from 1"),
        ({"train.compile": True}, r"train.compile is set, but the loss"),
        ({"train.cuda_graphs": True}, r"train.cuda_graphs is set, but the loss"),
        ({"train.progressive": 9}, r"train.progressive is set, but the loss"),
        ({f"{LOSS}.temperature": 0}, r"temperature = 0: expected a value above 0"),
        ({f"{LOSS}.temperature": "1"}, r"temperature = '1': expected a number"),
        ({f"{LOSS}.logq": True}, r"logq = True: expected one of off, counts, weights"),
        ({f"{LOSS}.halve_every": 2.5}, r"halve_every = 2.5: expected a number of steps, or 0"),
        ({f"{LOSS}.halve_every": -1}, r"halve_every = -1.0: expected at least 0"),
        ({f"{LOSS}.halve_every": 9}, r"halve_every = 9: it ages the counts of .* but logq = 'weights'"),
        ({f"{LOSS}.negatives": "all"}, r"negatives = 'all': expected one of batch, sampled, both"),
        ({f"{LOSS}.nagatives": "both"}, r"is not an option of 'in_batch_softmax'; did you mean 'negatives'"),
        ({"tasks.other": {}}, r"tasks are 2: expected one"),
        ({"tables.item.hash": {"size": 9}}, r"logq = 'weights': the table 'item' of items is hashed"),
        ({"features": SHARED}, r"negatives = 'both': no feature is drawn; add one"),
        ({"features.negatives.sampled.count": 0}, r"count = 0: expected an integer from 1"),
        ({"features.negatives.sampled.count": 7}, r"count = 6, but features.negatives has another count"),
        ({"features.negatives.sampled.size": 7}, r"sampled.size is not a known key; valid: like, count"),
        ({"features.negatives.sampled.like": "negatives"}, r"like = 'negatives': expected the name"),
        ({"features.negatives.pooling": "sum"}, r"pooling = 'sum', but what is drawn has 'jagged'"),
        ({"features.negatives.table": "default"}, r"table = 'default', but what is drawn has 'item'"),
        ({"features.negatives.dim": 8}, r"dim = 8, but what is drawn has nothing there; leave it out"),
        (
            {"sequences": {"s": {"features": ["negatives"], "max_length": 3}}},
            r"features.negatives.sampled is given, but the feature is in \[sequences.s\]",
        ),
        ({"features.negatives.max_length": 2}, r"max_length = 2, but what is drawn has nothing"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text) as error:
        load_config(retrieval_config(DATA, Path("run")), changes)
    assert "\n" not in str(error.value)


def test_without_a_catalogue_nothing_is_ranked_corrected_or_drawn() -> None:
    plain = {"data.items": [], "data.item_feature": None, "data.exclude_feature": None}
    settings = retrieval_config(DATA, Path("run"))
    with pytest.raises(UserError, match=r"'hr@3': ranks the whole catalogue"):
        load_config(settings, plain)
    settings["train"]["metrics"] = []
    with pytest.raises(UserError, match=r"sampled draws from a catalogue|'weights' needs a catalogue"):
        load_config(settings, plain)
    settings["tasks"]["liked"]["loss"] = {"name": "in_batch_softmax", "negatives": "batch"}
    with pytest.raises(UserError, match=r"sampled draws from a catalogue"):
        load_config(settings, plain)
    for name in ("negatives", "negative_kind"):
        del settings["features"][name]
    assert ranked_metrics(load_config(settings, plain)) == []
