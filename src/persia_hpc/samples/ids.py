"""Says what stands for a text or for a value that is missing or rare, as `preprocess` writes ids.

Shapes: N values, V distinct ids.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from persia_hpc.errors import UserError

from .encoding import ENCODING_FILE, read_encoding
from .schema import DatasetSchema

Ids = npt.NDArray[np.uint64]

# The lowest signed 64-bit integer and its neighbour: no file has them as ids, where -1 or 2^64 - 1 do occur.
MISSING_ID = 1 << 63
RARE_ID = MISSING_ID + 1
UNKNOWN_NUMBER = 0  # of what a vocabulary doesn't have
MOST = (1 << 64) - 1
LEAST = -(1 << 63)


def as_ids(values: npt.ArrayLike) -> Ids:
    """Returns integers of any form as ids, flat; negative ones are those modulo 2^64.

    Shapes: [N] uint64.
    Raises UserError for anything else: a cast would make other ids of fractions, texts and large numbers.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(
            "ids: got lists of several lengths, expected integers of 64 bits, as in the dataset"
        ) from error
    if array.dtype.kind in "iu":
        return np.ascontiguousarray(array.reshape(-1).astype(np.uint64))
    each = np.asarray(values, np.object_).reshape(-1)  # NumPy makes floats of 1 and 2^63 together
    ids = np.empty(len(each), np.uint64)
    for i, value in enumerate(each):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or not LEAST <= int(value) <= MOST:
            told = hex(value) if whole else str(value)  # Python writes no long integers in decimal
            raise UserError(
                f"ids: got {type(value).__name__} {told[:40]!r}, expected integers of 64 bits, as in "
                "the dataset"
            )
        ids[i] = int(value) & MOST
    return ids


def hash_strings(values: Sequence[str]) -> Ids:
    """Returns an id for each string: the 8-byte blake2b digest of its UTF-8 bytes, little-endian.

    Ids are the same on every machine and in every release, so that rows of a trained table can be looked up
    by their strings.
    Shapes: [N] uint64.
    """
    digests = b"".join(blake2b(value.encode(), digest_size=8).digest() for value in values)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def pack_ids(ids: Ids) -> str:
    """Returns ids as text: base64 of little-endian 64-bit integers."""
    return base64.b64encode(ids.astype("<u8").tobytes()).decode()


def unpack_ids(text: str) -> Ids:
    """Returns the ids [N] that `pack_ids` has packed."""
    return np.frombuffer(base64.b64decode(text), "<u8").astype(np.uint64)


class IdFilter:
    """Maps known ids to themselves, or to 1..V by first use, and all others to one reserved id."""

    def __init__(
        self, known: Ids, *, other: int, never_other: Sequence[int] = (), renumber: bool = False
    ) -> None:
        """Prepares the mapping.

        known: the known ids [V], in the order in which `renumber` gives them the numbers 1..V
        other: the id that unknown ids are mapped to
        never_other: reserved ids that are always kept
        """
        self.known = known
        keep = np.asarray([i for i in never_other if not (known == i).any()], np.uint64)
        numbers = np.arange(1, len(known) + 1, dtype=np.uint64) if renumber else known
        ids = np.concatenate([known, keep])
        order = np.argsort(ids, kind="stable")
        self._ids = ids[order]
        self._numbers = np.concatenate([numbers, keep])[order]
        self._other = np.uint64(other)

    def __call__(self, ids: Ids) -> Ids:
        """Returns the mapped ids [N]."""
        if len(self._ids) == 0:
            return np.full(len(ids), self._other, np.uint64)
        places = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        found: Ids = np.where(self._ids[places] == ids, self._numbers[places], self._other)
        return found


def id_filter(known: Ids, *, vocabulary: bool) -> IdFilter:
    """Returns the filter of a feature with `vocabulary` or `min_count`."""
    other = UNKNOWN_NUMBER if vocabulary else RARE_ID
    return IdFilter(known, other=other, never_other=[MISSING_ID], renumber=vocabulary)


class TextIds:
    """Turns texts into ids as the preparation of a dataset did; without an encoding by `hash_strings`."""

    def __init__(self, digest: str | None = None, content: Mapping[str, Any] | None = None) -> None:
        """digest: the encoding of the dataset, if it names one. content: what `read_encoding` returns."""
        self._digest = digest
        self._content = content
        self._filters: dict[str, IdFilter] = {}

    @classmethod
    def of_run(cls, schema: DatasetSchema, run_dir: Path) -> TextIds:
        """Returns what turns texts into ids of a run's data, by the encoding that its directory keeps.

        Raises UserError for an encoding that can't be read.
        """
        if schema.encoding is None or not (run_dir / ENCODING_FILE).exists():
            return cls(schema.encoding)
        content = read_encoding(run_dir)
        return cls(schema.encoding, content if content["digest"] == schema.encoding else None)

    def __call__(self, feature: str, texts: Sequence[str]) -> Ids:
        """Returns the ids [N] of texts of a feature.

        Raises UserError where the encoding can't say them.
        """
        if self._digest is None:
            return hash_strings(texts)
        if self._content is None or self._content.get("dataset") != "table":
            raise UserError(
                f"features.{feature}: got a text, expected integers, the ids of the dataset files: what ids "
                f"texts have there isn't known, as {self._why()}"
            )
        rules = self._content["ids"].get(feature, {})
        if rules.get("type") != "string" or rules.get("part") is not None:
            raise UserError(
                f"features.{feature}: got the text {texts[0]!r}, expected integers, as in the table that "
                "the dataset was made from"
            )
        stripped = [text.strip() for text in texts]
        ids = hash_strings(stripped)
        nothing = {"", *self._content["missing"]}
        ids[[text in nothing for text in stripped]] = MISSING_ID
        if "known" in rules:
            if feature not in self._filters:
                known = unpack_ids(rules["known"])
                self._filters[feature] = id_filter(known, vocabulary=rules["vocabulary"])
            ids = self._filters[feature](ids)
        return ids

    def _why(self) -> str:
        if self._content is None:
            return "the encoding that the dataset names isn't kept with the run"
        return f"the data set {self._content.get('dataset')!r} has its own rules"
