"""Describes what a dataset holds: names and kinds, no data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from persia_hpc.errors import UserError

SCHEMA_VERSION = 1


@dataclass(frozen=True, order=True)
class FeatureSchema:
    """Describes an id feature: one-hot (one id in every sample) or multi-hot (any number of ids, also none).

    `mean_length` is the mean number of ids of a sample, if known. It plays no part in comparisons. `weighted`
    says that each id of a multi-hot feature has a weight.
    """

    name: str
    multi: bool = False
    mean_length: float | None = field(default=None, compare=False)
    weighted: bool = False

    @property
    def kind(self) -> str:
        """Returns "one-hot" or "multi-hot", for messages."""
        return "multi-hot" if self.multi else "one-hot"

    @property
    def description(self) -> str:
        """Returns the kind and whether ids have weights, for messages."""
        return f"weighted {self.kind}" if self.weighted else self.kind


@dataclass(frozen=True)
class DatasetSchema:
    """Holds the id features in order, names of dense columns and labels, and which optional arrays exist.

    A dataset without label names has no labels: it can only be scored. `encoding` is the digest of what gave
    ids and numbers their meaning (samples/encoding.py), None if it isn't known; comparisons leave it out.
    """

    features: tuple[FeatureSchema, ...]
    dense_names: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ("label",)
    has_weight: bool = False
    has_group: bool = False
    has_time: bool = False
    encoding: str | None = field(default=None, compare=False)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Returns the names of the id features, in order."""
        return tuple(f.name for f in self.features)

    def feature(self, name: str) -> FeatureSchema:
        """Returns the feature of this name.

        Raises UserError if there is none.
        """
        for feature in self.features:
            if feature.name == name:
                return feature
        raise UserError(
            f"got feature {name!r}, expected one of {', '.join(self.feature_names) or '(no features)'}"
        )

    def validate(self) -> None:
        """Checks that the names can be stored.

        Raises UserError for a repeated or unusable name.
        """
        _check_names("feature", self.feature_names)
        for feature in self.features:
            if feature.weighted and not feature.multi:
                raise UserError(
                    f"got weights of the one-hot feature {feature.name!r}, expected a multi-hot one "
                    "(multi=True)"
                )
        _check_names("dense column", self.dense_names)
        _check_names("label", self.label_names)


def _check_names(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        # Names become HDF5 link names, where "/" separates groups and "." means "here".
        if not name or name == "." or "/" in name or "\0" in name:
            raise UserError(
                f"got {what} name {name!r}, expected a name that isn't empty or '.' and has no '/' in it"
            )
        if name in seen:
            raise UserError(f"got {what} name {name!r} twice, expected every name once")
        seen.add(name)
