"""Models of histories as retrieval models: next items at every event, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import persia_hpc as ph
from persia_hpc.config import load_config
from persia_hpc.errors import UserError
from persia_hpc.models import build_model
from persia_hpc.trainer.batch import Batch, FeatureSpec, Inputs
from persia_hpc.trainer.jagged import Jagged
from persia_hpc.trainer.retrieval import check_matches, check_model, in_batch_softmax
from tests.support.histories import LENGTHS, history_batch, history_inputs
from tests.support.retrieval import retrieval_config, write_retrieval

EVENTS = [{"targets": ["item"], "histories": ["items", "actions"]}]
DRAWN = 4  # negatives of a sample


def drawing_inputs() -> Inputs:
    inputs = history_inputs()
    drawn = FeatureSpec("drawn", "item", 1, 6, "jagged", True, like="item")
    return replace(inputs, features=(*inputs.features, drawn))


def drawing_batch(lengths: list[int] = LENGTHS) -> Batch:
    """With ids of all items and logarithms of their shares."""
    batch, num_samples = history_batch(history_inputs(), lengths), len(lengths)
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(num_samples * DRAWN, 6, generator=generator).requires_grad_()
    batch.jagged["drawn"] = Jagged(values, torch.arange(num_samples + 1) * DRAWN, DRAWN)
    counts = {"item": num_samples, "items": sum(lengths), "drawn": num_samples * DRAWN}
    for name, count in counts.items():
        batch.ids[name] = torch.randint(0, 50, (count,), generator=generator)
        batch.log_q[name] = torch.randn(count, generator=generator)
    return batch


def built(name: str, **options: Any) -> Any:
    torch.manual_seed(1)
    return build_model(name, drawing_inputs(), {"attend": EVENTS, **options}).eval()


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
@pytest.mark.parametrize("normalize", [True, False])
def test_each_event_asks_for_the_next_item(name: str, normalize: bool) -> None:
    model, batch = built(name, normalize=normalize), drawing_batch()
    check_model(model, "this test")
    matches = model.matches(batch)
    check_matches(matches, batch.num_samples)
    states = model.to_item(model.states(batch, model.events(batch)).values)
    place = 0
    for b, length in enumerate(LENGTHS):
        for i in range(length):
            follows = i + 1 < length
            item = batch.jagged["items"].values[place + 1] if follows else batch.pooled["item"][b]
            source, at = ("items", place + 1) if follows else ("item", b)
            query = states[place]
            if normalize:
                query, item = functional.normalize(query, dim=0), functional.normalize(item, dim=0)
            torch.testing.assert_close(matches.queries[place], query)
            torch.testing.assert_close(matches.positives[place], item)
            assert matches.ids[place] == batch.ids[source][at]
            assert matches.log_q[place] == batch.log_q[source][at]
            assert matches.samples[place] == b
            place += 1
    assert len(matches.ids) == place
    drawn = batch.jagged["drawn"].values.view(-1, DRAWN, 6)
    torch.testing.assert_close(matches.negatives, functional.normalize(drawn, dim=2) if normalize else drawn)
    assert torch.equal(matches.negative_ids, batch.ids["drawn"].view(-1, DRAWN))


def test_what_is_drawn_is_no_history() -> None:
    model = built("sasrec", attend=None)
    assert (model.histories, model.negatives) == (["items"], ("drawn",))
    assert "drawn" not in model.others


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_a_query_is_that_of_the_last_event(name: str) -> None:
    model, batch = built(name), drawing_batch()
    queries, matches = model.queries(batch), model.matches(batch)
    for b, end in enumerate(batch.jagged["items"].offsets[1:].tolist()):
        expected = matches.queries[end - 1] if LENGTHS[b] else torch.zeros(6)
        torch.testing.assert_close(queries[b], expected)
    scores = (queries * model.items(batch)).sum(dim=1, keepdim=True)
    torch.testing.assert_close(model(batch), scores)


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_sampled_negatives_teach_everything_but_what_only_ranking_sees(name: str) -> None:
    model, batch = built(name), drawing_batch()
    in_batch_softmax(model.matches(batch), temperature=0.05, negatives="sampled").mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.any(), parameter_name
    assert batch.jagged["drawn"].values.grad.any()


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_a_batch_without_events_teaches_nothing(name: str) -> None:
    model, batch = built(name), drawing_batch([0, 0])
    matches = model.matches(batch)
    check_matches(matches, 2)
    losses = matches.per_sample(in_batch_softmax(matches, negatives="sampled"), 2)
    assert losses.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"normalize": 1}, "normalize must be true or false, got 1"),
        ({"hidden": []}, "hidden must be a list of positive widths"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        built("sasrec", **options)


def test_items_of_another_table_and_targets_without_a_catalogue_are_refused() -> None:
    inputs, arguments = drawing_inputs(), {"attend": EVENTS}
    others = tuple(replace(f, table="others") if f.name == "items" else f for f in inputs.features)
    with pytest.raises(UserError, match="'items' has the table 'others', 'item' the table 'item'"):
        build_model("sasrec", replace(inputs, features=others), arguments)
    build_model("sasrec", replace(inputs, features=others), {**arguments, "hidden": [4]})
    with pytest.raises(UserError, match="target 'item' is nothing that the catalogue"):
        build_model("hstu", replace(inputs, catalogue=("kind", "age")), arguments)
    build_model("hstu", replace(inputs, catalogue=("kind", "item")), arguments)


def test_with_layers_above_it_is_no_retrieval_model() -> None:
    with pytest.raises(UserError, match="without `hidden`"):
        check_model(built("hstu", hidden=[8]), "this test")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sasrec", {}),
        ("sasrec", {"hidden": [8]}),
        ("hstu", {"times": "gaps"}),
        ("hstu", {"hidden": [8], "form": "dlrm_v4", "context": ["user"], "times": "gaps"}),
    ],
)
def test_autocast_only_rounds(name: str, options: dict[str, Any]) -> None:
    model, batch = built(name, **options), drawing_batch()
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch)
    rounded.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.1)
    assert not torch.equal(rounded.float(), exact)


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_published_set_ups_are_configurations(name: str) -> None:
    config = load_config(Path(__file__).parents[2] / "datasets" / "movielens" / f"{name}.toml")
    assert (config.model.class_name, config.features["history"].max_length) == (name, 200)
    features = (
        FeatureSpec("movie", "movie", 0, 50, "sum", False),
        FeatureSpec("history", "movie", 0, 50, "jagged", True, max_length=200),
        FeatureSpec("history_gap", "history_gap", 1, 1, "jagged", True, max_length=200, weighted=True),
        FeatureSpec("drawn", "movie", 0, 50, "jagged", True, like="movie"),
    )
    model = build_model(name, Inputs(features, 0, ("rated",)), config.model.arguments)
    check_model(model, "this test")


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
@pytest.mark.parametrize("hidden", [None, [8]])
def test_whole_runs(name: str, hidden: list[int] | None, tmp_path: Path) -> None:
    data = write_retrieval(tmp_path, 200)
    config = retrieval_config(data, tmp_path / "run")
    config["features"] = {
        "history": {"table": "item", "pooling": "jagged", "max_length": 3},
        "item": {"table": "item"},
    }
    config["model"] = {"class": name}
    if hidden is None:
        config["features"]["drawn"] = {"sampled": {"like": "item", "count": 6}}
        loss = {"name": "in_batch_softmax", "temperature": 0.2, "negatives": "sampled"}
        config["tasks"] = {"liked": {"loss": loss}}
    else:
        config["model"]["hidden"] = hidden
        config["data"] = {key: data[key] for key in ("train", "valid")} | {"batch_size": 32}
        config["train"].pop("metrics")
        config.pop("tasks")
    summary = ph.train(config, quiet=True)
    valid = ph.load(tmp_path / "run").evaluate("valid")
    metric = "hr@3" if hidden is None else "logloss"
    assert 0 < summary["valid"][metric] < 1
    assert valid[metric] == pytest.approx(summary["valid"][metric], rel=1e-6)
