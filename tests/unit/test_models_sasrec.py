"""SASRec is what its paper writes, computed on padded histories with masks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from persia_hpc.errors import UserError
from persia_hpc.models import build_model
from persia_hpc.trainer.batch import Inputs
from persia_hpc.trainer.jagged import Jagged
from tests.support.histories import gradients, history_batch, history_inputs, sample_of

ITEMS = [{"targets": ["item"], "histories": ["items"]}]
EVENTS = [{"targets": ["item"], "histories": ["items", "actions"]}]


def built(inputs: Inputs, **options: Any) -> Any:
    torch.manual_seed(1)
    return build_model("sasrec", inputs, options)


def plain_states(model: Any, events: Jagged) -> Tensor:
    """The states [B, L, W], layer by layer as the paper has them."""
    x, mask = events.padded(), events.mask()
    width, length = x.shape[2], x.shape[1]
    x = x * math.sqrt(width) + model.positions[:length]
    unseen = torch.ones(length, length, dtype=torch.bool).triu(1) | ~mask[:, None, :]
    for block in model.blocks:
        normed = functional.layer_norm(
            x, (width,), block.attention_norm.weight, block.attention_norm.bias, eps=1e-8
        )
        wq, wk, wv = block.qkv.weight.chunk(3)
        heads = []
        for q, k, v in zip(*(w.chunk(block.heads) for w in (wq, wk, wv)), strict=True):
            scores = (normed @ q.T) @ (normed @ k.T).transpose(1, 2) / math.sqrt(len(q))
            scores = scores.masked_fill(unseen, -1e9)
            heads.append(torch.softmax(scores, dim=2) @ (normed @ v.T))
        x = x + torch.cat(heads, dim=2)
        normed = functional.layer_norm(x, (width,), block.norm.weight, block.norm.bias, eps=1e-8)
        first, _, _, second = block.feed
        x = x + torch.relu(normed @ first.weight.T + first.bias) @ second.weight.T + second.bias
    return functional.layer_norm(x, (width,), model.norm.weight, model.norm.bias, eps=1e-8)


@pytest.mark.parametrize(("attend", "heads"), [(ITEMS, 1), (ITEMS, 3), (EVENTS, 2)])
def test_sasrec_is_its_definition(attend: Any, heads: int) -> None:
    inputs = history_inputs()
    model, batch = built(inputs, attend=attend, heads=heads).eval(), history_batch(inputs)
    events = model.events(batch)
    made, expected = model.states(batch, events), events.unpadded(plain_states(model, events))
    torch.testing.assert_close(made.values, expected.values, rtol=1e-5, atol=1e-5)
    wanted = [batch.jagged["items"].values, *model.parameters()]
    found = zip(gradients(made.values, *wanted), gradients(expected.values, *wanted), strict=True)
    for ours, plain in found:
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_a_score_is_the_product_of_last_state_and_item() -> None:
    inputs = history_inputs()
    model, batch = built(inputs, attend=ITEMS, normalize=False).eval(), history_batch(inputs)
    states, scores = plain_states(model, model.events(batch)), model(batch)
    assert scores.shape == (batch.num_samples, 1)
    for i, length in enumerate(batch.jagged["items"].lengths.tolist()):
        expected = states[i, length - 1] @ batch.pooled["item"][i] if length else torch.tensor(0.0)
        torch.testing.assert_close(scores[i, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hidden", [None, [8]])
def test_padded_and_jagged_histories_give_the_same(hidden: list[int] | None) -> None:
    made = []
    for kind in ("jagged", "sequence"):
        inputs = history_inputs(kind=kind)
        model = built(inputs, attend=EVENTS, hidden=hidden).eval()
        made.append(model(history_batch(inputs)))
    torch.testing.assert_close(made[1], made[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hidden", [None, [8]])
def test_other_samples_change_nothing(hidden: list[int] | None) -> None:
    inputs = history_inputs()
    model, batch = built(inputs, attend=EVENTS, hidden=hidden).eval(), history_batch(inputs)
    alone = torch.cat([model(sample_of(batch, i)) for i in range(batch.num_samples)])
    torch.testing.assert_close(model(batch), alone, rtol=1e-4, atol=1e-5)


def test_later_events_change_no_earlier_state() -> None:
    inputs = history_inputs()
    model, batch = built(inputs, attend=ITEMS).eval(), history_batch(inputs, [9])
    whole = model.states(batch, model.events(batch)).values
    for length in range(1, 9):
        part = Jagged(batch.jagged["items"].values[:length], torch.tensor([0, length]), length)
        torch.testing.assert_close(model.states(batch, part).values, whole[:length], rtol=1e-4, atol=1e-5)


def test_sasrec_learns_everything_as_a_ranking_model() -> None:
    inputs = history_inputs()
    model = built(inputs, attend=EVENTS, hidden=[16, 8], activation="silu", dropout=0.0)
    batch = history_batch(inputs)
    nn.functional.binary_cross_entropy_with_logits(model(batch), batch.labels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    vectors = [*batch.pooled.values(), *(jagged.values for jagged in batch.jagged.values())]
    assert all(values.grad is not None and values.grad.any(dim=1).all() for values in vectors)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attend": ITEMS, "layers": 0}, "layers must be an integer of at least 1, got 0"),
        ({"attend": ITEMS, "heads": 4}, "heads must divide the width of an event, 6, got 4"),
        ({"attend": ITEMS * 2}, "reads one history, got items, items"),
        ({"attend": [{"targets": ["items"], "histories": ["item"]}]}, "is no pooled feature"),
        ({"attend": [{"targets": ["item"], "histories": ["actions"]}]}, "of dims"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        built(history_inputs(), **options)


def test_a_history_without_max_length_is_refused() -> None:
    with pytest.raises(UserError, match="items needs max_length"):
        built(history_inputs(max_length=None))


def test_features_of_an_event_differ_in_length() -> None:
    inputs = history_inputs()
    batch = history_batch(inputs)
    batch.jagged["actions"] = history_batch(inputs, [4, 1, 1, 9, 3, 9, 2]).jagged["actions"]
    with pytest.raises(UserError, match="items, actions differ in length"):
        built(inputs, attend=EVENTS)(batch)
