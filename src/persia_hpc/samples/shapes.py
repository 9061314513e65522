"""Checks names, shapes and types of what a dataset file holds, when it is scanned."""

from __future__ import annotations

from typing import Any

import h5py

from persia_hpc.errors import UserError
from persia_hpc.samples.attributes import texts_of
from persia_hpc.samples.containment import check_written

from . import names as layout


class Shapes:
    """Checks one file's datasets; every method raises `UserError` that names file and dataset."""

    def __init__(self, path: str, file: h5py.File) -> None:
        self._path = path
        self._file = file
        self._count = "/label" if layout.LABEL in file else "num_samples"

    def dataset(self, name: str, kinds: str, ndim: int, found: Any = None) -> h5py.Dataset:
        """Returns a dataset of these NumPy kinds and so many dimensions, all of which is written.

        Raises UserError for no such dataset, or another one.
        """
        dataset = self._file.get(name) if found is None else found
        what = f"{self._path}: /{name}"
        if not isinstance(dataset, h5py.Dataset):
            raise UserError(f"{what}: got no such dataset, expected one; prepare the file again")
        if dataset.dtype.kind not in kinds or dataset.ndim != ndim:
            expected = "integers" if "f" not in kinds else "numbers"
            raise UserError(
                f"{what}: got {dataset.dtype} of shape {dataset.shape}, expected {expected}, "
                f"{ndim}-dimensional; docs/dataset_format.md has the layout"
            )
        layout.check_filters(what, dataset.id)
        check_written(what, dataset.id)
        return dataset

    def rows(self, dataset: h5py.Dataset, expected: int) -> None:
        """Checks the number of rows.

        Raises UserError for another number.
        """
        if dataset.shape[0] != expected:
            raise UserError(
                f"{self._path}: {dataset.name}: got {dataset.shape[0]} rows, expected {expected} like "
                f"{self._count}; all datasets of a file have one row for each sample"
            )

    def multi_hot(self, name: str, num_samples: int) -> int:
        """Returns the number of values of a multi-hot feature.

        Raises UserError for offsets that don't fit.
        """
        values = self.dataset(f"{name}/{layout.VALUES}", "iu", 1)
        offsets = self.dataset(f"{name}/{layout.OFFSETS}", "iu", 1)
        if offsets.shape[0] != num_samples + 1:
            raise UserError(
                f"{self._path}: {offsets.name}: got {offsets.shape[0]} offsets, expected {num_samples + 1}, "
                f"one more than the samples of {self._count}"
            )
        ends = int(offsets[0]), int(offsets[num_samples])
        if ends != (0, values.shape[0]):
            raise UserError(
                f"{self._path}: {offsets.name}: got offsets from {ends[0]} to {ends[1]}, expected 0 to "
                f"{values.shape[0]}, the number of values"
            )
        return ends[1]

    def weighted(self, name: str, num_values: int) -> bool:
        """Returns whether the ids of a multi-hot feature have weights.

        Raises UserError for weights that don't fit.
        """
        if f"{name}/{layout.WEIGHTS}" not in self._file:
            return False
        weights = self.dataset(f"{name}/{layout.WEIGHTS}", "iuf", 1)
        if weights.shape[0] != num_values:
            raise UserError(
                f"{self._path}: {weights.name}: got {weights.shape[0]} weights, expected {num_values}, one "
                "for each id"
            )
        return True

    def names(self, attribute: str, default: list[str]) -> list[str]:
        """Returns the names that an attribute lists, or the default ones.

        Raises UserError for names that can't be.
        """
        found = self._file.attrs.get(attribute)
        if found is None:
            return default
        names = texts_of(found)
        if bad := [n for n in names if "/" in n]:  # it would be looked for in another group
            raise UserError(
                f"{self._path}: attribute {attribute}: got {bad[0]!r}, expected names without '/'"
            )
        return names

    def column_names(self, attribute: str, default: list[str]) -> tuple[str, ...]:
        """Returns the names that an attribute lists, or the default ones: as many as these.

        Raises UserError for names that can't be.
        """
        names = self.names(attribute, default)
        if len(names) != len(default):
            raise UserError(
                f"{self._path}: attribute {attribute}: got {len(names)} names, expected {len(default)}, "
                "one for each column"
            )
        return tuple(names)
