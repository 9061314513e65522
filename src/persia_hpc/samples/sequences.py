"""Checks that the features of one event stream have the same number of ids in each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from persia_hpc.errors import DataError, UserError
from persia_hpc.samples.batch import IdColumn
from persia_hpc.samples.schema import DatasetSchema

from . import names as layout

FIRST_ROWS = 16_384  # whose offsets are compared whenever a file is opened; those of all before training

Sequences = Mapping[str, Sequence[str]]  # the features of each [sequences.NAME]
NO_SEQUENCES: Sequences = {}


def usable(schema: DatasetSchema, sequences: Sequences) -> Sequences:
    """Returns the sequences whose features are all multi-hot ones; `make_layout` refuses the others."""
    multi = {feature.name for feature in schema.features if feature.multi}
    return {name: features for name, features in sequences.items() if multi.issuperset(features)}


def check_columns(ids: Mapping[str, IdColumn], sequences: Sequences, where: str, first_row: int = 0) -> None:
    """Checks the features of each sequence in a batch.

    where: what the batch is, for the message; its rows count from `first_row`.
    Raises DataError for features whose offsets differ.
    """
    for name, features in sequences.items():
        for feature in features:
            if ids[feature].offsets is None:  # a transform has made it so
                raise DataError(
                    f"{where}: got {feature!r}, which is in [sequences.{name}], with one id in each sample"
                )
    used = {feature for features in sequences.values() for feature in features}
    check_offsets({feature: ids[feature].starts for feature in used}, sequences, where, first_row)


def check_offsets(
    offsets: Mapping[str, npt.NDArray[Any]], sequences: Sequences, where: str, first_row: int = 0
) -> None:
    """Checks the offsets, from 0 on, of the features of each sequence in some rows.

    where: what the rows are of, for the message; they count from `first_row`.
    Raises DataError for features whose offsets differ.
    """
    for name, features in sequences.items():
        for one, other in pairwise(features):
            a, b = offsets[one], offsets[other]
            if not np.array_equal(a, b):
                row = int((a[1:] != b[1:]).argmax()) if len(a) == len(b) else 0
                lengths = [int(o[row + 1] - o[row]) for o in (a, b)]
                raise DataError(differ(where, name, (one, other), lengths, first_row + row))


def differ(where: str, name: str, features: tuple[str, str], lengths: Sequence[int], row: int) -> str:
    """Returns the message for two features of a sequence whose ids differ in number."""
    return (
        f"{where}: got {lengths[0]} ids of {features[0]!r} but {lengths[1]} of {features[1]!r} in row {row}, "
        f"expected as many, since both are in [sequences.{name}]; prepare them from the same events, or take "
        "one out of the sequence"
    )


def check_files(paths: Sequence[str], schema: DatasetSchema, sequences: Sequences) -> None:
    """Checks dataset files of a schema, which were scanned, as far as their first rows and the totals say.

    Raises UserError for a file in which the features of a sequence differ.
    """
    sequences = usable(schema, sequences)
    for path in paths if sequences else ():
        try:
            with layout.open_to_read(path) as file:
                for name, features in sequences.items():
                    _check_file(path, file, name, features)
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path}: can't read the offsets of {name!r} ({reason}); the file is damaged: copy or "
                "prepare it again"
            ) from error


def _check_file(path: str, file: h5py.File, name: str, features: Sequence[str]) -> None:
    stored = [file[f"{layout.IDS}/{feature}/{layout.OFFSETS}"] for feature in features]
    for (one, a), (other, b) in pairwise(zip(features, stored, strict=True)):
        first, second = (offsets[: FIRST_ROWS + 1].astype(np.uint64) for offsets in (a, b))
        if (first != second).any():
            row = max(int((first != second).argmax()) - 1, 0)
            lengths = [int(offsets[row + 1]) - int(offsets[row]) for offsets in (first, second)]
            raise UserError(differ(path, name, (one, other), lengths, row))
        if a[-1] != b[-1]:
            raise UserError(
                f"{path}: got {a[-1]} ids of {one!r} but {b[-1]} of {other!r} in all rows, expected as many, "
                f"since both are in [sequences.{name}]; prepare them from the same events"
            )
