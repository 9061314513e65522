"""The in-batch softmax against a loop in NumPy, and what it refuses."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from persia_hpc.errors import UserError
from persia_hpc.trainer.retrieval import Matches, check_matches, in_batch_softmax

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
        some(count),
        some(B, C),
    )


def loop(m: Matches, temperature: float, logq: bool, negatives: str) -> list[float]:
    """Computes the loss of each position from the definition, one candidate at a time."""
    assert m.negatives is not None
    assert m.negative_ids is not None
    assert m.log_q is not None
    assert m.negative_log_q is not None
    q, v, n = (t.double().numpy() for t in (m.queries, m.positives, m.negatives))
    count = len(q)
    share = count / (count + C)

    def corrected(score: float, log_q: float) -> float:
        chance = math.exp(log_q)
        if negatives == "both":
            chance = share * chance + (1 - share) / ITEMS
        return score / temperature - (math.log(chance) if logq and negatives != "sampled" else 0.0)

    losses = []
    for i in range(count):
        sample = i if m.samples is None else int(m.samples[i])
        right = corrected(q[i] @ v[i], float(m.log_q[i]))
        candidates = [right]
        if negatives != "sampled":
            candidates += [
                corrected(q[i] @ v[j], float(m.log_q[j])) for j in range(count) if m.ids[j] != m.ids[i]
            ]
        if negatives != "batch":
            candidates += [
                corrected(q[i] @ n[sample, c], float(m.negative_log_q[sample, c]))
                for c in range(C)
                if m.negative_ids[sample, c] != m.ids[i]
            ]
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
