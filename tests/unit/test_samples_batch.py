import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persia_hpc.errors import UserError
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from tests.support.samples import as_lists, assert_equal, random_batch

bags = st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=4), max_size=12)


def column_of(lists: list[list[int]]) -> IdColumn:
    flat = np.array([i for bag in lists for i in bag], np.uint64)
    return IdColumn.from_lengths(flat, np.array([len(bag) for bag in lists], np.int64))


@given(bags, st.data())
def test_multi_hot_take_slice_and_concatenate_do_what_lists_do(
    lists: list[list[int]], data: st.DataObject
) -> None:
    column = column_of(lists)
    column.validate("f")
    assert as_lists(column) == lists
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=20)) if lists else []
    taken = column.take(np.array(rows, np.int64))
    taken.validate("f")
    assert as_lists(taken) == [lists[r] for r in rows]
    begin = data.draw(st.integers(0, len(lists)))
    end = data.draw(st.integers(begin, len(lists)))
    sliced = column.slice(begin, end)
    sliced.validate("f")
    assert as_lists(sliced) == lists[begin:end]


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_slices_of_a_batch_concatenate_to_the_batch(n: int, a: int, b: int) -> None:
    batch = random_batch(n, seed=n, optional=True)
    a, b = sorted((min(a, n), min(b, n)))
    parts = [batch.slice(0, a), batch.slice(a, b), batch.slice(b, n)]
    assert_equal(SampleBatch.concatenate(parts), batch)
    assert_equal(batch.take(np.arange(a, b)), batch.slice(a, b))


def test_validate_accepts_what_the_schema_says() -> None:
    schema = DatasetSchema((FeatureSchema("user"), FeatureSchema("tags", True)), ("x", "y"), ("click",))
    random_batch(5).validate(schema)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dense", np.zeros((4, 2), np.float32), "dense: got 4 samples, expected 5"),
        ("dense", np.zeros((5, 2)), "dense: got float64"),
        ("dense", np.zeros((5, 4), np.float32)[:, ::2], "got an array with gaps"),
        ("dense", np.zeros((5, 3), np.float32), "dense: got 3 columns, expected 2"),
        ("labels", np.zeros(5, np.float32), r"labels: got float32 of shape \(5,\)"),
        ("weight", np.zeros(5, np.float32), "weight: got one, the schema says False"),
        ("ids", {"user": IdColumn(np.zeros(5, np.uint64))}, r"tags \(multi-hot\)"),
        ("ids", {"user": IdColumn(np.zeros(5, np.int64))}, "ids of user: got int64"),  # type: ignore[arg-type]
        ("ids", {"user": IdColumn(np.zeros(6, np.uint64))}, "ids of user: got 6 samples, expected 5"),
        (
            "ids",
            {"tags": IdColumn(np.zeros(2, np.uint64), np.array([0, 2, 1, 2, 2, 2], np.uint32))},
            "offsets of tags: .* rising",
        ),
        (
            "ids",
            {"tags": IdColumn(np.zeros(3, np.uint64), np.array([0, 1, 1, 2, 2, 2], np.uint32))},
            "from 0 to 2, expected a rising sequence from 0 to 3",
        ),
    ],
)
def test_validate_refuses(field: str, value: object, message: str) -> None:
    schema = DatasetSchema((FeatureSchema("user"), FeatureSchema("tags", True)), ("x", "y"), ("click",))
    good = random_batch(5)
    bad = SampleBatch(**{"ids": good.ids, "dense": good.dense, "labels": good.labels, field: value})  # type: ignore
    with pytest.raises(UserError, match=message):
        bad.validate(schema)


def test_concatenate_refuses_a_weight_in_some_batches_only() -> None:
    with pytest.raises(UserError, match="weight: got it in 1 of 2 batches"):
        SampleBatch.concatenate([random_batch(2, optional=True), random_batch(2)])


@pytest.mark.parametrize(
    "schema",
    [
        DatasetSchema((FeatureSchema("a"), FeatureSchema("a"))),
        DatasetSchema((FeatureSchema("a/b"),)),
        DatasetSchema((FeatureSchema("a"),), label_names=("b", "b")),
    ],
)
def test_schema_refuses_unusable_names(schema: DatasetSchema) -> None:
    with pytest.raises(UserError):
        schema.validate()
