"""The best evaluation so far is the best, whatever is undefined between, and over resumes."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from persia_hpc.config.watching import Watched
from persia_hpc.trainer.watching import Watch

values = st.lists(st.one_of(st.none(), st.integers(-3, 3).map(float)), max_size=12)


@given(values, st.sampled_from(["max", "min"]), st.integers(0, 12))
def test_the_best_is_the_first_of_the_best_and_what_is_undefined_is_not_counted(
    evaluations: list[float | None], mode: str, resumed_at: int
) -> None:
    watch = Watch(Watched("m", mode))
    for step, value in enumerate(evaluations, 1):
        if step == resumed_at:
            resumed = Watch(Watched("m", mode))
            resumed.restore(watch.state(), watch.bad)
            watch = resumed
        before = (watch.best, watch.step, watch.bad)
        found = watch.update({"m": value, "other": 9.0}, step)
        assert found is None if value is None else isinstance(found, bool)
        if value is None:
            assert (watch.best, watch.step, watch.bad) == before
    known = [(value, step) for step, value in enumerate(evaluations, 1) if value is not None]
    if not known:
        assert (watch.best, watch.bad) == (None, 0)
        return
    sign = 1 if mode == "max" else -1
    best = max(sign * value for value, _ in known)
    first = next(i for i, (value, _) in enumerate(known) if sign * value == best)
    assert (watch.best, watch.step, watch.bad) == (sign * best, known[first][1], len(known) - 1 - first)


def test_another_metric_begins_anew() -> None:
    watch = Watch(Watched("auc", "max"))
    watch.update({"auc": 0.9}, 5)
    for other in (Watched("logloss", "min"), Watched("auc", "min")):
        resumed = Watch(other)
        resumed.restore(watch.state(), 2)
        assert (resumed.best, resumed.bad) == (None, 0)
        assert resumed.update({other.metric: math.pi}, 6)
