"""Losses against their formulas written out by hand, and that a missing label changes no gradient."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from persia_hpc.config import load_config
from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Batch
from persia_hpc.trainer.losses import load_loss, make_loss
from tests.support.tiny import tiny_config

CLASSES = 4
NAMES = ["bce", "focal", "mse", "poisson", "softmax", "bpr"]
OPTIONS = {"bce": {"smoothing": 0.1, "pos_weight": 3.0}, "softmax": {"classes": CLASSES, "smoothing": 0.2}}


def make_batch(labels: Tensor, group: Tensor | None = None) -> Batch:
    nothing = torch.zeros(len(labels), 0)
    return Batch(1, len(labels), nothing, labels, None, group, {}, {}, {})


def draw(name: str, rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, outputs], labels [B, 1] and groups [B]."""
    random = torch.Generator().manual_seed(seed)
    most = {"poisson": 6, "softmax": CLASSES}.get(name, 2)
    labels = torch.randint(0, most, (rows, 1), generator=random).float()
    logits = 2 * torch.randn(rows, CLASSES if name == "softmax" else 1, generator=random)
    return logits, labels, torch.randint(0, 3, (rows,), generator=random)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(name: str, x: list[float], y: float) -> float:
    """The loss of one sample as its paper writes it."""
    p = sigmoid(x[0])
    if name == "bce":
        y = y * 0.9 + 0.05
        return -3 * y * math.log(p) - (1 - y) * math.log(1 - p)
    if name == "focal":
        share, p = (0.25, p) if y == 1 else (0.75, 1 - p)
        return -share * (1 - p) ** 2 * math.log(p)
    if name == "mse":
        return (x[0] - y) ** 2
    if name == "poisson":
        return math.exp(x[0]) - y * x[0]
    shares = [math.exp(v) / sum(map(math.exp, x)) for v in x]
    wanted = [0.2 / CLASSES + 0.8 * (k == y) for k in range(CLASSES)]
    return -sum(w * math.log(s) for w, s in zip(wanted, shares, strict=True))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(NAMES[:-1]), st.integers(1, 20), st.integers(0, 10**6))
def test_each_sample_has_the_loss_of_the_formula(name: str, rows: int, seed: int) -> None:
    logits, labels, _ = draw(name, rows, seed)
    losses = load_loss(name, OPTIONS.get(name))(logits, make_batch(labels)).reshape(-1)
    expected = [by_hand(name, x, y) for x, (y,) in zip(logits.tolist(), labels.tolist(), strict=True)]
    np.testing.assert_allclose(losses.numpy(), expected, rtol=2e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 30), st.integers(0, 10**6))
def test_bpr_compares_positives_with_the_negatives_of_their_group(rows: int, seed: int) -> None:
    logits, labels, group = draw("bpr", rows, seed)
    labels = labels.masked_fill(
        torch.rand(rows, 1, generator=torch.Generator().manual_seed(seed)) < 0.2, torch.nan
    )
    losses = load_loss("bpr")(logits, make_batch(labels, group))[:, 0].tolist()
    s, y, g = logits[:, 0].tolist(), labels[:, 0].tolist(), group.tolist()
    for i in range(rows):
        others = [j for j in range(rows) if y[j] == 0 and g[j] == g[i]] if y[i] == 1 else []
        each = [-math.log(sigmoid(s[i] - s[j])) for j in others]
        assert losses[i] == pytest.approx(np.mean(each) if each else 0.0, rel=1e-4, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(NAMES), st.integers(2, 20), st.integers(0, 10**6), st.booleans())
