"""Resolves [sequences.NAME]: features of one event stream, which take pooling and max_length from there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from persia_hpc.errors import UserError

from .types import Config, FeatureConfig

Fail = Callable[[Sequence[str], str], UserError]


def resolve_sequences(config: Config, raw: Mapping[str, Any], fail: Fail) -> Config:
    """Returns the configuration with what its sequences say of their features.

    raw: the configuration as written; `fail` makes the error of a key.
    Raises UserError for a feature of two sequences, and for one that says otherwise itself.
    """
    features = dict(config.features)
    owners: dict[str, str] = {}
    for name, sequence in config.sequences.items():
        path = ("sequences", name)
        if not sequence.features:
            raise fail((*path, "features"), "is empty: expected the features of one event stream")
        if sequence.pooling == "sequence" and sequence.max_length is None:
            raise fail(path, 'has pooling = "sequence", which needs max_length (the last ids are kept)')
        for feature in sequence.features:
            if feature in owners:
                problem = f"names {feature!r} twice: expected each feature once"
                if owners[feature] != name:
                    problem = f"names {feature!r}, which is in [sequences.{owners[feature]}] too"
                raise fail((*path, "features"), problem)
            owners[feature] = name
            if config.data.features is not None and feature not in config.data.features:
                raise fail((*path, "features"), f"names {feature!r}, but data.features leaves it out")
            written = (raw.get("features") or {}).get(feature) or {}
            for key in ("pooling", "max_length"):
                expected = getattr(sequence, key)
                if written.get(key, expected) != expected:
                    problem = f"= {written[key]!r}, but [sequences.{name}] has {expected!r}; leave it out"
                    raise fail(("features", feature, key), problem)
            known = features.get(feature, FeatureConfig())
            features[feature] = dataclasses.replace(
                known, pooling=sequence.pooling, max_length=sequence.max_length
            )
    return dataclasses.replace(config, features=features)
