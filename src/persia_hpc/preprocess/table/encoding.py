"""Writes what a table's schema decides and learns as an encoding, and applies an encoding to other tables.

docs/dataset_format.md describes the content.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from persia_hpc.errors import UserError
from persia_hpc.samples.ids import id_filter, pack_ids, unpack_ids

from .convert import Converter, Learned, Moments
from .schema import Dense, TableSchema
from .schema import Ids as IdRules

DATASET = "table"

Content = Mapping[str, Any]


def _rules(entry: IdRules | Dense) -> dict[str, Any]:
    """Returns what the schema says of a feature's values, as JSON has it, without what only says how to read.

    Rules that older versions didn't have are left out where they say nothing: the digest stays as it was.
    """
    rules: dict[str, Any] = json.loads(json.dumps(asdict(entry)))
    del rules["column"]
    for name in ("format", "weights"):
        rules.pop(name, None)
    for name in ("part", "edges", "cross"):
        if not rules.get(name):
            rules.pop(name, None)
    if "cross" in rules:  # its values come from these alone
        rules["cross"] = [
            {key: part[key] for key in ("part", "edges") if part[key]} for part in rules["cross"]
        ]
    return rules


def encoding_of(converter: Converter, learned: Learned) -> dict[str, Any]:
    """Returns all that gives the ids and numbers of a table's files their meaning."""
    schema = converter.schema
    ids, dense = {}, {}
    for name, entry in schema.ids.items():
        ids[name] = {
            **_rules(entry),
            "type": converter.id_types[name],
            "multi": converter.dataset.feature(name).multi,
        }
        if name in learned.filters:
            ids[name]["known"] = pack_ids(learned.filters[name].known)
        if name in learned.vocabularies:
            ids[name]["values"] = learned.vocabularies[name]["value"].to_list()
    for name, number in schema.dense.items():
        dense[name] = _rules(number)
        if name in learned.moments:
            moments = learned.moments[name]
            dense[name] |= {"mean": moments.mean, "deviation": moments.deviation}
    return {"dataset": DATASET, "missing": sorted(set(schema.missing)), "ids": ids, "dense": dense}


def learned_of(content: Content) -> Learned:
    """Returns what was learned, as `Converter.batch` takes it, without the vocabularies' counts."""
    learned = Learned()
    for name, rules in content["ids"].items():
        if "known" in rules:
            learned.filters[name] = id_filter(unpack_ids(rules["known"]), vocabulary=rules["vocabulary"])
    for name, rules in content["dense"].items():
        if "mean" in rules:
            # The square root of a square is the number itself, also in floating point.
            learned.moments[name] = Moments(1, rules["mean"], rules["deviation"] ** 2)
    return learned


def with_types(schema: TableSchema, content: Content) -> TableSchema:
    """Returns the schema with the types that an encoding has decided in place of "auto".

    Raises UserError that lists all in which the schema contradicts the encoding.
    """
    if content.get("dataset") != DATASET:
        raise UserError(
            f"--encoding: got one that `preprocess {content.get('dataset')}` made, expected one of "
            "`preprocess table`"
        )
    types = {name: rules["type"] for name, rules in content["ids"].items()}
    ids = {
        name: replace(entry, type=types[name]) if entry.type == "auto" and name in types else entry
        for name, entry in schema.ids.items()
    }
    fitted = replace(schema, ids=ids)
    problems = list(_contradictions(fitted, content))
    if problems:
        raise UserError(
            "--encoding: the schema contradicts it: "
            + "; ".join(problems)
            + "; make the schema say the same, "
            "or prepare the training data again with this schema"
        )
    return fitted


def _contradictions(schema: TableSchema, content: Content) -> Iterator[str]:
    missing = sorted(set(schema.missing))
    if missing != content["missing"]:
        yield f"missing: got {missing}, expected {content['missing']}"
    for part, entries in (("ids", schema.ids), ("dense", schema.dense)):
        expected = content[part]
        if not entries.keys() <= expected.keys():  # a catalogue of items has fewer
            yield f"[{part}]: got {_listed(entries)}, expected {_listed(expected)}"
            continue
        for name, entry in entries.items():
            rules = _rules(entry)
            for key in dict.fromkeys([*rules, "part", "edges", "cross"]):
                got, wanted = rules.get(key), expected[name].get(key)
                if got != wanted:
                    yield f"{part}.{name}.{key}: got {got!r}, expected {wanted!r}"


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"


def check_lists(converter: Converter, content: Content) -> None:
    """Checks that the table has lists of ids where the encoding has them.

    Raises UserError for a feature that has lists in one of them only.
    """
    for name in converter.schema.ids:
        rules, multi = content["ids"][name], converter.dataset.feature(name).multi
        if multi != rules["multi"]:
            got, expected = ("lists", "one id a row") if multi else ("one id a row", "lists")
            raise UserError(f"--encoding: ids.{name}: got {got} in the input, expected {expected}")