def test_a_missing_label_has_no_loss_and_changes_no_gradient(
    name: str, rows: int, seed: int, infinite: bool
) -> None:
    logits, labels, group = draw(name, rows, seed)
    missing = torch.rand(rows, generator=torch.Generator().manual_seed(seed + 1)) < 0.4
    loss = load_loss(name, OPTIONS.get(name))

    def gradients(x: Tensor, y: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        losses = loss(x, make_batch(y, g))
        losses.sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return losses.detach(), x.grad

    given_logits = logits.clone()
    if infinite:
        given_logits[missing] = torch.inf
    whole, whole_gradient = gradients(given_logits, labels.masked_fill(missing[:, None], torch.nan), group)
    known, known_gradient = gradients(logits[~missing], labels[~missing], group[~missing])
    assert not whole[missing].any()
    assert not whole_gradient[missing].any()
    torch.testing.assert_close(whole[~missing], known, rtol=1e-6, atol=0)
    torch.testing.assert_close(whole_gradient[~missing], known_gradient, rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(0, 10**6), st.floats(0.01, 100))
def test_positives_weigh_as_torch_lets_them(rows: int, seed: int, weight: float) -> None:
    logits, labels, _ = draw("bce", rows, seed)
    own, reference = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    tasks_of(a={"loss": {"pos_weight": weight}})(own, make_batch(labels)).sum().backward()
    theirs = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor([weight]), reduction="sum")
    theirs(reference, labels).backward()
    assert own.grad is not None
    assert reference.grad is not None
    torch.testing.assert_close(own.grad, reference.grad, rtol=1e-6, atol=0)


def tasks_of(**tasks: Any) -> Any:
    return make_loss(load_config(tiny_config("train.h5", tasks=tasks)))


def test_one_task_of_weight_1_has_the_bits_of_the_single_label() -> None:
    logits, labels, _ = draw("bce", 50, 3)
    labels[::7] = torch.nan
    one = tasks_of(click={})(logits, make_batch(labels))
    plain = load_loss("bce")(logits, make_batch(labels))
    assert torch.equal(one, plain[:, 0])


def test_losses_of_tasks_are_added_with_their_weights() -> None:
    click, labels, _ = draw("bce", 30, 1)
    stars, classes, _ = draw("softmax", 30, 2)
    spent, amounts, _ = draw("mse", 30, 3)
    loss = tasks_of(
        click={"weight": 0.5},
        stars={"loss": {"name": "softmax", "classes": CLASSES}, "weight": 2.0},
        spent={"loss": "mse"},
    )
    got = loss(
        torch.cat([click, stars, spent], dim=1), make_batch(torch.cat([labels, classes, amounts], dim=1))
    )
    expected = (
        0.5 * functional.binary_cross_entropy_with_logits(click, labels, reduction="none")[:, 0]
        + 2 * functional.cross_entropy(stars, classes[:, 0].long(), reduction="none")
        + (spent - amounts).square()[:, 0]
    )
    torch.testing.assert_close(got, expected)


def test_a_function_of_the_users_own_sees_the_label_of_its_task() -> None:
    logits, labels, _ = draw("mse", 10, 5)
    loss = tasks_of(click={}, spent={"loss": f"{__name__}:absolute"})
    both = make_batch(torch.cat([labels, labels + 3], dim=1))
    got = loss(logits.expand(-1, 2), both) - load_loss("bce")(logits, make_batch(labels))[:, 0]
    torch.testing.assert_close(got, (logits - labels - 3).abs()[:, 0], rtol=1e-4, atol=1e-5)


def absolute(logits: Tensor, batch: Any) -> Tensor:
    assert batch.labels.shape == (batch.num_samples, 1)
    return (logits - batch.labels).abs()


def test_a_function_that_gives_no_loss_for_each_sample_is_named() -> None:
    loss = tasks_of(click={}, spent={"loss": f"{__name__}:of_all"})
    with pytest.raises(UserError, match=r"tasks\.spent\.loss: .* shape \(\), expected .* each of 4 samples"):
        loss(torch.zeros(4, 2), make_batch(torch.zeros(4, 2)))
    with pytest.raises(UserError, match=r"tasks\.spent\.loss '.*:of_al'"):
        tasks_of(spent={"loss": f"{__name__}:of_al"})


def of_all(logits: Tensor, batch: Any) -> Tensor:
    return (logits - batch.labels).abs().mean()


def test_plain_namespaces_do_for_loops_of_the_users_own() -> None:
    logits = torch.zeros(3, 2)
    batch: Any = SimpleNamespace(labels=torch.ones(3, 2))
    assert load_loss("bce")(logits, batch).shape == (3, 2)
