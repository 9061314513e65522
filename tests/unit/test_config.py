"""Configuration: round trip, defaults, and one clear message for each kind of mistake."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persia_hpc.config import Config, RanksConfig, load_config, parse_bytes, parse_set, to_toml
from persia_hpc.config.fields import toml_key
from persia_hpc.config.types import INITS, METRICS, MODELS, TABLE_OPTIMIZERS
from persia_hpc.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MINIMAL = {"data": {"train": ["train.h5"]}, "model": {"class": "dlrm"}}
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"

name = st.text("abcdefghijklmnopqrstuvwxyz_-. é\"'", min_size=1, max_size=8)
path = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
lr = st.floats(0, 1e3, allow_nan=False)


def options_of(known: dict[str, dict[str, float]]) -> st.SearchStrategy[Any]:
    def options(which: str) -> st.SearchStrategy[Any]:
        unit = st.floats(0, 0.999)
        values = {k: st.just(v) if k in ("low", "high") else unit for k, v in known[which].items()}
        return st.fixed_dictionaries({"name": st.just(which)}, optional=values)

    return st.sampled_from(list(known)).flatmap(options) | st.sampled_from(list(known))


table = st.fixed_dictionaries(
    {},
    optional={
        "dim": st.integers(1, 4096),
        "optimizer": options_of(TABLE_OPTIMIZERS),
        "init": options_of(INITS),
        "schedule": st.sampled_from(
            ["cosine", {"warmup_steps": 3}, {"name": "step", "every": 7}, {"name": "cosine", "steps": 5}]
        ),
        "hash": st.fixed_dictionaries({"size": st.integers(1, 1 << 48)}, optional={"rounds": st.just(3)}),
        "capacity": st.integers(1, 1 << 50) | st.sampled_from(["1 KiB", "1.5 GiB", "7 MB", "12"]),
        "buckets": st.integers(0, 20).map(lambda n: 1 << n),
    },
)
model_value = st.recursive(
    st.booleans() | st.integers(-(1 << 60), 1 << 60) | st.floats(allow_nan=False) | path,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(name, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def raw_configs(draw: st.DrawFn) -> dict[str, Any]:
    tables = draw(st.dictionaries(name, table, max_size=3))
    feature = st.fixed_dictionaries(
        {},
        optional={
            "table": st.sampled_from([*tables, "default"]),
            "max_length": st.integers(1, 100),
            "pooling": st.sampled_from(["sum", "mean", "sqrtn"]),
        },
    )
    raw: dict[str, Any] = {
        "data": {"train": draw(st.lists(path, min_size=1, max_size=3)), "valid": draw(path)},
        "model": {
            **draw(st.dictionaries(name, model_value)),
            "class": draw(st.sampled_from([*MODELS, "my.mod:Net"])),  # last: a name may be drawn as well
        },
        "tables": tables,
        "features": draw(st.dictionaries(name, feature, max_size=3)),
    }
    raw["model"].pop("arguments", None)
    counts = st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("trainers", "embedding_workers"), st.integers(1, 9))
    )
    raw["ranks"] = {"per_node": draw(counts)} if draw(st.booleans()) else draw(counts)
    raw["mode"] = draw(st.sampled_from(["hybrid", "sync"]))
    if raw["mode"] == "hybrid":
        raw["staleness_bound"] = draw(st.integers(0, 100))
        raw["apply"] = draw(st.sampled_from(["batch", "step"]))
    raw["train"] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "epochs": st.integers(1, 9),
                "optimizer": st.fixed_dictionaries({"name": st.sampled_from(["SGD", "Adam"]), "lr": lr}),
                "early_stop": st.fixed_dictionaries({}, optional={"metric": st.sampled_from(METRICS)}),
                "keep_best": st.sampled_from([True, False, "logloss", {"metric": "auc", "mode": "min"}]),
                "clip_norm": st.floats(1e-6, 1e6),
                "evaluate_every": st.integers(0, 1000),
                "bucket_bytes": st.sampled_from(["1 MiB", 4096]),
            },
        )
    )
    return raw


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(raw_configs())
def test_resolved_configuration_written_and_read_again_is_the_same(raw: dict[str, Any]) -> None:
    config = load_config(raw)
    text = to_toml(config.resolved())
    again = load_config(tomllib.loads(text))
    assert again == config
    assert again.sha256 == config.sha256
    assert to_toml(again.resolved()) == text


@settings(deadline=None)
@given(st.dictionaries(name, model_value, max_size=4))
def test_to_toml_writes_what_tomllib_reads(values: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(values)) == values


def test_to_toml_writes_infinite_numbers_and_leaves_unset_options_out() -> None:
    read = tomllib.loads(to_toml({"a": math.inf, "b": -math.inf, "c": math.nan, "d": None, "e": {"f": None}}))
    assert (read["a"], read["b"], math.isnan(read["c"])) == (math.inf, -math.inf, True)
    assert "d" not in read
    assert read["e"] == {}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(raw_configs(), st.integers(0, 1000))
def test_sha256_tells_configurations_apart_but_not_run_directories(raw: dict[str, Any], seed: int) -> None:
    config = load_config(raw)
    assert load_config(raw, {"run_dir": "somewhere"}).sha256 == config.sha256
    assert (load_config(raw, {"seed": seed}).sha256 == config.sha256) == (seed == config.seed)


def test_the_example_of_the_documentation_loads() -> None:
    example = re.search(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert example
    config = load_config(tomllib.loads(example.group(1)))
    assert config.tables["item"].dim == 32
    assert config.tables["item"].capacity_bytes == 4 << 30  # from [tables.default]
    assert config.features["history"].pooling == "sequence"
    assert config.data.valid == ["criteo/valid.h5"]
    assert config.model.arguments == {"hidden": [256, 128]}


def test_defaults_of_a_minimal_configuration() -> None:
    config = load_config(MINIMAL)
    assert (config.mode, config.staleness_bound, config.apply, config.exact) == ("hybrid", 4, "batch", False)
    assert config.table("anything") == config.tables["default"]
    assert config.table("anything").optimizer == {
        "name": "adagrad",
        "lr": 0.05,
        "eps": 1e-10,
        "initial_accumulator_value": 0.0,
        "weight_decay": 0.0,
    }
    assert config.feature("anything").pooling == "sum"
    assert config.ranks.total() == 3


def test_sync_has_bound_zero_and_applies_whole_steps() -> None:
    config = load_config(MINIMAL, {"mode": "sync"})
    assert (config.staleness_bound, config.apply) == (0, "step")
    assert load_config(MINIMAL, {"mode": "sync", "staleness_bound": 0}) == config


def test_tables_inherit_from_default_and_partial_options_keep_the_rest() -> None:
    tables = {
        "default": {"optimizer": {"name": "adam", "lr": 0.5}, "capacity": "1 MiB", "schedule": "cosine"},
        "a": {"optimizer": {"lr": 0.25}, "schedule": {"final": 0.5}},
        "b": {"optimizer": "sgd", "dim": 3},
    }
    config = load_config({**MINIMAL, "tables": tables})
    assert config.tables["a"].optimizer == {**TABLE_OPTIMIZERS["adam"], "name": "adam", "lr": 0.25}
    assert config.tables["b"].optimizer == {"name": "sgd", "lr": 0.05, "weight_decay": 0.0}
    assert config.tables["a"].schedule["final"] == 0.5
    assert config.tables["a"].schedule["name"] == config.tables["b"].schedule["name"] == "cosine"
    assert config.tables["b"].capacity_bytes == 1 << 20


def test_a_features_dim_is_its_tables_dim() -> None:
    config = load_config({**MINIMAL, "features": {"user": {"dim": 64}}})
    assert config.table("user").dim == 64
    assert config.table("other").dim == 16


def test_ranks_per_node_multiply_with_nodes() -> None:
    config = load_config({**MINIMAL, "ranks": {"per_node": {"trainers": 4}}})
    assert config.ranks.per_node == {"parameter_servers": 1, "embedding_workers": 1, "trainers": 4}
    assert config.ranks.counts(3) == {"parameter_servers": 3, "embedding_workers": 3, "trainers": 12}
    assert RanksConfig(trainers=2).total(5) == 4


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"data.batch_sise": 1}, ["data.batch_sise", "not a known key", "'batch_size'"]),
        ({"modus": "sync"}, ["modus is not a known key", "'mode'"]),
        ({"zzz": 1}, ["zzz is not a known key", "valid: mode, staleness_bound"]),
        ({"tables.item.dims": 8}, ["tables.item.dims", "'dim'"]),
        ({"staleness_bound": -1}, ["staleness_bound = -1: expected at least 0"]),
        ({"mode": "synch"}, ["mode = 'synch'", "hybrid, sync", "did you mean 'sync'"]),
        ({"mode": "sync", "staleness_bound": 4}, ["staleness_bound = 4", 'mode = "sync"']),
        ({"mode": "sync", "apply": "batch"}, ["apply = 'batch'", 'mode = "sync"']),
        ({"mode": "async", "exact": True}, ["exact", 'mode = "async"', "hybrid"]),
        ({"mode": "async", "apply": "step"}, ["apply", 'mode = "async"']),
        ({"train.reducer": "mpy"}, ["train.reducer = 'mpy'", "did you mean 'mpi'"]),
        ({"train.dense_wire": "bf16"}, ['train.dense_wire = "bf16"', "Horovod", 'train.reducer = "mpi"']),
        ({"data.batch_size": "2k"}, ["data.batch_size = '2k' (string): expected an integer"]),
        ({"data.batch_size": True}, ["data.batch_size = True (boolean): expected an integer"]),
        ({"data.batch_size": 0}, ["data.batch_size = 0: expected at least 1"]),
        ({"data.shuffle": 1}, ["data.shuffle = 1 (integer): expected true or false"]),
        ({"data.train": 5}, ["data.train = 5 (integer): expected a string or a list of strings"]),
        ({"data.train": []}, ["data.train is empty"]),
        ({"data": 3}, ["data = 3 (integer): expected a table [data]"]),
        ({"data.transform": "nothing"}, ["data.transform = 'nothing'", "module:name"]),
        ({"ranks.trainers": 0}, ["ranks.trainers = 0: expected a value from 1 to 100000"]),
        ({"ranks.per_node": {"trainers": 0}}, ["ranks.per_node.trainers = 0", "from 1 to"]),
        ({"ranks.per_node": {"trainer": 1}}, ["ranks.per_node.trainer", "'trainers'"]),
        ({"ranks.per_node": {"trainers": 1}, "ranks.trainers": 2}, ["ranks.per_node", "not both"]),
        ({"tables.default.dim": 4097}, ["tables.default.dim = 4097: expected a value from 1 to 4096"]),
        ({"tables.a.buckets": 1000}, ["tables.a.buckets = 1000: expected a power of two"]),
        ({"tables.a.capacity": "4 gigs"}, ["tables.a.capacity", "'4 gigs'", "'4 GiB'"]),
        ({"tables.a.capacity": 0}, ["tables.a.capacity = 0: expected more than 0 bytes"]),
        ({"tables.a.optimizer": "adamm"}, ["tables.a.optimizer.name = 'adamm'", "did you mean 'adam'"]),
        (
            {"tables.a.optimizer": {"betta1": 0.9, "name": "adam"}},
            ["optimizer.betta1", "option of 'adam'", "'beta1'"],
        ),
        ({"tables.a.optimizer": {"beta1": 1.0, "name": "adam"}}, ["optimizer.beta1 = 1.0", "below 1"]),
        ({"tables.a.optimizer": {"lr": -1}}, ["tables.a.optimizer.lr = -1.0: expected at least 0"]),
        ({"tables.a.optimizer": {"lr": "big"}}, ["tables.a.optimizer.lr = 'big': expected a number"]),
        ({"tables.a.optimizer": 3}, ["tables.a.optimizer = 3", "name"]),
        ({"tables.a.init": {"name": "uniform", "low": 2}}, ["tables.a.init.low = 2.0", "high = 0.01"]),
        ({"tables.a.init": "xavier"}, ["tables.a.init.name = 'xavier'", "uniform, normal"]),
        (
            {"features.a.table": "itm", "tables.item.dim": 4},
            ["features.a.table = 'itm'", "did you mean 'item'"],
        ),
        ({"features.a.pooling": "avg"}, ["features.a.pooling = 'avg'", "sum, mean, sqrtn, sequence"]),
        ({"features.a.pooling": "sequence"}, ["features.a", "max_length"]),
        ({"features.a.max_length": 0}, ["features.a.max_length = 0: expected at least 1"]),
        (
            {"features.a": {"table": "t", "dim": 8}, "tables.t.dim": 4},
            ["features.a.dim = 8", "'t' has dim 4", "features sharing a table"],
        ),
        (
            {"data.features": ["a"], "features.b.pooling": "sum"},
            ["features.b", "data.features leaves it out"],
        ),
        ({"model.class": "dlrn"}, ["model.class = 'dlrn'", "did you mean 'dlrm'"]),
        ({"model.class": "my mod:x"}, ["model.class = 'my mod:x'", "module:name"]),
        ({"train.optimizer": {"groups": 3}}, ["train.optimizer.groups = 3", "match"]),
        ({"train.optimizer": {"groups": [{"match": "a"}]}}, ["train.optimizer.groups", "list of tables"]),
        ({"train.epochs": 0}, ["train.epochs = 0: expected at least 1"]),
        ({"train.average": 1.0}, ["train.average = 1.0", "below 1"]),
        ({"train.average": 0.9, "mode": "async"}, ["train.average", "async"]),
        ({"train.clip_norm": 0}, ["train.clip_norm = 0.0: expected more than 0"]),
        ({"train.clip_norm": math.inf}, ["train.clip_norm = inf: expected a finite number"]),
        ({"train.device": "gpu"}, ["train.device = 'gpu'", "cuda"]),
        ({"train.early_stop": {}}, ["train.early_stop", "data.valid"]),
        ({"train.early_stop": {"patience": 0}}, ["train.early_stop.patience = 0"]),
        ({"train.early_stop": {"metrics": "auc"}}, ["train.early_stop.metrics", "'metric'"]),
        ({"train.early_stop": {"metric": "acu"}}, ["train.early_stop.metric = 'acu'", "did you mean 'auc'"]),
        ({"train.evaluate_every": 5}, ["train.evaluate_every = 5", "data.valid"]),
        ({"wire.rows": "fp8"}, ["wire.rows = 'fp8'", "fp32, fp16"]),
        ({"transport.stall_seconds": 0}, ["transport.stall_seconds = 0.0: expected more than 0"]),
        ({"transport.ring_bytes": "1 KiB"}, ["transport.ring_bytes = 1024: expected at least 4096"]),
        ({"seed": -1}, ["seed = -1"]),
        ({"ranks.trainers": 10**8}, ["ranks.trainers = 100000000: expected a value from 1 to 100000"]),
        (
            {"ranks.parameter_servers": 2000, "ranks.embedding_workers": 2000},
            ["parameter_servers * embedding_workers = 4000000", "rings of its own"],
        ),
    ],
)
def test_mistakes_are_named_with_their_key_and_what_was_expected(
    changes: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(MINIMAL, changes)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_message_names_the_file_or_that_it_was_set(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('[data]\ntrain = "a"\nbatch_size = "x"\n[model]\nclass = "dlrm"\n')
    with pytest.raises(UserError, match=rf"^{re.escape(str(file))}: data\.batch_size = 'x' \(string\)"):
        load_config(file)
    with pytest.raises(UserError, match=r"^--set data\.batch_size = 'y' \(string\)"):
        load_config(file, {"data.batch_size": "y"})
    assert load_config(file, {"data.batch_size": 7}).data.batch_size == 7


def test_set_through_a_value_that_is_no_table() -> None:
    with pytest.raises(UserError, match=r"--set seed\.x: seed is 3 \(integer\), not a table"):
        load_config({**MINIMAL, "seed": 3}, {"seed.x": 1})


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.epochs=3", "train.epochs", 3),
        ("a=0.5", "a", 0.5),
        ("a=true", "a", True),
        ("a=sync", "a", "sync"),
        ("a='3'", "a", "3"),
        ("a=[1, 2]", "a", [1, 2]),
        ('a={ name = "adam", lr = 1e-3 }', "a", {"name": "adam", "lr": 1e-3}),
        ("data.train=x/*.h5", "data.train", "x/*.h5"),
        ("a=b=c", "a", "b=c"),
        ("a=", "a", ""),
    ],
)
def test_parse_set(text: str, key: str, value: Any) -> None:
    parsed = parse_set([text])
    assert parsed == {key: value}
    assert type(parsed[key]) is type(value)


@pytest.mark.parametrize("text", ["train.epochs", "=3", ""])
def test_parse_set_refuses(text: str) -> None:
    with pytest.raises(UserError, match="expected KEY=VALUE"):
        parse_set([text])


def test_set_reaches_names_with_dots() -> None:
    assert load_config(MINIMAL, {'features."a.b".dim': 8}).features["a.b"].dim == 8


@settings(deadline=None)
@given(st.integers(0, 1 << 60), st.sampled_from(["KiB", "MiB", "GiB", "TiB"]))
def test_parse_bytes(number: int, unit: str) -> None:
    assert parse_bytes(number) == number
    assert parse_bytes(str(number)) == number
    small = number % 1000
    assert parse_bytes(f"{small} {unit}") == small * 1024 ** (1 + ["KiB", "MiB", "GiB", "TiB"].index(unit))


@given(st.text(max_size=8))
def test_parse_bytes_takes_only_numbers_with_units(text: str) -> None:
    try:
        value = parse_bytes(text)
    except ValueError:
        return
    assert value >= 0
    assert re.match(r"\s*\d", text)


def fields(cls: type, prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key, hint = prefix + toml_key(field), hints[field.name]
        inside = [a for a in typing.get_args(hint) if dataclasses.is_dataclass(a)]
        if dataclasses.is_dataclass(hint):
            out += fields(hint, key + ".")
        elif inside:
            out += fields(inside[0], key + (".NAME." if typing.get_origin(hint) is dict else "."))
        elif key != "model.arguments":
            out.append((key, field))
    return out


def test_every_key_is_documented_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `([\w.]+)` \| [^|]* \| ([^|]*) \|", DOCUMENT.read_text(), re.MULTILINE))
    known = dict(fields(Config))
    assert set(rows) == set(known)
    for key, field in known.items():
        text = rows[key].strip()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            assert text == "required", key
        elif field.default is None:
            assert text == "–", key
        else:
            default = field.default_factory() if field.default is dataclasses.MISSING else field.default
            read = tomllib.loads(f"x = {text.strip('`')}")["x"]
            if field.metadata.get("as_bytes"):
                read = parse_bytes(read)
            assert read == default, key
