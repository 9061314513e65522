"""Embedding optimizers against torch.optim and FBGEMM, and the first values of rows."""

from __future__ import annotations

import numpy as np
import pytest

from persia_hpc._native import mix

from .table_support import OPTIMIZERS, arguments, export, lookup, make_table, pull, u64

# ---- optimizers


@pytest.mark.parametrize(
    "optimizer",
    ["sgd", "momentum", "adagrad", "adam", "adamw", "sgd decayed", "adagrad decayed", "adam decayed"],
)
@pytest.mark.parametrize("dim", [1, 19, 64])  # 64 is one of those whose loops are compiled for it
def test_optimizers_equal_torch_on_lazily_touched_rows(optimizer: str, dim: int) -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(dim)
    keys = np.sort(mix(np.arange(20, dtype=np.uint64)))
    optimizer, _, decayed = optimizer.partition(" ")
    options = {**OPTIMIZERS[optimizer], **({"weight_decay": 0.05} if decayed else {})}
    table = make_table(**arguments(optimizer, dim=dim, bucket_capacity=100, options=options))
    rows = [torch.tensor(row, requires_grad=True) for row in pull(table, keys, 1)[0]]
    classes = {"sgd": torch.optim.SGD, "momentum": torch.optim.SGD, "adagrad": torch.optim.Adagrad}
    classes |= {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if "beta1" in options:
        options["betas"] = (options.pop("beta1"), options.pop("beta2"))
    reference = classes[optimizer](rows, **options, foreach=False)
    for step in range(1, 51):
        touched = np.flatnonzero(random.random(20) < 0.4)
        _, slots = pull(table, keys[touched], step)
        grads = random.normal(size=(len(touched), dim)).astype(np.float32)
        grads[random.random(len(touched)) < 0.1] = 0
        for row in rows:
            row.grad = None
        for index, gradient in zip(touched, grads, strict=True):
            rows[index].grad = torch.from_numpy(gradient)
        reference.step()
        assert table.push(keys[touched], slots, grads, step, 0) == (len(touched), 0, 0, 0)
    expected = torch.stack(rows).detach().numpy()
    np.testing.assert_allclose(lookup(table, keys), expected, rtol=3e-6, atol=3e-7)
    if "beta1" in OPTIMIZERS[optimizer]:  # a row's own count, not the number of steps
        counts = {key: int(s) for b in export(table, 4) for key, s in zip(b["keys"], b["steps"], strict=True)}
        assert [counts[key] for key in keys] == [int(reference.state[row]["step"]) for row in rows]


@pytest.mark.parametrize("dim", [3, 8, 16, 19, 32, 64, 128])
def test_rowwise_adagrad_equals_fbgemm_formula(dim: int) -> None:
    random = np.random.default_rng(1)
    table = make_table(**arguments("rowwise_adagrad", dim=dim))
    rows, slots = pull(table, [7], 1)
    weights, accumulator = rows[0].astype(np.float64), 0.0
    for _ in range(50):
        gradient = random.normal(size=(1, dim)).astype(np.float32)
        table.push(u64([7]), slots, gradient, 1, 0)
        exact = gradient[0].astype(np.float64)
        accumulator += np.mean(exact**2)
        weights -= 0.05 / (np.sqrt(accumulator) + 1e-8) * exact
    np.testing.assert_allclose(lookup(table, [7])[0], weights, rtol=1e-5, atol=1e-6)
    assert table.export_bucket(0)["state"][0, 0] == pytest.approx(accumulator, rel=1e-5)


def test_learning_rate_changes_take_effect() -> None:
    table = make_table(**arguments("sgd"))
    before, slots = pull(table, [5], 1)
    table.set_lr(2.0)
    table.push(u64([5]), slots, np.ones((1, 3), np.float32), 1, 0)
    np.testing.assert_array_equal(lookup(table, [5]), before - np.float32(2))
    with pytest.raises(ValueError, match="lr"):
        table.set_lr(float("nan"))


# ---- first values


@pytest.mark.parametrize("init", ["uniform", "normal"])
def test_first_values_depend_on_seed_and_key_alone(init: str) -> None:
    keys = np.sort(mix(np.arange(500, dtype=np.uint64)))
    one = make_table(**arguments(init=init, bucket_capacity=1000))
    expected, _ = pull(one, keys, 1)
    other = make_table(**arguments("adam", init=init, num_buckets=64))
    for key in np.random.default_rng(0).permutation(keys):  # one at a time, and most are evicted in between
        pull(other, [key], 3)
        other.evict(3)
    np.testing.assert_array_equal(pull(other, keys, 4)[0], expected)
    reseeded = make_table(**arguments(init=init, bucket_capacity=1000, seed=1))
    assert (pull(reseeded, keys, 1)[0] != expected).mean() > 0.99


def test_uniform_first_values_are_the_documented_generator() -> None:
    """So that another implementation, or a later one, starts a table in the same way."""
    mask, golden, seed, key = 2**64 - 1, 0x9E3779B97F4A7C15, 12345, 678910

    def mixed(x: int) -> int:
        return int(mix(u64([x & mask]))[0])

    start = mixed(key ^ mixed(seed + golden))
    unit = [(mixed(start + (column + 1) * golden) >> 40) * 2.0**-24 for column in range(3)]
    rows, _ = pull(make_table(**arguments(seed=seed, init_a=0.0, init_b=1.0)), [key], 1)
    assert rows[0].tolist() == unit
