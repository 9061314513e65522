"""Makes samples from values by the names of their features, for one request or a batch; needs no torch.

B samples, N ids of one feature, K dense features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from persia_hpc.errors import DataError, UserError

from .batch import IdColumn, SampleBatch
from .ids import LEAST, MOST, Ids, TextIds
from .schema import DatasetSchema, FeatureSchema
from .sequences import NO_SEQUENCES, Sequences, check_columns, usable
from .validity import InvalidRowError, check_finite, check_id_weights

FORMS = "an id for one request, or a list of ids, one for each sample"
LISTS = "a list of ids for one request, or a list of such lists, one for each sample"
_NESTED = (list, tuple, np.ndarray)


class Named(NamedTuple):
    """Holds samples; `single` says that they are one request, whose answer has no axis of samples."""

    batch: SampleBatch
    single: bool


def named_samples(
    schema: DatasetSchema,
    features: Mapping[str, Any],
    dense: Any = None,
    texts: TextIds | None = None,
    sequences: Sequences = NO_SEQUENCES,
) -> Named:
    """Returns samples of a dataset's schema, without labels, from what its features are by name.

    features: of each feature an id for one request, or a list of B of them for a batch; of a multi-hot one a
    list of ids, or B such lists. An id is an integer as in the dataset, or a text, which `texts` turns into
    one. A weighted feature is {"ids": ..., "weights": ...}, both in that form.
    dense: numbers by the names of the dense columns, or all in their order: K of one request, [B, K] of a
    batch. sequences: `Config.features_of_sequences`.
    Raises UserError, by name, for what is missing, unknown or of another form, for a number that isn't
    finite, for an id outside 64 bits, and for features of a sequence that differ in their number of ids.
    """
    texts = texts or TextIds(schema.encoding)
    _check_names("feature", features, schema.feature_names)
    columns = {f.name: _Values(f, features[f.name]) for f in schema.features}
    numbers = _dense(schema.dense_names, dense)
    sizes = {f"features.{name}": column.samples for name, column in columns.items() if column.samples != -1}
    if numbers is not None:
        sizes["dense"] = None if numbers.ndim == 1 else len(numbers)
    single, count = _agree(sizes)
    ids = {name: column.column(single, texts) for name, column in columns.items()}
    try:
        check_columns(ids, usable(schema, sequences), "features")
    except DataError as error:
        raise UserError(str(error).partition(";")[0]) from error
    nothing = np.zeros((count, 0), np.float32)
    array = nothing if numbers is None else numbers.reshape(count, len(schema.dense_names))
    return Named(SampleBatch(ids, array, nothing), single)


def _check_names(what: str, got: Mapping[str, Any], expected: Sequence[str]) -> None:
    if not isinstance(got, Mapping):
        raise UserError(f"{what}s: got {type(got).__name__}, expected values by name, as a dictionary")
    for name in got:
        if name not in expected:
            close = get_close_matches(str(name), expected, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            known = ", ".join(expected) or "none"
            raise UserError(f"got {what} {name!r}, expected those of the dataset: {known}{hint}")
    missing = [name for name in expected if name not in got]
    if missing:
        raise UserError(f"got no {what} {missing[0]!r}, expected all of the dataset: {', '.join(expected)}")


def _agree(sizes: Mapping[str, int | None]) -> tuple[bool, int]:
    """Returns whether the values are of one request, and the number of samples.

    sizes: of each value its number of samples, None if it is of one request.
    """
    found = list(sizes.items())
    if not found:
        return True, 1
    first, size = found[0]
    for name, other in found[1:]:
        if other != size:
            raise UserError(
                f"{name}: got {_of(other)}, but {first} has {_of(size)}; expected all values of one request, "
                "or lists of one length"
            )
    return size is None, 1 if size is None else size


def _of(size: int | None) -> str:
    return "the values of one request" if size is None else f"those of {size} samples"


class _Values:
    """Holds the values of one feature as given, for so many `samples`.

    None: they are of one request. -1: an empty list, which may be of one request or of no samples.
    """

    def __init__(self, feature: FeatureSchema, values: Any) -> None:
        self._feature = feature
        self._where = f"features.{feature.name}"
        self._weights: Any = None
        if feature.weighted:
            if not isinstance(values, Mapping) or set(values) != {"ids", "weights"}:
                raise UserError(
                    f'{self._where}: got {_kind(values)}, expected {{"ids": ..., "weights": ...}}, since its '
                    "ids have weights"
                )
            self._weights, values = values["weights"], values["ids"]
        elif isinstance(values, Mapping):
            raise UserError(f"{self._where}: got a dictionary, expected {self._expected}")
        self._values = values
        self.samples = self._samples(values)

    def _samples(self, values: Any) -> int | None:
        depth = _depth(values) - self._feature.multi
        if depth not in (0, 1):
            raise UserError(f"{self._where}: got {_kind(values)}, expected {self._expected}")
        if self._feature.multi and isinstance(values, list | tuple) and not values:
            return -1
        return len(values) if depth else None

    def column(self, single: bool, texts: TextIds) -> IdColumn:
        """Returns the ids of all samples; `single` says that they are one request."""
        if not self._feature.multi:
            return IdColumn(self._ids([self._values] if single else self._values, texts))
        lists = [self._values] if single else self._values
        lengths = self._lengths(lists, "ids")
        values = self._ids(_joined(lists), texts)
        weights = None
        if self._feature.weighted:
            weights = self._numbers([self._weights] if single else self._weights, lengths)
        return IdColumn.from_lengths(values, lengths, weights)

    def _lengths(self, lists: Any, what: str) -> npt.NDArray[np.int64]:
        for one in lists:
            if not isinstance(one, _NESTED):
                raise UserError(
                    f"{self._where}: got {_kind(one)} among its lists of {what}, expected {LISTS}"
                )
        return np.fromiter(map(len, lists), np.int64, len(lists))

    def _numbers(self, lists: Any, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        if not isinstance(lists, _NESTED) or len(lists) != len(lengths):
            raise UserError(f"{self._where}: got weights of another form than its ids, expected the same")
        wrong = self._lengths(lists, "weights") != lengths
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(
                f"{self._where}: got {len(lists[row])} weights in sample {row}, expected {lengths[row]}, one "
                "for each id"
            )
        weights = _floats(f"weights of {self._feature.name}", _joined(lists), 1)
        try:
            check_id_weights(
                self._feature.name, weights, lambda i: int(np.searchsorted(lengths.cumsum(), i, "right"))
            )
        except InvalidRowError as error:
            raise UserError(f"sample {error.row}: {error.problem}") from error
        return weights

    def _ids(self, values: Any, texts: TextIds) -> Ids:
        if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
            return np.ascontiguousarray(values.astype(np.uint64))
        if set(map(type, values)) <= {int}:
            with suppress(OverflowError):
                return np.array(values, np.int64).view(np.uint64)
        ids = np.empty(len(values), np.uint64)
        texts_at = []
        for i, value in enumerate(values):
            if isinstance(value, str):
                texts_at.append(i)
            elif isinstance(value, int | np.integer) and not isinstance(value, bool):
                if not LEAST <= int(value) <= MOST:
                    raise UserError(f"{self._where}: got {value}, expected an id of 64 bits")
                ids[i] = int(value) & MOST
            else:
                raise UserError(f"{self._where}: got {_kind(value)}, expected {self._expected}")
        if texts_at:
            try:
                ids[texts_at] = texts(self._feature.name, [str(values[i]) for i in texts_at])
            except UnicodeEncodeError as error:
                raise UserError(f"{self._where}: got a text that isn't Unicode, expected ids") from error
        return ids

    @property
    def _expected(self) -> str:
        return f"{LISTS if self._feature.multi else FORMS}; an id is an integer or a text"


def _depth(values: Any) -> int:
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values.ndim
    return 1 + (_depth(values[0]) if len(values) else 0) if isinstance(values, _NESTED) else 0


def _joined(lists: Any) -> Any:
    """Returns the elements of all lists in one."""
    if len(lists) and all(isinstance(one, np.ndarray) and one.dtype.kind in "iu" for one in lists):
        # Not of several integer types, which NumPy would join as floats.
        return np.concatenate([one.astype(np.uint64) for one in lists])
    return [value for one in lists for value in one]


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {list(value.shape)}"
    return "nothing (None)" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def _dense(names: Sequence[str], dense: Any) -> npt.NDArray[np.float32] | None:
    """Returns the dense columns, float32 [K] of one request or [B, K]; None if the dataset has none."""
    if not names:
        if dense is not None and np.size(dense):
            raise UserError("got dense features, expected none: the dataset has no dense columns")
        return None
    if dense is None:
        raise UserError(f"got no dense features, expected {len(names)}: {', '.join(names)}")
    if isinstance(dense, Mapping):
        _check_names("dense feature", dense, names)
        columns = [_floats(f"dense.{name}", dense[name], None) for name in names]
        for name, column in zip(names, columns, strict=True):
            if column.shape != columns[0].shape or column.ndim > 1:
                raise UserError(
                    f"dense.{name}: got an array {list(column.shape)}, expected one number, or one for each "
                    f"sample, like dense.{names[0]}: {list(columns[0].shape)}"
                )
        numbers = np.stack(columns, axis=-1)
    else:
        numbers = _floats("dense", dense, None)
    if numbers.ndim not in (1, 2) or numbers.shape[-1] != len(names):
        raise UserError(
            f"dense: got an array {list(numbers.shape)}, expected {len(names)} numbers ({', '.join(names)}) "
            "of one request, or a row of them for each sample"
        )
    try:
        check_finite("dense feature", names, np.atleast_2d(numbers), 0)
    except InvalidRowError as error:
        raise UserError(f"sample {error.row}: {error.problem.partition(';')[0]}") from error
    return np.ascontiguousarray(numbers)


def _floats(where: str, values: Any, ndim: int | None) -> npt.NDArray[np.float32]:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(f"{where}: got lists of different lengths, expected numbers") from error
    if (array.dtype.kind not in "iuf" and array.size) or (ndim is not None and array.ndim != ndim):
        raise UserError(f"{where}: got {_kind(values)}, expected numbers")
    with np.errstate(over="ignore"):  # an infinity is refused by name
        return array.astype(np.float32)
