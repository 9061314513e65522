"""The in-batch softmax against a loop in NumPy, and what it refuses."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch
from persia_hpc.trainer.retrieval import Matches, RetrievalLoss, check_matches, in_batch_softmax

B, C, W, ITEMS = 5, 3, 4, 11


def make_matches(rng: np.random.Generator, *, several: bool) -> Matches:
    """Returns random matches with many accidental hits; `several`: a sample has 0 to 3 positions."""
    samples = np.repeat(np.arange(B), rng.integers(0, 4, B)) if several else np.arange(B)
    count = len(samples)

    def some(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    return Matches(
        some(count, W),
        some(count, W),
        torch.from_numpy(rng.integers(0, 4, count)),
        torch.from_numpy(samples) if several else None,
        some(B, C, W),
        torch.from_numpy(rng.integers(0, 6, (B, C))),
        -some(count).abs() - 0.1,
        -some(B, C).abs() - 0.1,
    )


def batch_of(labels: torch.Tensor) -> Batch:
    """Returns a batch of step 3 that has labels alone."""
    return Batch(3, len(labels), torch.empty(len(labels), 0), labels, None, None, {}, {}, {})


def loop(m: Matches, temperature: float, logq: bool, negatives: str) -> list[float]:
    """Computes the loss of each position from the definition, one candidate at a time."""
    assert m.negatives is not None
    assert m.negative_ids is not None
    assert m.log_q is not None
    assert m.negative_log_q is not None
    q, v, n = (t.double().numpy() for t in (m.queries, m.positives, m.negatives))
    count = len(q)
    once = logq and negatives != "sampled"

    def corrected(score: float, log_q: float) -> float:
        absent = (1 - math.exp(log_q)) ** max(1, count - 1)
        if negatives == "both":
            absent *= (1 - 1 / ITEMS) ** C
        return score / temperature - (math.log(1 - absent) if once else 0.0)

    losses = []
    for i in range(count):
        sample = i if m.samples is None else int(m.samples[i])
        right = corrected(q[i] @ v[i], float(m.log_q[i]))
        candidates, seen = [right], {int(m.ids[i])}
        others = []
        if negatives != "sampled":
            others += [(int(m.ids[j]), q[i] @ v[j], float(m.log_q[j])) for j in range(count)]
        if negatives != "batch":
            ids, logs = m.negative_ids[sample].tolist(), m.negative_log_q[sample].tolist()
            others += [(ids[c], q[i] @ n[sample, c], logs[c]) for c in range(C)]
        for number, score, log in others:
            if number not in seen:
                candidates.append(corrected(score, log))
                if once:
                    seen.add(number)
        losses.append(math.log(sum(math.exp(c) for c in candidates)) - right)
    return losses


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("logq", [False, True])
@pytest.mark.parametrize("negatives", ["batch", "sampled", "both"])
def test_the_loss_is_what_its_formula_says(negatives: str, logq: bool, several: bool) -> None:
    rng = np.random.default_rng(len(negatives) + 10 * logq + 20 * several)
    for _ in range(20):
        matches = make_matches(rng, several=several)
        if not len(matches.queries):
            continue
        got = in_batch_softmax(
            matches, temperature=0.7, logq=logq, negatives=negatives, num_items=ITEMS
        ).double()
        expected = loop(matches, 0.7, logq, negatives)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-5)
        per_sample = matches.per_sample(got, B)
        assert per_sample.shape == (B,)
        assert per_sample.mean().item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_batch_without_positions_has_no_loss_and_zero_gradients() -> None:
    empty = torch.empty(0, W, requires_grad=True)
    none = torch.empty(0, dtype=torch.int64)
    matches = Matches(empty, empty, none, none, torch.ones(B, C, W), torch.ones(B, C, dtype=torch.int64))
    for negatives in ("batch", "sampled", "both"):
        losses = matches.per_sample(in_batch_softmax(matches, negatives=negatives), B)
        assert losses.tolist() == [0.0] * B
        losses.sum().backward()


@pytest.mark.parametrize("name", ["positives", "ids", "negatives", "negative_ids", "log_q", "negative_log_q"])
def test_matches_of_a_wrong_shape_are_refused(name: str) -> None:
    matches = make_matches(np.random.default_rng(1), several=False)
    check_matches(matches, B)
    wrong = dataclasses.replace(matches, **{name: getattr(matches, name)[:-1]})
    with pytest.raises(UserError, match=name):
        check_matches(wrong, B)
    with pytest.raises(UserError, match="queries"):
        check_matches(matches, B + 1)
    with pytest.raises(UserError, match="returned tuple"):
        check_matches((1, 2), B)


def slopes(truth: np.ndarray, *, logq: bool, negatives: str = "batch") -> np.ndarray:
    """Gradients of the loss at the scores log p of a truth [queries, items], of many batches from it."""
    rng = np.random.default_rng(5)
    (num_queries, num_items), batch = truth.shape, 24
    log_share = torch.from_numpy(np.log(truth.mean(axis=0)).astype(np.float32))
    one_hot, found = torch.eye(num_items), []
    for _ in range(2000):
        scores = torch.from_numpy(np.log(truth).astype(np.float32)).requires_grad_()
        queries = rng.integers(0, num_queries, batch)
        chosen = (rng.random(batch)[:, None] > truth[queries].cumsum(axis=1)).sum(axis=1)
        ids = torch.from_numpy(chosen.clip(max=num_items - 1))
        drawn = torch.from_numpy(rng.integers(0, num_items, (batch, 4)))
        matches = Matches(
            scores[queries], one_hot[ids], ids, None, one_hot[drawn], drawn, log_share[ids], log_share[drawn]
        )
        losses = in_batch_softmax(matches, logq=logq, negatives=negatives, num_items=num_items)
        (slope,) = torch.autograd.grad(losses.mean(), scores)
        found.append(slope.numpy())
    return np.stack(found)


@pytest.mark.parametrize("negatives", ["batch", "both"])
def test_only_with_logq_the_true_probabilities_have_the_smallest_loss(negatives: str) -> None:
    """The loss is convex in the scores, so they have it if the mean of its gradient is 0 there."""
    rng = np.random.default_rng(3)
    truth = rng.gamma(2.0, size=(3, 40)) / np.arange(1, 41)
    truth /= truth.sum(axis=1, keepdims=True)

    right = slopes(truth, logq=True, negatives=negatives).mean(axis=0)
    wrong = slopes(truth, logq=False, negatives=negatives).mean(axis=0)
    assert np.abs(right).max() < 0.004
    # Without it the most popular item is pushed down: its gradient is positive, its score becomes less.
    assert wrong[:, 0].min() > 0.06


def test_a_loss_refuses_matches_without_what_it_needs() -> None:
    batch = batch_of(torch.ones(B, 1))
    matches = make_matches(np.random.default_rng(1), several=False)
    options = {"temperature": 1.0, "logq": "weights", "negatives": "both"}
    loss = RetrievalLoss(options, ITEMS)
    assert loss(matches, batch).shape == (B,)
    for name in ("negatives", "log_q", "negative_log_q"):
        with pytest.raises(UserError, match=f"needs {name}"):
            loss(dataclasses.replace(matches, **{name: None}), batch)
    assert matches.log_q is not None
    unknown = dataclasses.replace(
        matches, log_q=matches.log_q.masked_fill(matches.ids == matches.ids[0], -math.inf)
    )
    with pytest.raises(UserError, match="step 3: got an item to learn that the catalogue"):
        loss(unknown, batch)


def test_samples_without_a_label_of_one_have_no_loss_but_are_negatives() -> None:
    batch = batch_of(torch.tensor([[1.0], [0.0], [math.nan], [1.0], [1.0]]))
    matches = make_matches(np.random.default_rng(2), several=False)
    found = RetrievalLoss({"temperature": 1.0, "logq": "off", "negatives": "batch"}, 0)(matches, batch)
    expected = np.array(loop(matches, 1.0, False, "batch")) * [1, 0, 0, 1, 1]
    options = {"temperature": 1.0, "logq": "off", "negatives": "batch"}
    assert torch.equal(RetrievalLoss(options, 0, 2.0)(matches, batch), 2 * found)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
