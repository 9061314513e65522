"""HSTU is what its authors and MLPerf publish, computed on padded tokens with masks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from persia_hpc.config import load_config
from persia_hpc.errors import UserError
from persia_hpc.models import build_model
from persia_hpc.trainer.batch import Batch, FeatureSpec, Inputs
from persia_hpc.trainer.jagged import Jagged
from persia_hpc.trainer.pooling.embed import Pooling
from tests.support.histories import gradients, history_batch, history_inputs, sample_of
from tests.support.row_batches import make_row_batch

ITEMS = [{"targets": ["item"], "histories": ["items"]}]
EVENTS = [{"targets": ["item"], "histories": ["items", "actions"]}]
PAPER: dict[str, Any] = {"attend": ITEMS}
RANKING: dict[str, Any] = {"attend": EVENTS, "hidden": [16, 8], "activation": "silu"}
MLPERF: dict[str, Any] = {**RANKING, "form": "dlrm_v4", "context": ["user"]}
FORMS = [
    PAPER,
    {"attend": EVENTS, "heads": 2, "head_dim": 3, "times": "gaps", "divisor": 211},
    {**RANKING, "times": "gaps"},
    {**RANKING, "times": "gaps", "context": ["user", "item"]},
    MLPERF,
    {**MLPERF, "heads": 3, "width": 12, "times": "gaps", "divisor": 5},
]


def built(inputs: Inputs, **options: Any) -> Any:
    torch.manual_seed(1)
    model = build_model("hstu", inputs, {"dropout": 0.0, "normalize": False, **options})
    with torch.no_grad():  # large enough for all that is added to matter
        for name, parameter in model.named_parameters():
            if name.endswith(("positions", "times", "uvqk.weight")):
                parameter.mul_(10.0)
    return model


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    return functional.layer_norm(x, x.shape[2:], layer.weight, layer.bias, eps=1e-6)


def plain_states(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """The states [B, T, W] of all tokens, and which of them are a history's or a target."""
    paper = model.form == "paper"
    events = torch.cat([batch.jagged[name].padded() for name in model.histories], dim=2)
    lengths = batch.jagged["items"].lengths
    target, gaps = model.target(batch), replace(batch.jagged["gaps"])
    gaps = gaps.with_values(gaps.weights.double()).padded()
    if model.unknown is not None:
        target = torch.cat([target, model.unknown.expand(len(target), -1)], dim=1)
    context = [layer(batch.pooled[n]) for n, layer in zip(model.context, model.context_layers, strict=True)]
    rows, clocks, places = [], [], []
    for b, length in enumerate(lengths.tolist()):
        tokens = [*(c[b] for c in context), *model.to_token(events[b, :length])]
        since = [float(gaps[b, 1 : j + 1].sum()) for j in range(length)]
        clock = [since[0] if since else 0.0] * len(context) + since
        if model.layers is not None:
            tokens.append(model.to_token(target[b]))
            clock.append(since[-1] if since else 0.0)
        count, c = len(tokens), len(context)
        place = list(range(count))
        if not paper:
            place = [model.length - c + i for i in range(c)] + [count - 1 - i for i in range(c, count)]
        rows.append(torch.stack(tokens) if tokens else torch.zeros(0, model.width))
        clocks.append(clock)
        places.append(place)
    most = max(len(row) for row in rows)
    x = torch.stack([functional.pad(row, (0, 0, 0, most - len(row))) for row in rows])
    count = torch.tensor([len(row) for row in rows])
    mask = torch.arange(most) < count[:, None]
    place = torch.tensor([p + [0] * (most - len(p)) for p in places])
    clock = torch.tensor([c + [0.0] * (most - len(c)) for c in clocks], dtype=torch.float64)
    x = x * math.sqrt(model.width) + model.positions[place]
    last = torch.tensor([c[-1] if c else 0.0 for c in clocks], dtype=torch.float64)
    if model.time_vectors is not None:
        x = x + model.time_vectors[((last[:, None] - clock).clamp(min=1e-6) / 60).sqrt().long()]
    until = torch.cat([clock[:, 1:], clock[:, -1:]], dim=1)
    until[torch.arange(len(x)), (count - 1).clamp(min=0)] = last
    distance = (torch.arange(most)[:, None] - torch.arange(most)).clamp(min=0)
    seen = torch.ones(most, most).tril() * mask[:, None, :]
    n = model.divisor or (model.length if paper else most)
    for block in model.blocks:
        mixed = block.uvqk(norm(x, block.norm))
        mixed = functional.silu(mixed) if paper else mixed
        u, v, q, k = mixed.chunk(4, dim=2)
        u = u if paper else functional.silu(u)
        heads = []
        for qh, kh, vh in zip(*(t.chunk(block.heads, dim=2) for t in (q, k, v)), strict=True):
            scores = qh @ kh.transpose(1, 2) / (1.0 if paper else math.sqrt(qh.shape[2]))
            if paper:
                scores = scores + block.positions[distance]
            if block.times is not None:
                apart = (until[:, :, None] - clock[:, None, :]).abs().clamp(min=1)
                scores = scores + block.times[(apart.log() / 0.301).long()]
            heads.append((functional.silu(scores) / n * seen) @ vh)
        attended = torch.cat(heads, dim=2)
        gated = u * norm(attended, block.attention_norm)
        x = x + block.output(gated if paper else torch.cat([u, attended, gated], dim=2))
    return x, mask & (torch.arange(most) >= len(context))


