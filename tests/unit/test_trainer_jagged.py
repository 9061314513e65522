"""Sequences without padding hold what padded ones hold, and models of both kinds give the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from persia_hpc.errors import UserError
from persia_hpc.models import build_model
from persia_hpc.trainer.batch import Batch
from persia_hpc.trainer.jagged import Jagged
from persia_hpc.trainer.pooling.embed import Pooling
from tests.support.row_batches import make_inputs, make_row_batch, random_ids

LENGTHS = st.lists(st.integers(0, 6), max_size=7)


def jagged_of(lengths: list[int], dim: int = 3) -> tuple[Jagged, list[Tensor]]:
    """Values of these lengths, and the same by sample."""
    values = torch.randn(sum(lengths), dim, generator=torch.Generator().manual_seed(sum(lengths)))
    offsets = torch.tensor([0, *np.cumsum(lengths).astype(int).tolist()])
    return Jagged(values, offsets, max([1, *lengths])), list(values.split(lengths))


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, more=st.integers(0, 2))
def test_padded_values_are_the_samples_left_aligned(lengths: list[int], more: int) -> None:
    jagged, samples = jagged_of(lengths)
    padded, mask = jagged.padded(jagged.longest + more), jagged.mask(jagged.longest + more)
    assert padded.shape == (len(lengths), jagged.longest + more, 3)
    for b, sample in enumerate(samples):
        assert torch.equal(padded[b, : len(sample)], sample)
        assert not padded[b, len(sample) :].any()
        assert mask[b].tolist() == [i < len(sample) for i in range(padded.shape[1])]
        assert torch.equal(jagged.values[jagged.samples() == b], sample)
    assert jagged.positions().tolist() == [i for n in lengths for i in range(n)]
    assert jagged.lengths.tolist() == lengths
    again = jagged.unpadded(padded)
    assert torch.equal(again.values, jagged.values)
    assert again.offsets is jagged.offsets


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS)
def test_means_and_gradients_are_those_of_the_samples(lengths: list[int]) -> None:
    jagged, _ = jagged_of(lengths)
    results = []
    for mean in (
        lambda j: j.mean(),
        lambda j: torch.stack([x.mean(0) if len(x) else torch.zeros(3) for x in j.values.split(lengths)]),
        lambda j: j.padded().sum(1) / j.lengths.clamp(min=1)[:, None],
    ):
        values = jagged.values.clone().requires_grad_()
        if not lengths:
            assert jagged.with_values(values).mean().shape == (0, 3)
            return
        out = mean(jagged.with_values(values))
        wave = torch.arange(1, out.numel() + 1).view_as(out)
        (out * wave).sum().add(0 * values.sum()).backward()
        results.append((out.detach(), torch.zeros(0, 3) if values.grad is None else values.grad))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, data=st.data())
def test_taken_samples_are_those_in_their_order(lengths: list[int], data: st.DataObject) -> None:
    jagged, samples = jagged_of(lengths)
    chosen = data.draw(st.lists(st.sampled_from(range(len(lengths))), max_size=5) if lengths else st.just([]))
    block, places = jagged.taken(torch.tensor(chosen, dtype=torch.int64))
    assert block.lengths.tolist() == [lengths[b] for b in chosen]
    assert block.longest == max([1, *(lengths[b] for b in chosen)])
    expected = torch.cat([jagged.values[:0], *(samples[b] for b in chosen)])
    assert torch.equal(jagged.values[places], expected)


def test_another_number_of_values_is_an_error() -> None:
    with pytest.raises(UserError, match="got 5 values, expected one for each of the 4 ids"):
        jagged_of([3, 1])[0].with_values(torch.zeros(5, 3))


def test_a_feature_called_like_a_sequence_keeps_its_own_offsets() -> None:
    inputs = make_inputs([("x", 4, "jagged", True), ("y", 4, "jagged", True)])
    inputs = replace(inputs, features=(replace(inputs.features[0], sequence="y"), inputs.features[1]))
    rng = np.random.default_rng(1)
    ids = random_ids(inputs, 20, rng)
    batch, _ = Pooling(inputs).embed(make_row_batch(inputs, ids, rng), training=False)
    for name in "xy":
        assert batch.jagged[name].lengths.tolist() == [len(sample) for sample in ids[name]]


def test_what_is_longer_than_asked_for_is_an_error() -> None:
    jagged, _ = jagged_of([2, 5])
    with pytest.raises(UserError, match="got length 4, expected at least that of the longest, 5"):
        jagged.padded(4)
    with pytest.raises(UserError, match="got length 4"):
        jagged.unpadded(torch.zeros(2, 4, 3))


class Attention(nn.Module):
    """One layer of self-attention over a history, and its mean; padded, padded by itself, or nested."""

    def __init__(self, inputs: Any, kind: str):
        super().__init__()
        self.kind, dim = kind, inputs.dims["h"]
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, 1)

    def attended(self, qkv: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        q, k, v = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in qkv)
        seen = None if mask is None else (mask | ~mask.any(1, keepdim=True))[:, None, None]
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return attended.transpose(1, 2).flatten(-2)

    def forward(self, batch: Batch) -> Tensor:
        if self.kind == "sequence":
            values, mask = batch.sequence["h"]
            out = self.out(self.attended(self.qkv(values).chunk(3, dim=-1), mask))
            return (out * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        jagged = batch.jagged["h"]
        qkv = [jagged.with_values(x.contiguous()) for x in self.qkv(jagged.values).chunk(3, dim=-1)]
        if self.kind == "nested":
            nested = (
                torch.nested.nested_tensor_from_jagged(
                    x.values, x.offsets, min_seqlen=0, max_seqlen=x.longest
                )
                for x in qkv
            )
            seen = jagged.with_values(self.attended(nested).values())
        else:
            seen = jagged.unpadded(self.attended((x.padded() for x in qkv), jagged.mask()))
        return jagged.with_values(self.out(seen.values)).mean()


@pytest.mark.parametrize("kind", ["jagged", "nested"])
def test_attention_gives_the_same_padded_and_not(kind: str) -> None:
    results = []
    for form in ("sequence", kind):
        rng = np.random.default_rng(3)
        inputs = make_inputs([("h", 8, "sequence" if form == "sequence" else "jagged", True)])
        ids = {"h": [rng.integers(0, 30, n).tolist() for n in (1, 0, 7, 40, 3)]}
        row_batch = make_row_batch(inputs, ids, rng)
        torch.manual_seed(1)
        model = Attention(inputs, form)
        batch, gradients = Pooling(inputs).embed(row_batch, training=True)
        logits = model(batch)
        functional.binary_cross_entropy_with_logits(logits, batch.labels).backward()
        parameters = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([logits, *parameters, *(torch.from_numpy(a) for a in gradients.arrays())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert results[0][-1].abs().sum() > 0


@pytest.mark.parametrize("name", ["dlrm", "dcn_v2", "deepfm", "tower"])
def test_built_in_models_give_the_same_padded_and_not(name: str) -> None:
    """Also where one history is padded and another isn't: their means keep the features' order."""
    results = []
    for kinds in (("sequence", "sequence"), ("jagged", "jagged"), ("jagged", "sequence")):
        rng = np.random.default_rng(4)
        inputs = make_inputs(
            [("a", 4, "sum", False), *((f"h{i}", 4, kind, True) for i, kind in enumerate(kinds))]
        )
        row_batch = make_row_batch(inputs, random_ids(inputs, 9, rng, most=6), rng)
        torch.manual_seed(2)
        model = build_model(name, inputs, {"hidden": [8]})
        batch, gradients = Pooling(inputs).embed(row_batch, training=True)
        logits = model(batch)
        logits.square().sum().backward()
        parameters = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([logits, *parameters, *(torch.from_numpy(a) for a in gradients.arrays())])
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