def plain_forward(model: Any, batch: Batch) -> Tensor:
    """Logits or scores, from the state of each sample's last token."""
    states, mask = plain_states(model, batch)
    users = []
    for state, there in zip(states, mask, strict=True):
        users.append(state[there][-1] if there.any() else torch.zeros(model.width))
    user = model.to_item(torch.stack(users))
    if model.layers is None:
        return (user * batch.pooled["item"]).sum(dim=1, keepdim=True)
    others = []
    for name in model.others:
        others.append(
            torch.stack(
                [
                    v[m].mean(dim=0) if m.any() else torch.zeros(v.shape[1])
                    for v, m in zip(batch.jagged[name].padded(), batch.jagged[name].mask(), strict=True)
                ]
            )
        )
    parts = [batch.dense, *(batch.pooled[name] for name in model.inputs.pooled), user, *others]
    return model.layers(torch.cat(parts, dim=1))


@pytest.mark.parametrize("options", FORMS)
def test_hstu_is_its_definition(options: dict[str, Any]) -> None:
    inputs = history_inputs()
    model, batch = built(inputs, **options), history_batch(inputs)
    made, expected = model(batch), plain_forward(model, batch)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    names, parameters = zip(*model.named_parameters(), strict=True)
    vectors = [*batch.pooled.values(), *(jagged.values for jagged in batch.jagged.values())]
    wanted = [*parameters, *vectors]
    ours, plain = gradients(made, *wanted), gradients(expected, *wanted)
    for name, a, b in zip([*names, *batch.pooled, *batch.jagged], ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert all(g.any() for name, g in zip(names, ours, strict=False))


def test_every_state_is_that_of_the_definition() -> None:
    inputs = history_inputs()
    model, batch = built(inputs, attend=ITEMS, times="gaps", layers=3), history_batch(inputs)
    states, mask = plain_states(model, batch)
    made = model.states(batch, model.events(batch)).values
    torch.testing.assert_close(made, states[mask], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [PAPER, RANKING, MLPERF])
def test_padded_and_jagged_histories_give_the_same(options: dict[str, Any]) -> None:
    made = []
    for kind in ("jagged", "sequence"):
        inputs = history_inputs(kind=kind)
        made.append(built(inputs, **options)(history_batch(inputs)))
    torch.testing.assert_close(made[1], made[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [*FORMS[:4], {**MLPERF, "divisor": 7}])
def test_other_samples_change_nothing(options: dict[str, Any]) -> None:
    inputs = history_inputs()
    model, batch = built(inputs, **options), history_batch(inputs)
    alone = torch.cat([model(sample_of(batch, i)) for i in range(batch.num_samples)])
    torch.testing.assert_close(model(batch), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [*FORMS, {"attend": EVENTS, "times": "gaps", "context": ["user"]}])
def test_users_without_events_among_themselves_are_what_they_are_among_others(
    options: dict[str, Any],
) -> None:
    inputs = history_inputs()
    model = built(inputs, **{**options, "divisor": 7})
    batch = history_batch(inputs, [0, 3])
    torch.testing.assert_close(model(sample_of(batch, 0)), model(batch)[:1])


def test_the_longest_sample_is_the_divisor_of_mlperf() -> None:
    inputs = history_inputs()
    model, batch = built(inputs, **MLPERF), history_batch(inputs)
    given = built(inputs, **MLPERF, divisor=11)  # 9 events, the target and a token of the user
    torch.testing.assert_close(model(batch), given(batch))
    assert not torch.allclose(model(sample_of(batch, 0)), given(sample_of(batch, 0)))


def test_later_events_change_no_earlier_state() -> None:
    inputs = history_inputs()
    model, batch = built(inputs, attend=ITEMS), history_batch(inputs, [9])
    whole = model.states(batch, model.events(batch)).values
    for length in range(1, 9):
        part = Jagged(batch.jagged["items"].values[:length], torch.tensor([0, length]), length)
        torch.testing.assert_close(model.states(batch, part).values, whole[:length], rtol=1e-4, atol=1e-5)


def test_times_are_only_differences_within_a_sample() -> None:
    inputs = history_inputs()
    model, batch = built(inputs, attend=ITEMS, times="gaps"), history_batch(inputs)
    before = model(batch)
    gaps = batch.jagged["gaps"]
    weights = gaps.weights.clone()
    weights[gaps.offsets[:-1][gaps.lengths > 0]] += 12345.0  # what was before the first event
    batch.jagged["gaps"] = replace(gaps, weights=weights)
    torch.testing.assert_close(model(batch), before)
    batch.jagged["gaps"] = replace(gaps, weights=10 * gaps.weights)
    assert not torch.allclose(model(batch), before)


def test_seconds_of_years_ago_still_count() -> None:
    inputs = history_inputs()
    model, batch = built(inputs, attend=ITEMS, times="gaps"), history_batch(inputs)
    gaps = batch.jagged["gaps"]
    weights = torch.randint(1, 60, gaps.weights.shape).float()
    before = model.states(batch, model.events(batch)).values
    weights[gaps.offsets[1:][gaps.lengths > 0] - 1] = 1e9  # the last event is 30 years later
    batch.jagged["gaps"] = replace(gaps, weights=weights)
    states, mask = plain_states(model, batch)
    made = model.states(batch, model.events(batch)).values
    torch.testing.assert_close(made, states[mask], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(made, before)
    weights = weights.clamp(max=1e6)  # float32 is exact for these
    batch.jagged["gaps"] = replace(gaps, weights=weights)
    near = model.states(batch, model.events(batch)).values
    events = batch.jagged["items"]
    looked_back = events.positions() < events.lengths[events.samples()] - 2
    torch.testing.assert_close(made[looked_back], near[looked_back])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "module"}, "form must be one of paper, dlrm_v4, got 'module'"),
        ({"form": "dlrm_v4"}, "needs hidden"),
        ({"times": "items"}, "times must name a jagged feature with weights"),
        ({"context": ["items"]}, "context must be a list of pooled features"),
        ({"context": ["item"]}, "context names the target 'item'"),
        ({"divisor": 0}, "divisor must be an integer of at least 1, got 0"),
        ({"heads": 4}, "heads must divide the width of an event, 6, got 4"),
        ({"width": 0}, "width must be an integer of at least 1, got 0"),
        ({"head_dim": True}, "head_dim must be an integer of at least 1, got True"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        built(history_inputs(), **{**PAPER, **options})


def test_times_of_other_events_are_refused() -> None:
    inputs = history_inputs()
    batch = history_batch(inputs)
    batch.jagged["gaps"] = history_batch(inputs, [4, 1, 1, 9, 3, 9, 2]).jagged["gaps"]
    with pytest.raises(UserError, match="items, gaps differ in length"):
        built(inputs, attend=ITEMS, times="gaps")(batch)


def test_mlperfs_set_up_is_a_configuration_whose_model_learns() -> None:
    config = load_config(Path(__file__).parents[2] / "datasets" / "yambda" / "dlrm_v4.toml")
    histories = config.sequences["history"].features
    names = ["item", "artist", "album", *config.model.arguments["context"], *histories]
    rng = np.random.default_rng(1)
    ids = {name: [[1], [2]] if name not in histories else [[1, 2, 3], [4]] for name in names}
    tables = {name: config.features[name].table or name for name in names if name in config.features}
    features = [
        FeatureSpec(
            name,
            name,
            number,
            config.tables[tables.get(name, name)].dim // 64 + 2,
            "jagged" if name in histories else "sum",
            name in histories,
            max_length=config.features[name].max_length if name in histories else None,
        )
        for number, name in enumerate(names)
    ]
    inputs = Inputs(tuple(features), 4, ("listened",))
    batch, gradients = Pooling(inputs).embed(make_row_batch(inputs, ids, rng), training=True)
    gaps = batch.jagged["history_gap"]
    batch.jagged["history_gap"] = replace(gaps, weights=torch.rand(len(gaps.values)) * 1e5)
    timed = [replace(f, weighted=f.name == "history_gap") for f in features]
    given = {**config.model.arguments, "width": 16}
    model = build_model("hstu", replace(inputs, features=tuple(timed)), given)
    functional.binary_cross_entropy_with_logits(model(batch), batch.labels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(gradient.any(axis=1).all() for gradient in gradients.arrays())
